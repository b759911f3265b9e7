"""The tables of results."""

from dataclasses import replace
from types import SimpleNamespace

from rich.console import Console

from lightning_mmrl.cli.tables import by_task, gains_table, print_comparison, results_table
from lightning_mmrl.curriculum.compare import Comparison, Gain, SetResult
from lightning_mmrl.evaluation.intervals import Interval
from lightning_mmrl.evaluation.speakers import SpeakerSpread
from lightning_mmrl.evaluation.tasks.closed_labels import ClosedLabels
from lightning_mmrl.evaluation.tasks.mathematics import Mathematics
from lightning_mmrl.rewards.math_answer import MathAnswer


def interval(estimate):
    return Interval(
        estimate=estimate, low=estimate - 0.1, high=estimate + 0.1, level=0.95, num_resamples=9, unit="clip"
    )


WHOLE = SetResult(
    stage="reason",
    name="test",
    num_samples=99,
    metrics={"valid_format": 1.0, "consistency": 0.5},
    intervals={"war": interval(0.5), "uar": interval(0.4)},
    task=ClosedLabels(labels=("angry", "sad")),
)


def lines(*results):
    console = Console(width=120)
    with console.capture() as captured:
        console.print(results_table(results))
    rows = [line for line in captured.get().splitlines() if "\u2502" in line]
    return [[cell.strip() for cell in row.strip("\u2502").split("\u2502")] for row in rows]


def test_a_set_of_known_speakers_has_its_worst_and_best_one():
    spread = SpeakerSpread(headline="uar", num_speakers=25, min=0.571, median=0.7, max=0.9294, sd=0.1, each={})
    first, second = lines(replace(WHOLE, speakers=spread), WHOLE)
    assert (first[-1], second[-1]) == ("25: 57.1 to 92.9", "-")
    assert first[:-1] == lines(WHOLE)[0]


def test_intervals_that_are_not_reliable_are_marked_and_explained():
    few = replace(interval(0.5), unit="speaker", num_units=14, reliable=False)
    row = replace(WHOLE, intervals={"war": few, "uar": replace(few, reliable=True)})
    text = printed(results_table([row]))
    assert "50.0 [40.0, 60.0] !" in text
    assert text.count("] !") == 1
    assert "! not reliable: fewer than 15 speakers" in text
    gain = Gain(stage="reason", over="cold_start", name="test", difference=few, task=WHOLE.task)
    text = printed(gains_table(WHOLE.task, [gain]))
    assert "+50.0 [+40.0, +60.0] !" in text
    assert "! not reliable: fewer than 15 speakers" in text
    sure = {key: replace(few, reliable=True) for key in ("war", "uar")}
    assert "reliable" not in printed(results_table([replace(WHOLE, intervals=sure)]))


def test_single_samples_as_units_are_said_in_words():
    assert "speakers are not known, so single samples were resampled" in printed(results_table([WHOLE]))
    text = printed(results_table([replace(WHOLE, intervals={"war": replace(interval(0.5), reliable=False)})]))
    assert "! not reliable: fewer than 15 speakers or samples; single samples were resampled" in text


def test_a_result_of_before_a_metric_had_an_interval_has_a_table():
    before = replace(WHOLE, metrics={**WHOLE.metrics, "uar": 0.25}, intervals={"war": interval(0.5)})
    assert lines(before)[0][3:5] == ["50.0 [40.0, 60.0]", "25.0"]


def test_a_set_of_which_samples_were_left_out_has_a_second_row_that_counts_them_wrong():
    wrong = {"valid_format_counted_wrong": 0.99, "consistency_counted_wrong": 0.45}
    partial = replace(
        WHOLE,
        metrics={**WHOLE.metrics, **wrong},
        num_left_out=2,
        counted_wrong={"war": interval(0.3), "uar": interval(0.2)},
    )
    first, second, third = lines(partial, replace(WHOLE, name="ood"))
    assert first == ["reason", "test", "99", "50.0 [40.0, 60.0]", "40.0 [30.0, 50.0]", "100.0", "50.0"]
    assert second == [
        *("reason", "test + 2 left out, as wrong", "101"),
        *("30.0 [20.0, 40.0]", "20.0 [10.0, 30.0]", "99.0", "45.0"),
    ]
    assert third[1:3] == ["ood", "99"]


def test_without_exclusions_there_is_one_row_a_set():
    assert len(lines(WHOLE, replace(WHOLE, name="ood"))) == 2


SUMS = SetResult(
    stage="reason",
    name="sums",
    num_samples=5,
    metrics={"accuracy": 0.6, "valid_format": 0.8, "unparseable": 0.2, "unjudged": 0.0},
    intervals={"accuracy": interval(0.6)},
    task=Mathematics(verifier=MathAnswer()),
)


def printed(*tables):
    console = Console(width=120)
    with console.capture() as captured:
        for table in tables:
            console.print(table)
    return captured.get()


def test_each_kind_of_task_has_a_table_of_its_own():
    gains = [
        Gain(stage="reason", over="cold_start", name=row.name, difference=interval(0.1), task=row.task)
        for row in (SUMS, WHOLE)
    ]
    parts = by_task(Comparison(results=[WHOLE, SUMS, replace(WHOLE, name="ood")], gains=gains))
    assert [[row.name for row in results] for results, _ in parts] == [["test", "ood"], ["sums"]]
    assert [[gain.name for gain in found] for _, found in parts] == [["test"], ["sums"]]
    assert lines(*parts[1][0]) == [["reason", "sums", "5", "60.0 [50.0, 70.0]", "80.0", "20.0"]]


def test_a_run_without_gains_prints_no_table_of_gains(capsys, tmp_path):
    outcome = SimpleNamespace(
        comparison=Comparison(results=[SUMS], gains=[]), results=[], directory=tmp_path, tracking_uri=None
    )
    print_comparison(outcome)
    shown = capsys.readouterr().out
    assert "60.0 [50.0, 70.0]" in shown
    assert "gained" not in shown


def test_the_tables_of_a_run_without_labels_know_no_labels():
    gain = Gain(stage="reason", over="cold_start", name="sums", difference=interval(0.1), task=SUMS.task)
    text = printed(results_table([SUMS]), gains_table(SUMS.task, [gain]))
    assert "Accuracy gained over the stage it started from" in text
    assert not [word for word in ("UAR", "WAR", "motion", "ecognition") if word in text]
    text = printed(results_table([WHOLE]), gains_table(WHOLE.task, [replace(gain, task=WHOLE.task)]))
    assert all(word in text for word in ("Recognition by stage, in %", "UAR gained over", "WAR"))
