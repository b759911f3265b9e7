"""Stages that end when validation says so."""

from collections.abc import Mapping

import lightning

from lightning_mmrl.settings.stage import Bound


class Ending:
    """Ends a stage at the first validation that meets a bound, or some steps later while the learning rate falls.

    The fall is the decay of a warmup-stable-decay schedule (arXiv:2404.06395, section 4), begun by the validation in
    place of a fixed step: seeds that learn at different speed leave the stage alike, and settled. Fall and end count
    the same steps, also those that changed no weight. The last validation may lie before the end of the fall.

    Args:
        stop_when: What a validation must reach; None never ends the stage.
        cooldown_steps: Steps after that, over which the learning rate falls linearly to zero.

    >>> ending = Ending(Bound(metric="validation/uar", at_least=0.5), cooldown_steps=4)
    >>> ending.validated({"validation/uar": 0.6}, step=10)
    >>> [ending.factor(step) for step in (9, 10, 11, 13)], ending.ended(13), ending.ended(14)
    ([1.0, 1.0, 0.75, 0.25], False, True)
    """

    def __init__(self, stop_when: Bound | None, cooldown_steps: int = 0) -> None:
        self._stop_when = stop_when
        self._cooldown_steps = cooldown_steps
        self._met_at: int | None = None

    def validated(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Notes the metrics of a validation after `step` steps."""
        if self._met_at is None and self._stop_when is not None and self._stop_when.met(metrics):
            self._met_at = step

    def ended(self, step: int) -> bool:
        """True once `step` steps are all that the stage shall take."""
        return self._met_at is not None and step >= self._met_at + self._cooldown_steps

    def factor(self, step: int) -> float:
        """What multiplies the learning rate of the step after `step` steps."""
        if self._met_at is None or self._cooldown_steps == 0:
            return 1.0
        return min(1.0, max(0.0, 1 - (step - self._met_at) / self._cooldown_steps))

    def state_dict(self) -> dict[str, int | None]:
        """When the bound was met."""
        return {"met_at": self._met_at}

    def load_state_dict(self, state: Mapping[str, int | None]) -> None:
        """Goes on as the ending that `state_dict` was taken of."""
        self._met_at = state["met_at"]

    def apply(self, trainer: lightning.Trainer, step: int) -> None:
        """Stops the trainer once the stage has ended."""
        if self.ended(step):
            trainer.should_stop = True
