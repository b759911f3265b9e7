"""Says so when no group has a signal for long, and what is likely to be the reason."""

from collections.abc import Mapping
from dataclasses import dataclass

from lightning_mmrl.ops.groups import constant_groups
from lightning_mmrl.stages.stats import RolloutSummary

SILENT_ITERATIONS = 5
"""Iterations in a row without any signal after which it is said."""


@dataclass(kw_only=True)
class SignalWatch:
    """Counts iterations in a row in which no completion of any group has an advantage.

    Such an iteration changes no weight, but for the terms that do not depend on advantages. It is said once in a stage.

    Attributes:
        pass_component: The reward component that says whether an answer is right.
        regularized: Whether the loss has a KL or entropy term, or a critic learns.
        last: The last iteration with a signal; 0 before there was one.
        told: Whether it was said.
    """

    pass_component: str
    regularized: bool = False
    last: int = 0
    told: bool = False

    def noted(self, summary: RolloutSummary, iteration: int) -> str | None:
        """Takes in an iteration of all ranks, from 1; what is to be said now, if anything is."""
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
        """The last iteration with a signal, and whether it was said that there is none."""
        return {"last": self.last, "told": int(self.told)}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on as the watch that `state_dict` was taken of."""
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
        right = summary.components.get(self.pass_component)
        if right is not None and bool((right[valid] >= 1).all()):
            return "all answers are right: the task is too easy, take harder samples"
        if right is not None and bool((right[valid] < 1).all()):
            return (
                "all answers are wrong: the task is too hard, the reward cannot read the answers (look at the rollouts "
                "folder), or the format was never learnt"
            )
        return "each group agrees with itself: raise sampling.temperature or algorithm.group_size"
