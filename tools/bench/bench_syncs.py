"""Counts how often the host waits for a GPU, and the kernels that it starts, in decoding and in an RL iteration.

No GPU is needed: the tensors lie on a stand-in for one (`device_stand_in`), and counts are the same in every run.

- A decode step without drafts, and a pass with drafts of two tokens for every second row, are the difference of two
  samplings of different lengths.
- `padded` prompts have several lengths and need two attention calls; `even` ones have one length.
- `start` is a sampling of one token: towers, prefill, and what a rollout needs once.
- `score` and `backward` are those of one microbatch with ragged completions, one group of which does not share.
- `iteration` is a whole GRPO iteration with one update, in which rows end at different steps. The optimizer's kernels
  are those of SGD, one for each weight.

Waits by reason and operation go into the JSON file.
"""

import argparse
import json
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from bench_models import VOCABULARY, World, model_folder
from bench_ours import TextReward, stage_context
from device_stand_in import DEVICE, Log, device_stand_in, on_device

from lightning_mmrl.algorithms.advantages.group_normalized import GroupNormalized
from lightning_mmrl.algorithms.losses.aggregation import TokenMean
from lightning_mmrl.algorithms.losses.ppo_clip import PPOClip
from lightning_mmrl.algorithms.schedules import WarmupConstant
from lightning_mmrl.data.collate import collate_prompts
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.rewards.pool import InlineRewards
from lightning_mmrl.rollout.drafts import Draft, Drafter, Tally
from lightning_mmrl.rollout.hf import HFEngine
from lightning_mmrl.settings.algorithm import AlgorithmSettings, SamplingSettings
from lightning_mmrl.stages.algorithm import Algorithm
from lightning_mmrl.stages.context import OptimizerSettings
from lightning_mmrl.stages.grpo import GRPOModule
from lightning_mmrl.types.batches import PromptBatch, Rollout, ScoringBatch

LENGTHS = {"even": (200, 200, 200, 200), "padded": (220, 210, 140, 130)}
GROUP_SIZE, SHORT, LONG = 4, 9, 25
"""Completions of a prompt, and the tokens of the two samplings whose difference counts: a multiple of 8 apart."""
SCORED = 60
"""Tokens of the longest completion that is scored."""
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Figures:
    """Waits and kernels, per unit."""

    name: str
    waits: Counter[str]
    kernels: float

    def row(self) -> dict[str, Any]:
        """For a file."""
        waits = {name: number for name, number in self.waits.items() if number}
        return {"name": self.name, "waits": sum(waits.values()), "kernels": self.kernels, "by_reason": waits}


