"""The tables of results."""

from dataclasses import replace

from rich.console import Console

from lightning_mmrl.cli.tables import results_table
from lightning_mmrl.curriculum.compare import SetResult
from lightning_mmrl.evaluation.intervals import Interval
from lightning_mmrl.evaluation.tasks.closed_labels import ClosedLabels


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
