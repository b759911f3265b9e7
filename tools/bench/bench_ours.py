"""The product as a variant: its policy alone, and its GRPO stage under Lightning; and a dense 4-D mask to compare."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from bench_counters import counters_of
from bench_models import SEED, World, masked_logprobs, rewards
from bench_worker import Gate
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_mmrl.algorithms.advantages.group_normalized import GroupNormalized
from lightning_mmrl.algorithms.losses.aggregation import TokenMean
from lightning_mmrl.algorithms.losses.ppo_clip import PPOClip
from lightning_mmrl.algorithms.schedules import WarmupConstant
from lightning_mmrl.data.collate import EncodedSample, collate_prompts
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.rewards.pool import InlineRewards
from lightning_mmrl.rollout.hf import HFEngine
from lightning_mmrl.settings.algorithm import AlgorithmSettings, SamplingSettings
from lightning_mmrl.settings.speculation import SpeculationSettings
from lightning_mmrl.settings.stage import StageSettings, TrainerSettings
from lightning_mmrl.stages.algorithm import Algorithm
from lightning_mmrl.stages.context import OptimizerSettings, StageContext
from lightning_mmrl.stages.grpo import GRPOModule
from lightning_mmrl.tracking.lightning_logger import RunLogger
from lightning_mmrl.tracking.null import NullRun
from lightning_mmrl.training.callbacks.progress import StageProgress
from lightning_mmrl.training.console import ConsoleProgress
from lightning_mmrl.training.trainer import training_trainer
from lightning_mmrl.types.batches import LossInputs, ScoringBatch
from lightning_mmrl.types.records import Completion, Sample, Score

NUM_PROMPTS = 64
ENDLESS = 100_000
PHASES: dict[str, str] = {"score": "reward", "optimize": "update"}
LEARNING_RATE = 1e-6  # TRL's default, and the product's for RL


class TrainingPart:
    """Score and backward of one group on completions that are given: TRL's default loss, token by token.

    The variants are `ours`, `plain` (the product's own path without sharing) and `mask` (the stock model, one row with
    a dense mask).
    """

    def __init__(self, world: World, spec: dict[str, Any]) -> None:
        self._world, self._spec = world, spec
        if spec["variant"] == "mask":
            self.model = world.model()
            self._logprobs = partial(masked_logprobs, self.model)
        else:
            policy = world.policy(sharing=spec["variant"] != "plain")
            self.model: Any = policy.model
            self._logprobs = lambda batch: policy(batch).logprobs
        if spec["checkpointing"]:
            self.model.gradient_checkpointing_enable()
        if spec["freeze_tower"]:
            self.model.model.visual.requires_grad_(False)
        self._batch = self._batch_of(ragged=False)
        self.num_patches = len(self._batch.prompts.media.tensors["pixel_values"])

    def _batch_of(self, *, ragged: bool) -> ScoringBatch:
        spec = self._spec
        return self._world.scoring_batch(spec["length"], spec["tokens"], spec["group_size"], ragged=ragged)

    def step(self, gate: Gate) -> None:
        """One timed step on the completions of full length."""
        with gate.phase("score"):
            loss, _ = self._loss(self._batch)
        with gate.phase("backward"):
            loss.backward()
        self.model.zero_grad()

    def _loss(self, batch: ScoringBatch) -> tuple[Tensor, Tensor]:
        logprobs = self._logprobs(batch)
        scores = rewards(batch.group_size).to(logprobs.device)
        inputs = LossInputs(
            logprobs=logprobs,
            old_logprobs=logprobs.detach(),
            advantages=GroupNormalized()(scores, torch.ones_like(scores, dtype=torch.bool))
            .reshape(-1, 1)
            .expand_as(batch.completion_mask),
            completion_mask=batch.completion_mask,
        )
        aggregation, mask = TokenMean(), batch.completion_mask
        return aggregation.reduce(PPOClip()(inputs).token_losses, mask, aggregation.denominator(mask)), logprobs

    def evidence_of(self, *, ragged: bool) -> dict[str, Tensor]:
        """Input, log-probabilities, loss and gradients, for the parity gate."""
        batch = self._batch_of(ragged=ragged)
        loss, logprobs = self._loss(batch)
        loss.backward()
        found = {
            "prompt_ids": batch.prompts.input_ids[0],
            "logprobs": logprobs.detach() * batch.completion_mask,
            "loss": loss.detach(),
            **{f"gradient.{name}": p.grad for name, p in self.model.named_parameters() if p.grad is not None},
        }
        evidence = {name: value.clone() for name, value in found.items()}
        self.model.zero_grad()
        return evidence


class TextReward:
    """Scores a completion by a function of its text."""

    def __init__(self, function: Callable[[str], float]) -> None:
        self._function = function

    def score(self, sample: Sample, completion: Completion) -> Score:
        value = self._function(completion.text)
        return Score(total=value, components={"text": value})


class FreshPrompts(Dataset[EncodedSample]):
    """Prompts that are encoded when they are asked for, from decoded pictures: nothing is cached."""

    def __init__(self, world: World, length: int) -> None:
        self._world = world
        self._messages = world.messages(length)

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> EncodedSample:
        return self._world.encoded(self._messages, index % NUM_PROMPTS)


class GateCallback(lightning.Callback):
    """Lets one step of Lightning's loop pass for each command, its data loading included.

    Args:
        gate: Where commands come from.
        describe: Tells the gate about a finished step, given the module and the seconds its data took.
        other: Does what a command other than "step" asks for.
    """

    def __init__(
        self,
        gate: Gate,
        *,
        describe: Callable[[Any, float], None] | None = None,
        other: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self._gate, self._describe, self._other = gate, describe, other
        self._loaded = 0.0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._wait()

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._loaded = self._gate.elapsed

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._describe is not None:
            self._describe(pl_module, self._loaded)
        self._wait()

    def _wait(self) -> None:
        while (command := self._gate.wait()) is not None:
            if command["do"] == "step":
                return
            assert self._other is not None
            self._other(command)
        raise SystemExit


def _decoding(metrics: Mapping[str, float], tokens: int) -> dict[str, float]:
    """Passes, drafted tokens and the share of these that were right; an iteration without drafts has a pass a token."""
    drafted, mark = 0.0, "rollout/drafted/"
    right = 0.0
    for name in metrics:
        if name.startswith(mark):
            drafted += metrics[name]
            right += metrics[name] * metrics[f"rollout/accepted/{name.removeprefix(mark)}"]
    share = {"acceptance": right / drafted} if drafted else {}
    return {"passes": metrics.get("rollout/decode_passes", float(tokens)), "drafted": drafted, **share}


def grpo_module(
    world: World, policy: Policy, spec: dict[str, Any], reward: Callable[[str], float], directory: Path
) -> GRPOModule:
    """The product's GRPO stage with TRL's default aggregation, in the completions' full length."""
    return GRPOModule(
        policy,
        engine_of(world, policy, spec["tokens"], drafts=spec["variant"] == "drafts"),
        InlineRewards(TextReward(reward)),
        optimizer=optimizer_settings(),
        context=stage_context(directory),
        algorithm=Algorithm(
            advantage=GroupNormalized(),
            loss=PPOClip(),
            aggregation=TokenMean(),
            settings=AlgorithmSettings(group_size=spec["group_size"]),
        ),
    )


