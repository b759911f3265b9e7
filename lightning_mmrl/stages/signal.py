"""Warns when no group has had a signal for several iterations, with the likely cause."""

from collections.abc import Mapping
from dataclasses import dataclass

from lightning_mmrl.ops.groups import constant_groups
from lightning_mmrl.settings.algorithm import RewardSettings
from lightning_mmrl.stages.stats import RolloutSummary

SILENT_ITERATIONS = 5
"""Iterations in a row without any signal before the warning."""


@dataclass(kw_only=True)
class SignalWatch:
    """Counts iterations in a row without a signal: no completion of any group has an advantage other than zero.

    In such an iteration only terms that do not depend on advantages change weights. A stage warns once.

    Attributes:
        rewards: Names the reward component that says whether an answer is right.
        regularized: Whether the loss has a KL or entropy term, or a critic learns.
        last: The last iteration with a signal; 0 before there was one.
        told: Whether the warning was given.
    """

    rewards: RewardSettings
    regularized: bool = False
    last: int = 0
    told: bool = False

    def noted(self, summary: RolloutSummary, iteration: int) -> str | None:
        """Counts an iteration, numbered from 1, of all ranks; returns the warning if it is due."""
        if bool(summary.has_signal.any()):
            self.last = iteration
        if iteration - self.last < SILENT_ITERATIONS or self.told:
            return None
        self.told = True
        moved = "only the terms beside the advantages still move the weights" if self.regularized else "no weight moves"
        return (
            f"no group had a signal in {iteration - self.last} iterations in a row, so {moved}; {self._cause(summary)}"
        )

    def state_dict(self) -> dict[str, int]:
        """The last iteration with a signal, and whether the warning was given."""
        return {"last": self.last, "told": int(self.told)}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Restores the state that `state_dict` returned."""
        self.last, self.told = state["last"], bool(state["told"])

    def _cause(self, summary: RolloutSummary) -> str:
        """The likely causes, as the last iteration shows them."""
        valid = summary.valid
        if not bool(valid.any()):
            return "no score is valid: the reward fails on every answer"
        truncated = sum(summary.truncated) / len(summary.truncated)
        if truncated > 0.5:
            share = f"{100 * truncated:.0f} % of the answers are cut off"
            return f"{share}: raise sampling.max_new_tokens, or train the format first"
        if not bool(constant_groups(summary.rewards, valid).all()):
            return "the groups whose answers differ are left out: look at algorithm.select and algorithm.mask_truncated"
        right = summary.components.get(self.rewards.pass_component)
        if right is not None and bool((right[valid] >= 1).all()):
            return "all answers are right: the task is too easy, take harder samples"
        if right is not None and bool((right[valid] < 1).all()):
            return (
                "all answers are wrong: the task is too hard, the reward cannot read the answers (look at the rollouts "
                "folder), or the format was never learnt"
            )
        return "each group agrees with itself: raise sampling.temperature or algorithm.group_size"
