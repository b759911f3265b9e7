"""The outputs of a comparison: results, Markdown, figure and page agree, load nothing, and keep hostile names texts."""

import base64
import hashlib
import json
import re
import xml.etree.ElementTree as ElementTree

import pytest
from arm_folders import ArmsFolder
from parsed_page import Parsed

from lightning_mmrl.cli.arms_table import print_comparison
from lightning_mmrl.report.arms_figure import Scale
from lightning_mmrl.report.arms_page import comparison_page, write_comparison
from lightning_mmrl.report.arms_read import summarize
from lightning_mmrl.report.arms_tables import UNEQUAL, all_grids, caption, markdown, number_in, p_value, verdict
from lightning_mmrl.training.console import PlainConsole

SFT = {0: 0.5, 1: 0.6, 2: 0.4}
RL = {0: 0.55, 1: 0.7, 2: 0.6}
BAD = {0: 0.401, 1: 0.5, 2: 0.3}
SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = (
    "</title></svg><script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>'",
    "a\x00b\x1b[2J\u202egnp.exe\uffff",
    "| a | [b](javascript:alert(1)) `c` *d* |",
    "&lt;b&gt;",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "orders"
    return ArmsFolder(folder, {"sft": SFT, "rl": RL, "bad": BAD}, operations={"bad": 1100}, best=0.1)


@pytest.fixture
def arms(made, tmp_path):
    return made.copied(tmp_path / "orders")


def page_of(folder):
    return Parsed((folder / "report.html").read_text())


def test_all_outputs_are_written_and_the_same_runs_give_the_same_bytes(arms):
    names = ("results.json", "table.md", "figure.svg", "report.html")
    write_comparison(arms.folder)
    first = [(arms.folder / name).read_bytes() for name in names]
    write_comparison(arms.folder)
    assert [(arms.folder / name).read_bytes() for name in names] == first
    assert not list(arms.folder.glob("*.tmp"))


def test_page_and_table_show_the_figures_of_the_results(arms):
    summary = write_comparison(arms.folder)
    results = json.loads((arms.folder / "results.json").read_text())
    assert results == json.loads(json.dumps(summary.plain()))
    page = " ".join(page_of(arms.folder).text)
    table = (arms.folder / "table.md").read_text()
    for each in results["differences"]:
        low, high = (f"{100 * each['found'][end]:+.1f}" for end in ("low", "high"))
        shown = f"{100 * each['mean']:+.1f} [{low}, {high}]"
        assert shown in page
        assert shown.replace("[", "\\[").replace("]", "\\]") in table
        assert p_value(each["corrected"]) in page
    for arm in results["arms"].values():
        for value in arm["value"]["by_seed"].values():
            assert f"{100 * value:.1f}" in page


def test_an_unequal_budget_is_marked_in_every_table(arms):
    summary = write_comparison(arms.folder)
    marked = [each for each in all_grids(summary) if each.head[-1] == "budget"]
    assert len(marked) == 4
    for grid in marked:
        assert [row[-1] for row in grid.rows if row[0] == "bad"] == ["UNEQUAL"]
        assert {row[-1] for row in grid.rows if row[0] != "bad"} == {"equal"}
    assert ("span", {"class": "sign less"}) in page_of(arms.folder).elements
    assert "bad: unequal budget, runs spent 110.0 to 110.0 % of the budget" in (arms.folder / "table.md").read_text()


def test_the_policy_names_the_style_and_allows_nothing_else(arms):
    write_comparison(arms.folder)
    found = page_of(arms.folder)
    policy = next(a["content"] for _, a in found.elements if a.get("http-equiv") == "Content-Security-Policy")
    [style] = [content for tag, _, content in found.raw if tag == "style"]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    for tag, attributes in found.elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form", "img", "image", "use"), tag
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "style", "srcset")]
        assert attributes.get("href", "#").startswith(("#", "./runs/"))


def test_runs_link_to_their_own_pages(arms):
    (arms.folder / "runs" / "rl-seed1" / "report.html").unlink()
    write_comparison(arms.folder)
    links = [a["href"] for tag, a in page_of(arms.folder).elements if tag == "a" and a["href"].startswith("./")]
    assert len(links) == 8
    assert all((arms.folder / link).is_file() for link in links)


def test_the_figure_is_a_picture_with_a_text_and_loads_nothing(arms):
    summary = write_comparison(arms.folder)
    root = ElementTree.parse(arms.folder / "figure.svg").getroot()
    assert root.get("role") == "img"
    texts = {each.get("id"): each.text for each in root if each.get("id")}
    assert list(texts) == root.get("aria-labelledby").split()
    told = texts["arms-text"]
    assert "rl: mean 61.7 %, 95 % interval 42.7 to 80.6, seeds 55.0, 70.0, 60.0." in told
    low, high = (100 * end for end in (summary.contrasts[0].found.low, summary.contrasts[0].found.high))
    assert f"rl minus sft: +11.7 points, 95 % interval {low:+.1f} to {high:+.1f}." in told
    whole = (arms.folder / "figure.svg").read_text()
    assert not re.search(r"href|url\(|@import|@font-face|<image|<script", whole)
    assert "prefers-color-scheme: dark" in whole


