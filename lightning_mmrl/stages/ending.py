"""Ends a stage before its last step: once a validation meets a bound, or by what the stage has spent of a budget."""

import math
from collections.abc import Mapping
from fractions import Fraction

import lightning

from lightning_mmrl.errors import StageError
from lightning_mmrl.settings.stage import StageSettings
from lightning_mmrl.stages.costs import CostMeter
from lightning_mmrl.types.costs import StageBudget


class Ending:
    """Ends a stage at the first validation that meets a bound, or after a cooldown, in which the learning rate falls.

    The fall is the decay of a warmup-stable-decay schedule (arXiv:2404.06395, section 4), started by the validation in
    place of a fixed step. Runs with different seeds, which learn at different speeds, thus leave the stage equally
    good, and settled. All steps of the cooldown count, also steps that changed no weight. The last validation may lie
    before the end of the cooldown.

    A stage with a budget ends at the step whose end is nearest to the limit, if each further step costs what the last
    one did; of two that are equally near, at the earlier one. Its schedules go by the share of its own budget that is
    spent, as if by the share of `num_steps`.

    Args:
        settings: `stop_when` is the bound that a validation must meet, if there is one; over the `cooldown_steps` after
            that validation, the learning rate falls linearly to zero.
        budget: The limit of the stage's costs; None if it runs all its steps.
        costs: Measures what the stage cost; needed with a budget.

    >>> from lightning_mmrl.settings.stage import Bound
    >>> ending = Ending(StageSettings(stop_when=Bound(metric="validation/uar", at_least=0.5), cooldown_steps=4))
    >>> ending.validated({"validation/uar": 0.6}, step=10)
    >>> [ending.factor(step) for step in (9, 10, 11, 13)], ending.ended(13), ending.ended(14)
    ([1.0, 1.0, 0.75, 0.25], False, True)
    """

    def __init__(
        self, settings: StageSettings, budget: StageBudget | None = None, costs: CostMeter | None = None
    ) -> None:
        self._settings = settings
        self._budget = budget
        self._costs = costs or CostMeter()
        self._met_at: int | None = None

    @property
    def spends(self) -> bool:
        """Whether the stage ends by what it has spent."""
        return self._budget is not None

    def validated(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Checks the metrics of a validation after `step` steps against the bound."""
        if self._met_at is None and self._settings.stop_when is not None and self._settings.stop_when.met(metrics):
            self._met_at = step

    def ended(self, step: int) -> bool:
        """True if the stage ends after `step` steps, which are all that it has done."""
        budget = self._budget
        if budget is None:
            return self._met_at is not None and step >= self._met_at + self._settings.cooldown_steps
        total, last = self._costs.spent(budget.measure)
        return step > 0 and 2 * (budget.own - Fraction(total)) <= Fraction(last)

    def complete(self, step: int) -> bool:
        """True if a stage that did `step` steps did all that it should."""
        return self.ended(step) or (not self.spends and step >= self._settings.steps)

    def place(self, step: int) -> int | float:
        """Where the schedules are after `step` steps, as a number of steps; a fraction under a budget."""
        budget = self._budget
        if budget is None:
            return step
        place = self._share * self._settings.steps
        return place.numerator if place.denominator == 1 else float(place)

    def expected_steps(self, step: int) -> int:
        """How many steps the stage will have done after all, if it has done `step`.

        Under a budget all steps are expected to cost what those so far did on average; before the first one they are
        as many as `num_steps`, unless the budget is in steps.
        """
        budget = self._budget
        if budget is None:
            return self._settings.steps
        if self.ended(step):
            return step
        if budget.measure == "steps":
            return max(step + 1, math.ceil(budget.own - Fraction(1, 2)))
        share = self._share
        return max(step + 1, round(step / share) if share else self._settings.steps)

    def factor(self, step: int) -> float:
        """The factor of the learning rate in the step after `step` steps."""
        if self._met_at is None or self._settings.cooldown_steps == 0:
            return 1.0
        return min(1.0, max(0.0, 1 - (step - self._met_at) / self._settings.cooldown_steps))

    def state_dict(self) -> dict[str, int | None]:
        """The step at which the bound was met."""
        return {"met_at": self._met_at}

    def load_state_dict(self, state: Mapping[str, int | None]) -> None:
        """Restores the state that `state_dict` returned."""
        self._met_at = state["met_at"]

    def apply(self, trainer: lightning.Trainer, step: int) -> None:
        """Stops the trainer once the stage has ended.

        Raises:
            StageError: The first step cost more than twice the budget, so the nearest end is before it.
        """
        if step == 1:
            self._require_room()
        if self.ended(step):
            trainer.should_stop = True

    @property
    def _share(self) -> Fraction:
        """The share of the stage's own budget that is spent."""
        budget = self._budget
        assert budget is not None
        return Fraction(self._costs.spent(budget.measure)[0]) / budget.own

    def _require_room(self) -> None:
        budget = self._budget
        if budget is None:
            return
        spent, _ = self._costs.spent(budget.measure)
        if Fraction(spent) > 2 * budget.own:
            raise StageError(
                f"stages.{budget.stage}: one step takes {spent:.4g} {budget.measure}, and of budget."
                f"{budget.measure} {float(budget.own):.4g} are left for the stage; raise the budget or the stage's "
                "share, or make its batches smaller"
            )


def resume_at_end(trainer: lightning.Trainer) -> bool:
    """Lets a trainer that resumes after the last step do the validation of that step, if that one is due.

    A stage that ends itself is validated at its end, whatever the step. The trainer would skip that validation if it
    stopped at once; it validates after each step with an interval of 1.

    Returns:
        Whether the validation is due.
    """
    done = trainer.fit_loop.epoch_loop.val_loop.batch_progress.current.completed
    if done or not trainer.enable_validation:
        return False
    trainer.val_check_batch = 1
    return True
