"""Keys with which a stage takes less memory, and the devices on which it then fits."""

from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from itertools import combinations

from lightning_mmrl.planning.engines import stage_estimate
from lightning_mmrl.planning.memory import Estimate, Lengths
from lightning_mmrl.planning.shapes import ModelShape
from lightning_mmrl.settings.model import AdapterSettings
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.settings.stage import SHARDED_PRECISIONS, StageSettings

RANKS = (1, 2, 4, 8)
GIGABYTES = (24, 80)

Change = Callable[[StageSettings], StageSettings]


def estimates(config: RunSettings, stage: StageSettings, shape: ModelShape, lengths: Lengths) -> dict[int, Estimate]:
    """Maps the number of ranks to the estimated memory of one rank."""
    return {ranks: stage_estimate(config, stage, shape, ranks, lengths) for ranks in RANKS}


def hints(config: RunSettings, name: str, shape: ModelShape, lengths: Lengths) -> list[str]:
    """Returns the fewest keys with which a stage fits the most devices, first without and then with an adapter."""
    stage, found = config.trained[name], []
    towers = [group for group in shape.stacks if group != "text"]
    best = fitting_places(config, stage, shape, lengths)
    for adapts in (False, True):
        words = None
        for keys, changed in alternatives(name, stage, towers, adapts=adapts):
            fitting = fitting_places(config, changed, shape, lengths)
            if len(fitting) > len(best):
                best, words = fitting, f"fits {_places(fitting)} with {keys}"
        found += [words] if words is not None else []
    return found


def alternatives(
    name: str, stage: StageSettings, towers: list[str], *, adapts: bool
) -> list[tuple[str, StageSettings]]:
    """Returns pairs of keys to set and the stage with these keys, the fewest keys first."""
    path = f"stages.{name}"
    changes: list[tuple[str, Change]] = [
        (
            f"{path}.trainer.activation_checkpointing=true",
            lambda found: replace(found, trainer=replace(found.trainer, activation_checkpointing=True)),
        )
    ]
    if stage.trainer.precision in SHARDED_PRECISIONS:
        changes.append(
            (
                f"{path}.trainer.strategy=fsdp2",
                lambda found: replace(found, trainer=replace(found.trainer, strategy="fsdp2")),
            )
        )
    start: list[tuple[str, Change]] = []
    if stage.adapter is None and "text" not in stage.freeze:
        if adapts:
            start.append((f"{path}.adapter={{}}", lambda found: replace(found, adapter=AdapterSettings())))
        elif towers:
            changes.append((f"{path}.freeze=[{','.join(towers)}]", lambda found: replace(found, freeze=towers)))
    return [
        (" ".join(keys for keys, _ in chosen), reduce(lambda found, change: change[1](found), chosen, stage))
        for count in range(len(changes) + 1)
        for chosen in ([*start, *some] for some in combinations(changes, count))
    ]


def fitting_places(
    config: RunSettings, stage: StageSettings, shape: ModelShape, lengths: Lengths
) -> set[tuple[int, int]]:
    """Returns the pairs of device size in GB and number of GPUs on which a stage fits."""
    found = estimates(config, stage, shape, lengths)
    return {(size, ranks) for size in GIGABYTES for ranks, each in found.items() if each.fits(size)}


def _places(fitting: set[tuple[int, int]]) -> str:
    """Says in words how many GPUs of each size a stage needs at least."""
    least = {size: min(ranks for each, ranks in fitting if each == size) for size in {size for size, _ in fitting}}
    return " and ".join(
        f"{size} GB on {ranks} GPU{'s' if ranks > 1 else ''}{' or more' if ranks < RANKS[-1] else ''}"
        for size, ranks in sorted(least.items())
    )
