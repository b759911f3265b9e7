"""Measures the costs of a stage while it runs: exclusive phases of time, waiting for other ranks, counted work."""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from lightning_mmrl.models.policy import Policy
from lightning_mmrl.protocols.ranks import ALONE, Ranks
from lightning_mmrl.types.batches import PromptBatch, Rollout
from lightning_mmrl.types.costs import NO_COSTS, OTHER, SAMPLE, UPDATE, WAIT, Counts, RankCosts, StageCosts, Work

T = TypeVar("T")

RANGE = "mmrl/"
"""Begins the name of a phase among the ranges of torch.profiler."""
TRAINING_PHASES = ("encode", "reference", "values", "optimize")
"""Phases in which a training stage scores and updates."""

MOST_SPANS = 64
"""Pieces of work, of an engine and of the trainer beside it, that are remembered for a profile."""

Count = Callable[[Sequence[int], Sequence[Sequence[int]], int], None]
"""Takes the tokens of prompts, the tokens of their completions, and the number of microbatches of one pass."""


class Timer(Protocol):
    """Puts marks into the course of a rank, and tells the time between two of them."""

    def mark(self) -> Any: ...

    def between(self, first: Any, last: Any) -> float:
        """Seconds between two marks."""
        ...


@dataclass(frozen=True, slots=True)
class HostTimer:
    """Marks are times of the host's clock; implements `Timer`."""

    now: Callable[[], float] = time.perf_counter

    def mark(self) -> float:
        """The time."""
        return self.now()

    def between(self, first: float, last: float) -> float:
        """Seconds between two marks."""
        return last - first


class DeviceTimer:
    """Marks are CUDA events in the stream of the training; implements `Timer`.

    The host runs ahead of the device, so its clock would count the time of a kernel in the phase that first waits for
    the device. An event costs no synchronization. Marks are compared where the host has just waited for the device.
    """

    def mark(self) -> torch.cuda.Event:
        """An event at the end of everything that was given to the device so far."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, first: torch.cuda.Event, last: torch.cuda.Event) -> float:
        """Seconds between two events."""
        last.synchronize()
        return first.elapsed_time(last) / 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Turns counted work into operations, and says what the devices can do.

    Attributes:
        operations: The operations of `sampling` and of `training` that counted work takes; None if unknown.
        peak: Operations a second that one device can do at most; None if unknown.
        samples_here: Whether the devices of the ranks sample, and not others.
    """

    operations: Callable[[Counts], Mapping[str, int]] | None = None
    peak: float | None = None
    samples_here: bool = True


@dataclass(kw_only=True)
class _Open:
    """The counts since the last step was closed."""

    passes: dict[str, Work] = field(default_factory=dict)
    rows: Counter[str] = field(default_factory=Counter)
    num_microbatches: int = 0
    positions: int = 0
    logical: int = 0


