"""Translates between `model.family` and the entry of a handoff that names the family of its model.

The entry of a family of this package is its name, the entry of a user's own family the names of its two functions.
Functions of the user's own package are called only if the command line opens that package.
"""

from collections.abc import Mapping
from typing import Any

from lightning_mmrl.errors import ConfigError, StageError
from lightning_mmrl.registry.names import FAMILIES
from lightning_mmrl.registry.own_code import how_to_open, is_opened

PARTS = ("backbone", "encoder")


def stored_family(family: Mapping[str, Any]) -> str | dict[str, str]:
    """Returns the entry of a handoff for `model.family`.

    Raises:
        ConfigError: A part has options, which a handoff would have to hold.
    """
    for part in PARTS:
        if options := [key for key in family[part] if key != "_target_"]:
            raise ConfigError(
                f"model.family.{part}.{options[0]}: a handoff holds a family by name, without options; make it a "
                f"default of {family[part]['_target_']}"
            )
    targets = tuple(family[part]["_target_"] for part in PARTS)
    names = {pair: name for name, pair in FAMILIES.items()}
    return names.get(targets) or dict(zip(PARTS, targets, strict=True))


def loaded_family(stored: str | Mapping[str, Any], where: object) -> dict[str, dict[str, str]]:
    """Returns the `model.family` for the entry of a handoff, whose form `check_facts` has checked.

    Args:
        stored: The entry of the handoff: a name, or the names of two functions. Seals of version 1 have nodes.
        where: The handoff, for the message.

    Raises:
        StageError: This program has no such family, or one of the functions neither belongs to a family of this program
            nor is opened by the command line.
    """
    if isinstance(stored, str):
        if stored not in FAMILIES:
            raise StageError(f"{where} is of the family {stored!r}; this program has {', '.join(FAMILIES)}")
        pair = FAMILIES[stored]
    else:
        pair = tuple(stored[part]["_target_"] if isinstance(stored[part], Mapping) else stored[part] for part in PARTS)
    for place, target in enumerate(pair):
        ours = {family[place] for family in FAMILIES.values()}
        if target not in ours and not is_opened(target):
            flag = how_to_open(target)
            raise StageError(f"{where} is of the family {target!r}; this program has {', '.join(FAMILIES)}{flag}")
    return {part: {"_target_": target} for part, target in zip(PARTS, pair, strict=True)}
