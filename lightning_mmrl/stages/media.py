"""The media of one iteration: encoded once for sampling, and how scoring gets at them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from lightning_mmrl.models.encoders import TowerGraph
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.types.batches import PromptBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationMedia:
    """Prompts of an iteration and where their features come from.

    Attributes:
        prompts: With tower outputs and without gradients: what is sampled from.
        scored: The prompts of a microbatch by their rows, with a gradient into the towers if these train.
        finish: What is left to do after the last microbatch of an optimizer step.
    """

    prompts: PromptBatch
    scored: Callable[[list[int]], PromptBatch]
    finish: Callable[[], None] = lambda: None

    @classmethod
    def of(cls, policy: Policy, prompts: PromptBatch, *, one_update: bool) -> "IterationMedia":
        """Runs the towers once for sampling and scoring; with a gradient if they train and one update is made.

        Further updates need towers of their own weights: they run them again, in each microbatch.
        """
        encoder = policy.media
        if encoder.towers_train and one_update:
            return cls.differentiable(policy.enter(partial(TowerGraph, encoder, prompts)))
        encoded = policy.enter(partial(encoder.encode, prompts))
        return cls(prompts=encoded, scored=prompts.select if encoder.towers_train else encoded.select)

    @classmethod
    def differentiable(cls, graph: TowerGraph) -> "IterationMedia":
        """Media of towers that train: microbatches collect the gradient that `finish` sends through them."""
        return cls(prompts=graph.prompts, scored=graph.leaf, finish=graph.backward)
