"""A small stage that saves its state, for one process and for several ranks, and the places where it is interrupted."""

import os
import random
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice

import lightning
import omni
import torch
from torch.utils.data import DataLoader, Dataset

from lightning_mmrl.algorithms.advantages.group_normalized import GroupNormalized
from lightning_mmrl.algorithms.corrections.importance import ImportanceCorrection
from lightning_mmrl.algorithms.losses.aggregation import TokenMean
from lightning_mmrl.algorithms.losses.dft import DynamicFineTuning
from lightning_mmrl.algorithms.losses.ppo_clip import PPOClip
from lightning_mmrl.algorithms.penalties.entropy import EntropyBonus
from lightning_mmrl.algorithms.penalties.kl import KLPenalty
from lightning_mmrl.algorithms.schedules import WarmupConstant
from lightning_mmrl.algorithms.selection.accuracy_band import AccuracyBand
from lightning_mmrl.algorithms.selection.pad import ReleasedPAD
from lightning_mmrl.data.collate import EncodedSample, collate_pairs, collate_prompts, collate_targets
from lightning_mmrl.data.sampler import DrawSampler, Share, SourceRows
from lightning_mmrl.evaluation.tasks.closed_labels import ClosedLabels
from lightning_mmrl.planning.costs import counted_operations
from lightning_mmrl.planning.shapes import read_shape
from lightning_mmrl.rewards.compose import WeightedReward
from lightning_mmrl.rewards.pool import InlineRewards
from lightning_mmrl.rollout.weights import GatheredState
from lightning_mmrl.settings.algorithm import (
    AlgorithmSettings,
    CriticSettings,
    PhaseSettings,
    RewardSettings,
    RouterSettings,
    UpdateSettings,
)
from lightning_mmrl.settings.data import StageDataSettings
from lightning_mmrl.settings.dpo import DpoSettings, PreferenceSettings
from lightning_mmrl.settings.run import StateSettings
from lightning_mmrl.settings.stage import Bound, StageSettings, TrainerSettings
from lightning_mmrl.stages.ahead import RolloutsAhead
from lightning_mmrl.stages.algorithm import Algorithm
from lightning_mmrl.stages.answers import AnswerEvaluator
from lightning_mmrl.stages.context import OptimizerSettings, StageContext
from lightning_mmrl.stages.costs import CostMeter, Rates
from lightning_mmrl.stages.dpo import DPOModule
from lightning_mmrl.stages.grpo import GRPOModule
from lightning_mmrl.stages.ppo import PPOModule
from lightning_mmrl.stages.rloo import RLOOModule
from lightning_mmrl.stages.sft import SFTModule
from lightning_mmrl.tracking.jsonl import read_lines
from lightning_mmrl.tracking.lightning_logger import RunLogger
from lightning_mmrl.tracking.null import NullRun
from lightning_mmrl.training.callbacks.exact_state import ExactState
from lightning_mmrl.training.checkpoint_io import SnapshotIO
from lightning_mmrl.training.finite_states import check_finite
from lightning_mmrl.training.group import RankGroup
from lightning_mmrl.training.job import LightningJob
from lightning_mmrl.training.state_store import StateStore
from lightning_mmrl.training.strategies import ranks_of, sharding_of
from lightning_mmrl.training.trainer import prepare_process, training_trainer
from lightning_mmrl.types.costs import StageBudget

STEPS = 6
SUPERVISED = {"sft": collate_targets, "dft": collate_targets, "dpo": collate_pairs}
MPO = PreferenceSettings(preference_weight=0.8, quality_weight=0.2, generation_weight=1.0)
KINDS = {
    "sft": SFTModule,
    "dft": partial(SFTModule, loss=DynamicFineTuning()),
    "dpo": DPOModule,
    "grpo": GRPOModule,
    "routed": GRPOModule,
    "rloo": RLOOModule,
    "ppo": PPOModule,
}


class Prompts(Dataset):
    """A few prompts with media; for SFT with targets of different length, for DPO with two answers each."""

    def __init__(self, encoder, kind=None):
        self._encoder, self._kind = encoder, kind

    def __len__(self):
        return len(omni.CONTENTS)

    def __getitem__(self, draw):
        index = getattr(draw, "index", draw)
        sample = omni.encoded(self._encoder, f"p{index}", omni.CONTENTS[index], index)
        if self._kind not in SUPERVISED:
            return sample
        target = tuple(self._encoder.encode_target("angry " * (index + 1)))
        found = EncodedSample(sample=sample.sample, prompt=sample.prompt, target_ids=target)
        other = replace(found, target_ids=tuple(self._encoder.encode_target("user " * (4 - index))))
        return replace(found, later=(other,)) if self._kind == "dpo" else found