def engine_of(world: World, policy: Policy, tokens: int, *, drafts: bool = False) -> HFEngine:
    """The product's engine; with drafts as `rollout.speculation.max_draft=8` sets them."""
    encoder = world.encoder
    return HFEngine(
        policy,
        decode=encoder.decode,
        eos_token_ids=encoder.eos_token_ids,
        pad_token_id=encoder.pad_token_id,
        sampling=SamplingSettings(max_new_tokens=tokens),
        speculation=SpeculationSettings(max_draft=8 if drafts else 0),
    )


def optimizer_settings() -> OptimizerSettings:
    """AdamW as TRL sets it, at a constant rate."""
    factory = partial(torch.optim.AdamW, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    return OptimizerSettings(factory=factory, schedule=WarmupConstant())


def stage_trainer(directory: Path, callbacks: Sequence[lightning.Callback], *, clip: float | None) -> lightning.Trainer:
    """The Trainer of a stage as `mmrl train` builds it, with tracking off."""
    return training_trainer(
        TrainerSettings(num_threads=torch.get_num_threads()),
        directory=directory,
        logger=[RunLogger(NullRun("bench"), directory)],
        callbacks=[StageProgress(ConsoleProgress(), "benchmark"), *callbacks],
        validate_every=None,
        gradient_clip_val=clip,
    )


def stage_context(directory: Path) -> StageContext:
    """A stage that does not end."""
    return StageContext(name="bench", settings=StageSettings(num_steps=ENDLESS), seed=SEED, directory=directory)


def run_iterations(world: World, spec: dict[str, Any], reward: Callable[[str], float]) -> None:
    """Whole iterations of the GRPO stage under Lightning's Trainer."""
    directory = Path(spec["work"]) / "stage"
    policy = world.policy(banned=world.unending)
    if spec["freeze_tower"]:
        policy.freeze(["vision"])
    module = grpo_module(world, policy, spec, reward, directory)
    counters = counters_of(policy.model, prompt_length=spec["length"], group_size=spec["group_size"])
    gate = Gate(torch.device(world.device), counters)
    pad = world.encoder.pad_token_id
    loader = DataLoader(FreshPrompts(world, spec["length"]), batch_size=1, collate_fn=lambda i: collate_prompts(i, pad))

    def describe(module: Any, loaded: float) -> None:
        phases = {"process": loaded}
        for key, value in module.latest.items():
            if key.startswith("time/") and key.endswith("_s") and key != "time/step_s":
                name: str = key.removeprefix("time/").removesuffix("_s")
                phases[PHASES.get(name, name)] = value
        gate.set_phases(phases)
        size, mean_length = spec["group_size"], module.latest["rollout/length_mean"]
        signal = module.latest["rollout/groups_with_signal"]
        gate.note_sampled(round(size * mean_length), size * spec["tokens"], signal)
        gate.note(entropy=module.latest["train/entropy"], **_decoding(module.latest, spec["tokens"]))

    stage_trainer(directory, [GateCallback(gate, describe=describe)], clip=None).fit(module, loader)
