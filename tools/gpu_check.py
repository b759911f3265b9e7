"""Checks in a few minutes whether training works on this GPU: eight steps, each with figures and PASS or FAIL.

    python tools/gpu_check.py                               all steps, at the 3B shape on a GPU, at toy size without one
    python tools/gpu_check.py --only attention,microbatch   some steps, by name or number
    python tools/gpu_check.py --json gpu_check.json         also writes a report

Weights are random, and nothing is downloaded. Each step has a process of its own, so that neither an error of CUDA nor
a crash hides the next. torch, transformers, numpy and jaxtyping are enough; a step that needs more says NEEDS and the
packages, and counts neither as passed nor as failed. The exit code is 0, 1 if a step failed, 2 if nothing could run.
"""

import argparse
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WORKER = "--worker"
OLDEST = {"torch": (2, 11), "transformers": (5, 17), "numpy": (1, 26), "jaxtyping": (0, 3)}
"""Packages without which nothing runs, and their oldest versions."""
PROCESSORS = ("torchvision", "PIL")
STACK = ("lightning", "hydra", "omegaconf", "math_verify", "mlflow", "filelock", "rich", "torchmetrics", "peft", "av")
STACK = (*PROCESSORS, *STACK, "soundfile", "soxr", "matplotlib")
PACKAGES = {"PIL": "pillow", "hydra": "hydra-core", "math_verify": "math-verify[antlr4-9-3]"}
"""Packages whose name differs from that of their module."""
DEADLINE_S = 150.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step: its name, a sentence, and the modules that it needs beyond the four packages.

    Its code is `run` in the module of its name in tools/gpu.
    """

    name: str
    about: str
    needs: tuple[str, ...] = ()

    def missing(self) -> list[str]:
        """Packages that are needed and not installed."""
        return [PACKAGES.get(name, name) for name in self.needs if importlib.util.find_spec(name) is None]


STEPS = (
    Step(name="attention", about="attention of scoring and decoding against float64, and its time at 16k tokens"),
    Step(name="precision", about="weights that small updates move, types under autocast, rotary frequencies"),
    Step(name="microbatch", about="one microbatch of 3 x (3000 + 8 x 200) tokens, scored and differentiated"),
    Step(name="decoding", about="64 decoding steps of 32 x 8 rows: time, kernels, agreement with scoring"),
    Step(name="towers", about="a frozen vision tower on 325k and on 1.2 million patches"),
    Step(name="stages", about="memory held before each stage and evaluation of two fsdp2 stages", needs=STACK),
    Step(name="vllm", about="vLLM: parity, pushes, rest, preemption, memory", needs=(*PROCESSORS, "vllm")),
    Step(name="layout", about="SFT step and RL iteration from a folder in the hub's layout", needs=PROCESSORS),
)


def main() -> int:
    """Runs the chosen steps and returns the exit code."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tools" / "gpu"), str(ROOT / "tools" / "bench")]
    if sys.argv[1:2] == [WORKER]:
        return work(json.loads(sys.argv[2]))
    options = parse(sys.argv[1:])
    if (refused := cannot_run()) is not None:
        print(f"gpu_check: {refused}", file=sys.stderr)
        return 2
    return check(options)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = ", ".join(f"{number} {step.name}" for number, step in enumerate(STEPS, 1))
    parser.add_argument("--only", type=chosen, default=list(STEPS), metavar="STEPS", help=f"some of {known}")
    parser.add_argument("--scale", choices=("toy", "3b"), help="sizes (default: 3b on a GPU, toy without one)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where a report goes, after every step")
    parser.add_argument(
        "--deadline", type=float, default=DEADLINE_S, metavar="S", help=f"seconds for a step (default: {DEADLINE_S:g})"
    )
    return parser.parse_args(arguments)


def chosen(text: str) -> list[Step]:
    """Steps by name or number, in their own order.

    Raises:
        argparse.ArgumentTypeError: There is no such step.
    """
    names = {word for each in text.split(",") if (word := each.strip())}
    keys = [{step.name, str(number)} for number, step in enumerate(STEPS, 1)]
    unknown = sorted(names.difference(*keys))
    if unknown or not names:
        known = ", ".join(f"{number} {step.name}" for number, step in enumerate(STEPS, 1))
        raise argparse.ArgumentTypeError(f"there is no step {', '.join(unknown) or repr(text)}; choose from {known}")
    return [step for step, key in zip(STEPS, keys, strict=True) if key & names]


def cannot_run() -> str | None:
    """One sentence that names missing or old packages, or None."""
    for name, oldest in OLDEST.items():
        wanted = ".".join(map(str, oldest))
        try:
            found = version(name)
        except PackageNotFoundError:
            return f"the package {name} is not installed; install it with: pip install '{name}>={wanted}'"
        if tuple(int(digits) for digits in re.findall(r"\d+", found)[:2]) < oldest:
            return f"{name} is {found}, and this check needs {wanted} or newer: pip install '{name}>={wanted}'"
    return None


