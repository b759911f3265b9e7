"""Ends a stage early, once a validation meets a bound."""

from collections.abc import Mapping

import lightning

from lightning_mmrl.settings.stage import StageSettings


class Ending:
    """Ends a stage at the first validation that meets a bound, or after a cooldown, in which the learning rate falls.

    The fall is the decay of a warmup-stable-decay schedule (arXiv:2404.06395, section 4), started by the validation in
    place of a fixed step. Runs with different seeds, which learn at different speeds, thus leave the stage equally
    good, and settled. All steps of the cooldown count, also steps that changed no weight. The last validation may lie
    before the end of the cooldown.

    Args:
        settings: `stop_when` is the bound that a validation must meet, if there is one; over the `cooldown_steps` after
            that validation, the learning rate falls linearly to zero.

    >>> from lightning_mmrl.settings.stage import Bound
    >>> ending = Ending(StageSettings(stop_when=Bound(metric="validation/uar", at_least=0.5), cooldown_steps=4))
    >>> ending.validated({"validation/uar": 0.6}, step=10)
    >>> [ending.factor(step) for step in (9, 10, 11, 13)], ending.ended(13), ending.ended(14)
    ([1.0, 1.0, 0.75, 0.25], False, True)
    """

    def __init__(self, settings: StageSettings) -> None:
        self._stop_when = settings.stop_when
        self._cooldown_steps = settings.cooldown_steps
        self._met_at: int | None = None

    def validated(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Checks the metrics of a validation after `step` steps against the bound."""
        if self._met_at is None and self._stop_when is not None and self._stop_when.met(metrics):
            self._met_at = step

    def ended(self, step: int) -> bool:
        """True if the stage ends after `step` steps."""
        return self._met_at is not None and step >= self._met_at + self._cooldown_steps

    def factor(self, step: int) -> float:
        """The factor of the learning rate in the step after `step` steps."""
        if self._met_at is None or self._cooldown_steps == 0:
            return 1.0
        return min(1.0, max(0.0, 1 - (step - self._met_at) / self._cooldown_steps))

    def state_dict(self) -> dict[str, int | None]:
        """The step at which the bound was met."""
        return {"met_at": self._met_at}

    def load_state_dict(self, state: Mapping[str, int | None]) -> None:
        """Restores the state that `state_dict` returned."""
        self._met_at = state["met_at"]

    def apply(self, trainer: lightning.Trainer, step: int) -> None:
        """Stops the trainer once the stage has ended."""
        if self.ended(step):
            trainer.should_stop = True
