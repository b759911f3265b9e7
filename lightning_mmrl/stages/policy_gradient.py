"""Reinforcement learning from verifiable rewards; one `training_step` is one iteration."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Protocol, cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim.lr_scheduler import LambdaLR

from lightning_mmrl.algorithms.advantages.group_normalized import GroupNormalized
from lightning_mmrl.algorithms.losses.aggregation import SequenceMean
from lightning_mmrl.algorithms.losses.ppo_clip import PPOClip
from lightning_mmrl.algorithms.phases import Limits, Phases
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.models.reference import Reference
from lightning_mmrl.protocols.tensors import (
    RolloutEngine,
)
from lightning_mmrl.rollout.sampling import group_seeds
from lightning_mmrl.stages.advantages import penalized_rewards, shared_advantages
from lightning_mmrl.stages.algorithm import Algorithm
from lightning_mmrl.stages.answers import Examiner
from lightning_mmrl.stages.bad_steps import NotFiniteError, estimates
from lightning_mmrl.stages.collect import Collected, Collector, Sampling
from lightning_mmrl.stages.context import (
    OptimizerSettings,
    StageContext,
    clip_gradients,
    finished_steps,
    scalar_values,
)
from lightning_mmrl.stages.distill import distilled
from lightning_mmrl.stages.failures import refuse_failures
from lightning_mmrl.stages.media import IterationMedia
from lightning_mmrl.stages.mismatch import mismatch_stats
from lightning_mmrl.stages.module import StageModule
from lightning_mmrl.stages.optimize import (
    Minibatch,
    Objective,
    accumulate_loss,
    plan_minibatches,
    score_old,
)
from lightning_mmrl.stages.rollout_table import RolloutTable
from lightning_mmrl.stages.scores import score_tensors
from lightning_mmrl.stages.signal import SignalWatch
from lightning_mmrl.stages.stats import Outcome, rollout_stats, selection_stats, update_stats
from lightning_mmrl.types.batches import Experience, PromptBatch, Rollout, Scores
from lightning_mmrl.types.records import Completion, Sample, Score


class RewardSource(Protocol):
    """Scores the G completions of each of B samples; more than `max_invalid_rate` failures stop the stage."""

    @property
    def max_invalid_rate(self) -> float: ...

    def score(self, samples: Sequence[Sample], completions: Sequence[Sequence[Completion]]) -> list[list[Score]]: ...


class PolicyGradientModule(StageModule):
    """Policy-gradient training in manual optimization.

    Args:
        policy: The model to train.
        engine: Samples completions.
        rewards: Scores them.
        optimizer: Optimizer and schedule, stepped once per iteration that updates the policy.
        context: The stage's name, length, seed and folder.
        algorithm: Estimator, loss and how they are applied; the preset's own by default.
        examiner: Judges greedy answers on the validation split, if there is one.
        table: Where sampled rollouts are written, if anywhere.
    """

    idle_causes: ClassVar[str] = f"no group with a signal, {StageModule.idle_causes}"
    default_algorithm: ClassVar[Algorithm] = Algorithm(
        advantage=GroupNormalized(), loss=PPOClip(), aggregation=SequenceMean()
    )

    def __init__(
        self,
        policy: Policy,
        engine: RolloutEngine,
        rewards: RewardSource,
        *,
        optimizer: OptimizerSettings,
        context: StageContext,
        algorithm: Algorithm | None = None,
        examiner: Examiner | None = None,
        table: RolloutTable | None = None,
    ) -> None:
        super().__init__(policy, optimizer=optimizer, context=context, examiner=examiner)
        self.automatic_optimization = False
        self.engine = engine
        self.rewards = rewards
        self.algorithm = algorithm or self.default_algorithm
        if (self.algorithm.critic is None) != (self.default_algorithm.critic is None):
            raise ValueError(f"{type(self).__name__} and its algorithm disagree on whether there is a critic")
        if self.algorithm.max_samplings > 1 and context.refill is None:
            raise ValueError(f"max_samplings is {self.algorithm.max_samplings}; the context must have a refill for it")
        self._reference = Reference(policy, context.sharding) if self.algorithm.kl.coefficient else None
        self._table = table
        first = Limits(group_size=self.algorithm.group_size, temperature=policy.temperature)
        self._phases = Phases(first=first, later=self.algorithm.phases)
        self._seconds: dict[str, float] = {}
        self._signal = SignalWatch(pass_part=context.pass_part, regularized=self.algorithm.regularized)
        self.prepare_beside(policy)

    def prepare_beside(self, policy: Policy) -> None:
        """Makes what a subclass trains beside the policy."""

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """One iteration: sample, score, optimize, push the weights; an update that is not finite is skipped."""
        self._seconds = {}
        self.policy.media.take_counters()  # a validation in between is not part of the iteration
        iteration = batch_idx + 1
        try:
            values = self.iterate(batch, iteration)
        except NotFiniteError:
            values = {}
        with self._timed("push"):
            self.engine.load_weights(self.policy, iteration)
        costs = {f"time/{phase}_s": value for phase, value in self._seconds.items()}
        self._report(values | costs | self._bad_steps.reported(iteration), iteration)

    def iterate(self, batch: PromptBatch, iteration: int) -> dict[str, float]:
        """An iteration up to its update, and what is reported of it.

        Raises:
            NotFiniteError: A number before the update is not finite; on all ranks.
        """
        collected = self.collect(batch, iteration)
        self.engine.sleep()
        media, scores = collected.media, collected.scores
        experience = self.build_experience(media.prompts, collected.rollout, scores)
        if self._reference is not None:
            with self._timed("reference"):
                experience = self.compare(experience, collected.raw, scores, self._reference)
        experience = self.estimate(experience, collected.raw, scores, iteration)
        self._bad_steps.require(iteration, estimates(experience), media.prompts.samples)
        advantages = experience.advantages
        drawn: dict[str, float] = {}
        if self.algorithm.distill is not None:
            experience, drawn = distilled(experience, self.algorithm.distill, self._context, iteration)
        with self._timed("optimize"):
            update = self.optimize(experience, media, iteration)
        if self._table is not None:
            self._table.write(iteration, collected.samples, collected.sampled, collected.earned, self._ranks)
        counters = self.policy.media.take_counters()
        counts = self._ranks.sum(torch.tensor(list(counters.values()), dtype=torch.float64)).tolist()
        media_counts = {f"media/{name}": count for name, count in zip(counters, counts, strict=True)}
        sampled = Outcome.of(collected.earned, collected.sampled, collected.spread(advantages))
        outcome = Outcome.joined(self._ranks.gather(sampled))
        selection = selection_stats(collected, self._ranks) if self.algorithm.select is not None else {}
        message = self._signal.noted(outcome, iteration)
        if message is not None:
            self._context.say(message)
        return rollout_stats(outcome) | selection | drawn | update | media_counts

    def collect(self, batch: PromptBatch, iteration: int) -> Collected:
        """What the iteration is trained on: its prompts, or as many of those sampled as pass the selection."""
        algorithm = self.algorithm
        collector = Collector(
            select=algorithm.select if iteration > algorithm.select_after else None,
            max_samplings=algorithm.max_samplings,
            pass_part=self._context.pass_part,
            ranks=self._ranks,
        )
        collected = collector.collect(batch, partial(self._sampling, iteration), self._refill)
        if not (collected.moved and self.policy.media.towers_train):
            return collected
        if not algorithm.update.on_policy:
            return replace(collected, media=replace(collected.media, scored=collected.raw.select))
        with self._timed("encode"):
            return replace(collected, media=self.encode(collected.raw))

    def _sampling(self, iteration: int, batch: PromptBatch, number: int) -> Sampling:
        """Samples and scores a batch of prompts, of which `number` were before in this iteration."""
        with self._timed("encode"):
            media = self.encode(batch, gradient=number == 0)
        with self._timed("generate"), self._context.apart():
            rollout = self.sample(media.prompts if self.engine.reads_features else batch, iteration, number)
        features = list(media.prompts.media.tensors.values())
        sampled = {"tower outputs": features, "sampler log-probabilities": [rollout.sampler_logprobs]}
        self._bad_steps.require(iteration, sampled, batch.samples)
        with self._timed("score"), self._context.apart():
            scores = self.score(media.prompts, rollout)
        refuse_failures(scores, self.rewards.max_invalid_rate, self._ranks)
        return Sampling(raw=batch, media=media, rollout=rollout, scores=scores)

    def _refill(self) -> PromptBatch:
        """Further prompts, where the policy is."""
        assert self._context.refill is not None
        return self._context.refill().to(self.device)

    def encode(self, prompts: PromptBatch, *, gradient: bool = True) -> IterationMedia:
        """Runs the towers once for sampling and scoring, or again in each microbatch of further updates.

        Without `gradient` it is for sampling alone.
        """
        return IterationMedia.of(self.policy, prompts, one_update=gradient and self.algorithm.update.on_policy)

    def sample(self, prompts: PromptBatch, iteration: int, sampling: int = 0) -> Rollout:
        """G completions for each prompt; their noise depends on (seed, iteration, sampling, prompt, sample) alone."""
        limits = self._phases.at(iteration)
        assert limits.group_size is not None
        assert limits.temperature is not None
        self.policy.temperature = limits.temperature
        ids = [each.id for each in prompts.samples]
        seeds = group_seeds(self._context.seed, iteration, ids, limits.group_size, sampling)
        return self.engine.generate(
            prompts, group_size=limits.group_size, seeds=seeds, max_new_tokens=limits.max_new_tokens
        )

    def score(self, prompts: PromptBatch, rollout: Rollout) -> Scores:
        """Rewards [B, G]; a failed verifier is invalid, not zero."""
        size = rollout.group_size
        groups = [rollout.completions[i * size : (i + 1) * size] for i in range(len(prompts.samples))]
        return score_tensors(self.rewards.score(prompts.samples, groups), rollout.completion_ids.device)

    def build_experience(self, prompts: PromptBatch, rollout: Rollout, scores: Scores) -> Experience:
        """Which completions count; there are no advantages yet."""
        trainable = scores.valid
        if self.algorithm.mask_truncated:
            truncated = torch.tensor([completion.truncated for completion in rollout.completions])
            trainable = trainable & ~truncated.to(trainable.device).reshape(trainable.shape)
        nothing = torch.zeros_like(scores.rewards)
        return Experience(prompts=prompts, rollout=rollout, advantages=nothing, trainable=trainable)

    def compare(self, experience: Experience, raw: PromptBatch, scores: Scores, reference: Reference) -> Experience:
        """Adds log-probabilities of the reference policy and, where the reward has a penalty, those of the policy.

        A penalty in the reward is of all completions that are compared, also of truncated ones that leave the loss.
        Towers that train are run again, as the reference has other ones: `raw` has the prompts before they were
        encoded.
        """
        towers_differ = self.policy.media.towers_train
        budget, in_reward = self.algorithm.update.budget, self.algorithm.kl.in_reward
        scored = replace(experience, trainable=scores.valid) if in_reward else experience
        with reference.entered() as frozen:
            prompts = raw.select if towers_differ else None
            found = score_old(frozen, scored, budget, self._ranks, prompts)
        old = score_old(self.policy, scored, budget, self._ranks) if in_reward else None
        return replace(experience, reference_logprobs=found, old_logprobs=old)

    def estimate(self, experience: Experience, raw: PromptBatch, scores: Scores, iteration: int) -> Experience:
        """Adds advantages; `raw` has the prompts before they were encoded."""
        return replace(experience, advantages=self.advantages(experience, scores, iteration))

    def advantages(self, experience: Experience, scores: Scores, iteration: int) -> torch.Tensor:
        """Advantages [B, G] of this rank's completions, among those of all ranks."""
        assert self.algorithm.advantage is not None
        coefficient, _ = self._coefficients(iteration)
        rewards = penalized_rewards(experience, scores, self.algorithm.kl, coefficient)
        return shared_advantages(self.algorithm.advantage, rewards, scores, self._ranks)

    def optimize(self, experience: Experience, media: IterationMedia, iteration: int) -> dict[str, float]:
        """The optimizer steps of one iteration; a minibatch without any signal takes none."""
        algorithm, ranks = self.algorithm, self._ranks
        optimizers, schedulers = self._optimizers()
        optimizer = optimizers[0]
        # The schedule counts iterations that update, the cooldown all of them: it could not reach zero otherwise.
        factor = self._ending.factor(iteration - 1)
        for each, scheduler in zip(optimizers, schedulers, strict=True):
            for group, rate in zip(each.param_groups, scheduler.get_last_lr(), strict=True):
                group["lr"] = rate * factor
        learning_rate = optimizer.param_groups[0]["lr"]
        settings = algorithm.update
        generator = torch.Generator().manual_seed(self._context.seed * 1_000_003 + iteration)
        objective = self._objective(iteration)
        regularized = objective.regularized or algorithm.critic is not None  # which learns from every completion
        minibatches = plan_minibatches(experience, settings, generator, ranks, regularized=regularized)
        old = None if settings.on_policy else experience.old_logprobs
        if old is None and not settings.on_policy:
            old = score_old(self.policy, experience, settings.budget, ranks)
        stats: dict[str, float] = {}
        steps: list[dict[str, float]] = []
        live = ranks.either([bool(minibatch.live) for minibatch in minibatches])
        for number, (minibatch, has_signal) in enumerate(zip(minibatches, live, strict=True), start=1):
            if not has_signal:
                continue
            optimizer.zero_grad()
            totals = accumulate_loss(
                self.policy,
                experience,
                minibatch,
                objective=objective,
                old_logprobs=old,
                budget=settings.budget,
                prompts=media.scored,
                backward=self.manual_backward,
            )
            media.finish()
            ranks.sum_gradients(self.policy.parameters())
            norm = clip_gradients(self.policy.parameters(), settings.max_grad_norm)
            beside, checked = self.gradients_beside(experience, minibatch)
            taken = scalar_values(totals)
            numbers = {
                name: [value] for name, value in {"loss": taken["loss"], "gradient norm": norm, **checked}.items()
            }
            samples = [experience.prompts.samples[row] for row in minibatch.rows]
            if self._bad_steps.found(iteration, numbers, samples, update=(number, len(minibatches))):
                continue
            for each in optimizers:
                each.step()
            steps.append(taken)
            stats = update_stats(taken) | {"train/grad_norm": norm} | beside
        for scheduler in schedulers if stats else ():
            scheduler.step()
        return stats | mismatch_stats(steps) | self._regularizers(iteration) | {"train/learning_rate": learning_rate}

    def gradients_beside(
        self, experience: Experience, minibatch: Minibatch
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Gradients of what a subclass trains beside the policy, from the same minibatch.

        Returns:
            Their statistics, and the numbers that must be finite for an update, by the name that the user reads.
        """
        return {}, {}

    def _optimizers(self) -> tuple[list[LightningOptimizer], list[LambdaLR]]:
        """The policy's optimizer and scheduler, and those of what is trained beside it."""
        optimizers, schedulers = self.optimizers(), self.lr_schedulers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        schedulers = schedulers if isinstance(schedulers, list) else [schedulers]
        return cast(list[LightningOptimizer], optimizers), cast(list[LambdaLR], schedulers)

    def _objective(self, iteration: int) -> Objective:
        algorithm, (kl, entropy) = self.algorithm, self._coefficients(iteration)
        return Objective(
            loss=algorithm.loss,
            aggregation=algorithm.aggregation,
            correction=algorithm.correction,
            ranks=self._ranks,
            kl=algorithm.kl,
            kl_coefficient=0.0 if algorithm.kl.in_reward else kl,
            entropy_coefficient=entropy,
        )

    def _coefficients(self, iteration: int) -> tuple[float, float]:
        """Those of the divergence, wherever it is penalised, and of the entropy."""
        step, num_steps = iteration - 1, self._context.num_steps
        return self.algorithm.kl.coefficient_at(step, num_steps), self.algorithm.entropy.coefficient_at(step, num_steps)

    def _regularizers(self, iteration: int) -> dict[str, float]:
        """The coefficients of what is switched on."""
        kl, entropy = self._coefficients(iteration)
        known = {"train/kl_coefficient": kl} if self.algorithm.kl.coefficient else {}
        return known | ({"train/entropy_coefficient": entropy} if self.algorithm.entropy.coefficient else {})

    def stage_state(self) -> dict[str, Any]:
        """What the stage knows beside weights and counters, and since when there was no signal."""
        return super().stage_state() | {"signal": self._signal.state_dict()}

    def load_stage_state(self, state: Mapping[str, Any]) -> None:
        """Takes up what `stage_state` gave."""
        super().load_stage_state(state)
        if "signal" in state:  # a state without the key starts the watch anew
            self._signal.load_state_dict(state["signal"])

    def on_fit_start(self) -> None:
        """Puts the reference policy where the policy is."""
        if self._reference is not None:
            mesh = self.device_mesh
            self._reference.place(None if mesh is None else mesh["data_parallel"], self._ranks)

    def on_train_start(self) -> None:
        """Takes up a stage that was saved: the engine gets its weights, and the stage may be at its end."""
        iteration = finished_steps(self.trainer)
        if iteration:
            self.engine.load_weights(self.policy, iteration)
        super().on_train_start()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer and its schedule, stepped by hand."""
        optimizer, scheduler = self._optimizer.build(self.policy, self._context)
        return [optimizer], [scheduler]

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - start
