"""Campaigns over seeds read the answers of runs, pool gains by question over seeds, and count the time of each run."""

import sys
from dataclasses import replace

import pytest
import seed_runs
from judged_runs import judged, write_answers

TASK = seed_runs.task_of([judged("0/0", True)])


def of_seeds(right):
    """Answers to the same four questions with two seeds; `right` says which numbers are right with a seed."""
    return [
        replace(judged(f"{seed}/{number}", number < right(seed)), speaker=str(number))
        for seed in (0, 1)
        for number in range(4)
    ]


def test_a_gain_is_paired_over_questions_and_seeds_and_resamples_questions():
    before, own = of_seeds(lambda seed: 1), of_seeds(lambda seed: 2 + seed)
    gain = seed_runs.pooled_gain(own, before[::-1], TASK)
    assert gain.estimate == pytest.approx((1 + 2) / 8)
    assert gain.unit == "speaker"
    assert gain.low == 0.0, "a resample may hold only questions without a gain"
    assert seed_runs.pooled_gain(own, own, TASK).high == 0.0


def test_a_gain_over_seeds_is_a_paired_t():
    before, own = of_seeds(lambda seed: 1), of_seeds(lambda seed: 2 + seed)
    found = seed_runs.gain_over_seeds(own, before, [0, 1], TASK)
    assert found.values == pytest.approx((0.25, 0.5))
    assert seed_runs.gain_over_seeds(own[:4], before[:4], [0], TASK) is None


def test_answers_of_all_runs_are_read_with_their_seed(tmp_path):
    folders = {seed: tmp_path / f"run{seed}" for seed in (0, 2)}
    for folder in folders.values():
        for place, right in (("base", False), ("stages/02-reason", True), ("stages/03-reason_first", False)):
            write_answers(folder, place, [judged("test-0", right)])
    base = seed_runs.pooled(folders, seed_runs.BASE)
    assert [(each.sample_id, each.speaker) for each in base] == [("0/test-0", "test-0"), ("2/test-0", "test-0")]
    assert [each.scores["accuracy"] for each in seed_runs.pooled(folders, "reason")] == [1.0, 1.0]
    assert list(seed_runs.evaluated(folders[0], "draw")) == []
    assert seed_runs.percentages(seed_runs.pooled(folders, "reason"), [0, 2], TASK, "accuracy") == [100.0, 100.0]


def test_the_headline_is_accuracy_of_scored_answers_and_uar_of_labels():
    label = replace(judged("0", True), truth="happy", predicted="sad", scores={})
    assert TASK.headline == "accuracy"
    task = seed_runs.task_of([label])
    assert (task.headline, task.metrics([label])["uar"]) == ("uar", 0.0)


COMMAND = (
    "import pathlib, sys; file = pathlib.Path(sys.argv[1]); file.write_text(file.read_text() + '+') if {} else None"
)


@pytest.mark.parametrize(("changes", "lines"), [(True, 2), (False, 0)])
def test_time_counts_where_a_run_went_on(tmp_path, monkeypatch, changes, lines):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    run, given = seed_runs.subprocess.run, []

    def stand_in(command, check):
        given.append(command[3:])
        return run([sys.executable, "-c", COMMAND.format(changes), folder / "manifest.json"], check=check)

    monkeypatch.setattr(seed_runs.subprocess, "run", stand_in)
    for _ in range(2):
        seed_runs.train("quickstart", 3, folder, ["debug=fast"])
    assert given[0] == [
        "train",
        "experiment=quickstart",
        f"output_dir={tmp_path}",
        "run_name=run",
        "seed=3",
        "debug=fast",
    ]
    file = tmp_path / "run.usage.jsonl"
    assert (len(file.read_text().splitlines()) if file.exists() else 0) == lines
    assert ("cpu_seconds" in seed_runs.usage(folder)) == changes


def test_a_run_that_fails_ends_the_campaign(tmp_path, monkeypatch):
    run = seed_runs.subprocess.run
    failing = [sys.executable, "-c", "raise SystemExit(2)"]
    monkeypatch.setattr(seed_runs.subprocess, "run", lambda command, check: run(failing, check=check))
    with pytest.raises(SystemExit, match="run ended with exit code 2"):
        seed_runs.train("quickstart", 0, tmp_path / "run")