class Data(lightning.LightningDataModule):
    """Draws as the product's data modules do, and counts what is consumed."""

    def __init__(self, encoder, kind, num_batches, lag=0):
        super().__init__()
        self.lag = lag
        self._sets = Prompts(encoder, kind), Prompts(encoder)
        self._collate = partial(SUPERVISED.get(kind, collate_prompts), pad_token_id=encoder.pad_token_id)
        self._collate_prompts = partial(collate_prompts, pad_token_id=encoder.pad_token_id)
        self.sampler = DrawSampler(
            [SourceRows(num_samples=4)], settings=StageDataSettings(batch_size=2), num_batches=num_batches, seed=3
        )
        self._num_refills = 0

    def setup(self, stage):
        self._share = Share(rank=self.trainer.global_rank, world_size=self.trainer.world_size)
        self.sampler.share = self._share

    def train_dataloader(self):
        return DataLoader(self._sets[0], batch_sampler=self.sampler, collate_fn=self._collate)

    def val_dataloader(self):
        batches = [self._share.of(batch) for batch in ([0, 1], [2, 3])]
        return DataLoader(self._sets[1], batch_sampler=batches, collate_fn=self._collate_prompts)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        if self.trainer.training:
            self.sampler.advance()
        return batch

    def upcoming(self):
        """The batches after the one in hand, as many as the stage's lag."""
        following = DrawSampler(
            [SourceRows(num_samples=4)],
            settings=StageDataSettings(batch_size=2),
            num_batches=len(self.sampler),
            seed=3,
            share=self._share,
        )
        following.load_state_dict(self.sampler.state_dict())
        with torch.autocast("cpu", enabled=False):  # encoded here and now, within the step
            return [self._collate([self._sets[0][draw] for draw in draws]) for draws in islice(following, self.lag)]

    def refill_batch(self):
        further = DrawSampler(
            [SourceRows(num_samples=4)],
            settings=StageDataSettings(batch_size=2),
            num_batches=10**6,
            seed=4,
            share=self._share,
        )
        further.advance(self._num_refills)
        self._num_refills += 1
        return self._collate_prompts([self._sets[1][draw] for draw in next(iter(further))])

    def state_dict(self):
        return self.sampler.state_dict() | {"refills": self._num_refills}

    def load_state_dict(self, state_dict):
        self.sampler.load_state_dict(state_dict)
        self._num_refills = state_dict["refills"]


def plain(sample, completion):
    """A reward that differs between completions."""
    return float(sum(completion.text.encode()) % 7)


def noisy(sample, completion):
    """A reward that also draws from the global generators, as a user's might."""
    return plain(sample, completion) + random.random() + float(torch.rand(()))


def rare(sample, completion):
    """Right or wrong, and a little noise from the global generator, which leaves that as it is."""
    return rare_alone(sample, completion) + 0.01 * random.random()


def rare_alone(sample, completion):
    """Right one time of four."""
    return float(sum(completion.text.encode()) % 4 == 0)


@dataclass(kw_only=True)
class Options:
    """How a stage runs; its kind says what it trains."""

    every: int = 1
    background: bool = True
    stop_when: Bound | None = None
    steps: int = STEPS
    budget: StageBudget | None = None
    callbacks: Callable[["Stage"], list[lightning.Callback]] = lambda stage: []
    schedule: Callable[[int | float, int], float] = field(default_factory=partial(WarmupConstant, warmup_steps=3))
    seed: int = 5
    reward: Callable[..., float] = noisy
    dtype: torch.dtype = torch.float32
    kl: KLPenalty = field(default_factory=KLPenalty)
    entropy: EntropyBonus = field(default_factory=EntropyBonus)
    select: bool = False
    normalize: bool = False
    lag: int = 0
    queue: Callable[..., object] | None = None
    wrapped: Callable[..., object] | None = None
    correction: ImportanceCorrection | None = None
    trainer: TrainerSettings = field(default_factory=partial(TrainerSettings, accelerator="cpu"))


def rl_parts(kind, engine, how):
    """The parts of an RL stage that other stages do not have."""
    reward = rare_alone if kind == "routed" else how.reward
    rewards = InlineRewards(
        WeightedReward(components={"length": reward}, settings=RewardSettings(weights={"length": 1.0}))
    )
    critic = CriticSettings(learning_rate=2e-3, normalize_rewards=how.normalize) if kind == "ppo" else None
    algorithm = Algorithm(
        advantage=None if critic else GroupNormalized(),
        settings=AlgorithmSettings(
            critic=critic,
            group_size=3,
            phases={"later": PhaseSettings(after=3, group_size=2, max_new_tokens=3, temperature=0.7)},
            max_samplings=3 if how.select else 1,
            select_after=1 if how.select else 0,
            update=UpdateSettings(num_minibatches=2),
            router=RouterSettings(solved_at_least=1.0) if kind == "routed" else None,
        ),
        loss=PPOClip(),
        aggregation=TokenMean(),
        correction=how.correction,
        kl=how.kl,
        entropy=how.entropy,
        select=AccuracyBand() if how.select else None,
        resample=ReleasedPAD() if how.select and kind != "routed" else None,
    )
    return {"engine": engine, "rewards": rewards, "algorithm": algorithm}


