"""Computes the number of steps of a stage whose length is given in passes over its data, once the data are known."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from lightning_mmrl.config.fitting import fitted
from lightning_mmrl.config.specs import cap_steps
from lightning_mmrl.data.sources import num_rows
from lightning_mmrl.registry.kinds import kind_of
from lightning_mmrl.settings.data import SourceSettings
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.settings.stage import StageSettings


def with_steps(
    config: RunSettings,
    name: str,
    sources: Iterable[SourceSettings] | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> StageSettings:
    """Returns a stage with `num_steps` computed from `num_epochs` and its data; without epochs or data, as configured.

    The steps are ceil(num_epochs * samples / batch_size), at most `trainer.max_steps`. A pass over several sources is
    as long as all of them together, each within its limit, whatever their weights.

    Args:
        config: The configuration.
        name: A stage that trains.
        sources: The sources of the stage's data; None for the sources that no other stage makes.
        say: Gets a sentence for each key that is fitted to few steps, as in `fitted`.

    Raises:
        ConfigError: A key that counts steps does not fit the length.
    """
    stage, path = config.trained[name], f"stages.{name}"
    data = config.dataset(stage.data.dataset)
    kept = Path(config.data.media.cache_dir)
    samples = num_samples(stage.data.located(data).values() if sources is None else sources, kept)
    if stage.num_epochs is None or not samples:
        return stage
    # Exact in decimal digits: 1.1 * 50 is 55 steps, where the float 55.00000000000001 would give 56.
    steps = math.ceil(Fraction(str(stage.num_epochs)) * samples / stage.data.batch_size)
    known = fitted(replace(stage, num_steps=steps), path, say)
    kind_of(known, path).check(path, known, config)
    return cap_steps(known)


def num_samples(sources: Iterable[SourceSettings], kept: Path | None = None) -> int | None:
    """Number of samples in the sources of a stage; None if a manifest does not exist yet.

    Args:
        sources: The sources.
        kept: Folder with indexes of manifests, which save counting.
    """
    total = 0
    for source in sources:
        count = num_rows(source.path, source.format, kept) if source.manifest else None
        if count is None:
            return None
        total += min(count, source.limit or count)
    return total
