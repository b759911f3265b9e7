"""Reads a time from a CSV cell: seconds or a clock time, with a decimal point or a decimal comma."""

import re
import unicodedata

_SECONDS = re.compile(r"(?:\d+(?:[.,]\d*)?|[.,]\d+)(?:[eE][+-]?\d+)?")
_CLOCK = re.compile(r"(?:(?P<hours>\d+):)?(?P<minutes>\d+):(?P<seconds>\d{1,2}(?:[.,]\d+)?)")
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+")


def seconds_of(text: str, *, comma_is_decimal: bool) -> float | None:
    """The time in a cell, in seconds; None if the cell holds no time.

    A clock time is minutes:seconds or hours:minutes:seconds. Three digits after a comma may be decimals or thousands:
    without `comma_is_decimal`, such a cell is refused.

    Args:
        text: The cell.
        comma_is_decimal: True if a comma can only be a decimal comma, as in a file with another delimiter.

    >>> seconds_of("1:02:03,5", comma_is_decimal=False), seconds_of("5,5", comma_is_decimal=False)
    (3723.5, 5.5)
    >>> seconds_of("1,234", comma_is_decimal=False), seconds_of("1,234", comma_is_decimal=True)
    (None, 1.234)
    """
    text = unicodedata.normalize("NFKC", text).strip()
    if _SECONDS.fullmatch(text):
        return None if _THOUSANDS.fullmatch(text) and not comma_is_decimal else float(text.replace(",", "."))
    clock = _CLOCK.fullmatch(text)
    if clock is None:
        return None
    hours, minutes, seconds = clock["hours"], int(clock["minutes"]), float(clock["seconds"].replace(",", "."))
    if seconds >= 60 or (hours is not None and minutes >= 60):
        return None
    return 3600 * int(hours or 0) + 60 * minutes + seconds
