"""The memory part of `mmrl plan`: an estimate per rank for each stage, and keys that make a stage fit."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lightning_mmrl.config.epochs import num_samples
from lightning_mmrl.planning.clips import Clip, lengths_with_clip
from lightning_mmrl.planning.hints import GIGABYTES, RANKS, estimates, hints
from lightning_mmrl.planning.memory import Lengths, cached_bytes
from lightning_mmrl.planning.shapes import ModelShape, read_shape
from lightning_mmrl.settings.algorithm import MicrobatchSettings
from lightning_mmrl.settings.run import RunSettings


def show_memory(
    console: Console, config: RunSettings, names: Sequence[str], lengths: Lengths, clip: Clip | None = None
) -> tuple[ModelShape, Lengths] | None:
    """Prints one line for a stage that fits the smallest device, a table and hints for any other.

    Returns:
        The sizes of the model and the lengths that were taken; None if there is no estimate.

    Raises:
        ConfigError: The keys of frames and sizes refuse the clip.
    """
    try:
        shape = read_shape(config.model.checkpoint, config.model.known_sizes)
    except ValueError as error:
        console.print(f"memory       no estimate for {config.model.checkpoint}: {error}")
        return None
    if shape is None:
        checkpoint = config.model.checkpoint
        if config.model.build is not None:
            console.print(f"memory       estimated once {checkpoint} is built")
        elif Path(checkpoint).is_dir():
            console.print(f"memory       no estimate: {checkpoint} has no config.json")
        else:
            reason = "is not here, and model.known_sizes does not name it; download it and give its folder"
            console.print(f"memory       no estimate: {checkpoint} {reason}")
        return None
    if shape.assumed is not None:
        console.print(f"memory       {shape.assumed} is no family of this package; it is taken to have Llama's layers")
    lengths, counted = lengths_with_clip(lengths, clip, config.data.media, shape, config.model.checkpoint)
    if counted is not None:
        console.print(f"media        {counted}")
    if (size := cached_bytes(shape, lengths)) > 0:
        console.print(f"media cache  {_disk(config, size)}")
    assumed = [name for name in names if not _show_stage(console, config, name, shape, lengths)]
    if assumed:
        console.print(
            f"memory       estimated, not measured, for prompts of {lengths.prompt:,} tokens (--prompt-tokens N) and "
            f"targets of {lengths.answer:,}"
        )
    return shape, lengths


def _disk(config: RunSettings, size: int) -> str:
    """Says how much disk the media of all training data take, at this size for each sample."""
    media = config.data.media
    sources = {
        (str(source.path), source.limit): source
        for stage in config.trained.values()
        for source in stage.data.located(config.dataset(stage.data.dataset)).values()
        if source.manifest
    }
    samples = num_samples(sources.values())
    total = "" if not samples else f", {samples * size / 1e9:,.1f} GB for {samples:,} samples"
    limit = "no limit" if media.cache_limit_gb is None else f"data.media.cache_limit_gb is {media.cache_limit_gb:g}"
    return f"{media.cache_dir}: at most {size / 1e6:,.1f} MB a sample{total} ({limit})"


def memory_hint(config: RunSettings, name: str | None) -> str:
    """Returns a clause with keys that make a stage use less memory; without a stage, the keys of an evaluation.

    The first keys do not change the outcome, so a begun stage continues with them. The next ones need
    `--allow-changes`. The last ones are the suggestions of `mmrl plan`.
    """
    evaluation = f"a lower evaluation.batch_size ({config.evaluation.batch_size})"
    if name is None:
        return f"to use less set {evaluation}"
    stage, path = config.trained.get(name), f"stages.{name}"
    if stage is None:
        return f"to use less set a lower {path}.data.batch_size"
    free = [] if stage.trainer.activation_checkpointing else [f"{path}.trainer.activation_checkpointing=true"]
    if isinstance(stage, MicrobatchSettings):
        free.append(f"a lower {path}.tokens_per_microbatch ({stage.tokens_per_microbatch})")
    free.append(evaluation)
    costs = [f"{path}.data.batch_size ({stage.data.batch_size})"]
    if stage.algorithm is not None and stage.sampling is not None:
        budget = stage.algorithm.update.tokens_per_microbatch
        costs = [
            f"{path}.algorithm.update.tokens_per_microbatch ({budget})",
            f"{path}.algorithm.group_size ({stage.algorithm.group_size})",
            f"{path}.sampling.max_new_tokens ({stage.sampling.max_new_tokens})",
        ]
    lines = [f"to use less set {' or '.join(free)}", f"with --allow-changes also a lower {' or '.join(costs)}"]
    try:
        shape = read_shape(config.model.checkpoint, config.model.known_sizes)
    except ValueError:
        shape = None
    found = []
    if shape is not None:
        lengths, _ = lengths_with_clip(Lengths(), None, config.data.media, shape, config.model.checkpoint)
        found = hints(config, name, shape, lengths)
    return "; ".join([*lines, *(f"mmrl plan estimates that the stage {line}" for line in found)])


def _show_stage(console: Console, config: RunSettings, name: str, shape: ModelShape, lengths: Lengths) -> bool:
    """Prints one stage; returns True if it fits the smallest device with any number of ranks."""
    stage = config.trained[name]
    found = estimates(config, stage, shape, lengths)
    if all(each.fits(GIGABYTES[0]) for each in found.values()):
        first = found[RANKS[0]]
        console.print(
            f"{name:<12} memory per rank about {_gib(first.needed)}, fits {GIGABYTES[0]} GB on any number of GPUs"
        )
        return True
    words = ["sharded by fsdp2" if stage.trainer.strategy == "fsdp2" else "replicated"]
    words += ["activations computed again"] if stage.trainer.activation_checkpointing else []
    words += ["offloaded to the host"] if stage.trainer.cpu_offload else []
    table = Table(title=f"{name}: memory per rank, {', '.join(words)}")
    for column in ("GPUs", "memory", *(f"{size} GB" for size in GIGABYTES), "at its peak in", "most of it"):
        table.add_column(column)
    for ranks, each in found.items():
        fits = ["fits" if each.fits(size) else "no" for size in GIGABYTES]
        largest = f"{each.largest}, {_gib(each.phases[each.phase][each.largest])}"
        table.add_row(str(ranks), _gib(each.needed), *fits, each.phase, largest)
    console.print(table)
    host = found[RANKS[0]].host
    if host:
        console.print(f"{name:<12} {_gib(host)} of host memory in all for shards and optimizer state")
    for line in hints(config, name, shape, lengths):
        console.print(f"{name:<12} {line}")
    return False


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
