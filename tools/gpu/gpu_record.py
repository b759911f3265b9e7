"""The frame of a GPU check: where and how large a step runs, and a record of its figures and failures."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

Scale = Literal["toy", "3b"]
Status = Literal["PASS", "FAIL", "NEEDS"]
GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Where and how large a step runs.

    Attributes:
        scale: "3b" for the sizes of the released 3B model, "toy" for sizes that a CPU takes in seconds.
        device: Where the step runs.
        folder: An empty folder for files of the step.
    """

    scale: Scale
    device: torch.device
    folder: Path

    @property
    def on_gpu(self) -> bool:
        """Whether figures that only CUDA has are measured."""
        return self.device.type == "cuda"

    def choose(self, *, toy: Any, large: Any) -> Any:
        """The value for this scale."""
        return toy if self.scale == "toy" else large

    def wait(self) -> None:
        """Waits until the device has finished."""
        if self.on_gpu:
            torch.cuda.synchronize()


@dataclass(slots=True, kw_only=True)
class Record:
    """The findings of one step.

    Attributes:
        say: Shows a line while the step runs.
        changed: Called after each finding, so that findings outlive a process that dies.
        figures: Numbers, and what they were measured on; a name ends with its unit.
        failures: One sentence for each expectation that does not hold.
        not_measured: One sentence for each figure that is missing, with the reason.
    """

    say: Callable[[str], None] = lambda line: None
    changed: Callable[["Record"], None] = lambda record: None
    figures: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    not_measured: list[str] = field(default_factory=list)

    def figure(self, name: str, value: float | str) -> None:
        """Notes and shows a figure."""
        self.figures[name] = value
        self.say(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
        self.changed(self)

    def expect(self, holds: bool, failure: str) -> None:
        """Notes a failure unless the expectation holds."""
        if not holds:
            self.failures.append(failure)
            self.say(f"FAIL: {failure}")
            self.changed(self)

    def skip(self, what: str, reason: str) -> None:
        """Notes a figure that is not measured."""
        self.not_measured.append(f"{what}: not measured, {reason}")
        self.say(self.not_measured[-1])
        self.changed(self)

    @property
    def status(self) -> Status:
        """FAIL if an expectation does not hold."""
        return "FAIL" if self.failures else "PASS"

    def plain(self) -> dict[str, Any]:
        """The record as JSON has it."""
        return {
            "status": self.status,
            "figures": dict(self.figures),
            "failures": list(self.failures),
            "not_measured": list(self.not_measured),
        }


@contextmanager
def telling_errors(record: Record) -> Iterator[None]:
    """Turns an exception into a failure of the step; its first line says which.

    Every exception is caught, since whatever a step raises, from an assertion of the product to an error of CUDA, is
    its result, and the next step must run. An interrupt ends the whole check.
    """
    try:
        yield
    except Exception as error:
        record.expect(False, first_line(error))


def first_line(error: BaseException) -> str:
    """The type and the first line of an error.

    >>> first_line(ValueError("no room; and a line of details"))
    'ValueError: no room; and a line of details'
    """
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def seconds_of(setup: Setup, work: Callable[[], Any], *, warmups: int = 1, repeats: int = 3) -> float:
    """The shortest time of some calls after warm-ups, with the device waited for."""
    for _ in range(warmups):
        work()
    times = []
    for _ in range(repeats):
        setup.wait()
        start = time.perf_counter()
        work()
        setup.wait()
        times.append(time.perf_counter() - start)
    return min(times)


@contextmanager
def peak_of(setup: Setup, record: Record, name: str) -> Iterator[None]:
    """Notes the most device memory that the block held at once."""
    if not setup.on_gpu:
        yield
        record.skip(name, "a CPU keeps no count of its tensors")
        return
    torch.cuda.reset_peak_memory_stats()
    yield
    record.figure(name, torch.cuda.max_memory_allocated() / GIB)
