"""The scale of a recipe: `experiment=NAME scale=SCALE` chooses the option `experiment=NAME/SCALE`."""

from collections.abc import Sequence
from pathlib import Path

from lightning_mmrl.config.folders import options
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.suggestions import did_you_mean, shown

_GROUP, _SCALE = "experiment=", "scale="


def scaled(overrides: Sequence[str], own: Path | None = None) -> list[str]:
    """Replaces the override `scale=SCALE`, if there is one, and the experiment by the experiment of that scale.

    An experiment that has several scales is a file `experiment/NAME.yaml` with a folder `experiment/NAME` beside it.

    Args:
        overrides: The user's overrides.
        own: The user's own folder of configs.

    Raises:
        ConfigError: No experiment is chosen, it has no scales, or it lacks this one.

    >>> scaled(["experiment=quickstart", "seed=1"])
    ['experiment=quickstart', 'seed=1']
    """
    chosen = [each.removeprefix(_SCALE) for each in overrides if each.startswith(_SCALE)]
    if not chosen:
        return list(overrides)
    name = next((each.removeprefix(_GROUP) for each in reversed(overrides) if each.startswith(_GROUP)), None)
    known = options("experiment", own)
    recipes = sorted({option.partition("/")[0] for option in known if "/" in option})
    if name not in recipes:
        what = "no experiment is chosen" if name is None else f"experiment={shown(name)} has no scales"
        raise ConfigError(f"scale={shown(chosen[-1])}: {what}; scales have experiment={', '.join(recipes)}")
    scales = [option.partition("/")[2] for option in known if option.startswith(f"{name}/")]
    if chosen[-1] not in scales:
        raise ConfigError(
            f"scale={shown(chosen[-1])} of experiment={name} does not exist{did_you_mean(chosen[-1], scales)}"
        )
    rest = [each for each in overrides if not each.startswith(_SCALE)]
    return [f"{_GROUP}{name}/{chosen[-1]}" if each == f"{_GROUP}{name}" else each for each in rest]
