"""Several sampled answers to each evaluation prompt, for pass@k and maj@k."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.sampled import SampledAnswers
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.protocols.ranks import ALONE, Ranks
from lightning_mmrl.protocols.tensors import RolloutEngine
from lightning_mmrl.rollout.sampling import group_seeds, refuse_broken
from lightning_mmrl.settings.run import EvaluationSettings
from lightning_mmrl.stages.answers import RankLocal, generated
from lightning_mmrl.types.batches import PromptBatch, Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledEvaluator:
    """Asks an engine for n answers to each prompt, which share the prompt and its media, and judges them together.

    An answer depends on (seed, question, number of the answer) alone: not on the batch, the ranks or n.

    Attributes:
        engine: Samples.
        task: Judges the n answers of a question.
        policy: The model of the engine, whose temperature is set while it samples.
        settings: Their temperature.
        run_seed: Seed of the answers.
        rank_local: Entered around the sampling of each batch, which is not synchronized across ranks.
    """

    engine: RolloutEngine
    task: SampledAnswers
    policy: Policy
    settings: EvaluationSettings
    run_seed: int
    rank_local: RankLocal = nullcontext

    def evaluate(self, prompts: PromptBatch, ranks: Ranks = ALONE) -> list[Judgement]:
        """One judgement per prompt; a collective.

        Raises:
            RolloutError: The engine fails on some rank, or a distribution is not finite; raised on all ranks.
        """
        size = self.task.num_answers
        seeds = group_seeds(self.run_seed, 0, [sample.id for sample in prompts.samples], size)

        def generate() -> Rollout:
            with at_temperature(self.policy, self.settings.temperature):
                rollout = self.engine.generate(prompts, group_size=size, seeds=seeds)
            refuse_broken(rollout.sampler_logprobs, prompts, size)
            return rollout

        completions = generated(generate, self.rank_local, ranks).completions
        return [
            self.task.judge_all(sample, completions[size * place : size * (place + 1)])
            for place, sample in enumerate(prompts.samples)
        ]


@contextmanager
def at_temperature(policy: Policy, temperature: float) -> Iterator[None]:
    """Sets the policy's temperature, and then the one that it had."""
    before, policy.temperature = policy.temperature, temperature
    try:
        yield
    finally:
        policy.temperature = before
