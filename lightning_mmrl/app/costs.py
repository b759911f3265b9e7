"""Turns the counted work of a stage into operations by the plan's formulas, and finds the peak of its devices."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from lightning_mmrl.planning.costs import counted_operations
from lightning_mmrl.planning.peaks import known_teraflops
from lightning_mmrl.planning.shapes import ModelShape, read_shape
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.settings.stage import NodeSettings, TrainerSettings
from lightning_mmrl.stages.costs import Rates
from lightning_mmrl.types.costs import Counts


def rates(config: RunSettings, stage: NodeSettings, checkpoint: str, rollout: Any = None) -> Rates:
    """Returns the rates of a stage that starts from a checkpoint.

    Args:
        config: The run.
        stage: The stage.
        checkpoint: Folder or hub id.
        rollout: The stage's own engine; None for the run's.
    """
    try:
        shape = read_shape(checkpoint, config.model.known_sizes)
    except ValueError:  # of no family whose sizes are known: the plan says so
        shape = None
    engine = (rollout or config.rollout).get("settings")
    return Rates(
        operations=None if shape is None else partial(_operations, shape, stage),
        peak=device_peak(stage.trainer),
        samples_here=not isinstance(engine, Mapping) or engine.get("server") is None,
    )


def device_peak(trainer: TrainerSettings) -> float | None:
    """Operations a second of one device: as `gpu_teraflops` says, or the stated peak of a known GPU; else None."""
    teraflops = trainer.gpu_teraflops
    if teraflops is None and trainer.accelerator != "cpu" and torch.cuda.is_available():
        teraflops = known_teraflops(torch.cuda.get_device_name())
    return None if teraflops is None else teraflops * 10**12


def _operations(shape: ModelShape, stage: NodeSettings, counts: Counts) -> dict[str, int]:
    return asdict(counted_operations(shape, stage, counts))
