"""Stages on the tiny omni model, for one process and for several: what `ranks.launch` runs and tests compare."""

import faulthandler
import json
import math
import os
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import adapted
import drafters
import exact_cases
import nonfinite_cases
import omni
import queued
import torch
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from lightning_mmrl.algorithms.advantages.group_normalized import GroupNormalized
from lightning_mmrl.algorithms.advantages.leave_one_out import LeaveOneOut
from lightning_mmrl.algorithms.advantages.reinforce_plus_plus import ReinforcePlusPlusBaseline
from lightning_mmrl.algorithms.corrections.importance import ImportanceCorrection
from lightning_mmrl.algorithms.losses.aggregation import ConstantLength, SequenceMean, TokenMean
from lightning_mmrl.algorithms.losses.cross_entropy import CrossEntropy
from lightning_mmrl.algorithms.losses.dft import DynamicFineTuning
from lightning_mmrl.algorithms.losses.ppo_clip import PPOClip
from lightning_mmrl.algorithms.penalties.entropy import EntropyBonus
from lightning_mmrl.algorithms.penalties.kl import KLPenalty
from lightning_mmrl.algorithms.schedules import WarmupConstant
from lightning_mmrl.algorithms.selection.has_signal import HasSignal
from lightning_mmrl.algorithms.selection.pad import PaperPAD
from lightning_mmrl.data.collate import TEXT_KEYS, EncodedSample, collate_pairs, collate_prompts, collate_targets
from lightning_mmrl.evaluation.tasks.closed_labels import ClosedLabels
from lightning_mmrl.models.parallelize import Sharding, recompute_activations
from lightning_mmrl.protocols.ranks import ALONE
from lightning_mmrl.rewards.compose import WeightedReward
from lightning_mmrl.rewards.pool import InlineRewards
from lightning_mmrl.rollout.scripted import ScriptedEngine
from lightning_mmrl.rollout.weights import GatheredState
from lightning_mmrl.settings.algorithm import (
    AlgorithmSettings,
    CriticSettings,
    EntropySettings,
    KLSettings,
    RewardSettings,
    RouterSettings,
    UpdateSettings,
)
from lightning_mmrl.settings.dpo import DpoSettings, PreferenceSettings
from lightning_mmrl.settings.model import AdapterSettings
from lightning_mmrl.settings.sft import SftSettings
from lightning_mmrl.settings.speculation import SpeculationSettings
from lightning_mmrl.settings.stage import StageSettings, TrainerSettings
from lightning_mmrl.stages.accumulating import AccumulatingModule
from lightning_mmrl.stages.algorithm import Algorithm
from lightning_mmrl.stages.answers import AnswerEvaluator
from lightning_mmrl.stages.context import OptimizerSettings, StageContext
from lightning_mmrl.stages.dpo import DPOModule
from lightning_mmrl.stages.grpo import GRPOModule
from lightning_mmrl.stages.ppo import PPOModule
from lightning_mmrl.stages.sft import SFTModule
from lightning_mmrl.tracking.lightning_logger import RunLogger
from lightning_mmrl.tracking.null import NullRun
from lightning_mmrl.training.interruption import Interrupted, Interruption
from lightning_mmrl.training.ranks import ProcessRanks
from lightning_mmrl.training.strategies import ranks_of, sharding_of
from lightning_mmrl.training.trainer import training_trainer
from lightning_mmrl.types.costs import StageBudget

WATCHDOG_S = float(os.environ.get("RANK_WATCHDOG_S", "60"))
"""How long a case may take before its process ends itself."""

CONTENTS = ("<video><audio>Which emotion?", "<video>angry", "<audio>Which emotion?", "Which emotion? angry, user")
MODALITIES = {
    "text": "Which emotion? angry",
    "image": "<image>Which emotion?",
    "video": "<video>angry",
    "audio": "<audio>Which emotion?",
}
"""Prompts of one modality each."""
RECIPES = {
    "sft": {"stage": "sft"},
    "one-update": {"stage": "grpo"},
    "two-updates": {"stage": "grpo", "minibatches": 2},
}
STRATEGIES = ("ddp", "fsdp2")
WORDS = ("angry", "user", "lowered brows and fast tone", "Which emotion?", "assistant angry user")
TASK = ClosedLabels(labels=("angry", "sad"))
REWARDS = {"weights": {"length": 1.0, "passed": 0.0}, "pass_component": "passed"}
AGGREGATIONS = {"tokens": TokenMean(), "sequences": SequenceMean(), "constant": ConstantLength(max_tokens=8)}


