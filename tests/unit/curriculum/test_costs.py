"""The table of a stage's costs, and what a tracked run gets of it."""

import json

import pytest

from lightning_mmrl.curriculum.costs import cost_metrics, cost_rows, markdown, note_costs
from lightning_mmrl.types.costs import RankCosts, StageCosts

ONE = RankCosts(
    seconds={"optimize": 6.0, "data": 3.0, "wait": 1.0, "other": 0.0},
    waits={"optimize": 1.0},
    tokens={"prompt": 1500, "completion": 20, "generated": 0},
    operations={"sampling": 0, "training": 40},
)
TWO = RankCosts(seconds={"optimize": 10.0}, tokens={"prompt": 500}, operations={"training": 60})
BOTH = StageCosts(num_steps=3, ranks=(ONE, TWO), peak=10.0)


class Run:
    """A tracked run that keeps what it is told."""

    def __init__(self):
        self.metrics, self.artifacts = [], []

    def log_metrics(self, metrics, step, time_s=None):
        self.metrics.append((step, dict(metrics)))

    def log_artifact(self, path, folder=None):
        self.artifacts.append(path)


def test_the_rows_are_means_over_the_ranks_and_the_longest_phase_comes_first():
    assert list(cost_rows(BOTH)) == [
        ("all", "10.0 s", "100%", "10%, 0% by rank", "2,000 prompt, 20 completion", "50.0%"),
        ("optimize", "8.0 s", "80%", "5%", "", ""),
        ("data", "1.5 s", "15%", "-", "", ""),
        ("wait", "0.5 s", "5%", "-", "", ""),
    ]


def test_short_phases_share_a_row_so_that_the_table_adds_up():
    seconds = {"generate": 100.0, "push": 0.2, "score": 0.2}
    rows = list(cost_rows(StageCosts(num_steps=1, ranks=(RankCosts(seconds=seconds),))))
    assert [(row[0], row[1]) for row in rows] == [
        ("all", "100.4 s"), ("generate", "100.0 s"), ("shorter phases", "0.4 s"),
    ]  # fmt: skip
    assert rows[0][3:] == ("-", "", "-")


def test_a_stage_without_time_has_one_row():
    assert len(list(cost_rows(StageCosts()))) == 1


def test_the_stages_run_gets_table_and_numbers_under_names_of_their_own(tmp_path):
    run = Run()
    note_costs("reason", BOTH, tmp_path / "stage", run, 3)
    assert run.artifacts == [tmp_path / "stage" / name for name in ("costs.json", "costs.md")]
    assert StageCosts.read(json.loads(run.artifacts[0].read_text(encoding="utf-8"))) == BOTH
    assert run.artifacts[1].read_text(encoding="utf-8") == markdown(BOTH)
    [(step, metrics)] = run.metrics
    assert step == 3
    assert metrics == {f"reason/cost/{name}": value for name, value in cost_metrics(BOTH).items()}
    assert metrics["reason/cost/seconds/all"] == 10
    assert metrics["reason/cost/wait_share/rank_0"] == pytest.approx(0.1)
    assert metrics["reason/cost/mfu"] == 0.5
    assert "| optimize | 8.0 s | 80% |" in markdown(BOTH)
