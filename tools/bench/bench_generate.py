"""Times generation beside transformers' own: the product's HFEngine against `generate(num_return_sequences=G)`.

    python tools/bench/bench_generate.py                                 lengths 600x64, 3000x64 and 3000x200 at G = 8
    python tools/bench/bench_generate.py --lengths 3000x64 --group-sizes 4 8 16
    python tools/bench/bench_generate.py --quick                         toy lengths, to see that everything runs

Both sample from the same weights for the same encoded prompts, and neither may sample an end, so every completion has
its full length. Before anything is timed, both must choose the same tokens greedily. Each has a process of its own;
they take turns. `prefill s` ends where the decoder sees the first sampled token: tower, prompt, first token. Results go
to a JSON file as they come (a second run measures only what is missing), and a Markdown table to standard output.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench_report import COMMON_COLUMNS, Column, counter, markdown, phase_columns
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

LENGTHS = ("600x64", "3000x64", "3000x200")
NAMES = ("transformers", "ours")


def main() -> None:
    """Runs the benchmark, or one worker of it."""
    if sys.argv[1:2] == [WORKER_FLAG]:
        work(json.loads(sys.argv[2]))
        return
    options = parse(sys.argv[1:])
    with one_line_errors("bench_generate"):
        run(options)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = base_parser(__doc__, out="runs/bench/generate.json")
    parser.add_argument(
        "--lengths",
        nargs="+",
        type=parse_lengths,
        metavar="PxC",
        help=f"tokens of prompt and completion (default: {' '.join(LENGTHS)})",
    )
    parser.add_argument("--group-sizes", nargs="+", type=positive, default=[8], metavar="G", help="default: 8")
    parser.add_argument("--prompts", type=positive, default=1, help="prompts at once (default: 1)")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Measures and prints the table."""
    import bench_models

    plan = plan_of(options, __file__)
    folder = bench_models.model_folder(plan.work)
    lengths = options.lengths or [parse_lengths(text) for text in (("160x8",) if options.quick else LENGTHS)]
    for length, _ in lengths:
        bench_models.World(folder).messages(length)  # refuses a length before anything is measured
    cases = [case_of(pair, size, options.prompts, folder, plan) for pair in lengths for size in options.group_sizes]
    print(markdown(run_cases(cases, plan), COLUMNS))


def case_of(lengths: tuple[int, int], group_size: int, num_prompts: int, folder: Path, plan: Plan) -> Case:
    """One pair of lengths at one group size."""
    shape = {"length": lengths[0], "tokens": lengths[1], "group_size": group_size, "num_prompts": num_prompts}
    variants = tuple(Variant(name=name, spec={**shape, "variant": name, "folder": str(folder)}) for name in NAMES)
    many = f" B={num_prompts}" if num_prompts > 1 else ""
    return Case(
        key=f"generate P={lengths[0]} C={lengths[1]} G={group_size}{many}",
        variants=variants,
        ratios=(("transformers", "ours"),),
        gate=lambda workers: greedy_gate(workers, plan.work),
    )


def greedy_gate(workers: Mapping[str, Worker], folder: Path) -> dict[str, Any]:
    """Both must choose the same tokens; the files that say which are removed again.

    Raises:
        BenchError: They choose differently.
    """
    files = {name: folder / f"greedy-{name}.json" for name in NAMES}
    try:
        for name, path in files.items():
            workers[name].ask(do="greedy", path=str(path))
        return compare_tokens(*(json.loads(path.read_text(encoding="utf-8")) for path in files.values()))
    finally:
        for path in files.values():
            path.unlink(missing_ok=True)


def compare_tokens(theirs: list[list[int]], ours: list[list[int]]) -> dict[str, Any]:
    """How many tokens both chose, prompt by prompt.

    Raises:
        BenchError: They chose differently.

    >>> compare_tokens([[5, 6]], [[5, 6]])
    {'equal_greedy_tokens': 2}
    """
    for prompt, (left, right) in enumerate(zip(theirs, ours, strict=True)):
        if left != right:
            first = next((at for at, pair in enumerate(zip(left, right, strict=False)) if len(set(pair)) > 1), None)
            where = f"at token {first}" if first is not None else f"in length ({len(left)} and {len(right)})"
            raise BenchError(f"greedy choices for prompt {prompt} differ {where}; nothing was timed")
    return {"equal_greedy_tokens": sum(map(len, ours))}


