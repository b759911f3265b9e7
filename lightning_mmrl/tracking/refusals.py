"""How a delivery fails for good, for now or for one run; and which parts of an entry a server refuses."""

from collections.abc import Callable
from dataclasses import replace

from lightning_mmrl.tracking.journal import Entry


class UndeliverableError(Exception):
    """This entry can never be sent."""


class RefusedError(Exception):
    """The server is well, has the entry's run, and will not take the entry."""


class WaitingError(Exception):
    """The server does not have the entry's run, or has deleted it; those of other runs may go on."""


class NotYetError(Exception):
    """Too early to say whether the server has it; worth another attempt after `wait_s` seconds."""

    def __init__(self, message: str, wait_s: float) -> None:
        super().__init__(message)
        self.wait_s = wait_s


def refused_parts(entry: Entry, deliver: Callable[[Entry], None]) -> list[tuple[Entry, Exception]]:
    """Delivers what the server takes of an entry and returns what it does not: of joined points only the refused ones.

    Raises:
        Exception: Whatever else `deliver` raises; nothing is decided then, and the whole entry may be sent again.
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
