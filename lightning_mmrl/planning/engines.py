"""The estimate of a stage of a run: with its engine, and with the run's evaluations."""

import math
from dataclasses import replace
from typing import Any

from lightning_mmrl.planning.activations import BYTES
from lightning_mmrl.planning.memory import Beside, Estimate, Lengths, estimate, generation_bytes
from lightning_mmrl.planning.shapes import ModelShape
from lightning_mmrl.rollout.vllm.memory import GIB, USEFUL_TOKENS, EngineSize
from lightning_mmrl.rollout.vllm.readiness import is_vllm
from lightning_mmrl.settings.rollout import lag_of
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.settings.stage import StageSettings

RESTING = GIB
"""Bytes of an engine that sleeps: its CUDA graphs and buffers; an estimate that was not measured on a GPU."""


def stage_estimate(
    config: RunSettings, stage: StageSettings, shape: ModelShape, ranks: int, lengths: Lengths
) -> Estimate:
    """Estimates the memory of one of `ranks` ranks of a stage."""
    uses, dtype = beside(config, stage, shape), config.model.dtype
    if stage.algorithm is not None and lag_of(config.rollout):
        ahead = generation_bytes(shape, stage, dtype, ranks, lengths)
        uses = replace(uses, engine=ahead, resting=ahead)
    return estimate(shape, stage, dtype, ranks, lengths, uses)


def beside(config: RunSettings, stage: StageSettings, shape: ModelShape) -> Beside:
    """The uses of a rank's device beside the training of a stage."""
    evaluation = config.evaluation
    sets = config.sets(stage.evaluation_sets)
    engine, asleep = 0, 0
    size, settings = engine_of(config, stage, shape), engine_settings(config)
    if size is not None:
        share, cache, gigabytes = (
            settings.get("gpu_memory_utilization"),
            settings.get("kv_cache_gib"),
            stage.trainer.gpu_memory_gb,
        )
        if cache is not None:
            engine = size.weights + size.rest + int(cache * GIB)
        elif share is not None and gigabytes is not None:
            engine = math.ceil(share * gigabytes * 10**9)
        else:
            engine = size.useful
        asleep = RESTING if settings.get("sleep_level", 1) else engine
    return Beside(
        engine=engine,
        resting=asleep,
        evaluated=evaluation.batch_size if sets else 0,
        answer=evaluation.max_new_tokens,
    )


def engine_of(config: RunSettings, stage: StageSettings, shape: ModelShape) -> EngineSize | None:
    """The size of the engine on each device of an rl stage; None if the policy samples, or a server does."""
    settings = engine_settings(config)
    if stage.algorithm is None or not is_vllm(config.rollout) or settings.get("server") is not None:
        return None
    size = BYTES[stage.trainer.computes(config.model.dtype)]
    longest = settings.get("max_model_len") or shape.positions or USEFUL_TOKENS
    token = 2 * shape.text.depth * shape.text.keys * size
    return EngineSize(weights=shape.parameters * size, token=token, longest=longest)


def engine_settings(config: RunSettings) -> dict[str, Any]:
    """The node `rollout.settings`, empty without one."""
    return config.rollout.get("settings") or {}