def test_each_seed_is_a_point_at_its_value_and_seeds_are_joined(arms):
    summary = write_comparison(arms.folder)
    root = ElementTree.parse(arms.folder / "figure.svg").getroot()
    points = {each[0].text: float(each.get("cx")) for each in root.iter(f"{SVG}circle")}
    assert len(points) == 9
    assert points["rl, seed 0: 55.0 %"] < points["rl, seed 2: 60.0 %"] < points["rl, seed 1: 70.0 %"]
    low, middle, high = (points[f"rl, seed {seed}: {value} %"] for seed, value in ((0, 55.0), (2, 60.0), (1, 70.0)))
    assert high - middle == pytest.approx(2 * (middle - low), abs=0.2)  # places are rounded to 0.1
    assert len([each for each in root.iter(f"{SVG}line") if each.get("class") == "pair"]) == 6
    assert len([each for each in root.iter(f"{SVG}line") if each.get("class") == "together"]) == len(summary.contrasts)


@pytest.mark.parametrize("values", [[], [50.0], [0.0, 0.0], [1e-9, 2e-9], [-3.0, 900.0]])
def test_a_scale_holds_its_values_and_has_ticks(values):
    scale = Scale.of(values, (100.0, 300.0))
    assert all(100 <= float(scale(value)) <= 300 for value in values)
    assert 2 <= len(scale.ticks) <= 9


def test_the_caption_says_unit_interval_correction_and_budget(arms):
    told = " ".join(caption(summarize(arms.folder)))
    for part in (
        "uar on test of the arm minus that of sft with the same seed, each after the arm's last trained stage",
        "The unit is the seed.",
        "Student's paired t test over seeds",
        "nothing about other data",
        "Holm's procedure over the 2 comparisons of this table",
        "Bonferroni intervals, which hold all 2 true differences at once in at least 95 % of such tables",
        "1,000 operations of training and sampling over logical tokens for each run",
        "counted over all stages but pretrain",
        "UNEQUAL marks arms whose runs are more than 2 % apart, or one of them more than 2 % off.",
    ):
        assert part in told, part


def test_one_comparison_needs_no_correction_and_claims_none(tmp_path):
    arms = ArmsFolder(tmp_path / "two", {"sft": SFT, "rl": RL})
    summary = write_comparison(arms.folder)
    grid = all_grids(summary)[0]
    assert "corrected p" not in grid.head
    assert not any(name.startswith("all together") for name in grid.head)
    told = " ".join(grid.caption)
    assert "There is one comparison, so nothing is corrected." in told
    assert "Holm" not in told + (arms.folder / "report.html").read_text()


CLEAR = {0: 0.4, 1: 0.5, 2: 0.6, 3: 0.5}
VERDICTS = [
    ({"better": 0.2, "worse": -0.2}, "clearly more: better (+20.2); clearly less: worse (-19.8)."),
    ({"noisy": None}, "no clear difference: noisy (+0.3)."),
]


@pytest.mark.parametrize(("by", "told"), VERDICTS)
def test_the_verdict_is_one_sentence_wherever_the_table_is(tmp_path, capsys, by, told):
    wobble = {0: 0.002, 1: 0.004, 2: 0.003, 3: 0.001}
    noise = {0: 0.31, 1: -0.3, 2: 0.202, 3: -0.2}
    others = {
        name: {seed: CLEAR[seed] + (noise[seed] if step is None else step + wobble[seed]) for seed in CLEAR}
        for name, step in by.items()
    }
    arms = ArmsFolder(tmp_path / "orders", {"base": CLEAR, **others})
    expected = f"uar on test against base, in points: {told}"
    summary = write_comparison(arms.folder)
    assert verdict(summary) == expected
    assert expected in " ".join(page_of(arms.folder).text)
    assert expected in (arms.folder / "table.md").read_text()
    print_comparison(summary, PlainConsole(width=400))
    assert expected in capsys.readouterr().out.splitlines()


def test_the_verdict_says_what_weakens_it(arms):
    assert verdict(write_comparison(arms.folder)).count(UNEQUAL) == 1
    arms.content["runs"][0]["exit_code"] = None
    arms.content["all_pairs"] = True
    arms.save()
    told = verdict(write_comparison(arms.folder))
    assert told.startswith("So far: uar on test between arms, in points: ")
    arms.content["exploratory"] = True
    arms.save()
    assert verdict(write_comparison(arms.folder)).startswith("Exploratory, so far: uar on test between arms")
    assert "bad over rl" in told


