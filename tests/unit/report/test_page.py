"""The page of a run: its sections, its policy, hostile texts, damaged parts, and its size."""

import base64
import gzip
import hashlib
import json
import math
import re

import pytest
from parsed_page import Parsed, missing, parsed
from run_folders import RunFolder, rollout, some_costs, whole_run

from lightning_mmrl.errors import ConfigError, DataError
from lightning_mmrl.report import packing as report_packing
from lightning_mmrl.report import rollouts as report_rollouts
from lightning_mmrl.report.graph import _row
from lightning_mmrl.report.page import page, write_report
from lightning_mmrl.report.run_files import read_run, read_runs
from lightning_mmrl.types.records import WEIGHTS

HOSTILE = (
    "</script><script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>'",
    "a\x00b\x1b[2J\u202egnp.exe\u2066\u200f",
    "<!--<script>",
    "]]>&lt;\u2028\ud800\U0001f600",
    "&#60;svg onload=alert(1)&#62;",
    "javascript:alert(1)",
)


@pytest.fixture
def run(tmp_path):
    return whole_run(tmp_path / "run")


def test_a_whole_run_shows_every_section(run):
    found = parsed(run.folder)
    sections = ["scores", "curriculum", "curves", "modalities", "confusion", "costs", "answers", "rollouts"]
    assert [each for each in found.ids() if each in {*sections, "missing"}] == ["missing", *sections]
    doubt = "After cold_start: happy is the only label that is recognized on test, as by a constant answer."
    assert doubt in found.text
    text = " ".join(found.text)
    for part in ("all 2 stages finished", "3", "train.jsonl abcdef012345", "[+10.0, +90.0]", "1 min 1 s", "generate"):
        assert part in text, part
    assert "5,120 generated" in text
    assert "0123456789abcdef" in text
    assert "torch 2.13.0" in text
    assert len(found.sampled) == 3
    assert found.data["curves"][0]["metrics"]["rollout/reward_mean"] == [
        {"run": 0, "x": [1, 2, 3], "y": [0.25, 0.5, 0.75]}
    ]


def test_a_response_is_shown_with_its_reward_beside_the_mean_of_its_group(run):
    run.roll("reason", [rollout(0, texts=("a", "b", "c"), rewards=(1.0, 0.0, None))])
    (group,) = parsed(run.folder).sampled
    shown = [(each["right"], each["reward"], each["over"], each["why"]) for each in group["responses"]]
    assert shown == [(True, 1.0, 0.5, None), (False, 0.0, -0.5, None), (None, None, None, "the verifier timed out")]
    assert (group["mean"], group["rate"], group["label"]) == (0.5, 0.5, "happy")
    assert [each["advantage"] for each in group["responses"]] == [None] * 3, "it was not recorded"
    run.roll("reason", [rollout(0, advantages=(0.866, None))])
    (group,) = parsed(run.folder).sampled
    assert [each["advantage"] for each in group["responses"]] == [0.866, None]


def test_the_policy_names_every_script_and_style_and_nothing_else_runs(run):
    found = parsed(run.folder)
    policy = next(a["content"] for tag, a in found.elements if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert "unsafe" not in policy
    hashes = {
        kind: [
            f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
            for tag, attributes, content in found.raw
            if tag == kind and "type" not in attributes
        ]
        for kind in ("script", "style")
    }
    assert rules["script-src"].split() == hashes["script"]
    assert rules["style-src"].split() == hashes["style"]
    assert len(hashes["script"]) == 3


def test_the_page_loads_nothing_and_has_no_handlers(run):
    for tag, attributes in parsed(run.folder).elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form", "img", "video", "audio"), tag
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "style", "srcset")]
        assert attributes.get("href", "#").startswith("#")
    scripts = "".join(content for tag, attributes, content in parsed(run.folder).raw if "type" not in attributes)
    assert not re.search(
        r"\bfetch\(|XMLHttpRequest|WebSocket|sendBeacon|import\(|innerHTML|\beval\(|url\((?!#)", scripts
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_stays_text_wherever_it_comes_from(tmp_path, text):
    clean = parsed(whole_run(tmp_path / "clean").folder)
    run = whole_run(tmp_path / "run")
    settings = (run.folder / "config.yaml").read_text()
    (run.folder / "config.yaml").write_text(settings.replace("run_name: run", f"run_name: {json.dumps(text)}"))
    run.evaluate("reason", [("happy", "happy"), ("sad", "sad")], name="test")
    summary = run.place("reason") / "evaluation" / "evaluation.json"
    entries = json.loads(summary.read_text())
    entries["test"]["metrics"][text] = 0.5
    summary.write_text(json.dumps(entries))
    run.log("reason", text, [1.0])
    row = rollout(0, texts=(text, text), rewards=(1.0, None), label=text)
    run.roll("reason", [row])
    found = parsed(run.folder)
    assert [tag for tag, _ in found.elements if tag in ("script", "style", "svg")] == [
        tag for tag, _ in clean.elements if tag in ("script", "style", "svg")
    ]
    assert {name for _, a in found.elements for name in a} == {name for _, a in clean.elements for name in a}
    html = page([read_run(run.folder)])
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\u2028\ud800-\udfff]", html)
    assert found.sampled[0]["responses"][0]["text"] == report_rollouts.visible(text)


