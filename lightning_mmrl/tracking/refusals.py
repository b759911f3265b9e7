"""Errors of a delivery (for good, for now, or for one run), and the search for the refused parts of an entry."""

from collections.abc import Callable
from dataclasses import replace

from lightning_mmrl.tracking.journal import Entry


class UndeliverableError(Exception):
    """This entry can never be sent."""


class RefusedError(Exception):
    """The server works and has the entry's run, but refuses the entry."""


class WaitingError(Exception):
    """The server does not have the entry's run, or has deleted it; entries of other runs may be delivered."""


class NotYetError(Exception):
    """It is too early to know whether the server has the entry; try again after `wait_s` seconds."""

    def __init__(self, message: str, wait_s: float) -> None:
        super().__init__(message)
        self.wait_s = wait_s


def refused_parts(entry: Entry, deliver: Callable[[Entry], None]) -> list[tuple[Entry, Exception]]:
    """Delivers an entry and returns the parts that the server refuses: of joined points only the refused ones.

    Raises:
        Exception: `deliver` failed in another way. No part is refused then, and the whole entry may be sent again.
    """
    try:
        deliver(entry)
    except UndeliverableError as error:
        return [(entry, error)]
    except RefusedError as error:
        points = entry.payload["points"] if entry.operation == "metrics" else []
        if len(points) < 2:
            return [(entry, error)]
        middle = len(points) // 2
        halves = {"a": points[:middle], "b": points[middle:]}
        parts = [replace(entry, payload={"points": half}, key=f"{entry.key}-{name}") for name, half in halves.items()]
        return [refused for part in parts for refused in refused_parts(part, deliver)]
    return []
