"""One iteration's scored rollout, from sampling to the last optimizer step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from jaxtyping import Bool, Float
from torch import Tensor

from lightning_mmrl.models.encoders import TowerGraph
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.ops.transfer import on_device
from lightning_mmrl.types.batches import PromptBatch, Rollout, Scores, ScoringBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience:
    """A scored rollout of B prompts with its advantages, ready to be optimized on.

    Optional tensors are None where the algorithm has no use for them. Every tensor [N, C] but `advantages` is zero at
    tokens that do not count.

    Attributes:
        raw: The prompts with the inputs of the media towers.
        prompts: The same prompts with the towers' outputs, without a gradient.
        rollout: Their completions.
        scores: The scores of the completions.
        trainable: True for completions that count: a valid score, a group that was selected and, where asked for, not
            truncated.
        advantages: The advantage of each token; without a critic all tokens of a completion have the same. Zero until
            estimated.
        towers: The policy's differentiable run of its towers, if they train and one update is made.
        critic_towers: The critic's run of its own towers, under the same conditions.
        reference_logprobs: Log-probabilities under the policy that the stage started from.
        old_logprobs: Log-probabilities under the policy that sampled; None if they are the policy's own at the time of
            the update.
        old_values: The critic's values of the states that the tokens were sampled in.
        returns: The targets of the critic.
        weights: How often each completion counts, in the loss and in its denominator; None: each one once.
        targets: A target for each prompt, with tokens that count if SFT learns it; None without a router.
    """

    raw: PromptBatch
    prompts: PromptBatch
    rollout: Rollout
    scores: Scores
    trainable: Bool[Tensor, "B G"]
    advantages: Float[Tensor, "N C"]
    towers: TowerGraph | None = None
    critic_towers: TowerGraph | None = None
    reference_logprobs: Float[Tensor, "N C"] | None = None
    old_logprobs: Float[Tensor, "N C"] | None = None
    old_values: Float[Tensor, "N C"] | None = None
    returns: Float[Tensor, "N C"] | None = None
    weights: Float[Tensor, "B G"] | None = None
    targets: ScoringBatch | None = None

    @property
    def has_signal(self) -> Bool[Tensor, "B G"]:
        """True for completions with an advantage that is not zero at any token."""
        return (self.advantages != 0).any(-1).reshape(self.trainable.shape)

    def loss_mask(self, prompts: Sequence[int] | None = None) -> Bool[Tensor, "n C"]:
        """Mask of the tokens that count: sampled tokens of trainable completions, for the given prompts or for all."""
        numbers = range(len(self.trainable)) if prompts is None else prompts
        chosen = on_device(list(numbers), self.trainable.device)
        mask = self.rollout.completion_mask.unflatten(0, (-1, self.rollout.group_size))[chosen]
        return (mask & self.trainable[chosen][..., None]).flatten(0, 1)


def encoded(model: Policy, prompts: PromptBatch, *, differentiable: bool) -> tuple[PromptBatch, TowerGraph | None]:
    """Runs a model's towers once; returns the prompts with their outputs, and the run if an update differentiates it.

    Args:
        model: The policy, or the trunk of a critic.
        prompts: The prompts with the towers' inputs.
        differentiable: Whether exactly one update is made. Further updates find other weights in the
            towers, so each microbatch runs the towers again.
    """
    if differentiable and model.media.towers_train:
        graph = model.enter(partial(TowerGraph, model.media, prompts))
        return graph.prompts, graph
    return model.enter(partial(model.media.encode, prompts)), None


def prompts_of_update(
    model: Policy, experience: Experience, towers: TowerGraph | None
) -> Callable[[list[int]], PromptBatch]:
    """Gives the prompts of a microbatch by their rows, with a gradient into the model's towers if these train."""
    if towers is not None:
        return towers.leaf
    return experience.raw.select if model.media.towers_train else experience.prompts.select