def test_a_name_is_escaped_once_wherever_it_stands(tmp_path):
    name = 'R&D <"1">'
    run = RunFolder(tmp_path / name, order=(name,))
    run.finish(name)
    run.evaluate(name, [("happy", "happy"), ("sad", "sad")], name=name)
    run.log(name, "train/loss", [1.0])
    run.roll(name, [rollout(0)])
    found = parsed(run.folder)
    assert found.data["runs"] == [name]
    labels = [attributes["aria-label"] for _, attributes in found.elements if "aria-label" in attributes]
    assert {f"metrics of {name}", f"Confusion matrix: {name} on {name}"} <= set(labels)
    everything = [*found.text, *(value for _, attributes in found.elements for value in attributes.values() if value)]
    assert not re.search(r"&(amp|lt|gt|quot|#)", "".join([*everything, json.dumps(found.data)]))


def test_the_same_folder_gives_the_same_bytes(run):
    first = write_report([run.folder]).read_bytes()
    assert write_report([run.folder]).read_bytes() == first
    assert (run.folder / "report.html").read_bytes() == first


def test_groups_and_texts_are_limited_and_counted(run, monkeypatch):
    run.roll("reason", [rollout(number, texts=("x" * 5000, "y")) for number in range(40)])
    assert "All 44 groups are here." in " ".join(parsed(run.folder).text)
    monkeypatch.setattr(report_rollouts, "MOST_READ", 20)
    found = parsed(run.folder)
    groups = found.sampled
    assert [group["id"] for group in groups][:: len(groups) - 1] == ["train-0", "train-39"], "the first and the last"
    assert "reason: 20 of the 40 groups in its tables were read." in " ".join(found.text)
    assert groups[0]["responses"][0]["text"].endswith("x [1,000 more characters]")


@pytest.mark.parametrize(("limit", "most"), [("MOST_UNPACKED", 8_000), ("MOST_PACKED", 900)])
def test_groups_that_are_too_large_for_the_page_are_thinned_evenly(run, monkeypatch, limit, most):
    run.roll("reason", [rollout(number) for number in range(40)])
    monkeypatch.setattr(report_packing, limit, most)
    found = parsed(run.folder)
    size = len(found.packed if limit == "MOST_PACKED" else gzip.decompress(base64.b64decode(found.packed)))
    assert most / 2 < size <= most
    assert f"{len(found.groups)} of 44 groups are here, evenly chosen." in " ".join(found.text)
    assert (found.groups[0]["id"], found.groups[-1]["id"]) == ("train-0", "test-1")


def test_only_the_chosen_rows_of_a_table_are_parsed(run, monkeypatch):
    run.roll("reason", [rollout(number) for number in range(5)])
    path = run.place("reason") / "rollouts" / "iteration_000001.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "damaged", lines[2], "damaged", lines[4]]) + "\n")
    monkeypatch.setattr(report_rollouts, "MOST_READ", 3)
    found = parsed(run.folder)
    assert [group["id"] for group in found.sampled] == ["train-0", "train-2", "train-4"]
    assert "3 of the 5 groups" in " ".join(found.text)


def test_two_runs_stand_side_by_side(tmp_path):
    first, second = whole_run(tmp_path / "first"), whole_run(tmp_path / "second")
    second.evaluate("reason", [("happy", "sad"), ("sad", "sad")])
    found = parsed(first.folder, second.folder)
    text = " ".join(found.text)
    assert "second minus first, same samples, in points" in text
    assert "-50.0" in text
    assert {group["run"] for group in found.sampled} == {0, 1}
    assert [line["run"] for line in found.data["curves"][0]["metrics"]["rollout/reward_mean"]] == [0, 1]
    assert found.ids() == list(dict.fromkeys(found.ids())), "no id stands twice"


def test_runs_with_one_name_are_told_apart(tmp_path):
    old, new = (whole_run(tmp_path / name / "quickstart").folder for name in ("old", "new"))
    found = Parsed(page(read_runs([old, new])))
    assert found.data["runs"] == ["quickstart (old)", "quickstart (new)"]
    text = " ".join(found.text)
    assert "quickstart (new) minus quickstart (old)" in text
    assert "quickstart (old): reason" in text
    assert [run.name for run in read_runs([old, old])] == ["quickstart (1)", "quickstart (2)"]
    assert [run.name for run in read_runs([old])] == ["quickstart"]
    inner = whole_run(old / "quickstart").folder
    assert [run.name for run in read_runs([old, inner])] == ["quickstart (old)", "quickstart (quickstart)"]
    assert [run.name for run in read_runs([old, whole_run(tmp_path / "other").folder])] == ["quickstart", "other"]


