"""The inside of a benchmark's worker: takes commands, and measures what happens between one and the next."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Counting(Protocol):
    """Counts the work of one step; `start` once before it, `stop` once after it."""

    def start(self) -> None: ...

    def stop(self) -> dict[str, int]: ...


class Gate:
    """Lets a step pass for each command, and reports its seconds, phases, counters and peak memory.

    Loops that are not ours (a trainer's) call `wait` between two steps, our own iterate over `commands`. Memory is the
    process's peak during a step less what it held before its first step; on a GPU that of the device's allocator.

    Args:
        device: Where the work is done.
        counting: Counts the step of a command that asks for it.
    """

    def __init__(self, device: torch.device, counting: Counting) -> None:
        self._device = device
        self._counting = counting
        # Libraries print to standard output, which is for answers alone.
        self._out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        self._baseline = self._held()
        self._command: dict[str, Any] | None = None
        self._started = self._cpu_started = 0.0
        self._phases: dict[str, float] = {}
        self._notes: dict[str, Any] = {}

    def commands(self) -> Iterator[dict[str, Any]]:
        """Every command, until there are no more."""
        while (command := self.wait()) is not None:
            yield command

    def wait(self) -> dict[str, Any] | None:
        """Ends the step under way, if there is one, and waits for the next command; None if there is none."""
        self._tell(self._end() if self._command is not None else {"ready": True})
        line = sys.stdin.readline()
        self._command = json.loads(line) if line else None
        if self._command is not None:
            self._begin()
        return self._command

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds what happens inside to the seconds of a phase."""
        started = self._now()
        yield
        self._phases[name] = self._phases.get(name, 0.0) + self._now() - started

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function as a phase."""

        def inside(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return function(*args, **kwargs)

        return inside

    def set_phases(self, phases: dict[str, float]) -> None:
        """The phases of the step under way, from a clock of its own."""
        self._phases = dict(phases)

    @property
    def elapsed(self) -> float:
        """Seconds since the step under way began."""
        return self._now() - self._started

    @property
    def phases(self) -> dict[str, float]:
        """Seconds of each phase so far."""
        return self._phases

    def note(self, **facts: Any) -> None:
        """Adds notes on the step, which are reported with its figures."""
        self._notes |= facts

    def note_sampled(self, num_tokens: int, expected: int, groups_with_signal: float) -> None:
        """Notes what an iteration sampled.

        Raises:
            SystemExit: Completions were cut short, or no reward differed and the update had nothing to do: the step
            was not what it is taken for.
        """
        if num_tokens != expected or not groups_with_signal:
            raise SystemExit(f"sampled {num_tokens} of {expected} tokens, groups with signal: {groups_with_signal}")
        self.note(sampled_tokens=num_tokens, groups_with_signal=groups_with_signal)

    def _begin(self) -> None:
        self._phases, self._notes = {}, {}
        self._reset_peak()
        if self._counted:
            self._counting.start()
        self._cpu_started = time.process_time()
        self._started = self._now()

    def _end(self) -> dict[str, Any]:
        seconds = self._now() - self._started
        cpu_seconds = time.process_time() - self._cpu_started
        peak = self._peak() - self._baseline
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # other variants wait on the same device
        counters = self._counting.stop() if self._counted else {}
        return {
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "phases": self._phases,
            "peak_bytes": peak,
            "baseline_bytes": self._baseline,
            "counters": counters,
            "notes": self._notes,
        }

    @property
    def _counted(self) -> bool:
        return self._command is not None and self._command.get("count", False)

    def _tell(self, answer: dict[str, Any]) -> None:
        self._out.write(json.dumps(answer) + "\n")
        self._out.flush()

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _held(self) -> int:
        return torch.cuda.memory_allocated() if self._device.type == "cuda" else _status_bytes("VmRSS")

    def _peak(self) -> int:
        return torch.cuda.max_memory_allocated() if self._device.type == "cuda" else _status_bytes("VmHWM")

    def _reset_peak(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            CLEAR_REFS.write_text("5")  # sets VmHWM back to VmRSS


def save_evidence(evidence: dict[str, Tensor], path: Path, *, gradients: bool) -> None:
    """Writes what the parity gate compares, in float32."""
    kept = {name: value for name, value in evidence.items() if gradients or not name.startswith("gradient.")}
    plain = {name: value.cpu() if value.dtype == torch.long else value.cpu().float() for name, value in kept.items()}
    save_file({name: value.contiguous() for name, value in plain.items()}, path)


def _status_bytes(key: str) -> int:
    [line] = [line for line in STATUS.read_text().splitlines() if line.startswith(key + ":")]
    return int(line.split()[1]) * 1024
