"""Times an RL step beside TRL 1.16.0's GRPOTrainer: same weights, prompts, group size, lengths and loss.

    python tools/bench/bench_step.py                         score + backward on fixed completions
    python tools/bench/bench_step.py --iteration             whole iterations: process, generate, reward, score, update
    python tools/bench/bench_step.py --lengths 600x64        other prompt x completion lengths
    python tools/bench/bench_step.py --trained               with weights that a short SFT has made sure of their tokens
    python tools/bench/bench_step.py --shape 3b              on a CUDA device, at the released 3B sizes, random weights
    python tools/bench/bench_step.py --quick                 toy lengths, to see that everything runs

One step is one prompt with G completions. Each variant has a process of its own; they take turns. Before anything is
timed, all of them must compute the same log-probabilities, loss and gradients on completions of ragged length.
Results go to a JSON file as they come (a second run measures only what is missing), and a Markdown table to standard
output. Variants of the training part:

    trl         GRPOTrainer.compute_loss and backward, its defaults (gradient checkpointing, fused LM head), float32
    ours        the product's Policy; activations are stored unless -checkpointed is added
    plain       the product's own path without sharing: G copies through the stock attention
    mask        the stock model on one packed row with a dense 4-D mask
    drafts      ours, in whole iterations, with drafts from the completions of the iterations before: twelve of other
                prompts come before the first round

`trl-stored` is TRL with checkpointing off, `ours-checkpointed` ours with checkpointing on, and so on. `--wide 32` adds
`ours` at another group size.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench_report import COMMON_COLUMNS, Column, counter, markdown, note, phase_columns
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
    say,
)

TRAINING_BASES, ITERATION_BASES = ("trl", "ours", "plain", "mask"), ("trl", "ours", "drafts")
BASES = tuple(dict.fromkeys((*TRAINING_BASES, *ITERATION_BASES)))
SUFFIXES = {"-stored": False, "-checkpointed": True}
TRAINING = ("3000x200", "3000x50", "500x500")
ITERATION = ("3000x64", "600x64")
WARM_DRAFTS = 12
NOTES = {"entropy": "entropy (nats)", "passes": "passes", "drafted": "drafted", "acceptance": "accepted"}
# Dense bfloat16, in FLOP/s, from the vendor's data sheets; by a part of the device's name.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}


def main() -> None:
    """Runs the benchmark, or one worker of it."""
    if sys.argv[1:2] == [WORKER_FLAG]:
        work(json.loads(sys.argv[2]))
        return
    options = parse(sys.argv[1:])
    with one_line_errors("bench_step"):
        run(options)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = base_parser(__doc__, out="runs/bench/step.json")
    parser.add_argument("--iteration", action="store_true", help="whole iterations instead of the training part")
    parser.add_argument(
        "--lengths",
        nargs="+",
        type=parse_lengths,
        metavar="PxC",
        help=f"tokens of prompt and completion (default: {' '.join(TRAINING)}; of --iteration {' '.join(ITERATION)})",
    )
    parser.add_argument("--group-size", type=positive, default=8, help="completions per prompt, G (default: 8)")
    parser.add_argument(
        "--wide", type=positive, metavar="G", help="also measure ours at this G, against ours at --group-size"
    )
    parser.add_argument("--variants", nargs="+", type=_variant, metavar="NAME", help="what to compare; see above")
    parser.add_argument("--freeze-tower", action="store_true", help="the vision tower does not train, in any variant")
    parser.add_argument("--trained", action="store_true", help="trained weights in all variants, of the same sizes")
    parser.add_argument("--shape", choices=("tiny", "3b"), default="tiny", help="model sizes (default: tiny)")
    parser.add_argument("--peak-tflops", type=float, help="the device's peak in bfloat16, for the useful MFU")
    return parser.parse_args(arguments)


def _variant(text: str) -> str:
    if _base(text) not in BASES:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(BASES)}, with {' or '.join(SUFFIXES)} or not")
    return text


def _base(name: str) -> str:
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def run(options: argparse.Namespace) -> None:
    """Measures and prints the table."""
    import bench_models
    import torch

    if options.shape == "3b" and not torch.cuda.is_available():
        print("bench_step --shape 3b: not measured, this machine has no CUDA device.")
        return
    facts = {"device": torch.cuda.get_device_name()} if options.shape == "3b" else {}
    plan = plan_of(options, __file__, facts)
    options.folder = folder_of(options, plan)
    world = bench_models.World(options.folder)
    say(f"model: {options.folder}")
    cases = [case_of(options, lengths, plan) for lengths in lengths_of(options)]
    for length, _ in lengths_of(options):
        world.messages(length)  # refuses a length before anything is measured
    report = run_cases(cases, plan)
    print(markdown(report, columns(_peak(options, report))))


def folder_of(options: argparse.Namespace, plan: Plan) -> Path:
    """The weights of all variants; they are made once."""
    if options.trained:
        from bench_trained import trained_folder

        return trained_folder(plan.work)
    from bench_models import model_folder

    return model_folder(plan.work)


def lengths_of(options: argparse.Namespace) -> list[tuple[int, int]]:
    """The cases to measure, if the command line names none."""
    if options.quick and not options.lengths:
        return [(160, 4)]
    return options.lengths or [parse_lengths(text) for text in (ITERATION if options.iteration else TRAINING)]


def case_of(options: argparse.Namespace, lengths: tuple[int, int], plan: Plan) -> Case:
    """One pair of lengths in every variant."""
    names = variants_of(options)
    size = options.group_size
    variants = [
        Variant(name=name, spec=_spec(options, name, lengths, size), warmups=WARM_DRAFTS * (_base(name) == "drafts"))
        for name in names
    ]
    ratios = [(name, fast) for fast in ("ours", "drafts") if fast in names for name in names if name != fast]
    if options.wide and not options.iteration:
        name = f"ours G={options.wide}"
        variants.append(Variant(name=name, spec=_spec(options, "ours", lengths, options.wide)))
        ratios.append((name, "ours"))
    what = "iteration" if options.iteration else "train"
    marks = ", frozen tower" * options.freeze_tower + ", 3b" * (options.shape == "3b") + ", trained" * options.trained
    return Case(
        key=f"{what} P={lengths[0]} C={lengths[1]} G={size}{marks}",
        variants=tuple(variants),
        ratios=tuple(ratios),
        gate=None if options.iteration else lambda workers: _gate(workers, names, plan, options.shape),
    )


def variants_of(options: argparse.Namespace) -> list[str]:
    """Names of what is compared."""
    if options.variants:
        names = list(dict.fromkeys(options.variants))
    elif options.shape == "3b":
        names = ["plain", "mask", "ours", "ours-stored"]
    elif options.iteration:
        names = ["trl", "ours", "drafts"]
    elif options.quick:
        names = ["trl", "ours"]
    else:
        names = ["trl", "trl-stored", "plain", "ours"]
    known = ITERATION_BASES if options.iteration else TRAINING_BASES
    refused = [name for name in names if _base(name) not in known]
    refused += [name for name in names if options.shape == "3b" and _base(name) == "trl"]
    if refused:
        raise BenchError(f"variant {refused[0]} is not there for these options; --help lists what is")
    return names


def _spec(options: argparse.Namespace, name: str, lengths: tuple[int, int], group_size: int) -> dict[str, Any]:
    suffix = name.removeprefix(_base(name))
    by_default = _base(name) == "trl" or options.shape == "3b"
    return {
        "mode": "iteration" if options.iteration else "train",
        "variant": _base(name),
        "checkpointing": SUFFIXES.get(suffix, by_default),
        "length": lengths[0],
        "tokens": lengths[1],
        "group_size": group_size,
        "freeze_tower": options.freeze_tower,
        "shape": options.shape,
        "folder": str(options.folder),
    }


def _gate(workers: Mapping[str, Worker], names: list[str], plan: Plan, shape: str) -> dict[str, Any]:
    from bench_parity import BFLOAT16, FLOAT32, evidence_gate

    return evidence_gate(workers, names, plan.work, BFLOAT16 if shape == "3b" else FLOAT32)


def work(spec: dict[str, Any]) -> None:
    """The worker of one variant; returns when there are no more commands."""
    import torch
    from bench_models import World

    torch.set_num_threads(spec["threads"])
    big = spec["shape"] == "3b"
    dtype = torch.bfloat16 if big else torch.float32
    world = World(Path(spec["folder"]), spec["shape"], "cuda" if big else "cpu", dtype)
    if spec["mode"] == "iteration":
        _iterate(world, spec)
    else:
        _train(world, spec)


def _iterate(world: Any, spec: dict[str, Any]) -> None:
    if spec["variant"] == "trl":
        from bench_trl import run_iterations
    else:
        from bench_ours import run_iterations
    run_iterations(world, spec, reward)


def reward(text: str) -> float:
    """A trivial reward that differs between completions: letters of the text, counted modulo a prime.

    >>> reward("calm") != reward("happy")
    True
    """
    return sum(map(ord, text)) % 97 / 97


def _train(world: Any, spec: dict[str, Any]) -> None:
    import torch
    from bench_counters import counters_of
    from bench_flops import useful_flops
    from bench_worker import Gate, save_evidence

    if spec["variant"] == "trl":
        from bench_trl import TrainingPart
    else:
        from bench_ours import TrainingPart
    part = TrainingPart(world, spec)
    sizes = {"prompt_length": spec["length"], "group_size": spec["group_size"]}
    gate = Gate(torch.device(world.device), counters_of(part.model, **sizes))
    flop = useful_flops(part.model, **sizes, tokens=spec["tokens"], num_patches=part.num_patches)
    for command in gate.commands():
        if command["do"] == "evidence":
            save_evidence(part.evidence_of(ragged=True), Path(command["path"]), gradients=spec["shape"] == "tiny")
            continue
        part.step(gate)
        gate.note(useful_flop=flop)


def columns(peak: float | None) -> list[Column]:
    """The table's columns; `peak` is the device's, in FLOP/s."""
    speed = Column(heading="useful TFLOP/s", text=lambda record: _speed(record, 1e12, "{:.2g}"))
    mfu = Column(heading="useful MFU", text=lambda record: _speed(record, peak, "{:.1%}") if peak else "")
    return [
        *COMMON_COLUMNS,
        *phase_columns(["process", "encode", "generate", "reward", "score", "backward", "update"]),
        counter("LM tokens", "lm_tokens"),
        counter("again in backward", "lm_tokens_again"),
        counter("attention pairs", "attention_pairs"),
        counter("tower runs", "tower_runs"),
        counter("tower patches", "tower_patches"),
        counter("head rows", "head_rows"),
        counter("prefills", "prefills"),
        counter("decode steps", "decode_steps"),
        *(note(heading, name) for name, heading in NOTES.items()),
        speed,
        mfu,
    ]


def _speed(record: Mapping[str, Any], unit: float, form: str) -> str:
    flop = record["notes"].get("useful_flop")
    return form.format(flop / record["seconds"]["median"] / unit) if flop else ""


def _peak(options: argparse.Namespace, report: Mapping[str, Any]) -> float | None:
    if options.peak_tflops:
        return options.peak_tflops * 1e12
    device = report["machine"].get("device", "")
    return next((peak for name, peak in PEAKS.items() if name in device), None)


if __name__ == "__main__":
    main()
