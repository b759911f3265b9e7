"""Times the product's loop under Lightning beside a bare Python loop that makes the same updates.

    python tools/bench/bench_overhead.py              GRPO iterations and SFT steps
    python tools/bench/bench_overhead.py --only sft
    python tools/bench/bench_overhead.py --quick      toy lengths, to see that everything runs

The Lightning side is a stage as `mmrl train` builds it with tracking off: Trainer, progress, metrics into a file. The
bare side is the same policy, engine and optimizer called one after the other, without statistics. Before anything is
timed, both make one update, after which their weights must be equal, and other than before. Each has a process of its
own; they take turns. The ratio is Lightning over bare, round by round; 1.03 is the aim. Results go to a JSON file as
they come (a second run measures only what is missing), and a Markdown table to standard output.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench_report import COMMON_COLUMNS, counter, markdown
from benching import (
    WORKER_FLAG,
    BenchError,
    Case,
    Plan,
    Variant,
    Worker,
    base_parser,
    one_line_errors,
    parse_lengths,
    plan_of,
    positive,
    run_cases,
)

KINDS = ("grpo", "sft")
NAMES = ("lightning", "bare")
REPEATS = 15
LARGEST_DIFFERENCE = 1e-8
"""Of any weight after an update that moves weights by about the learning rate, 1e-6."""


def main() -> None:
    """Runs the benchmark, or one worker of it."""
    if sys.argv[1:2] == [WORKER_FLAG]:
        work(json.loads(sys.argv[2]))
        return
    options = parse(sys.argv[1:])
    with one_line_errors("bench_overhead"):
        run(options)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = base_parser(__doc__, out="runs/bench/overhead.json")
    parser.add_argument("--only", choices=KINDS, help="one kind of stage alone")
    parser.add_argument(
        "--lengths",
        nargs="+",
        type=parse_lengths,
        metavar="PxC",
        default=None,
        help="tokens of prompt and completion or target (default: 600x64)",
    )
    parser.add_argument("--group-size", type=positive, default=8, help="completions per prompt of GRPO (default: 8)")
    parser.add_argument("--targets", type=positive, default=4, help="targets per step of SFT (default: 4)")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Measures and prints the table."""
    import bench_models

    if options.repeats is None and not options.quick:
        options.repeats = REPEATS
    plan = plan_of(options, __file__)
    folder = bench_models.model_folder(plan.work)
    lengths = options.lengths or [(160, 4) if options.quick else (600, 64)]
    for length, _ in lengths:
        bench_models.World(folder).messages(length)  # refuses a length before anything is measured
    kinds = [options.only] if options.only else KINDS
    cases = [case_of(options, kind, pair, folder, plan) for kind in kinds for pair in lengths]
    print(markdown(run_cases(cases, plan), COLUMNS))


def case_of(options: argparse.Namespace, kind: str, lengths: tuple[int, int], folder: Path, plan: Plan) -> Case:
    """One kind of stage at one pair of lengths."""
    size = options.group_size if kind == "grpo" else options.targets
    shape = {"kind": kind, "length": lengths[0], "tokens": lengths[1], "group_size": size, "folder": str(folder)}
    variants = tuple(Variant(name=name, spec={**shape, "variant": name}) for name in NAMES)
    rows = f"G={size}" if kind == "grpo" else f"B={size}"
    return Case(
        key=f"{kind} P={lengths[0]} C={lengths[1]} {rows}",
        variants=variants,
        ratios=(NAMES,),
        gate=lambda workers: weights_gate(workers, plan.work),
    )


def weights_gate(workers: Mapping[str, Worker], folder: Path) -> dict[str, float]:
    """One update in each worker, after which the weights must be equal; files of weights are removed again.

    Raises:
        BenchError: They differ, or did not move.
    """
    from safetensors.numpy import load_file

    files = {name: folder / f"weights-{name}.safetensors" for name in ("start", *NAMES)}
    try:
        workers[NAMES[0]].ask(do="weights", path=str(files["start"]))
        for name in NAMES:
            workers[name].ask(do="step")
            workers[name].ask(do="weights", path=str(files[name]))
        return compare_weights(*(load_file(files[name]) for name in ("start", *NAMES)))
    finally:
        for path in files.values():
            path.unlink(missing_ok=True)


def compare_weights(start: Mapping[str, Any], one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, float]:
    """The largest difference of any weight between the two, and the largest move from the start.

    Raises:
        BenchError: They differ, or did not move.
    """
    difference = max(float(abs(one[name] - other[name]).max()) for name in one)
    moved = max(float(abs(one[name] - start[name]).max()) for name in one)
    if not difference <= LARGEST_DIFFERENCE:
        raise BenchError(f"after one update a weight differs by {difference:.2g}; the loops do not compute the same")
    if not moved > LARGEST_DIFFERENCE:
        raise BenchError("the update moved no weight; equal weights would say nothing")
    return {"weight_difference": difference, "weight_moved": moved}


def work(spec: dict[str, Any]) -> None:
    """The worker of one variant; returns when there are no more commands."""
    import torch
    from bench_counters import counters_of
    from bench_models import World
    from bench_worker import Gate, save_evidence

    torch.set_num_threads(spec["threads"])
    world = World(Path(spec["folder"]))
    policy = world.policy(banned=world.unending)
    counters = counters_of(policy.model, prompt_length=spec["length"], group_size=spec["group_size"])
    gate = Gate(torch.device(world.device), counters)

    def save(command: dict[str, Any]) -> None:
        weights = {name: value.detach() for name, value in policy.model.named_parameters()}
        save_evidence(weights, Path(command["path"]), gradients=True)

    if spec["variant"] == "lightning":
        _run_lightning(world, policy, spec, gate, save)
    else:
        _run_bare(world, policy, spec, gate, save)


