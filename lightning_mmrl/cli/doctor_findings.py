"""The findings of `mmrl doctor`, and functions that keep its checks from harming each other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning_mmrl.workers.pool import CallResult, DeadlinePool

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report; `fix` is a command or a key, None where nothing is wrong."""

    name: str
    status: Status
    detail: str
    fix: str | None = None


def ok(name: str, detail: str) -> Finding:
    """A finding about something that works."""
    return Finding(name=name, status="ok", detail=detail)


def warning(name: str, detail: str, fix: str) -> Finding:
    """A finding about something that works, but not as well as it could, or not for everything."""
    return Finding(name=name, status="warning", detail=detail, fix=fix)


def problem(name: str, detail: str, fix: str) -> Finding:
    """A finding about something that does not work."""
    return Finding(name=name, status="problem", detail=detail, fix=fix)


def isolated(name: str, check: Callable[[], Sequence[Finding]]) -> list[Finding]:
    """Returns the findings of a check; a crash becomes a finding of its own, so that the other checks still run."""
    try:
        return list(check())
    except Exception as error:  # a broken installation may raise anything, which is the finding
        detail = f"the check failed: {type(error).__name__}: {error}"
        return [problem(name, detail, "repair what the message names, then run mmrl doctor again")]


def in_worker(function: Callable[[Any], Any], items: Sequence[Any], deadline_s: float) -> list[CallResult]:
    """Calls a function on each item in a separate process, which is killed at the deadline; returns the outcomes.

    The function must import modules that may hang inside its body, so that the deadline covers the import.
    """
    with DeadlinePool(function, num_workers=1, deadline_s=deadline_s, process_name="mmrl-doctor") as pool:
        return pool.map(items)