def test_samples_of_one_run_alone_are_left_aside(tmp_path):
    first, second = whole_run(tmp_path / "first"), whole_run(tmp_path / "second")
    second.evaluate("reason", [("happy", "sad"), ("sad", "sad"), ("sad", "sad")])
    assert "test (1 unlike samples aside)" in " ".join(parsed(first.folder, second.folder).text)


def test_the_loss_without_a_channel_is_shown_only_where_it_was_measured(run, tmp_path):
    text = " ".join(parsed(run.folder).text)
    assert "silent" in text
    assert "-50.0" in text
    plain = RunFolder(tmp_path / "plain", order=("cold_start",))
    plain.finish("cold_start")
    plain.evaluate("cold_start", [("happy", "happy"), ("sad", "sad")])
    assert "modalities" not in parsed(plain.folder).ids()


MODALITY = {
    "version": 1,
    "sets": {
        "test": {
            "verdict": {
                "picture": {"verdict": "yes", "by": "blank", "says": "It looks: <b>a lot</b>."},
                "sound": {"verdict": "not_evaluated", "by": None, "says": "Whether it listens was not evaluated."},
            },
            "faithfulness": {"picture": {"says": "Without the picture, 31 % change."}, "all": {"says": "All of it."}},
        }
    },
    "conflicts": {
        "conflict": {
            "says": "It follows the picture.",
            "shares": {"follows_picture": {"estimate": 0.625, "low": 0.5, "high": 0.75}},
            "by_chance": {"picture": 0.25, "sound": 0.25},
        }
    },
}


def test_what_the_modality_report_says_is_shown_with_the_shares_of_conflicts(tmp_path):
    run = whole_run(tmp_path / "run")
    path = run.place("reason") / "evaluation" / "modality.json"
    path.write_text(json.dumps(MODALITY))
    text = " ".join(parsed(run.folder).text)
    for part in ("It looks: <b>a lot</b>.", "Without the picture, 31 % change.", "It follows the picture.", "62.5"):
        assert part in text, part
    assert "was not evaluated" not in text
    assert "All of it." not in text


@pytest.mark.parametrize("content", ["{", "[]", '{"sets": {"test": 3}, "conflicts": {}}', '{"sets": {}}'])
def test_a_damaged_modality_report_is_named_and_the_rest_is_shown(content, tmp_path):
    run = whole_run(tmp_path / "run")
    path = run.place("reason") / "evaluation" / "modality.json"
    path.write_text(content)
    text = " ".join(parsed(run.folder).text)
    assert f"{path} is damaged" in text
    assert "-50.0" in text


def test_a_modality_report_outside_of_the_run_is_not_read(tmp_path):
    run = whole_run(tmp_path / "run")
    outside = tmp_path / "outside.json"
    outside.write_text(json.dumps(MODALITY))
    (run.place("reason") / "evaluation" / "modality.json").symlink_to(outside)
    assert "It follows the picture." not in " ".join(parsed(run.folder).text)


def test_data_that_stages_made_and_routed_is_counted(tmp_path):
    run = RunFolder(tmp_path / "run", order=("route", "cold_start"))
    routing = {"prompts": {"solved": 5, "never_solved": 2}, "experts": {"teacher": {"right": 1}}}
    made = run.finish("route", kind="route", made={"own": {"kept": 5, "wrong": 1200}}, routing=routing)
    run.finish("cold_start", reads={WEIGHTS: "0" * 64, "data.sources.own": made["own"]})
    text = " ".join(parsed(run.folder).text)
    for part in ("never solved", "experts teacher", "samples kept in", "1,200", "own (5)", "own (5) of route"):
        assert part in text, part


def test_weights_from_outside_and_weights_that_were_replaced_since_are_told_apart(tmp_path):
    run = RunFolder(tmp_path / "run", order=("cold_start", "reason", "polish"))
    run.finish("cold_start")
    run.finish("reason", kind="rl", reads={WEIGHTS: "1" * 64}, start="cold_start")
    run.finish("polish", kind="rl", reads={WEIGHTS: "2" * 64}, start="models/other")
    reads = [row[2] for row in (_row(place, read_run(run.folder), []) for place in range(3))]
    assert reads == ["a model from outside", "weights of cold_start that were replaced since", "a model from outside"]