def _run_lightning(world: Any, policy: Any, spec: dict[str, Any], gate: Any, save: Callable[..., None]) -> None:
    from bench_ours import GateCallback, grpo_module, optimizer_settings, stage_context, stage_trainer
    from bench_step import reward

    from lightning_mmrl.stages.sft import SFTModule

    directory = Path(spec["work"]) / f"overhead-{spec['kind']}"
    callbacks = [GateCallback(gate, other=save)]
    if spec["kind"] == "grpo":
        module = grpo_module(world, policy, spec, reward, directory)
    else:
        module = SFTModule(policy, optimizer=optimizer_settings(), context=stage_context(directory))
    clip = 1.0 if module.automatic_optimization else None
    stage_trainer(directory, callbacks, clip=clip).fit(module, _loader(world, spec))


def _run_bare(world: Any, policy: Any, spec: dict[str, Any], gate: Any, save: Callable[..., None]) -> None:
    from bench_ours import optimizer_settings, stage_context

    # The rate is constant; a schedule would have nothing to do.
    optimizer, _ = optimizer_settings().build(policy, stage_context(Path(spec["work"])))
    steps = (_grpo_steps if spec["kind"] == "grpo" else _sft_steps)(world, policy, optimizer, spec)
    for command in gate.commands():
        if command["do"] == "step":
            next(steps)
        else:
            save(command)


def _grpo_steps(world: Any, policy: Any, optimizer: Any, spec: dict[str, Any]) -> Iterator[None]:
    """One GRPO iteration after the other: sample, score, update."""
    import torch
    from bench_models import SEED
    from bench_ours import engine_of
    from bench_step import reward

    from lightning_mmrl.algorithms.advantages.group_normalized import GroupNormalized
    from lightning_mmrl.algorithms.losses.aggregation import TokenMean
    from lightning_mmrl.algorithms.losses.ppo_clip import PPOClip
    from lightning_mmrl.models.encoders import TowerGraph
    from lightning_mmrl.rollout.sampling import group_seeds
    from lightning_mmrl.types.batches import LossInputs, ScoringBatch

    engine, size = engine_of(world, policy, spec["tokens"]), spec["group_size"]
    advantage, loss, aggregation = GroupNormalized(), PPOClip(), TokenMean()
    for iteration, batch in enumerate(_loader(world, spec), start=1):
        towers = TowerGraph(policy.media, batch)
        seeds = group_seeds(SEED, iteration, [sample.id for sample in batch.samples], size)
        rollout = engine.generate(towers.prompts, group_size=size, seeds=seeds)
        scores = torch.tensor([[reward(completion.text) for completion in rollout.completions]])
        optimizer.zero_grad()
        mask = rollout.completion_mask
        output = policy(
            ScoringBatch(
                prompts=towers.leaf([0]),
                completion_ids=rollout.completion_ids,
                completion_mask=mask,
                group_size=size,
            )
        )
        inputs = LossInputs(
            logprobs=output.logprobs,
            old_logprobs=output.logprobs.detach(),
            advantages=advantage(scores, torch.ones_like(scores, dtype=torch.bool)).reshape(-1, 1).expand_as(mask),
            completion_mask=mask,
        )
        aggregation.reduce(loss(inputs).token_losses, mask, aggregation.denominator(mask)).backward()
        towers.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        yield


def _sft_steps(world: Any, policy: Any, optimizer: Any, spec: dict[str, Any]) -> Iterator[None]:
    """One SFT step after the other."""
    import torch

    from lightning_mmrl.ops.masked import masked_mean
    from lightning_mmrl.types.batches import ScoringBatch

    for batch in _loader(world, spec):
        optimizer.zero_grad()
        output = policy(
            ScoringBatch(
                prompts=batch.prompts,
                completion_ids=batch.completion_ids,
                completion_mask=batch.completion_mask,
                group_size=1,
            )
        )
        (-masked_mean(output.logprobs, batch.completion_mask)).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        yield


def _loader(world: Any, spec: dict[str, Any]) -> Any:
    """Encoded samples over and over: a prompt at a time for GRPO, `group_size` targets for SFT."""
    from dataclasses import replace

    from bench_ours import ENDLESS
    from torch.utils.data import DataLoader

    from lightning_mmrl.data.collate import collate_prompts, collate_targets

    messages, size = world.messages(spec["length"]), spec["group_size"]
    targets = world.completions(spec["tokens"], size)[0].tolist()
    items = [
        replace(world.encoded(messages, number), target_ids=tuple(target)) for number, target in enumerate(targets)
    ]
    collate, batch_size = (collate_prompts, 1) if spec["kind"] == "grpo" else (collate_targets, size)
    pad = world.encoder.pad_token_id
    many: Any = _Repeated(items, ENDLESS * batch_size)
    return DataLoader(many, batch_size=batch_size, collate_fn=lambda batch: collate(batch, pad))


class _Repeated:
    """The items over and over, `length` in all."""

    def __init__(self, items: Sequence[Any], length: int) -> None:
        self._items, self._length = items, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        return self._items[index % len(self._items)]


COLUMNS = [
    *COMMON_COLUMNS,
    counter("LM tokens", "lm_tokens"),
    counter("attention pairs", "attention_pairs"),
    counter("tower runs", "tower_runs"),
    counter("tower patches", "tower_patches"),
    counter("head rows", "head_rows"),
    counter("prefills", "prefills"),
    counter("decode steps", "decode_steps"),
]

if __name__ == "__main__":
    main()