def work(spec: dict[str, Any]) -> None:
    """The worker of one variant; returns when there are no more commands."""
    import torch
    from bench_counters import counters_of
    from bench_models import World
    from bench_worker import Gate

    torch.set_num_threads(spec["threads"])
    world = World(Path(spec["folder"]))
    generator = (_Ours if spec["variant"] == "ours" else _Transformers)(world, spec)
    num_rows = spec["num_prompts"] * spec["group_size"]
    counters = counters_of(generator.model, prompt_length=spec["length"], group_size=num_rows)
    gate = Gate(torch.device(world.device), counters)
    clock = _Clock(lambda: gate.elapsed, num_rows)
    generator.model.model.language_model.layers[0].register_forward_pre_hook(clock.see, with_kwargs=True)
    for number, command in enumerate(gate.commands()):
        if command["do"] == "greedy":
            Path(command["path"]).write_text(json.dumps(generator.greedy()), encoding="utf-8")
            continue
        clock.first_decode = None
        num_tokens = generator.sample(number)
        if num_tokens != num_rows * spec["tokens"]:
            raise SystemExit(f"{num_tokens} tokens were sampled, not {num_rows} times {spec['tokens']}")
        seconds = gate.elapsed
        prefill = seconds if clock.first_decode is None else clock.first_decode
        gate.set_phases({"prefill": prefill, "decode": seconds - prefill})
        gate.note(sampled_tokens=num_tokens)


class _Clock:
    """When the decoder saw the first sampled token: a pass of no more tokens than there are rows."""

    def __init__(self, elapsed: Callable[[], float], num_rows: int) -> None:
        self.first_decode: float | None = None
        self._elapsed, self._num_rows = elapsed, num_rows

    def see(self, layer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        if self.first_decode is None and states.shape[0] * states.shape[1] <= self._num_rows:
            self.first_decode = self._elapsed()


class _Ours:
    """The product's engine."""

    def __init__(self, world: Any, spec: Mapping[str, Any]) -> None:
        from bench_ours import engine_of

        self._spec = spec
        self._prompts = world.prompts(spec["length"], tuple(range(spec["num_prompts"])))
        policy = world.policy(banned=world.unending)
        self.model = policy.model
        self._engine = engine_of(world, policy, spec["tokens"])

    def sample(self, number: int) -> int:
        """Samples G completions per prompt and returns how many tokens that were."""
        size = self._spec["group_size"]
        first = number * size
        seeds = [[prompt * 10**6 + first + row for row in range(size)] for prompt in range(self._spec["num_prompts"])]
        rollout = self._engine.generate(self._prompts, group_size=size, seeds=seeds)
        return int(rollout.completion_mask.sum())

    def greedy(self) -> list[list[int]]:
        """The most likely tokens for each prompt."""
        seeds = [[0] for _ in range(self._spec["num_prompts"])]
        return self._engine.generate(self._prompts, group_size=1, seeds=seeds, greedy=True).completion_ids.tolist()


class _Transformers:
    """The stock model's `generate`, with the same ids banned."""

    def __init__(self, world: Any, spec: Mapping[str, Any]) -> None:
        import torch

        from lightning_mmrl.models.families.qwen_vision import normalized

        self._spec = spec
        self.model = world.model().eval()
        prompts = world.prompts(spec["length"], tuple(range(spec["num_prompts"])))
        self._inputs = {
            "input_ids": prompts.input_ids,
            "attention_mask": torch.ones_like(prompts.input_ids),
            "mm_token_type_ids": (prompts.input_ids == self.model.config.image_token_id).int(),
            **normalized(prompts.media.tensors),
        }
        self._settings = {"max_new_tokens": spec["tokens"], "suppress_tokens": sorted(world.unending)}

    def sample(self, number: int) -> int:
        """Samples G completions per prompt and returns how many tokens that were."""
        import torch

        torch.manual_seed(number)
        size = self._spec["group_size"]
        return self._new(do_sample=True, top_k=0, top_p=1.0, num_return_sequences=size).numel()

    def greedy(self) -> list[list[int]]:
        """The most likely tokens for each prompt."""
        return self._new(do_sample=False).tolist()

    def _new(self, **settings: Any) -> Any:
        tokens = self.model.generate(**self._inputs, **self._settings, **settings)
        return tokens[:, self._spec["length"] :]


COLUMNS = [
    *COMMON_COLUMNS,
    Column(
        heading="tokens/s",
        text=lambda record: f"{record['notes']['sampled_tokens'] / record['seconds']['median']:,.0f}",
    ),
    *phase_columns(["prefill", "decode"]),
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