def test_a_curve_keeps_its_finite_values_and_counts_the_others(run):
    run.log("cold_start", "train/loss", [2.0, "nan", "inf", 1.0])
    found = parsed(run.folder)
    (line,) = next(each for each in found.data["curves"] if each["stage"] == "cold_start")["metrics"]["train/loss"]
    assert line["y"] == [2.0, None, None, 1.0]


def test_long_curves_are_shortened(run):
    run.log("cold_start", "train/loss", [float(step) for step in range(1, 1001)])
    found = parsed(run.folder)
    (line,) = next(each for each in found.data["curves"] if each["stage"] == "cold_start")["metrics"]["train/loss"]
    assert len(line["x"]) == 200
    assert math.isclose(sum(line["y"]) / 200, 500.5)
    assert "mean of up to 5 logged values" in " ".join(found.text)


SECRET = {"test": {"num_samples": 1, "metrics": {"uar": 0.123}, "intervals": {}}}


def test_a_run_folder_from_elsewhere_shows_no_file_outside_of_it(tmp_path):
    run, outside = whole_run(tmp_path / "run"), tmp_path / "outside"
    (outside / "evaluation").mkdir(parents=True)
    (outside / "evaluation" / "evaluation.json").write_text(json.dumps(SECRET))
    (outside / "secret.jsonl").write_text((run.place("reason") / "evaluation" / "test.jsonl").read_text())
    manifest = run.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"base/evaluation"', '"../outside/evaluation"'))
    summary = run.place("reason") / "evaluation" / "evaluation.json"
    entries = json.loads(summary.read_text())
    summary.write_text(json.dumps({**entries, "../../../../outside/secret": entries["test"]}))
    table = run.place("reason") / "rollouts" / "iteration_000002.jsonl"
    (outside / "table.jsonl").write_text((table.with_name("iteration_000001.jsonl")).read_text())
    table.symlink_to(outside / "table.jsonl")
    (run.folder / "stages" / "02-linked").symlink_to(outside)
    assert sum("leads out of" in note for note in missing(run.folder)) == 3
    found = parsed(run.folder)
    assert "12.3" not in " ".join(found.text)
    assert {group["table"] for group in found.sampled} == {"iteration_000001"}


def test_one_class_and_unread_answers_make_a_matrix(tmp_path):
    run = RunFolder(tmp_path / "run", order=("cold_start",))
    run.finish("cold_start")
    run.evaluate("cold_start", [("happy", None), ("happy", "happy")], labels=("happy", "sad"))
    text = " ".join(parsed(run.folder).text)
    assert "unparsed" in text
    assert missing(run.folder) == [
        "comparison.json is missing, so there are no paired gains; the same `mmrl train` writes it."
    ]


def test_an_answer_with_a_label_that_the_set_lacks_is_counted(tmp_path):
    """A label without a sample has no recall, so it is found in the answers alone."""
    runs = [RunFolder(tmp_path / name, order=("cold_start",)) for name in ("first", "second")]
    for run, answered in zip(runs, ("afraid", "happy"), strict=True):
        run.finish("cold_start")
        run.evaluate("cold_start", [("happy", "happy"), ("happy", answered)], labels=("happy", "afraid"))
    found = parsed(runs[0].folder)
    assert "afraid" in found.text
    text = " ".join(parsed(*(run.folder for run in runs)).text)
    assert "+50.0" in text
    assert "not compared" not in text


def test_a_stage_without_recorded_phases_says_so(tmp_path):
    run = RunFolder(tmp_path / "run", order=("cold_start",))
    run.finish("cold_start")
    assert "has not recorded its phases" in " ".join(parsed(run.folder).text)
    run.finish("cold_start", costs=some_costs())
    assert "shorter phases" in " ".join(parsed(run.folder).text)


@pytest.mark.parametrize("number", [0, 3])
def test_a_page_shows_one_or_two_runs(run, number):
    with pytest.raises(ConfigError, match=f"one run or two, not {number}"):
        write_report([run.folder] * number)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no manifest.json; name the folder of a run"):
        write_report([tmp_path])
    with pytest.raises(DataError, match="is no folder"):
        write_report([tmp_path / "nothing"])


def test_a_page_that_cannot_be_written_is_refused(run):
    with pytest.raises(ConfigError, match="is a folder; name the page"):
        write_report([run.folder], run.folder)
    with pytest.raises(ConfigError, match=r"config\.yaml is no folder"):
        write_report([run.folder], run.folder / "config.yaml" / "report.html")


def test_a_run_in_progress_says_so(run):
    text = (run.folder / "manifest.json").read_text()
    changed = text.replace('"running_id": null', '"running_id": "x"').replace(
        '"running_name": null', '"running_name": "02"'
    )
    (run.folder / "manifest.json").write_text(changed)
    assert "in progress, or killed, in 02; 2 of 2 stages finished" in " ".join(parsed(run.folder).text)
