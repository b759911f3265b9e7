"""The checked order of stages, and the stage that each one starts from."""

from collections.abc import Mapping, Sequence

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.settings.stage import StageSettings
from lightning_mmrl.types.records import StageSpec

BASE, PREVIOUS = "base", "previous"


def plan_stages(order: Sequence[str], stages: Mapping[str, StageSettings]) -> list[StageSpec]:
    """The stages of a curriculum in order.

    Args:
        order: Stage names; each at most once.
        stages: Maps names to stages; `start_from` is "base", "previous" or the name of an earlier stage in the order.

    Returns:
        Specifications whose content and digest are still empty.

    Raises:
        ConfigError: The order is empty, repeats a stage or names an unknown one, or a stage starts from a stage that
            does not come earlier.
    """
    if not order:
        raise ConfigError("order is empty; name at least one stage, for example order=[cold_start,reason]")
    specs: list[StageSpec] = []
    for index, name in enumerate(order):
        earlier = [spec.name for spec in specs]
        if name not in stages:
            raise ConfigError(f"order[{index}]: unknown stage {name!r}; stages defines {', '.join(sorted(stages))}")
        if name in (BASE, PREVIOUS):
            raise ConfigError(f"order[{index}]: {name!r} is a reserved name; call the stage something else")
        if name in earlier:
            raise ConfigError(f"order[{index}]: stage {name!r} appears twice; define it again under another name")
        start = stages[name].start_from
        if start not in (BASE, PREVIOUS, *earlier):
            choices = ", ".join([BASE, PREVIOUS, *earlier])
            raise ConfigError(f"stages.{name}.start_from is {start!r}; choose one of {choices}")
        specs.append(StageSpec(name=name, index=index, settings=stages[name], digest=""))
    return specs


def source_stage(spec: StageSpec, order: Sequence[str]) -> str | None:
    """Name of the stage whose handoff a stage starts from, None for the base model."""
    start = spec.settings.start_from
    if start == BASE or (start == PREVIOUS and spec.index == 0):
        return None
    return order[spec.index - 1] if start == PREVIOUS else start