def main() -> None:
    """Counts and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the weights (default: bfloat16)")
    parser.add_argument("--out", type=Path, help="also write a JSON file")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*CUDA is not available")
    with TemporaryDirectory() as folder:
        figures = count(World(model_folder(Path(folder)), dtype=DTYPES[options.dtype]), Path(folder))
    print(f"{'':32}{'waits':>9}{'kernels':>10}")
    for each in figures:
        print(f"{each.name:32}{each.row()['waits']:>9.5g}{each.kernels:>10.6g}")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps([each.row() for each in figures], indent=1) + "\n", encoding="utf-8")


def count(world: World, folder: Path) -> list[Figures]:
    """All figures."""
    policy = world.policy(banned=world.unending)
    with device_stand_in(Log()):
        on_device(policy)
        batches = {kind: prompts_of(world, policy, lengths) for kind, lengths in LENGTHS.items()}
    found = []
    for kind, prompts in batches.items():
        found += sampling(world, policy, prompts, f"{kind} prompts")
    found += scoring(world, policy, batches["padded"])
    found.append(iteration(world, policy, raw_prompts(world, LENGTHS["padded"]), folder))
    return found


def raw_prompts(world: World, lengths: tuple[int, ...]) -> PromptBatch:
    """Prompts with pictures, on the host."""
    items = [world.encoded(world.messages(length), number) for number, length in enumerate(lengths)]
    return collate_prompts(items, world.encoder.pad_token_id)


def prompts_of(world: World, policy: Policy, lengths: tuple[int, ...]) -> PromptBatch:
    """Prompts with the outputs of the towers, on the device."""
    return policy.media.encode(raw_prompts(world, lengths).to(DEVICE))


def counted(work: Callable[[], Any]) -> tuple[Log, Any]:
    """What some work asks of the device."""
    log = Log()
    with device_stand_in(log):
        result = work()
    return log, result


def figures_of(name: str, log: Log, less: Log | None = None, units: int = 1) -> Figures:
    """The figures of a log, or of the difference between two, per unit."""
    less = less or Log()
    waits = {" / ".join(key): (log.waits[key] - less.waits[key]) / units for key in log.waits | less.waits}
    kernels = (sum(log.kernels.values()) - sum(less.kernels.values())) / units
    return Figures(name, Counter(waits), kernels)


def sampling(world: World, policy: Policy, prompts: PromptBatch, kind: str) -> list[Figures]:
    """Of the start, a step and a pass with drafts."""
    seeds = [[10 * prompt + row for row in range(GROUP_SIZE)] for prompt in range(len(prompts.samples))]

    def sample(tokens: int, drafter: Drafter | None = None) -> tuple[Log, Rollout]:
        engine = engine_of(world, policy, tokens)
        engine.drafter = drafter
        return counted(partial(engine.generate, prompts, group_size=GROUP_SIZE, seeds=seeds))

    (start, _), (short, _), (long, rollout) = map(sample, (1, SHORT, LONG))
    known = rollout.completion_ids.cpu().tolist()
    (few, first), (many, last) = (sample(tokens, Half(known)) for tokens in (SHORT, LONG))
    passes = last.decoding["passes"] - first.decoding["passes"]
    return [
        figures_of(f"{kind}: start", start),
        figures_of(f"{kind}: decode step", long, short, LONG - SHORT),
        figures_of(f"{kind}: pass with drafts", many, few, passes),
    ]


class Half:
    """Drafts two tokens for every second row, the first one right and the second one wrong; implements `Drafter`."""

    most_rows = 10**9

    def __init__(self, answers: list[list[int]]) -> None:
        self._answers = answers

    def begin(self, names: Sequence[str]) -> bool:
        """Forgets the last rollout."""
        self._noted = [0] * len(names)
        return True

    def propose(self, rows: Sequence[int], rooms: Sequence[int]) -> list[Draft]:
        """The drafts of some rows."""
        drafts = []
        for row, room in zip(rows, rooms, strict=True):
            right = self._answers[row][self._noted[row] :][:1]
            tokens = [*right, 0][: min(room, 2 * (row % 2))]
            drafts.append(Draft(tokens, ["known"] * len(tokens)))
        return drafts

    def note(self, row: int, tokens: Sequence[int]) -> None:
        """Moves on in a row."""
        self._noted[row] += len(tokens)

    def end(self, rows: Sequence[Sequence[int]], tally: Tally | None) -> None:
        """Has nothing to learn."""


def engine_of(world: World, policy: Policy, tokens: int, **settings: Any) -> HFEngine:
    """The engine, with an end that is never sampled unless it is told others."""
    encoder = world.encoder
    return HFEngine(
        policy,
        decode=encoder.decode,
        pad_token_id=encoder.pad_token_id,
        sampling=SamplingSettings(max_new_tokens=tokens),
        **{"eos_token_ids": encoder.eos_token_ids, **settings},
    )


def scoring(world: World, policy: Policy, prompts: PromptBatch) -> list[Figures]:
    """Of a forward and a backward pass."""
    ids, mask = world.completions(SCORED, GROUP_SIZE * len(prompts.samples), ragged=True)
    mask[-GROUP_SIZE + 1 :] = False  # the last prompt has one completion, so it is not shared

    def loss() -> torch.Tensor:
        batch = ScoringBatch(
            prompts=prompts,
            completion_ids=ids.to(DEVICE, non_blocking=True),
            completion_mask=mask.to(DEVICE, non_blocking=True),
            group_size=GROUP_SIZE,
        )
        return policy(batch).logprobs.sum()

    score, value = counted(loss)
    backward, _ = counted(value.backward)
    policy.zero_grad()
    return [figures_of("score", score), figures_of("backward", backward)]


def iteration(world: World, policy: Policy, prompts: PromptBatch, folder: Path) -> Figures:
    """Of generating, scoring and one update."""
    ends = tuple(token for token in range(VOCABULARY) if token % 16 == 0 and token not in world.unending)
    module = GRPOModule(
        policy,
        engine_of(world, policy, LONG, eos_token_ids=ends),
        InlineRewards(TextReward(lambda text: float(len(text)))),
        optimizer=OptimizerSettings(factory=partial(torch.optim.SGD, lr=1e-6), schedule=WarmupConstant()),
        context=stage_context(folder / "stage"),
        algorithm=Algorithm(
            advantage=GroupNormalized(),
            loss=PPOClip(),
            aggregation=TokenMean(),
            settings=AlgorithmSettings(group_size=GROUP_SIZE),
        ),
    )
    # In place of a Trainer, which would move the weights.
    optimizers, schedulers = module.configure_optimizers()  # type: ignore[misc]
    module._optimizers = lambda: (optimizers, schedulers)  # type: ignore[method-assign]
    module.manual_backward = lambda loss: loss.backward()  # type: ignore[method-assign]

    with device_stand_in(Log()):
        batch = prompts.to(DEVICE)
    log, _ = counted(lambda: module.training_step(batch, 0))
    if not module.latest.get("train/grad_norm"):
        raise SystemExit("bench_syncs: the iteration made no update, so its figures would mean nothing")
    return figures_of("iteration", log)


if __name__ == "__main__":
    sys.exit(main())
