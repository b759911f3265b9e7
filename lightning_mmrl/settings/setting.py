"""Declares one key of a configuration: its default, and in the field's metadata the values that it may have.

A field of a settings class is a key. Its type is in its annotation, its documentation in the docstring below it, and
everything else that is known of its values in `setting(...)`, by which `settings.rules` checks them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

REQUIRED = "???"
"""The value of a key that has no default, as OmegaConf writes it."""
RULE = "rule"
"""Name of a field's rule in its metadata."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """The values that a key may have; None in the place of a bound is no bound, and a null value breaks no rule.

    Attributes:
        at_least: Smallest value.
        above: Every value is larger.
        at_most: Largest value.
        below: Every value is smaller.
        infinite: Whether infinity is a value; NaN never is.
        choices: The only values, or the only elements of a list.
        texts: False if an empty text is no value: an empty path would be the working folder.
        node: Whether the value is a mapping with a `_target_`.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    infinite: bool = False
    choices: Sequence[str] | None = None
    texts: bool = True
    node: bool = False


def setting(default: Any = REQUIRED, *, factory: Callable[[], Any] | None = None, **rule: Any) -> Any:
    """Declares a key with its default, or a function that makes the default; `rule` holds the arguments of a `Rule`.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Clips:
    ...     num_frames: int = setting(8, at_least=2)
    >>> Clips().num_frames
    8
    """
    metadata = {RULE: Rule(**rule)}
    if factory is not None:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def target(default: Any = REQUIRED) -> Any:
    """Declares a key whose value is a node; its `_target_` says what is built."""
    return setting(default, node=True)