def check(options: argparse.Namespace) -> int:
    """Runs the steps one after the other, each in a process, and reports."""
    from lightning_mmrl.files import write_json

    began = time.perf_counter()
    machine = machine_facts()
    scale = options.scale or ("3b" if machine["gpu"] else "toy")
    if scale == "3b" and not machine["gpu"]:
        print("gpu_check: torch sees no GPU, and --scale 3b needs one; mmrl doctor says why", file=sys.stderr)
        return 2
    print(
        f"{machine['gpu'] or 'no GPU'}, torch {machine['torch']}, transformers {machine['transformers']}, scale {scale}"
    )
    report: dict[str, Any] = {"machine": machine, "scale": scale, "steps": []}
    for step in options.only:
        number = STEPS.index(step) + 1
        print(f"{number}/{len(STEPS)} {step.name}: {step.about}", flush=True)
        start = time.perf_counter()
        outcome = run_apart(step, scale, bool(machine["gpu"]), options.deadline)
        seconds = round(time.perf_counter() - start, 1)
        report["steps"].append({"number": number, "name": step.name, "seconds": seconds, **outcome})
        report["seconds"] = round(time.perf_counter() - began, 1)
        detail = ", ".join(outcome["needs"]) if outcome["status"] == "NEEDS" else "; ".join(outcome["failures"])
        print(f"  {outcome['status']} {step.name} {detail} ({seconds:.1f} s)", flush=True)
        if options.json is not None:
            write_json(options.json, report)
    statuses = [step["status"] for step in report["steps"]]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in ("PASS", "FAIL", "NEEDS"))
    print(f"{counts} in {report['seconds']:.0f} s")
    return 1 if "FAIL" in statuses else 0


def machine_facts() -> dict[str, Any]:
    """Everything that the figures depend on; never a name that tells which machine it was."""
    import torch
    from bench_report import machine

    facts: dict[str, Any] = {**machine(), "gpu": None, **{name: version(name) for name in OLDEST}}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "gpu": properties.name,
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
        }
    return facts


def run_apart(step: Step, scale: str, on_gpu: bool, deadline: float) -> dict[str, Any]:
    """The outcome of a step in a process of its own; a process that dies or hangs is a failure of its step."""
    if missing := step.missing():
        return {"status": "NEEDS", "needs": missing, "figures": {}, "failures": [], "not_measured": []}
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        out = Path(folder) / "record.json"
        spec = {"step": step.name, "scale": scale, "device": "cuda" if on_gpu else "cpu", "folder": folder}
        command = [sys.executable, str(Path(__file__).resolve()), WORKER, json.dumps({**spec, "out": str(out)})]
        quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "KINETO_LOG_LEVEL": "99"}
        process = subprocess.Popen(command, env={**os.environ, **quiet})
        try:
            code, ending = process.wait(timeout=deadline), ""
        except subprocess.TimeoutExpired:
            process.kill()
            code, ending = process.wait(), f"it took longer than {deadline:g} s and was ended"
        except KeyboardInterrupt:
            process.kill()
            raise
        nothing: dict[str, Any] = {"status": "FAIL", "figures": {}, "failures": [], "not_measured": []}
        outcome = json.loads(out.read_text(encoding="utf-8")) if out.exists() else nothing
    if code != 0:
        outcome["failures"].append(ending or f"its process ended with exit code {code}")
        outcome["status"] = "FAIL"
    return outcome


def work(spec: dict[str, str]) -> int:
    """The process of one step: it writes its record after every finding."""
    import torch

    from gpu_record import Record, Setup  # isort: skip
    from lightning_mmrl.files import write_whole

    if spec["scale"] == "toy":
        torch.set_num_threads(1)  # tensors of this size gain nothing from threads
    out, folder = Path(spec["out"]), Path(spec["folder"]) / "work"
    folder.mkdir()
    setup = Setup(scale=spec["scale"], device=torch.device(spec["device"]), folder=folder)  # type: ignore[arg-type]
    record = Record(
        say=lambda line: print(f"    {line}", flush=True),
        changed=lambda record: write_whole(out, json.dumps(record.plain()), durable=False),
    )
    run_step(spec["step"], setup, record)
    record.changed(record)
    return 0


def run_step(name: str, setup: Any, record: Any) -> None:
    """Runs a step; an exception is a failure of the step."""
    from gpu_record import telling_errors
    from transformers.utils import logging

    logging.set_verbosity_error()
    with telling_errors(record):
        importlib.import_module(f"gpu_{name}").run(setup, record)


if __name__ == "__main__":
    sys.exit(main())