class Stage:
    """One attempt at a stage, of this process or of one of several ranks, in a folder that outlives it."""

    def __init__(self, kind, checkpoint, folder, interruption, **options):
        how = Options(**options)
        prepare_process(how.trainer, seed=5)
        encoder, self.policy = omni.load(checkpoint, dtype=how.dtype)
        if how.trainer.mixed:
            self.policy.keep_masters()
        self.encoder = encoder
        engine = omni.engine(encoder, self.policy, max_new_tokens=4, poll=interruption.poll)
        self.engine = engine
        data = Data(encoder, kind, how.steps if how.budget is None else sys.maxsize, how.lag)
        shape = read_shape(str(checkpoint))
        self.data = data
        settings = partial(DpoSettings, preference=MPO) if kind == "dpo" else StageSettings
        evaluator = AnswerEvaluator(
            engine=engine, task=ClosedLabels(labels=("angry", "user")), rank_local=interruption.rank_local
        )
        common = {
            "optimizer": OptimizerSettings(factory=partial(torch.optim.AdamW, lr=1e-3), schedule=how.schedule),
            "context": StageContext(
                name="stage",
                settings=(
                    own := settings(
                        num_steps=how.steps,
                        stop_when=how.stop_when,
                        cooldown_steps=2,
                        rewards=RewardSettings(pass_component="length"),
                    )
                ),
                costs=CostMeter(Rates(operations=lambda counts: asdict(counted_operations(shape, own, counts)))),
                budget=how.budget,
                seed=how.seed,
                directory=folder,
                ranks=ranks_of(how.trainer),
                sharding=sharding_of(how.trainer),
                rank_local=interruption.rank_local,
                refill=data.refill_batch,
                upcoming=data.upcoming,
                target_tokens=lambda sample, _: encoder.encode_target("angry " * (1 + int(sample.id[1:]))),
            ),
            "evaluator": evaluator,
        }
        if how.lag and kind not in SUPERVISED:
            self.queue = how.queue(checkpoint, how.dtype)
            self.engine = engine = RolloutsAhead(self.queue, how.lag, data.upcoming, interruption.poll)
        elif how.wrapped is not None and kind not in SUPERVISED:
            self.engine = engine = how.wrapped(engine)
        self.module = KINDS[kind](self.policy, **common, **({} if kind in SUPERVISED else rl_parts(kind, engine, how)))
        self.said = []
        self.store, io = StateStore(folder / "state", check=check_finite), SnapshotIO(copies=how.background)
        every = StateSettings(every_n_steps=how.every, in_background=how.background)
        saver = ExactState(self.store, interruption, io, settings=every, say=self.said.append)
        self.trainer = training_trainer(
            how.trainer,
            directory=folder,
            logger=RunLogger(NullRun("run"), folder),
            callbacks=[*how.callbacks(self), saver],
            validate_every=2,
            gradient_clip_val=1.0 if kind in SUPERVISED else None,
            checkpoint_io=io,
        )
        self.job = LightningJob(
            trainer=self.trainer,
            module=self.module,
            datamodule=data,
            exporter=lambda directory: None,
            states=self.store,
            saver=saver,
            say=self.said.append,
            group=RankGroup(interruption),
        )

    def outcome(self):
        """All that must not differ."""
        metrics, costs = self.job.run().metrics, self.module.costs.total
        counted = {"costs/steps": costs.num_steps} | {f"costs/{kind}": number for kind, number in costs.tokens.items()}
        return metrics | counted, {name: value.clone() for name, value in GatheredState(self.module).items()}


def logged(folder):
    """Each metric of each step once, times left out."""
    values = {}
    for record in read_lines(folder / "metrics.jsonl"):
        for key, value in record["metrics"].items():
            assert (record["step"], key) not in values
            if "/time/" not in key:
                values[record["step"], key] = value
    return values


def assert_equal(first, second):
    assert {key: value for key, value in first[0].items() if "time/" not in key} == {
        key: value for key, value in second[0].items() if "time/" not in key
    }
    for name, value in first[1].items():
        assert torch.equal(value, second[1][name]), name


def compare_with_state(stage):
    """A mistake: a stage that goes on takes for its reference what it goes on from, not what it started from."""
    start = stage.module.on_train_start

    def late():
        start()
        known = stage.module._reference._copy.parameters()
        for parameter, now in zip(known, stage.policy.parameters(), strict=True):
            parameter.data.copy_(now.data)

    stage.module.on_train_start = late


def kill_in(stage, place, at):
    """Sends SIGTERM to this process when the stage is at a place for the `at`-th time."""
    owner, name = {
        "rollout": (stage.engine, "take" if isinstance(stage.engine, RolloutsAhead) else "generate"),
        "submit": (getattr(stage, "queue", None), "submit"),
        "push": (stage.engine, "load_weights"),
        "token": (stage.policy, "next_logprobs"),
        "reward": (getattr(stage.module, "rewards", None), "score"),
        "scoring": (stage.policy, "forward"),
        "step": (stage.module, "optimizer_step"),
        "validation": (stage.module, "validation_step"),
        "report": (stage.module, "_report"),
    }[place]
    whole, count = getattr(owner, name), [0]

    def call(*args, **kwargs):
        count[0] += 1
        result = whole(*args, **kwargs)
        if count[0] == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    setattr(owner, name, call)
