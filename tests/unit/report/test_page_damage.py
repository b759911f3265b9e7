"""The page of a run that is going, that was damaged, or that a section of the page cannot show."""

from functools import partial

import pytest
from parsed_page import Parsed, missing, parsed
from run_folders import RunFolder, whole_run

from lightning_mmrl.report import page as report_page
from lightning_mmrl.report.page import page
from lightning_mmrl.report.run_files import read_runs


def append(path, text):
    path.write_text(path.read_text() + text)


DAMAGES = {
    "a run that has just begun": (lambda place: RunFolder(place, order=()), None, "No stage has begun"),
    "no configuration": (whole_run, lambda run: (run.folder / "config.yaml").unlink(), "config.yaml is missing"),
    "a configuration that is no YAML": (
        whole_run,
        lambda run: (run.folder / "config.yaml").write_text("a: [1"),
        "config.yaml cannot be read",
    ),
    "a configuration of another shape": (
        whole_run,
        lambda run: (run.folder / "config.yaml").write_text("stages: 3\norder: {a: 1}\nevaluation: []\nmodel: x\n"),
        "stages is no dict",
    ),
    "a stage that is not evaluated yet": (
        whole_run,
        lambda run: (run.place("reason") / "evaluation" / "evaluation.json").unlink(),
        "reason is trained and not evaluated yet",
    ),
    "an evaluation that is cut off": (
        whole_run,
        lambda run: (run.place("reason") / "evaluation" / "evaluation.json").write_text('{"test": {'),
        "is damaged",
    ),
    "an evaluation of another shape": (
        whole_run,
        lambda run: (run.place("reason") / "evaluation" / "evaluation.json").write_text('{"test": {"metrics": 3}}'),
        "is damaged",
    ),
    "no comparison": (whole_run, lambda run: (run.folder / "comparison.json").unlink(), "no paired gains"),
    "a comparison of another shape": (
        whole_run,
        lambda run: (run.folder / "comparison.json").write_text('{"gains": 3}'),
        "is damaged",
    ),
    "predictions that are missing": (
        whole_run,
        lambda run: (run.place("reason") / "evaluation" / "test.jsonl").unlink(),
        "test.jsonl cannot be read",
    ),
    "predictions that are cut off": (
        whole_run,
        lambda run: (run.place("reason") / "evaluation" / "test.jsonl").write_text('{"sample_id'),
        "a prediction is not JSON",
    ),
    "a rollout table that is cut off": (
        whole_run,
        lambda run: (run.place("reason") / "rollouts" / "iteration_000001.jsonl").write_text('{"version'),
        "is cut off or damaged",
    ),
    "an empty rollout table": (
        whole_run,
        lambda run: (run.place("reason") / "rollouts" / "iteration_000001.jsonl").write_text(""),
        "is empty",
    ),
    "a record of starts that is cut off": (
        whole_run,
        lambda run: (run.folder / "starts.jsonl").write_text('{"time": 1}\n'),
        "starts.jsonl name no versions",
    ),
    "metrics that are cut off": (
        whole_run,
        lambda run: append(run.place("reason") / "metrics.jsonl", '{"step": 4, "met'),
        "1 lines of",
    ),
    "metrics of another shape": (
        whole_run,
        lambda run: (run.place("reason") / "metrics.jsonl").write_text('{"step": [], "metrics": {"a": 1}}\n'),
        "its curves are cut",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_missing_or_damaged_is_said_and_the_rest_is_shown(tmp_path, damage):
    make, harm, expected = DAMAGES[damage]
    run = make(tmp_path / "run")
    if harm is not None:
        harm(run)
    assert any(expected in note for note in missing(run.folder)), missing(run.folder)
    found = parsed(run.folder)
    assert "missing" in found.ids()
    if make is whole_run:
        assert "cold_start" in " ".join(found.text)


@pytest.mark.parametrize("at_fault", [(0,), (1,), (0, 1)])
def test_a_fault_is_said_of_the_run_that_has_it(tmp_path, monkeypatch, at_fault):
    folders = [whole_run(tmp_path / name).folder for name in ("first", "second")]

    def broken(make, given, *others):
        names = [run.name for run in (given if isinstance(given, list) else [given])]
        if any(("first", "second")[place] in names for place in at_fault):
            raise KeyError("seconds")
        return make(given, *others)

    for builder in ("costs_section", "curves_section", "distribution_section", "read_rollouts"):
        monkeypatch.setattr(report_page, builder, partial(broken, getattr(report_page, builder)))
    runs = read_runs(folders)
    text = page(runs)
    for place, run in enumerate(runs):
        expected = ["rollouts", "Learning curves", "Time and tokens", "Rewards and lengths of sampled answers"]
        blamed = [note.partition(":")[0] for note in run.missing if "cannot be shown (KeyError" in note]
        assert blamed == (expected if place in at_fault else []), run.missing
    assert "What each stage brought" in text
    spared = [name for place, name in enumerate(("first", "second")) if place not in at_fault]
    found = Parsed(text)
    assert {"costs", "curves", "answers"} & set(found.ids()) == ({"costs", "curves", "answers"} if spared else set())
    assert [note for note in found.text if note.endswith(" alone.")] == [f"Of {name} alone." for name in spared] * 3
    assert {line["run"] for stage in found.data["curves"] for lines in stage["metrics"].values() for line in lines} == {
        place for place in range(2) if place not in at_fault
    }
    assert {group["run"] for group in found.sampled} == {place for place in range(2) if place not in at_fault}


def test_a_fault_that_no_run_has_alone_is_said_of_both(tmp_path, monkeypatch):
    runs = read_runs([whole_run(tmp_path / name).folder for name in ("first", "second")])

    def broken(given):
        if len(given) > 1:
            raise ValueError("not alike")

    monkeypatch.setattr(report_page, "stages_section", broken)
    page(runs)
    note = "What each stage brought: cannot be shown (ValueError: not alike)."
    assert [run.missing for run in runs] == [[note], [note]]
