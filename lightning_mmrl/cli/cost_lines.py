"""The lines of `mmrl plan` about time and disk space."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Console

from lightning_mmrl.config.budget import shares
from lightning_mmrl.planning.costs import ON_CPU, ON_GPU, Operations, cpu_peak, disk, free_bytes, operations
from lightning_mmrl.planning.memory import Lengths
from lightning_mmrl.planning.shapes import ModelShape
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.settings.stage import StageSettings
from lightning_mmrl.types.text import duration


def show_costs(
    console: Console,
    config: RunSettings,
    stages: Mapping[str, StageSettings],
    known: tuple[ModelShape, Lengths] | None,
) -> None:
    """Prints the lines, if the sizes of the model are known."""
    for line in [] if known is None else cost_lines(config, stages, *known):
        console.print(line, soft_wrap=True)


def cost_lines(
    config: RunSettings, stages: Mapping[str, StageSettings], shape: ModelShape, lengths: Lengths
) -> Iterator[str]:
    """Says for each stage how long it may take and what it writes, and what is free.

    Args:
        config: The run.
        stages: The stages that train, with as many steps as they will make, as far as that is known.
        shape: The model.
        lengths: Lengths of prompts and answers.
    """
    trainer = config.trainer
    on_cpu = trainer.accelerator == "cpu"
    peak = None if trainer.gpu_teraflops is None else trainer.gpu_teraflops * 10**12 * trainer.world_size
    peak, reached = (cpu_peak(), ON_CPU) if on_cpu else (peak, ON_GPU)
    needed = 0
    for name, stage in stages.items():
        written, each = disk(config, name, shape), operations(shape, stage, lengths)
        time = None if peak is None else _time(config, name, stage, each, each.seconds(peak, reached))
        if time is not None:
            yield f"{name:<12} takes {time}"
        handoff = f"a handoff of {_size(written.handoff)}"
        yield f"{name:<12} writes {_size(written.states)} of states while it trains, and {handoff}"
        needed = max(needed, written.states) + written.handoff
    if peak is None:
        yield "time         no estimate: trainer.gpu_teraflops has no peak of the device, as the presets of GPUs do"
    else:
        where = "a short matrix product reached" if on_cpu else f"stated peak of {_devices(trainer.world_size)}"
        yield (
            f"time         estimated, not measured: {reached.training:.0%} of the peak in training and "
            f"{reached.sampling:.0%} in sampling ({where} {_trillions(peak)} a second), answers at full length, "
            "without evaluations and media"
        )
    cache = config.model.feature_cache
    extra = "" if cache is None else f" and {_size(cache.max_bytes)} of features"
    yield (
        f"disk         at most {_size(needed)}{extra} at a time, besides prepared media in "
        f"{config.data.media.cache_dir}; {_size(free_bytes(Path(config.output_dir)))} are free at {config.output_dir}"
    )


def _time(config: RunSettings, name: str, stage: StageSettings, each: Operations, seconds: float) -> str | None:
    """Says how long a stage takes at so many seconds a step; under a budget, at most, as stages before it may overrun.

    None if the number of steps is not known, and no budget ends the stage.
    """
    operations_of_step = each.training + each.sampling
    rate = f"{seconds:.2g} s a step: {_trillions(operations_of_step)} operations"
    if stage.num_steps is not None:
        return f"about {duration(stage.num_steps * seconds)}, {rate}"
    share = shares(config).get(name)
    if config.budget is None or share is None:
        return None
    spent = {"flops": operations_of_step, "steps": 1, "seconds": seconds}[config.budget.measure]
    return f"up to about {duration(share * config.budget.total / spent * seconds)} by its share of the budget, {rate}"


def _trillions(number: float) -> str:
    return f"{number / 10**12:,.{0 if number > 10**13 else 2}f} x 10^12"


def _devices(number: int) -> str:
    return f"{number} devices" if number > 1 else "the device"


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
