"""The line that a stage shows after each step."""

from types import SimpleNamespace

from lightning_mmrl.training.callbacks.progress import StageProgress
from lightning_mmrl.types.costs import RankCosts, StageCosts


class Lines:
    """A console that keeps what it is told."""

    def __init__(self):
        self.shown = []

    def update(self, title, done, total, details=""):
        self.shown.append((title, done, total, details))


def test_shares_are_of_the_phases_of_this_step_and_not_of_one_before():
    step = StageCosts(num_steps=1, ranks=(RankCosts(seconds={"generate": 1.0, "other": 1.0}),))
    module = SimpleNamespace(
        ending=SimpleNamespace(expected_steps=lambda done: 9),
        # An iteration without a signal has no phase `optimize`, and `latest` keeps that of the iteration before.
        latest={"train/loss": 0.5, "time/step_s": 2.0, "time/generate_s": 1.0, "time/optimize_s": 6.0},
        headline={},
        costs=SimpleNamespace(step=step),
    )
    lines = Lines()
    StageProgress(lines, "stage 1 of 1 reason").on_train_batch_end(None, module, None, None, 2)
    [(title, done, total, details)] = lines.shown
    assert (title, done, total) == ("stage 1 of 1 reason", 3, 9)
    assert "2.0 s (generate 50%, other 50%)" in details
    assert "optimize" not in details
