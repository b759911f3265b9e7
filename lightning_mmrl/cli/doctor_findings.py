"""The findings of `mmrl doctor`, and how its checks are kept from harming each other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning_mmrl.workers.pool import DeadlinePool, Outcome

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report; `fix` is a command or a key, None where nothing is wrong."""

    name: str
    status: Status
    detail: str
    fix: str | None = None


def ok(name: str, detail: str) -> Finding:
    """Works."""
    return Finding(name=name, status="ok", detail=detail)


def warning(name: str, detail: str, fix: str) -> Finding:
    """Works, but not as well as it could, or not for everything."""
    return Finding(name=name, status="warning", detail=detail, fix=fix)


def problem(name: str, detail: str, fix: str) -> Finding:
    """Does not work."""
    return Finding(name=name, status="problem", detail=detail, fix=fix)


def isolated(name: str, check: Callable[[], Sequence[Finding]]) -> list[Finding]:
    """The findings of a check; a crash is one problem and ends no other check."""
    try:
        return list(check())
    except Exception as error:  # a broken installation may raise anything, which is the finding
        detail = f"the check failed: {type(error).__name__}: {error}"
        return [problem(name, detail, "repair what the message names, then run mmrl doctor again")]


def in_worker(function: Callable[[Any], Any], items: Sequence[Any], deadline_s: float) -> list[Outcome]:
    """Outcomes of calls in a process of their own, which is killed at its deadline.

    The function must import inside its body whatever may hang, so that the deadline covers the import.
    """
    with DeadlinePool(function, num_workers=1, deadline_s=deadline_s, process_name="mmrl-doctor") as pool:
        return pool.map(items)
