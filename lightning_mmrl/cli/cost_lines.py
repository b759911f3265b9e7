"""The lines of `mmrl plan` about time and disk space."""

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from lightning_mmrl.config.epochs import with_steps
from lightning_mmrl.planning.costs import ON_CPU, ON_GPU, cpu_peak, disk, free_bytes, operations
from lightning_mmrl.planning.memory import Lengths
from lightning_mmrl.planning.shapes import ModelShape
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.types.text import duration


def show_costs(console: Console, config: RunSettings, known: tuple[ModelShape, Lengths] | None) -> None:
    """Prints the lines, if the sizes of the model are known."""
    for line in [] if known is None else cost_lines(config, *known):
        console.print(line, soft_wrap=True)


def cost_lines(config: RunSettings, shape: ModelShape, lengths: Lengths) -> Iterator[str]:
    """Says for each stage how long it may take and what it writes, and what is free."""
    trainer = config.trainer
    on_cpu = trainer.accelerator == "cpu"
    peak = None if trainer.gpu_teraflops is None else trainer.gpu_teraflops * 10**12 * trainer.world_size
    peak, shares = (cpu_peak(), ON_CPU) if on_cpu else (peak, ON_GPU)
    needed = 0
    for name in config.trained:
        stage, written = with_steps(config, name), disk(config, name, shape)
        each = operations(shape, stage, lengths)
        if peak is not None and stage.num_steps is not None:
            seconds = each.seconds(peak, shares)
            yield (
                f"{name:<12} takes about {duration(stage.num_steps * seconds)}, {seconds:.2g} s a step: "
                f"{_trillions(each.training + each.sampling)} operations"
            )
        handoff = f"a handoff of {_size(written.handoff)}"
        yield f"{name:<12} writes {_size(written.states)} of states while it trains, and {handoff}"
        needed = max(needed, written.states) + written.handoff
    if peak is None:
        yield "time         no estimate: trainer.gpu_teraflops has no peak of the device, as the presets of GPUs do"
    else:
        where = "a short matrix product reached" if on_cpu else f"stated peak of {_devices(trainer.world_size)}"
        yield (
            f"time         estimated, not measured: {shares.training:.0%} of the peak in training and "
            f"{shares.sampling:.0%} in sampling ({where} {_trillions(peak)} a second), answers at full length, "
            "without evaluations and media"
        )
    cache = config.model.feature_cache
    extra = "" if cache is None else f" and {_size(cache.max_bytes)} of features"
    yield (
        f"disk         at most {_size(needed)}{extra} at a time, besides prepared media in "
        f"{config.data.media.cache_dir}; {_size(free_bytes(Path(config.output_dir)))} are free at {config.output_dir}"
    )


def _trillions(number: float) -> str:
    return f"{number / 10**12:,.{0 if number > 10**13 else 2}f} x 10^12"


def _devices(number: int) -> str:
    return f"{number} devices" if number > 1 else "the device"


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
