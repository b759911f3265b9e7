"""Refuses values that break the rule of their field; every message names key, value and rule."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import Any, get_args

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.settings.setting import REQUIRED, RULE, Rule
from lightning_mmrl.suggestions import did_you_mean, shown


def check_rules(settings: Any, path: str = "", leave_out: Collection[str] = ()) -> None:
    """Refuses settings that break the rules of their fields, in this object and in all below it.

    Args:
        settings: An object of a settings class.
        path: Its key; empty for a whole run.
        leave_out: Names of fields that are not checked.

    Raises:
        ConfigError: Naming the first key that breaks its rule, its value, and the rule.

    >>> from lightning_mmrl.settings.data import MediaSettings
    >>> check_rules(MediaSettings(num_frames=1), "data.media")
    Traceback (most recent call last):
    ...
    lightning_mmrl.errors.ConfigError: data.media.num_frames is 1; it must be at least 2
    """
    for each in fields(settings):
        value, key = getattr(settings, each.name), f"{path}.{each.name}" if path else each.name
        if each.name in leave_out:
            continue
        if RULE in each.metadata:
            _check(value, each.metadata[RULE], key, optional=each.default is None or NoneType in get_args(each.type))
        for name, section in value.items() if isinstance(value, Mapping) else ((None, value),):
            if is_dataclass(section):
                check_rules(section, key if name is None else f"{key}.{name}")


def require(valid: object, key: str, value: object, rule: str) -> None:
    """Refuses a value.

    Raises:
        ConfigError: `valid` is false.
    """
    if not valid:
        raise ConfigError(f"{key} is {shown(value)}; it must be {rule}")


def one_of(value: object, key: str, choices: Iterable[str]) -> None:
    """Refuses a value that is none of the choices, and names the nearest choice.

    Raises:
        ConfigError: Naming key, value and choice.
    """
    known = list(choices)
    if value not in known:
        raise ConfigError(f"{key} is {shown(repr(value))}, which is no choice{did_you_mean(str(value), known)}")


def _check(value: Any, rule: Rule, key: str, *, optional: bool) -> None:
    or_null = ", or null" if optional else ""
    if rule.node:
        valid = (optional and value is None) or (isinstance(value, Mapping) and "_target_" in value)
        require(valid, key, value, "null or a node with a _target_" if optional else "a node with a _target_")
    elif value is None or value == REQUIRED:
        return
    elif rule.choices is not None:
        for each in value if isinstance(value, list | tuple) else (value,):
            one_of(each, key, rule.choices)
    elif isinstance(value, str):
        require(rule.texts or value.strip(), key, repr(value), f"a name or path{or_null}")
    elif isinstance(value, int | float):
        require(_within(value, rule), key, value, f"{_bounds(rule, value)}{or_null}")


def _within(value: float, rule: Rule) -> bool:
    low = (rule.at_least is None or value >= rule.at_least) and (rule.above is None or value > rule.above)
    high = (rule.at_most is None or value <= rule.at_most) and (rule.below is None or value < rule.below)
    return low and high and (math.isfinite(value) or (rule.infinite and not math.isnan(value)))


def _bounds(rule: Rule, value: float) -> str:
    """The bounds in words."""
    if rule.at_least is not None and rule.at_most is not None:
        return f"from {rule.at_least} to {rule.at_most}"
    named = (("at least", rule.at_least), ("above", rule.above), ("at most", rule.at_most), ("below", rule.below))
    words = [f"{word} {bound}" for word, bound in named if bound is not None]
    if isinstance(value, float) and not rule.infinite and rule.at_most is None and rule.below is None:
        words.append("finite" if words else "a finite number")
    return " and ".join(words)
