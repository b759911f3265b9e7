"""Profiles some steps of a stage: times them without the profiler, and traces one more with it."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch.profiler import ProfilerActivity, profile

from lightning_mmrl.stages.costs import RANGE
from lightning_mmrl.types.costs import StageCosts
from lightning_mmrl.types.profile import Operator, StageProfile

MOST_OPERATORS = 12
SYNCS = ("cudaDeviceSynchronize", "cudaStreamSynchronize", "cudaEventSynchronize", "aten::_local_scalar_dense")
"""Calls in which the host waits for the device; the last one reads a number from it."""


@dataclass
class ProfileSteps(Callback):
    """Takes the costs of all steps but the first and the last, and a trace of the last one.

    The first step also loads and allocates, and the profiler slows a step down, so neither of them is timed. A stage of
    two steps times the first, and traces the second; a stage of one step does both in one.

    Args:
        stage: The name of the stage.
        folder: Where the trace is written; None on all ranks but the first.
        found: Takes the profile when the stage ends.
        num_states: States that a stage writes which trains.
    """

    stage: str
    folder: Path | None
    found: list[StageProfile]
    num_states: int = 1
    _costs: StageCosts = field(default_factory=StageCosts, init=False)
    _profile: StageProfile | None = field(default=None, init=False)
    _tracer: Any = field(default=None, init=False)
    _steps: int = field(default=0, init=False)

    __hash__ = object.__hash__  # Lightning keeps callbacks in sets

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Counts the steps that will be."""
        self._begin(int(trainer.num_training_batches))

    def on_test_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Counts the batches that will be."""
        batches = trainer.num_test_batches
        self._begin(sum(int(count) for count in batches) if isinstance(batches, list) else int(batches))

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Takes the costs of a step."""
        self._take(pl_module, batch_idx + 1)

    def on_test_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: Any,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Takes the costs of a batch."""
        self._take(pl_module, batch_idx + 1)

    def teardown(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        """Hands over the profile, with the time of a state, which is written after the last step too."""
        if self._tracer is not None:  # fewer batches than were expected, since samples were left out
            self._stop_trace(pl_module)
        if self._profile is not None:
            written = pl_module.costs.total.seconds.get("state", 0.0) / self.num_states if stage == "fit" else 0.0
            self.found.append(replace(self._profile, state_s=written))
            self._profile = None

    def _begin(self, num_steps: int) -> None:
        self._steps = num_steps
        if num_steps == 1:
            self._start_trace()

    def _take(self, module: Any, done: int) -> None:
        warmup, last = int(self._steps > 2), self._steps
        if warmup < done < last or last == 1:
            self._costs = self._costs + module.costs.step
        if done == last - 1:
            self._start_trace()
        elif done == last:
            self._stop_trace(module)

    def _start_trace(self) -> None:
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        self._tracer = profile(activities=activities)
        self._tracer.start()

    def _stop_trace(self, module: Any) -> None:
        tracer, self._tracer = self._tracer, None
        tracer.stop()
        operators, syncs = _operators(tracer)
        trace = f"{self.stage}.trace.json"
        if self.folder is not None:
            tracer.export_chrome_trace(str(self.folder / trace))
            add_spans(self.folder / trace, module.costs.beside)
        self._profile = StageProfile(
            stage=self.stage,
            costs=self._costs,
            operators=operators,
            syncs=syncs,
            trace=trace,
            truncated=getattr(module, "latest", {}).get("rollout/truncated"),
            memory_share=_memory_share(),
        )


def add_spans(trace: Path, spans: Iterable[tuple[str, str, float, float]]) -> None:
    """Adds rows to a trace, `CostMeter.beside`: they also show the steps before the one that is traced."""
    found = list(spans)
    if not found:
        return
    content = json.loads(trace.read_text(encoding="utf-8"))
    base_us = content.get("baseTimeNanoseconds", 0) / 1000
    row = {"ph": "X", "cat": "ahead", "pid": "sampling ahead"}
    content["traceEvents"] += [
        {**row, "tid": who, "name": what, "ts": start * 1e6 - base_us, "dur": (end - start) * 1e6}
        for who, what, start, end in found
    ]
    trace.write_text(json.dumps(content), encoding="utf-8")


def _operators(tracer: profile) -> tuple[tuple[Operator, ...], tuple[Operator, ...]]:
    """The operators that took the most time of their own, and the calls that waited for the device."""
    events = [event for event in tracer.key_averages() if not event.key.startswith(("ProfilerStep", RANGE))]
    on_device = any(event.self_device_time_total for event in events)

    def found(event: Any, time_us: float) -> Operator:
        return Operator(name=event.key, calls=event.count, seconds=time_us / 1e6)

    timed = [found(event, event.self_device_time_total if on_device else event.self_cpu_time_total) for event in events]
    longest = sorted(timed, key=lambda each: -each.seconds)[:MOST_OPERATORS]
    waits = [found(event, event.self_cpu_time_total) for event in events if event.key in SYNCS]
    return tuple(longest), tuple(waits) if on_device else ()


def _memory_share() -> float | None:
    """The share of the device's memory that this process took at its peak; None on a CPU."""
    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return None
    return torch.cuda.max_memory_reserved() / torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