def one_step(name, recipe, checkpoint, contents):
    """A case of one optimizer step over prompts that all have a signal."""
    fixed = {"name": name, "checkpoint": checkpoint, "contents": contents, "steps": 1, "quiet": [], "adam": False}
    return {**fixed, **RECIPES[recipe]}


def on_strategies(cases):
    """Each case once with every strategy, which becomes a part of its name."""
    return [
        {**case, "name": f"{case['name']}-{strategy}", "strategy": strategy}
        for case in cases
        for strategy in STRATEGIES
    ]


def errors(found, expected):
    """The largest error of each tensor relative to its largest entry.

    It is infinite where only one side has the tensor, and for what is no number.
    """
    worst = dict.fromkeys(found.keys() ^ expected.keys(), math.inf)
    for name in found.keys() & expected.keys():
        error = (found[name] - expected[name]).abs().max() / expected[name].abs().max().clamp(min=1e-6)
        worst[name] = math.inf if error.isnan() else float(error)
    return worst


def rows_of(rank, world_size, count, *, dealt=False):
    """A rank's share of a batch: in one piece, or dealt out one by one."""
    if dealt:
        return list(range(rank, count, world_size))
    return list(range(rank * count // world_size, (rank + 1) * count // world_size))


def items(encoder, contents, step, *, targets=False, askers=1):
    """Samples of one global batch; names tell batch and place, and so many in a row ask the same of the same media."""
    found = []
    for index in range(askers * len(contents)):
        number = index // askers
        item = omni.encoded(encoder, f"s{step}-{index}", contents[number], number + step)
        ids = tuple(encoder.encode_target(" ".join(WORDS[: 1 + (index + step) % 5]))) if targets else ()
        key = f"{number + step}" if len(item.prompt) > len(TEXT_KEYS) else ""
        found.append(EncodedSample(sample=item.sample, prompt=item.prompt, target_ids=ids, media_key=key))
    return found


def pairs(encoder, contents, step):
    """Samples of one global batch with two answers each, of different lengths."""
    found = []
    for index, chosen in enumerate(items(encoder, contents, step, targets=True)):
        words = " ".join(WORDS[: 1 + (index + step + 2) % 5])
        rejected = replace(chosen, target_ids=tuple(encoder.encode_target(f"user {words}")))
        found.append(replace(chosen, later=(rejected,)))
    return found


def script(step, index, *, quiet):
    """Four answers; all the same for a quiet prompt, which then carries no signal."""
    if quiet:
        return ["angry"] * 4
    return [" ".join(WORDS[: 1 + (index + step + place) % 5]) for place in range(4)]


class Passed:
    """Right for no, some or all answers to a prompt, by its place in the batch."""

    def __call__(self, sample, completion):
        place = int(sample.id.rpartition("-")[2]) % 3
        return float([False, len(completion.text) % 2, True][place])


def targets_of(encoder, missing=()):
    """Gives each sample the target that `items` gives it for SFT, but for those that are named."""

    def found(sample, num_positions):
        if sample.id in missing:
            return f"sample {sample.id} has no target"
        step, index = map(int, sample.id.removeprefix("s").split("-"))
        return encoder.encode_target(" ".join(WORDS[: 1 + (index + step) % 5]))

    return found


class Length:
    """A reward without a meaning, different for different answers."""

    def __call__(self, sample, completion):
        return float(len(completion.text) % 7)


def batches(case, encoder, share):
    """One batch per step, this rank's part of it."""
    collate = {"sft": collate_targets, "dpo": collate_pairs}.get(case["stage"], collate_prompts)
    contents = case.get("contents", CONTENTS)
    found = []
    for step in range(case.get("steps", 3)):
        order = [contents[(place + step * case.get("rotate", 1)) % len(contents)] for place in range(len(contents))]
        samples = items(encoder, order, step, targets=case["stage"] == "sft", askers=case.get("askers", 1))
        if case["stage"] == "dpo":
            samples = pairs(encoder, order, step)
        samples = [replace(sample, serial=step * len(samples) + row) for row, sample in enumerate(samples)]
        found.append(collate([samples[row] for row in share(len(samples))], encoder.pad_token_id))
    return found


def algorithm(case):
    """The settings of an RL stage."""
    update = UpdateSettings(
        num_epochs=case.get("epochs", 1),
        num_minibatches=case.get("minibatches", 1),
        tokens_per_microbatch=case.get("tokens", 120),
    )
    advantages = {"rloo": LeaveOneOut(), "reinforce": ReinforcePlusPlusBaseline()}
    critic = CriticSettings(learning_rate=2e-3, value_clip=0.05) if case["stage"] == "ppo" else None
    return Algorithm(
        advantage=None if critic else advantages.get(case.get("advantage", case["stage"]), GroupNormalized()),
        settings=AlgorithmSettings(
            critic=critic,
            group_size=case.get("group_size", 4),
            update=update,
            router=RouterSettings(**case["router"]) if "router" in case else None,
        ),
        loss=PPOClip(),
        kl=KLPenalty(KLSettings(**case.get("kl", {}))),
        entropy=EntropyBonus(EntropySettings(coefficient=case.get("entropy", 0.0))),
        aggregation=AGGREGATIONS[case.get("aggregation", "tokens")],
        select=HasSignal() if case.get("select") else None,
        resample=PaperPAD(rho=0.7) if case.get("resample") else None,
    )


def engine(case, encoder, policy):
    """A scripted engine, or the policy itself."""
    if case.get("engine") == "hf":
        ends = [*encoder.eos_token_ids, *range(0, 300, 4)]  # so that rows end early, and not at once
        running = omni.engine(encoder, policy, eos_token_ids=ends, max_new_tokens=8)
        running.drafter = drafters.Tireless(SpeculationSettings(max_draft=3), 1e6) if case.get("drafts") else None
        return running
    quiet = case.get("quiet", [[1, 2], [1, 3]])
    num_prompts = len(case.get("contents", CONTENTS))
    texts = {
        f"s{step}-{index}": script(step, index, quiet=[step, index] in quiet)
        for step in range(case.get("steps", 3))
        for index in range(num_prompts)
    }
    return ScriptedEngine(texts, encode=encoder.encode_target, pad_token_id=encoder.pad_token_id)


def settings(case):
    """One process, or as many ranks as the environment says."""
    strategy = case.get("strategy", "auto")
    devices = 1 if strategy == "auto" else case.get("world_size", 2)
    return TrainerSettings(
        accelerator="cpu",
        devices=devices,
        strategy=strategy,
        precision=case.get("precision", "32-true"),
        cpu_offload=case.get("offload", False) and strategy == "fsdp2",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnCounts(ProcessRanks):
    """A mistake: every rank divides by what it counts itself, and the ranks' means are averaged."""

    def sum(self, values):
        """As if every rank had counted the same."""
        return values * self.world_size


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnTowers(Sharding):
    """A mistake: a rank enters the towers of its own media alone."""

    def apply(self, policy, mesh, ranks):
        """Shards, and tells the towers of no other rank."""
        Sharding.apply(self, policy, mesh, ranks)
        policy.media.ranks = ALONE


class MovingReference:
    """A mistake: the policy is compared with itself, as it moves."""

    def __init__(self, policy):
        self._policy = policy

    def place(self, mesh, ranks):
        """It is where the policy is."""

    @contextmanager
    def entered(self):
        """The policy itself."""
        with torch.no_grad():
            yield self._policy


def stage_settings(case):
    """The keys of a case's stage; an rl stage has its microbatches in the algorithm."""
    shared = {"num_steps": case.get("steps", 3), "max_grad_norm": case.get("max_grad_norm", 0.5)}
    if case["stage"] not in ("sft", "dpo"):
        return StageSettings(**shared, rewards=RewardSettings(**REWARDS))
    shared["tokens_per_microbatch"] = case.get("tokens", SftSettings.tokens_per_microbatch)
    if case["stage"] == "dpo":
        return DpoSettings(**shared, preference=PreferenceSettings(**case.get("preference", {})))
    return SftSettings(**shared)


def stage_module(case, encoder, policy, folder):
    """The LightningModule of a case."""
    place = settings(case)
    mistake = case.get("mistake")
    context = StageContext(
        name="stage",
        settings=stage_settings(case),
        seed=0,
        directory=folder,
        target_tokens=targets_of(encoder, case.get("missing", ())),
        ranks=OwnCounts(lockstep=place.shards) if mistake == "own counts" else ranks_of(place),
        sharding=OwnTowers() if mistake == "own towers" else sharding_of(place),
    )
    factory = partial(torch.optim.AdamW, lr=1e-3) if case.get("adam", True) else partial(torch.optim.SGD, lr=1e-2)
    optimizer = OptimizerSettings(factory=factory, schedule=WarmupConstant())
    evaluator = (
        AnswerEvaluator(engine=Ventriloquist(case, encoder, policy), task=TASK) if case.get("validate") else None
    )
    if case["stage"] == "sft":
        loss = DynamicFineTuning() if case.get("dft") else CrossEntropy()
        return SFTModule(policy, optimizer=optimizer, context=context, evaluator=evaluator, loss=loss)
    if case["stage"] == "dpo":
        found = DPOModule(policy, optimizer=optimizer, context=context, evaluator=evaluator)
        if mistake == "moving reference":
            found._reference = MovingReference(policy)
        return found
    rewards = InlineRewards(
        WeightedReward(components={"length": Length(), "passed": Passed()}, settings=RewardSettings(**REWARDS))
    )
    kind = PPOModule if case["stage"] == "ppo" else GRPOModule
    module = kind(
        policy, engine(case, encoder, policy), rewards, optimizer=optimizer, context=context, algorithm=algorithm(case)
    )
    if mistake == "moving reference":
        module._reference = MovingReference(policy)
    return module


class Ventriloquist:
    """Generates with the policy, so that all ranks take part, and gives answers that can be judged in its place."""

    def __init__(self, case, encoder, policy):
        self._engine = engine({**case, "engine": "hf"}, encoder, policy)

    def generate(self, prompts, **arguments):
        """Right for two samples of three."""
        rollout = self._engine.generate(prompts, **arguments)
        answers = ["sad" if sum(sample.id.encode()) % 3 == 0 else "angry" for sample in prompts.samples]
        texts = [f"<think>so</think><answer>{answer}</answer>" for answer in answers]
        said = [replace(was, text=text) for was, text in zip(rollout.completions, texts, strict=True)]
        return replace(rollout, completions=tuple(said))


def validation_batches(encoder, share):
    """Seven prompts in batches of three: one of two ranks has none of the last batch, and repeats one."""
    samples = items(encoder, [CONTENTS[place % len(CONTENTS)] for place in range(7)], 0)
    chunks = [samples[start : start + 3] for start in range(0, 7, 3)]
    parts = [[chunk[row] for row in share(len(chunk))] or chunk[:1] for chunk in chunks]
    return [collate_prompts(part, encoder.pad_token_id) for part in parts]


class Notes:
    """Reports and rollouts of a stage, step by step, and the gradients of its first optimizer steps."""

    def __init__(self, module):
        self.steps = []
        self.rollouts = []
        self.gradients = {}
        self._optimizers = []
        self._module = module
        module._report = self.note
        module.on_before_optimizer_step = self.take
        if not isinstance(module, AccumulatingModule):
            self._generate, module.engine.generate = module.engine.generate, self.generate

    def note(self, values, step):
        """Instead of reporting."""
        self._module.latest |= values
        self.steps.append({key: value for key, value in values.items() if not key.startswith("time/")})

    def take(self, optimizer):
        """Keeps the gradients of an optimizer's first step; a parameter without one has no entry."""
        if any(optimizer is known for known in self._optimizers):
            return
        self._optimizers.append(optimizer)
        trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for name, parameter in self._module.named_parameters():
            if id(parameter) in trained and parameter.grad is not None:
                gradient = parameter.grad
                self.gradients[name] = (gradient.full_tensor() if isinstance(gradient, DTensor) else gradient).clone()

    def generate(self, prompts, **arguments):
        """As the engine does, and remembers it."""
        rollout = self._generate(prompts, **arguments)
        ids = [
            list(row[:count])
            for row, count in zip(
                rollout.completion_ids.tolist(), rollout.completion_mask.sum(-1).tolist(), strict=True
            )
        ]
        logprobs = [
            row[mask].tolist() for row, mask in zip(rollout.sampler_logprobs, rollout.completion_mask, strict=True)
        ]
        self.rollouts.append({"ids": ids, "logprobs": logprobs, "decoding": dict(rollout.decoding)})
        return rollout


def run_stage(case, folder):
    """Trains a stage and returns its reports, rollouts and final weights."""
    encoder, policy = omni.load(Path(case["checkpoint"]), dtype=getattr(torch, case.get("dtype", "float64")))
    policy.temperature = case.get("temperature", policy.temperature)
    policy.freeze(case.get("freeze", []))
    if "adapter" in case:
        torch.manual_seed(0)
        policy.adapt(AdapterSettings(r=2, groups=case["adapter"]))
        adapted.train(policy)
    if case.get("recompute"):
        recompute_activations(policy)
    module = stage_module(case, encoder, policy, folder)
    notes, passes = Notes(module), []
    policy.register_forward_hook(lambda *_: passes.append(1))
    trainer = training_trainer(
        settings(case),
        directory=folder,
        logger=RunLogger(NullRun("run"), folder),
        callbacks=[],
        validate_every=1 if case.get("validate") else None,
        gradient_clip_val=case.get("max_grad_norm", 0.5) if case["stage"] in ("sft", "dpo") else None,
    )
    share = partial(rows_of, trainer.global_rank, trainer.world_size, dealt=case.get("dealt", False))
    checked = DataLoader(validation_batches(encoder, share), batch_size=None) if case.get("validate") else None
    trainer.fit(module, DataLoader(batches(case, encoder, share), batch_size=None), checked)
    weights = {name: tensor.detach().cpu().clone() for name, tensor in GatheredState(module).items()}
    noted = {"steps": notes.steps, "rollouts": notes.rollouts, "gradients": notes.gradients}
    return {**noted, "weights": weights, "passes": len(passes)}


def run_exact(case, folder):
    """Trains a stage that saves itself, until its end or until one rank is sent a signal; goes on from its states."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    kill, options = case.get("kill"), dict(case.get("options", {}))
    if "kl" in options:
        options["kl"] = KLPenalty(KLSettings(**options["kl"]))
    if "budget" in options:
        options["budget"] = StageBudget(stage="stage", **options["budget"])
    if options.get("lag"):
        options |= {"queue": getattr(queued, options["queue"]), "correction": ImportanceCorrection()}
    with Interruption() as interruption, interruption.together(ProcessRanks(lockstep=False)):
        stage = exact_cases.Stage(
            case["kind"],
            case["checkpoint"],
            Path(case["folder"]),
            interruption,
            trainer=settings(case),
            reward=getattr(exact_cases, case.get("reward", "noisy")),
            dtype=getattr(torch, case.get("dtype", "float32")),
            **options,
        )
        if case.get("mistake") == "late reference":
            exact_cases.compare_with_state(stage)
        if kill is not None and kill["rank"] == torch.distributed.get_rank():
            exact_cases.kill_in(stage, kill["place"], kill["at"])
        try:
            metrics, weights = stage.outcome()
        except Interrupted as error:
            return {"interrupted": str(error), "said": stage.said}
    return {"metrics": metrics, "weights": weights, "said": stage.said}


def main(plan, folder):
    """Runs the cases of a plan as one of several ranks; one that takes longer than its watchdog ends the process."""
    torch.set_num_threads(1)
    for case in json.loads(Path(plan).read_text(encoding="utf-8")):
        faulthandler.dump_traceback_later(case.get("watchdog_s", WATCHDOG_S), exit=True)
        torch.manual_seed(0)
        found = RUNS[case.get("run", "stage")](case, Path(folder))
        torch.save(found, Path(folder) / f"{case['name']}.rank{os.environ['RANK']}.pt")


def run_nonfinite(case, folder):
    """A stage into which a number is put that is not finite; what is wrong afterwards."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    with Interruption() as interruption, interruption.together(ProcessRanks(lockstep=False)):
        return nonfinite_cases.strike(
            case["kind"],
            case["fault"],
            case["checkpoint"],
            Path(case["folder"]),
            interruption,
            trainer=settings(case),
        )


RUNS = {"stage": run_stage, "exact": run_exact, "nonfinite": run_nonfinite}
