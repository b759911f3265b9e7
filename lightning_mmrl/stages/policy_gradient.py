"""Reinforcement learning from verifiable rewards; one `training_step` is one iteration."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim.lr_scheduler import LambdaLR

from lightning_mmrl.algorithms.advantages.group_normalized import GroupNormalized
from lightning_mmrl.algorithms.losses.aggregation import SequenceMean
from lightning_mmrl.algorithms.losses.ppo_clip import PPOClip
from lightning_mmrl.algorithms.phases import Phases
from lightning_mmrl.models.critic import Critic
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.models.reference import Reference
from lightning_mmrl.protocols.tensors import RolloutEngine
from lightning_mmrl.settings.algorithm import PhaseSettings
from lightning_mmrl.stages.advantages import of_tokens, penalized_rewards, shared_advantages
from lightning_mmrl.stages.ahead import RolloutsAhead, check_ahead, sampling_order
from lightning_mmrl.stages.algorithm import Algorithm
from lightning_mmrl.stages.answers import AnswerEvaluator
from lightning_mmrl.stages.bad_steps import NotFiniteError, estimates, step_numbers
from lightning_mmrl.stages.collect import Collected, Collector
from lightning_mmrl.stages.compare import compared
from lightning_mmrl.stages.context import OptimizerSettings, StageContext, clip_gradients, finished_steps, scalar_values
from lightning_mmrl.stages.costs import count_samples
from lightning_mmrl.stages.critic import CriticTrainer
from lightning_mmrl.stages.experience import Experience, encoded, prompts_of_update
from lightning_mmrl.stages.join import batch_places
from lightning_mmrl.stages.microbatches import budget_of, scoring_batches
from lightning_mmrl.stages.mismatch import mismatch_stats
from lightning_mmrl.stages.module import StageModule
from lightning_mmrl.stages.optimize import (
    Objective,
    accumulate_loss,
    groups_with_gradient,
    plan_minibatches,
    rollout_logprobs,
    set_learning_rates,
)
from lightning_mmrl.stages.resample import resample_stats, resampled
from lightning_mmrl.stages.responses import response_stats
from lightning_mmrl.stages.rollout_table import RolloutTable
from lightning_mmrl.stages.router import Router, learns
from lightning_mmrl.stages.scores import RewardSource
from lightning_mmrl.stages.scoring import pending_scores, scored, untruncated
from lightning_mmrl.stages.signal import SignalWatch
from lightning_mmrl.stages.stats import RolloutSummary, rollout_stats, selection_stats, update_stats
from lightning_mmrl.types.batches import PromptBatch, Rollout
from lightning_mmrl.types.costs import AWAIT, OPTIMIZE, SCORE, UPDATE


class PolicyGradientModule(StageModule):
    """Policy-gradient training in manual optimization; the method is decided by its `algorithm` alone.

    An algorithm with a critic trains it beside the policy (`stages.critic`). The critic (`models.critic.Critic`) starts
    as a copy of the policy and has an optimizer of its own. Both are in the state that an unfinished stage continues
    from. Neither is in the handoff: the next stage makes a new critic.

    Args:
        policy: The model to train.
        engine: Samples completions, during an iteration or ahead of it.
        rewards: Scores them.
        optimizer: Optimizer and schedule, stepped once per iteration that updates the policy.
        context: The stage's name, length, seed and folder.
        algorithm: Estimator or critic, loss and how they are applied; the preset's own by default.
        evaluator: Judges greedy answers on the validation split, if there is one.
        table: Where sampled rollouts are written, if anywhere.
    """

    idle_causes: ClassVar[str] = f"no group with a signal, {StageModule.idle_causes}"
    default_algorithm: ClassVar[Algorithm] = Algorithm(
        advantage=GroupNormalized(), loss=PPOClip(), aggregation=SequenceMean()
    )

    def __init__(
        self,
        policy: Policy,
        engine: RolloutEngine | RolloutsAhead,
        rewards: RewardSource,
        *,
        optimizer: OptimizerSettings,
        context: StageContext,
        algorithm: Algorithm | None = None,
        evaluator: AnswerEvaluator | None = None,
        table: RolloutTable | None = None,
    ) -> None:
        super().__init__(policy, optimizer=optimizer, context=context, evaluator=evaluator)
        self.automatic_optimization = False
        self.engine = engine
        self.rewards = rewards
        self.algorithm = algorithm = algorithm or self.default_algorithm
        self._ahead = engine if isinstance(engine, RolloutsAhead) else None
        if self._ahead is not None:
            check_ahead(algorithm)
        if algorithm.settings.max_samplings > 1 and context.refill is None:
            raise ValueError(
                f"max_samplings is {algorithm.settings.max_samplings}; the context must have a refill for it"
            )
        self._reference = Reference(policy, context.sharding) if algorithm.kl.settings.coefficient else None
        self._table = table
        self._router = None if algorithm.settings.router is None else Router(algorithm.settings.router, context)
        first = PhaseSettings(after=0, group_size=algorithm.settings.group_size, temperature=policy.temperature)
        phases = Phases(first=first, later=tuple(algorithm.settings.phases.values()))
        self._order = partial(sampling_order, phases, context.seed)
        self._signal = SignalWatch(rewards=context.rewards, regularized=algorithm.regularized)
        self._critic_trainer: CriticTrainer | None = None
        if algorithm.settings.critic is not None:
            self.critic = Critic(policy, share_frozen=context.sharding is None)
            self._critic_trainer = CriticTrainer(self.critic, algorithm, self._ranks, self.costs)

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """One iteration; if a number is not finite, the update is skipped and the weights are pushed as they are."""
        iteration, metrics = batch_idx + 1, dict[str, float]()
        self.policy.media.take_counters()  # a validation in between is not part of the iteration
        if self._ahead is not None:
            with self.costs.phase("push"):
                self._ahead.submit(iteration, batch, self._order)
        with suppress(NotFiniteError):  # on all ranks; `BadSteps` has noted it
            collected = self.collect(batch, iteration)  # generates and scores
            experience = self.build_experience(collected.batch, iteration)
            update = self.optimize(experience, iteration)
            metrics = self.summarize(collected, experience, update, iteration)
        self.push(iteration)
        self._report(metrics | self.costs.close() | self._bad_steps.reported(iteration), iteration)

    def collect(self, batch: PromptBatch, iteration: int) -> Collected:
        """Generates and scores completions of the batch, and of further prompts while too few groups pass."""
        algorithm, context = self.algorithm, self._context
        collector = Collector(
            select=algorithm.select if self._place(iteration) >= algorithm.settings.select_after else None,
            settings=algorithm.settings,
            rewards=context.rewards,
            ranks=self._ranks,
            router=self._router,
        )
        samplings = [self.generate_and_score(batch, iteration)]
        while collector.is_short(samplings):
            assert context.refill is not None
            with self.costs.phase("data"):
                prompts = context.refill().to(self.device)
            samplings.append(self.generate_and_score(prompts, iteration, sampling=len(samplings)))
        self.engine.sleep()
        collected = collector.chosen(samplings)
        if not (collected.refilled and self.policy.media.towers_train and algorithm.settings.update.on_policy):
            return collected
        with self.costs.phase("encode"):
            prompts, towers = encoded(self.policy, collected.batch.raw, differentiable=True)
        return replace(collected, batch=replace(collected.batch, prompts=prompts, towers=towers))

    def generate_and_score(self, prompts: PromptBatch, iteration: int, sampling: int = 0) -> Experience:
        """The scored rollout of a batch of prompts, the `sampling`-th of the iteration, without advantages yet.

        Raises:
            NotFiniteError: A tower output or log-probability is not finite; on all ranks.
        """
        with self.costs.phase("encode"):
            differentiable = sampling == 0 and self.algorithm.settings.update.on_policy
            with_features, towers = encoded(self.policy, prompts, differentiable=differentiable)
        phase = "generate" if self._ahead is None else AWAIT
        with self.costs.phase(phase), self.costs.meeting(self._context.rank_local()):
            rollout = self.generate(with_features if self.engine.reads_features else prompts, iteration, sampling)
        features = list(with_features.media.tensors.values())
        sampled = {"tower outputs": features, "sampler log-probabilities": [rollout.sampler_logprobs]}
        self._bad_steps.require(iteration, sampled, prompts.samples)
        count_samples(self.costs, prompts, rollout)
        scores = pending_scores(rollout)
        unscored = Experience(
            raw=prompts,
            prompts=with_features,
            towers=towers,
            rollout=rollout,
            scores=scores,
            trainable=untruncated(rollout) if self.algorithm.settings.mask_truncated else scores.valid,
            advantages=of_tokens(scores.rewards, rollout.completion_mask),
        )
        selects = self.algorithm.select is not None and self._place(iteration) >= self.algorithm.settings.select_after
        takes_all = not selects and self._router is None
        return scored(
            unscored,
            self.rewards,
            costs=self.costs,
            ranks=self._ranks,
            rank_local=self._context.rank_local,
            meanwhile=self.compare_ahead if takes_all and self._reference is not None else None,
        )

    def generate(self, prompts: PromptBatch, iteration: int, sampling: int = 0) -> Rollout:
        """G completions for each prompt; their noise depends on (seed, iteration, sampling, prompt, sample) alone."""
        order = self._order(prompts, iteration, sampling, place=self._place(iteration))
        self.policy.temperature = order.temperature
        if isinstance(self.engine, RolloutsAhead):
            return self.engine.take(iteration, self.device)
        return self.engine.generate(prompts, **order.arguments)

    def build_experience(self, experience: Experience, iteration: int) -> Experience:
        """Adds the log-probabilities of the reference, and advantages from the estimator or the critic.

        Raises:
            NotFiniteError: One of these numbers is not finite; on all ranks.
        """
        if self._reference is not None and experience.reference_logprobs is None:
            experience = self.compare(experience)
        if self._critic_trainer is not None:
            with self.costs.phase("values"):
                experience = self._critic_trainer.estimate(experience, self._kl_coefficient(iteration), iteration)
        else:
            advantages = self.advantages(experience, iteration)
            mask = experience.rollout.completion_mask
            experience = replace(experience, advantages=of_tokens(advantages, mask))
        self._bad_steps.require(iteration, estimates(experience), experience.prompts.samples)
        if (resample := self.algorithm.resample) is not None:
            experience = resampled(experience, resample, self._context, iteration, self._place(iteration))
        return experience

    def compare_ahead(self, experience: Experience) -> Experience:
        """As `compare`, before there are scores; no further prompts may be sampled in this iteration."""
        self.engine.sleep()
        return self.compare(experience)

    def compare(self, experience: Experience) -> Experience:
        """Adds log-probabilities of the reference policy and, where the reward has a penalty, the policy's own."""
        assert self._reference is not None
        with self.costs.phase("reference"):
            return compared(
                experience, self.policy, self._reference, algorithm=self.algorithm, ranks=self._ranks, costs=self.costs
            )

    def advantages(self, experience: Experience, iteration: int) -> Float[torch.Tensor, "B G"]:
        """Advantages of this rank's completions, among the completions of all ranks."""
        assert self.algorithm.advantage is not None
        rewards = penalized_rewards(experience, self.algorithm.kl, self._kl_coefficient(iteration))
        valid, serials = experience.scores.valid, experience.prompts.serials
        return shared_advantages(self.algorithm.advantage, rewards, valid, self._ranks, serials)

    def optimize(self, experience: Experience, iteration: int) -> dict[str, float]:
        """The optimizer steps of one iteration, over epochs, minibatches and microbatches; returns their metrics.

        A minibatch without any signal takes no step.
        """
        with self.costs.phase(OPTIMIZE):
            # The schedule counts only iterations that update; the cooldown counts all, or it might not reach zero.
            learning_rate = set_learning_rates(*self._optimizers(), self.ending.factor(iteration - 1))
            settings, num_prompts = self.algorithm.settings.update, len(experience.trainable)
            count = self.costs.counting(SCORE)
            batches = partial(scoring_batches, budget=budget_of(settings), ranks=self._ranks, count=count)
            if settings.on_policy:
                experience = replace(experience, old_logprobs=None)
            elif experience.old_logprobs is None:
                old = rollout_logprobs(self.policy, experience, batches(experience, range(num_prompts)))
                experience = replace(experience, old_logprobs=old)
            self.costs.take_counters(self.policy, updates=False)
            objective = self.algorithm.objective(self._place(iteration), self._context.settings.steps, self._ranks)
            regularized = objective.regularized or self._critic_trainer is not None
            moves = groups_with_gradient(experience, regularized=regularized)
            generator = torch.Generator().manual_seed(self._context.seed * 1_000_003 + iteration)
            places = batch_places(self._ranks, experience.prompts)
            minibatches = plan_minibatches(num_prompts, settings, generator, self._ranks, places)
            live = [[row for row in minibatch if moves[row]] for minibatch in minibatches]
            learned = learns(experience)
            has_signal = self._ranks.any([any(moves[row] or learned[row] for row in each) for each in minibatches])
            steps: list[dict[str, float]] = []
            for number in [index for index, found in enumerate(has_signal) if found]:
                step = self._accumulate(experience, minibatches[number], live[number], objective)
                samples = [experience.prompts.samples[row] for row in minibatches[number]]
                update = (number + 1, len(minibatches))
                skips = self._bad_steps.found(iteration, step_numbers(step), samples, update=update)
                for optimizer in self._optimizers()[0]:
                    if not skips:
                        optimizer.step()
                    optimizer.zero_grad()  # now, so that no gradient takes memory during the next rollout
                steps += [] if skips else [step]
            for scheduler in self._optimizers()[1] if steps else ():
                scheduler.step()
        return update_stats(steps) | mismatch_stats(steps) | {"train/learning_rate": learning_rate}

    def _accumulate(
        self, experience: Experience, minibatch: Sequence[int], live: Sequence[int], objective: Objective
    ) -> dict[str, float]:
        """Computes and clips the gradients of a minibatch for policy and critic; returns the sums of its metrics."""
        settings, ranks = self.algorithm.settings.update, self._ranks
        prompts = prompts_of_update(self.policy, experience, experience.towers)
        budget, count = budget_of(settings), self.costs.counting(UPDATE)
        batches = scoring_batches(experience, live, budget=budget, ranks=ranks, prompts=prompts, count=count)
        whole, router = self.manual_backward, self._router
        backward = whole if router is None else router.rl_backward(whole)
        totals = accumulate_loss(self.policy, experience, minibatch, batches, objective=objective, backward=backward)
        if router is not None:
            parts = {"prompts": prompts, "budget": budget, "count": count, "backward": whole}
            totals |= router.accumulate(self.policy, experience, minibatch, **parts)
        if experience.towers is not None:
            experience.towers.backward()
        self.costs.take_counters(self.policy, updates=True)
        ranks.sum_gradients(self.policy.parameters())
        norm = clip_gradients(self.policy.parameters(), self._context.settings.max_grad_norm)
        step = scalar_values(totals) | {"grad_norm": norm}
        if self._critic_trainer is not None:
            step |= self._critic_trainer.accumulate(experience, minibatch, live, self.manual_backward)
            step["critic_learning_rate"] = self._optimizers()[0][1].param_groups[0]["lr"]
        return step

    def push(self, version: int) -> None:
        """Gives the engine the policy's weights; no other part of a stage does this."""
        with self.costs.phase("push"):
            self.engine.load_weights(self.policy, version)

    def summarize(
        self, collected: Collected, experience: Experience, update: dict[str, float], iteration: int
    ) -> dict[str, float]:
        """The metrics of an iteration over all ranks; writes its rollout table, and warns if no group has a signal."""
        ranks = self._ranks
        if self._table is not None:
            advantages = collected.advantages(experience)
            routes = collected.routes_taken
            self._table.write(iteration, *collected.everything, ranks, collected.serials, advantages, routes)
        counters = self.policy.media.take_counters()
        counts = ranks.sum(torch.tensor(list(counters.values()), dtype=torch.float64)).tolist()
        has_signal = collected.spread(experience.has_signal)
        own = RolloutSummary.of(collected.all_scores, collected.all_rollouts, has_signal)
        summary = RolloutSummary.joined(ranks.gather(own))
        message = self._signal.noted(summary, iteration)
        if message is not None:
            self._context.say(message)
        metrics = rollout_stats(summary) | response_stats(collected, self._context, ranks)
        if self.algorithm.select is not None:
            metrics |= selection_stats(collected, ranks)
        if self._router is not None:
            metrics |= self._router.stats(collected.routes)
        if experience.weights is not None:
            metrics |= resample_stats(collected.batch, experience, ranks)
        if self._critic_trainer is not None:
            metrics |= self._critic_trainer.stats(experience)
        metrics |= {} if self._ahead is None else self._ahead.stats(iteration)
        metrics |= self.algorithm.coefficients(self._place(iteration), self._context.settings.steps)
        return metrics | update | {f"media/{name}": count for name, count in zip(counters, counts, strict=True)}

    def _optimizers(self) -> tuple[list[LightningOptimizer], list[LambdaLR]]:
        """Optimizers and schedulers: the policy's, and the critic's if there is one."""
        optimizers, schedulers = self.optimizers(), self.lr_schedulers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        schedulers = schedulers if isinstance(schedulers, list) else [schedulers]
        return cast(list[LightningOptimizer], optimizers), cast(list[LambdaLR], schedulers)

    def _kl_coefficient(self, iteration: int) -> float:
        return self.algorithm.kl.coefficient_at(self._place(iteration), self._context.settings.steps)

    def stage_state(self) -> dict[str, Any]:
        """The state that every stage has, the watch for a signal, the critic's trainer, and rollouts sampled ahead."""
        critic = {} if self._critic_trainer is None else self._critic_trainer.state_dict()
        ahead = {} if self._ahead is None else {"ahead": self._ahead.gathered_states(self._ranks)}
        more = ahead | ({"critic": critic} if critic else {})
        return super().stage_state() | {"signal": self._signal.state_dict()} | more

    def load_stage_state(self, state: Mapping[str, Any]) -> None:
        """Restores the state that `stage_state` returned."""
        super().load_stage_state(state)
        if "signal" in state:  # without the key, the watch restarts
            self._signal.load_state_dict(state["signal"])
        if self._critic_trainer is not None and "critic" in state:
            self._critic_trainer.load_state_dict(state["critic"])
        if self._ahead is not None:
            self._ahead.load_state_dict(state.get("ahead"), self._ranks)

    def configure_model(self) -> None:
        """Spreads policy and critic over the ranks."""
        super().configure_model()
        mesh, sharding = self.device_mesh, self._context.sharding
        if self._critic_trainer is not None and mesh is not None and sharding is not None:
            self._critic_trainer.shard(sharding, mesh["data_parallel"])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizers of policy and critic and their schedules, stepped by hand."""
        built = [self._optimizer.build(self.policy, self._context, self.ending.place)]
        if self._critic_trainer is not None:
            built.append(self._critic_trainer.optimizer(self._optimizer, self._context, self.ending.place))
        return [optimizer for optimizer, _ in built], [scheduler for _, scheduler in built]

    def on_fit_start(self) -> None:
        """Places the reference policy on the policy's device, sharded alike."""
        if self._reference is not None:
            mesh = self.device_mesh
            self._reference.place(None if mesh is None else mesh["data_parallel"], self._ranks)

    def on_train_start(self) -> None:
        """Starts the stage, or continues a saved one with its weights in the engine."""
        iteration = finished_steps(self.trainer)
        if self._ahead is not None:
            self._ahead.start(iteration)
        if iteration or self._ahead is not None:
            self.push(iteration)
        super().on_train_start()