class CostMeter:
    """Measures what the steps of a stage cost.

        meter.start(device, ranks)
        for batch in batches:
            with meter.phase("generate"):
                ...
                with meter.phase("encode"):  # this time is not part of "generate"
                    ...
            report(meter.close())

    A rank is in one phase at any time, in `other` if in no named one, so the phases of a step add up to the time from
    the last `close` to this one. Time in a phase `wait` is also noted for the phase around it. Time after the last step
    is added to the totals by `finish`. The totals count each step once, also if the stage is resumed: a step that a
    killed process had begun, and the writing of the state that it left, are not in them.

    `close` is called where the host has waited for the device anyway, and gathers the costs of all ranks.

    Args:
        rates: How work becomes operations, and the peak of a device.
        timer: Measures time on the host; a stage on CUDA measures by `DeviceTimer`.
    """

    def __init__(self, rates: Rates | None = None, timer: Timer | None = None) -> None:
        self.rates = rates or Rates()
        self._timer: Timer = timer or HostTimer()
        self._ranks: Ranks = ALONE
        self._phases: list[str] = []
        self._ranges: list[Any] = []
        self._spans: list[tuple[str, str, Any, Any]] = []
        self._last: Any = None
        self._moved: dict[str, float] = {}
        self._open = _Open()
        self.step = NO_COSTS
        """The last step."""
        self.total = NO_COSTS
        """All steps and the time after the last one."""
        self._before = NO_COSTS  # the total before the last step; equal to it if that is not known
        self._uncounted = 0  # first steps of the stage that the totals lack, as after a state without costs
        self.beside: deque[tuple[str, str, float, float]] = deque(maxlen=MOST_SPANS)
        """What an engine in another process and the trainer did last: who, what, start and end in s since 1970."""

    def start(self, device: torch.device, ranks: Ranks, num_steps: int = 0) -> None:
        """Begins to measure after so many steps; the totals are as an earlier process had them there.

        That process may have closed one more step, which is computed again. If a state has no costs of the steps before
        it, they stay uncounted.
        """
        done = num_steps - self._uncounted
        known = next((each for each in (self.total, self._before) if each.num_steps <= done), NO_COSTS)
        if known is not self.total:
            self._before = known
        self.total, self.step = known, NO_COSTS
        self._uncounted = num_steps - known.num_steps
        if device.type == "cuda":
            self._timer = DeviceTimer()
        self._ranks = ranks
        self._phases, self._ranges, self._spans, self._open, self._moved = [], [], [], _Open(), {}
        self._last = self._timer.mark()

    def begin(self, phase: str) -> None:
        """Begins a phase within the present one, which goes on at `end`."""
        self._switch()
        self._phases.append(phase)
        self._ranges.append(record_function(f"{RANGE}{phase}"))
        self._ranges[-1].__enter__()

    def end(self) -> None:
        """Ends the phase that began last."""
        self._ranges.pop().__exit__(None, None, None)
        self._switch()
        self._phases.pop()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A phase around a block."""
        self.begin(name)
        try:
            yield
        finally:
            self.end()

    @contextmanager
    def meeting(self, work: AbstractContextManager[None]) -> Iterator[None]:
        """Enters work of this rank alone, at whose end it waits for all others."""
        with ExitStack() as stack:  # called in reverse order
            if self._ranks.world_size > 1:
                stack.callback(self.end)
            stack.enter_context(work)
            if self._ranks.world_size > 1:
                stack.callback(self.begin, WAIT)
            yield

    def moved(self, phase: str, seconds: float) -> None:
        """Says that so many seconds outside of any phase belong to a phase that something else measured."""
        self._moved[phase] = self._moved.get(phase, 0.0) + seconds

    def counting(self, kind: str) -> Count:
        """Returns a function that counts passes of a kind; see `microbatches`."""

        def count(prompts: Sequence[int], completions: Sequence[Sequence[int]], num_microbatches: int) -> None:
            work = Work.of(prompts, completions)
            self._open.passes[kind] = self._open.passes.get(kind, Work()) + work
            if kind == UPDATE:
                self._open.num_microbatches += num_microbatches
                self._open.logical += work.prompt_tokens + work.completion_tokens

        return count

    def take_counters(self, policy: Policy, *, updates: bool) -> None:
        """Takes over the positions that a policy computed in scoring passes, and the rows that its towers returned.

        With `updates` False, the passes were none of an update, and only the rows count.
        """
        positions, policy.num_positions = policy.num_positions, 0
        self._open.positions += positions if updates else 0
        self._open.rows.update(policy.media.take_rows())

    def close(self) -> dict[str, float]:
        """Ends a step and returns its metrics, which are the same on all ranks; a collective."""
        return self.took(self._ranks.gather(self.taken()))

    def taken(self) -> RankCosts:
        """Ends a step of this rank; the caller gathers the costs of all ranks and passes them to `took`."""
        own = self._own()
        self._spans, self._open, self._moved = [], _Open(), {}
        return own

    def took(self, ranks: Sequence[RankCosts]) -> dict[str, float]:
        """Adds the costs of all ranks in a step, and returns the step's metrics."""
        self.step = replace(self._costs(ranks), num_steps=1)
        self._before, self.total = self.total, self.total + self.step
        return step_metrics(self.step)

    def spent(self, measure: str) -> tuple[int | float, int | float]:
        """The part of a budget that all steps took, and the part that the last one of them took, as far as it is known.

        See `StageCosts.spent`. Unknown, and zero here, is the last step of a stage that goes on after it, in a new
        process, if the old one had closed the next step.
        """
        total = self.total.spent(measure)
        return total, total - self._before.spent(measure)

    def finish(self) -> None:
        """Adds the time since the last step; a collective."""
        self.total = self.total + self._costs(self._ranks.gather(self.taken()))

    def state_dict(self) -> dict[str, Any]:
        """The totals with and without the last step, and the number of steps that both lack, in primitives."""
        plain = {"total": asdict(self.total), "before": asdict(self._before)}
        totals = {name: each | {"ranks": list(each["ranks"])} for name, each in plain.items()}
        return totals | {"uncounted": self._uncounted}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes the totals of an earlier process; `start` chooses between them."""
        self.total, self._before = (StageCosts.read(state[name]) for name in ("total", "before"))
        self._uncounted = state.get("uncounted", 0)

    def _costs(self, ranks: Sequence[RankCosts]) -> StageCosts:
        return StageCosts(ranks=tuple(ranks), peak=self.rates.peak, samples_here=self.rates.samples_here)

    def _switch(self) -> None:
        if self._last is None:  # not started, as outside of training
            return
        now = self._timer.mark()
        phase = self._phases[-1] if self._phases else OTHER
        around = next((name for name in reversed(self._phases) if name != WAIT), OTHER)
        self._spans.append((phase, around, self._last, now))
        self._last = now

    def _own(self) -> RankCosts:
        self._switch()
        seconds: dict[str, float] = {}
        waits: dict[str, float] = {}
        for phase, around, first, last in reversed(self._spans):  # the last mark first: once it is reached, all are
            passed = self._timer.between(first, last)
            seconds[phase] = seconds.get(phase, 0.0) + passed
            if phase == WAIT:
                waits[around] = waits.get(around, 0.0) + passed
        for phase, amount in self._moved.items():
            taken = min(amount, seconds.get(OTHER, 0.0))
            seconds[OTHER] = seconds.get(OTHER, 0.0) - taken
            seconds[phase] = seconds.get(phase, 0.0) + taken
        work, sampled = self._open, self._open.passes.get(SAMPLE, Work())
        scored = sum((each for kind, each in work.passes.items() if kind != SAMPLE), Work())
        counts, operations = Counts(passes=work.passes, rows=work.rows), self.rates.operations
        return RankCosts(
            seconds=dict(sorted(seconds.items())),
            waits=waits,
            tokens={
                "prompt": scored.prompt_tokens + sampled.prompt_tokens,
                "completion": scored.completion_tokens,
                "generated": sampled.completion_tokens,
            },
            operations={} if operations is None else dict(operations(counts)),
            num_microbatches=work.num_microbatches,
            positions=work.positions,
            logical=work.logical,
        )


def count_samples(meter: CostMeter, prompts: PromptBatch, rollout: Rollout) -> None:
    """Counts the sampling of completions, where the host has waited for them."""
    lengths = [completion.num_tokens for completion in rollout.completions]
    groups = [lengths[row * rollout.group_size : (row + 1) * rollout.group_size] for row in range(len(prompts.samples))]
    meter.counting(SAMPLE)(prompts.prompt_mask.sum(-1).tolist(), groups, 0)


def step_metrics(step: StageCosts) -> dict[str, float]:
    """The metrics of a step: `time/...` differ from run to run, `tokens/...` do not."""
    seconds = step.seconds
    metrics = {f"time/{phase}_s": seconds[phase] for phase in sorted(seconds)} | {"time/step_s": step.total_s}
    if len(step.ranks) > 1:
        metrics |= {f"time/wait_share/rank_{number}": rank.wait_share for number, rank in enumerate(step.ranks)}
    shares = {
        "mfu": step.mfu(),
        "mfu_sampling": step.mfu("sampling", phases=("generate",)) if step.samples_here else None,
        "mfu_training": step.mfu("training", phases=TRAINING_PHASES),
    }
    metrics |= {f"time/{name}": share for name, share in shares.items() if share}
    return metrics | {f"tokens/{kind}": float(number) for kind, number in step.tokens.items()}


@dataclass(frozen=True, slots=True)
class TimedRanks:
    """Counts the time in exchanges with other ranks as waiting; implements `Ranks`.

    The time covers the wait for the slowest rank and the transfer itself. Under sharding, exchanges within a pass
    through the model are part of the pass.
    """

    ranks: Ranks
    meter: CostMeter

    @property
    def rank(self) -> int:
        """The number of this process."""
        return self.ranks.rank

    @property
    def world_size(self) -> int:
        """The number of processes."""
        return self.ranks.world_size

    @property
    def lockstep(self) -> bool:
        """Whether passes through the model are collectives."""
        return self.ranks.lockstep

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over the ranks."""
        with self.meter.phase(WAIT):
            return self.ranks.sum(values)

    def max(self, value: int) -> int:
        """The largest value of any rank."""
        with self.meter.phase(WAIT):
            return self.ranks.max(value)

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """For each flag, whether it is True on any rank."""
        with self.meter.phase(WAIT):
            return self.ranks.any(flags)

    def gather(self, item: T) -> list[T]:
        """The items of all ranks."""
        with self.meter.phase(WAIT):
            return self.ranks.gather(item)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Makes every gradient the sum over the ranks."""
        with self.meter.phase(WAIT):
            self.ranks.sum_gradients(parameters)


def timed(ranks: Ranks, meter: CostMeter) -> Ranks:
    """The ranks with their exchanges timed; a single process exchanges nothing."""
    return ranks if ranks is ALONE else TimedRanks(ranks, meter)