def test_all_pairs_name_both_arms(arms):
    arms.content["all_pairs"] = True
    arms.save()
    grid = all_grids(write_comparison(arms.folder))[0]
    assert [row[:2] for row in grid.rows] == [("rl", "sft"), ("bad", "sft"), ("bad", "rl")]
    assert "minus that of the other arm" in grid.caption[0]
    assert "over the 3 comparisons" in " ".join(grid.caption)


def test_folds_are_said_to_be_no_units(tmp_path):
    results = {arm: {seed: {"a": 0.5 + seed / 10, "b": 0.25} for seed in (0, 1)} for arm in ("sft", "rl")}
    arms = ArmsFolder(tmp_path / "folds", results, folds=["a", "b"])
    grids = all_grids(write_comparison(arms.folder))
    assert "The unit is the seed, with its mean over 2 folds as its value." in " ".join(grids[0].caption)
    assert ("0", "a", "50.0", "50.0") in next(each for each in grids if "seed and fold" in each.title).rows


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_name_stays_a_text(made, tmp_path, text):
    clean = made.copied(tmp_path / "clean")
    write_comparison(clean.folder)
    arms = made.copied(tmp_path / "hostile")
    renamed = (
        json.dumps(arms.content).replace('"rl"', json.dumps(text)).replace('"reason": 1.0', f"{json.dumps(text)}: 1")
    )
    arms.content = json.loads(renamed) | {"name": text, "question": text, "command": [text]}
    arms.content["arms"][text]["overrides"] = [text]
    arms.save()
    summary = write_comparison(arms.folder)
    before, after = page_of(clean.folder), page_of(arms.folder)
    assert [tag for tag, _ in after.elements] == [tag for tag, _ in before.elements]
    assert {name for _, a in after.elements for name in a} == {name for _, a in before.elements for name in a}
    for name in ("report.html", "figure.svg", "table.md"):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e]", (arms.folder / name).read_text()), name
    root = ElementTree.parse(arms.folder / "figure.svg").getroot()
    assert [each.tag for each in root.iter()] == [
        each.tag for each in ElementTree.parse(clean.folder / "figure.svg").getroot().iter()
    ]
    rows = [line for line in markdown(summary).splitlines() if line.startswith("| ")]
    sizes = [len(re.findall(r"(?<!\\)\|", line)) for line in rows]
    clean_rows = [line for line in (clean.folder / "table.md").read_text().splitlines() if line.startswith("| ")]
    assert sizes == [len(re.findall(r"(?<!\\)\|", line)) for line in clean_rows]
    assert "<" not in markdown(summary)


@pytest.mark.parametrize(
    ("results", "shown"),
    [
        ({"sft": {0: 0.5}, "rl": {0: 0.6}}, "one seed in common, which has no interval"),
        ({"sft": {0: 0.5, 1: 0.5}, "rl": {0: 0.6, 1: 0.6}}, "the difference is the same in all 2 seeds"),
        ({"sft": {0: 0.5, 1: 0.6}}, "uar on test of each arm"),
        ({"sft": {0: None, 1: None}, "rl": {0: None, 1: None}}, "Not complete"),
        ({"sft": {0: 0.0, 1: 0.0}, "rl": {0: 0.0, 1: 0.0}}, "no interval"),
    ],
)
def test_few_seeds_arms_and_equal_values_are_shown_without_a_claim(tmp_path, results, shown, capsys):
    arms = ArmsFolder(tmp_path / "few", results)
    summary = write_comparison(arms.folder)
    assert shown in " ".join(page_of(arms.folder).text)
    ElementTree.parse(arms.folder / "figure.svg")
    cells = [row for grid in all_grids(summary) if "clear" in grid.head for row in grid.rows]
    assert not any({"more", "less"} & set(row) for row in cells)
    print_comparison(summary, PlainConsole(width=120))
    assert "report.html is the whole" in capsys.readouterr().out


def test_a_comparison_that_runs_and_an_exploratory_one_say_so(arms):
    arms.content["exploratory"] = True
    arms.content["runs"][0]["exit_code"] = None
    arms.save()
    write_comparison(arms.folder)
    for name in ("report.html", "table.md"):
        text = (arms.folder / name).read_text()
        assert "Exploratory: this comparison looks for questions" in text
        assert "ended early because a difference is clear" in text


def test_the_console_shows_the_differences_and_names_the_files(arms, capsys):
    print_comparison(write_comparison(arms.folder), PlainConsole(width=140))
    shown = capsys.readouterr().out
    for part in ("Differences to sft in uar on test, in points", "UNEQUAL", "The unit is the seed", "unequal budget"):
        assert part in shown
    assert f"{arms.folder / 'report.html'} is the whole; table.md, figure.svg and results.json" in shown


def test_a_page_of_a_comparison_of_many_runs_stays_small(arms):
    assert len(comparison_page(summarize(arms.folder))) < 60_000


@pytest.mark.parametrize(("value", "shown"), [(2e13, "2.00e+13"), (999_999.0, "999,999"), (0.5, "0.5"), (0.0, "0")])
def test_counts_are_short(value, shown):
    assert number_in(value) == shown
