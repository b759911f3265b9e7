"""Step 6: the memory that `mmrl train` still holds when a stage or an evaluation begins.

Two tiny stages run sharded (fsdp2) in one rank, each with an evaluation. When one has ended, its weights, gradients and
optimizer must be gone: at 3B they would not fit beside the model of the evaluation.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import Any
from unittest.mock import patch

import torch
from gpu_record import Record, Setup
from torch import Tensor, nn

from lightning_mmrl.app import evaluation, stages
from lightning_mmrl.cli.main import main

MIB = 2**20
OVERRIDES = ("experiment=task_arithmetic", "debug=fast", "order=[cold_start,reason]", "trainer.strategy=fsdp2")
BEGINNINGS = 5
"""The base's evaluation, then each of two stages and its evaluation."""
MOST_KEPT = 0.5
"""Of the bytes of the weights: a stage that stays leaves four times them, with its gradients and optimizer."""


def run(setup: Setup, record: Record) -> None:
    """Trains, and compares what is held at each beginning with what was held at the first."""
    log = setup.folder / "train.log"
    trainer = "trainer=auto" if setup.on_gpu else "trainer=cpu"
    arguments = ["train", *OVERRIDES, trainer, f"output_dir={setup.folder / 'runs'}"]
    held: list[tuple[str, int]] = []
    with log.open("w", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):  # noqa: SIM117
        with noted(setup, held):
            code = main(arguments)
    lines = log.read_text(encoding="utf-8").strip().splitlines()
    record.expect(code == 0, f"mmrl train ended with exit code {code}: {lines[-1] if lines else 'it said nothing'}")
    record.expect(len(held) == BEGINNINGS, f"{len(held)} stages and evaluations began, not {BEGINNINGS}")
    if not setup.on_gpu:
        record.skip("memory that CUDA allocated", "a CPU keeps no count; tensors that Python still reaches are summed")
    weights = sum(path.stat().st_size for path in sorted(setup.folder.rglob("01-*/handoff/model.safetensors")))
    record.figure("weights_mib", weights / MIB)
    for name, size in held:
        record.figure(f"held_before_{name}_mib", size / MIB)
    for name, size in held[1:]:
        kept = size - held[0][1]
        record.expect(
            kept <= MOST_KEPT * weights,
            f"{kept / MIB:.1f} MiB more are held before {name} than at the start, and the weights take "
            f"{weights / MIB:.1f}",
        )


@contextmanager
def noted(setup: Setup, held: list[tuple[str, int]]) -> Iterator[None]:
    """Notes the name and the held bytes whenever a stage or an evaluation has freed memory, with which it begins."""

    def noting(module: Any, kind: Any, name_of: Callable[..., str]) -> Any:
        begin, free, names = kind.__call__, module.free_memory, []

        def noted_call(self: Any, *arguments: Any) -> Any:
            names.append(name_of(*arguments))
            return begin(self, *arguments)

        def noted_free() -> None:
            free()
            held.append((names[-1], held_bytes(setup)))

        return patch.multiple(module, free_memory=noted_free), patch.object(kind, "__call__", noted_call)

    with ExitStack() as stack:
        for each in (
            *noting(stages, stages.StageBuilder, lambda spec, *rest: f"stage_{spec.name}"),
            *noting(
                evaluation, evaluation.CheckpointEvaluator, lambda start, place, name, *rest: f"evaluation_of_{name}"
            ),
        ):
            stack.enter_context(each)
        yield


def held_bytes(setup: Setup) -> int:
    """Bytes of tensors that are alive: CUDA's own count, or the storages that Python's collector still reaches."""
    if setup.on_gpu:
        return torch.cuda.memory_allocated()
    # Shards wrap plain tensors, which are found themselves.
    tensors = (found for found in gc.get_objects() if type(found) in (Tensor, nn.Parameter))
    storages = {found.untyped_storage()._cdata: found.untyped_storage().nbytes() for found in tensors}
    return sum(storages.values())
