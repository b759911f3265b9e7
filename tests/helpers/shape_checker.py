"""The run-time type checker that jaxtyping's import hook calls."""

from beartype import beartype
from beartype.roar import BeartypeDecorHintException


def check(function):
    """Checks a function's arguments and result with beartype.

    A function with a hint that beartype cannot check stays unchecked: `Self` in a method that is decorated alone, as
    the hook does, or a protocol that is not `runtime_checkable`. tests/architecture shows that shapes are checked.
    """
    try:
        return beartype(function)
    except BeartypeDecorHintException:
        return function
