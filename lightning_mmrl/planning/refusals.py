"""Refuses stages that a device has no room for, in one sentence with the keys that make room."""

import math
from dataclasses import replace

from lightning_mmrl.errors import ConfigError, RolloutError
from lightning_mmrl.planning.clips import lengths_with_clip
from lightning_mmrl.planning.engines import engine_of, engine_settings, stage_estimate
from lightning_mmrl.planning.hints import RANKS, alternatives
from lightning_mmrl.planning.memory import CONTEXT, FRAGMENTATION, Lengths
from lightning_mmrl.planning.shapes import ModelShape, read_shape
from lightning_mmrl.rollout.vllm.memory import check_share
from lightning_mmrl.settings.rollout import POLICY_ITSELF, engine_node, lag_of
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.settings.stage import SHARDED_PRECISIONS, StageSettings

GIB = 2**30
CAPACITY = "trainer.gpu_memory_gb"
CERTAIN = ("torch.optim.Adam", "torch.optim.AdamW", "torch.optim.SGD")
"""Optimizers whose memory is known; others may need less than the plan counts."""


def refuse_misfits(config: RunSettings, known: tuple[ModelShape, Lengths] | None) -> None:
    """Refuses a run of which a stage exceeds its `trainer.gpu_memory_gb`; without known sizes it refuses nothing.

    Raises:
        ConfigError: Says how much the first such stage needs and which keys make it fit, and names the other ones.
    """
    if known is None:
        return
    found = {name: _misfit(config, name, *known) for name in config.trained}
    misfits = {name: words for name, words in found.items() if words}
    if misfits:
        first, *others = misfits
        also = f"; {' and '.join(f'stages.{name}' for name in others)} would not fit either" if others else ""
        raise ConfigError(f"{misfits[first]}{also}")


def require_room(config: RunSettings, device: tuple[int, str] | None) -> str | None:
    """Refuses a run of which a stage exceeds its `trainer.gpu_memory_gb`, or cannot fit the device of a rank.

    Prompts may be shorter than the plan assumes. So the device itself refuses only a stage that exceeds it at any
    length.

    Args:
        config: The configuration.
        device: Bytes of the device of one rank, and words for it; None if they are not known.

    Returns:
        A warning if a stage does not fit the device at the lengths that `mmrl plan` assumes; None also if nothing is
        known of the model.

    Raises:
        ConfigError: Says what is needed, what is there, and which keys to change.
    """
    try:
        shape = read_shape(config.model.checkpoint, config.model.known_sizes)
    except ValueError:
        return None
    if shape is None:
        return None
    lengths, _ = lengths_with_clip(Lengths(), None, config.data.media, shape, config.model.checkpoint)
    refuse_misfits(config, (shape, lengths))
    if device is None:
        return None
    capacity, where = device
    warning = None
    for name, stage in config.trained.items():
        found = stage_estimate(config, stage, shape, config.trainer.world_size, lengths)
        if found.least > capacity and _optimizer(stage) in CERTAIN:
            raise ConfigError(
                f"stages.{name} needs {_gib(found.least)} for weights, gradients and the optimizer's step alone, and "
                f"{where} has {_gib(capacity)}; {_remedy(config, name, shape, lengths, capacity)}"
            )
        if found.needed > capacity and warning is None:
            warning = (
                f"warning: stages.{name} may need {_gib(found.needed)} in {found.phase}, and {where} has "
                f"{_gib(capacity)}, estimated for prompts of {lengths.prompt:,} tokens; "
                f"{_remedy(config, name, shape, lengths, capacity)}"
            )
    return warning


def _misfit(config: RunSettings, name: str, shape: ModelShape, lengths: Lengths) -> str | None:
    """Says how much a stage needs and which keys to change; None if it fits or no capacity is given."""
    stage = config.trained[name]
    if stage.trainer.gpu_memory_gb is None:
        return None
    capacity, ranks = stage.trainer.gpu_memory_gb * 10**9, config.trainer.world_size
    found = stage_estimate(config, stage, shape, ranks, lengths)
    parts = found.phases[found.phase]
    most = f"{found.largest} {_gib(parts[found.largest])}"
    if found.needed > capacity:
        return (
            f"stages.{name} needs about {_gib(found.needed)} on {_each(ranks)}, at its peak in {found.phase} (most of "
            f"it {most}), and {CAPACITY} is {stage.trainer.gpu_memory_gb}, which is {_gib(capacity)}; "
            f"{_remedy(config, name, shape, lengths, capacity)}"
        )
    size, settings = engine_of(config, stage, shape), engine_settings(config)
    share = settings.get("gpu_memory_utilization")
    if size is None or share is None:
        return None
    others = sum(size for part, size in found.phases["generation"].items() if part != "engine")
    free = capacity - CONTEXT - math.ceil(others * (1 + FRAGMENTATION))
    try:
        check_share(size, share, settings.get("kv_cache_gib"), free=max(free, 0), total=capacity)
    except RolloutError as error:
        return f"stages.{name}: {error}"
    return None


def _remedy(config: RunSettings, name: str, shape: ModelShape, lengths: Lengths, capacity: int) -> str:
    """The fewest keys with which a stage fits the device, of any kind that is tried."""
    stage, ranks = config.trained[name], config.trainer.world_size
    if stage.algorithm is not None and lag_of(config.rollout):
        config = replace(config, rollout=engine_node(config.rollout))
        if stage_estimate(config, stage, shape, ranks, lengths).needed <= capacity:
            return "set rollout.lag=0, since the second copy of the model takes the rest"
        return f"set rollout.lag=0, and {_remedy(config, name, shape, lengths, capacity).removeprefix('set ')}"
    towers = [group for group in shape.stacks if group != "text"]
    for adapts in (False, True):
        for keys, changed in alternatives(name, stage, towers, adapts=adapts):
            if keys and stage_estimate(config, changed, shape, ranks, lengths).needed <= capacity:
                return f"set {keys}"
    if engine_of(config, stage, shape) is not None:
        policy = {"_target_": POLICY_ITSELF}
        alone = stage_estimate(replace(config, rollout=policy), stage, shape, ranks, lengths)
        if alone.needed <= capacity:
            return "set rollout=hf, or sample on other devices with rollout=vllm_server"
    more = [each for each in RANKS if each > ranks and stage.data.batch_size % each == 0]
    sharded = [changed for keys, changed in alternatives(name, stage, [], adapts=False) if changed.trainer.shards]
    for each in more if stage.trainer.precision in SHARDED_PRECISIONS and sharded else ():
        if stage_estimate(config, sharded[-1], shape, each, lengths).needed <= capacity:
            return f"set trainer.devices={each} trainer.strategy=fsdp2 trainer.activation_checkpointing=true"
    return f"take a smaller model, or lower stages.{name}.data.batch_size or evaluation.batch_size"


def _optimizer(stage: StageSettings) -> str:
    return str(stage.optimizer["_target_"])


def _each(ranks: int) -> str:
    return "its device" if ranks == 1 else f"each of {ranks} devices"


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
