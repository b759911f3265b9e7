"""Rollouts that are sampled ahead of the update: which weights sample which iteration, and what a state keeps of it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from lightning_mmrl.algorithms.phases import Phases
from lightning_mmrl.data.sampler import Share
from lightning_mmrl.errors import ConfigError, MmrlError, RolloutError, StageError
from lightning_mmrl.protocols.ranks import Ranks
from lightning_mmrl.protocols.tensors import QueuedEngine
from lightning_mmrl.rollout.sampling import group_seeds
from lightning_mmrl.stages.algorithm import Algorithm
from lightning_mmrl.stages.join import join_rollouts, select_rollout
from lightning_mmrl.types.batches import PromptBatch, Rollout, SamplingOrder, TimedRollout
from lightning_mmrl.types.records import Completion


@dataclass(frozen=True, slots=True)
class _Prompts:
    """The prompts of a rollout: their serials, empty where the order is that of the ranks, and their samples' ids."""

    serials: tuple[int, ...]
    ids: tuple[str, ...]

    @classmethod
    def of(cls, batch: PromptBatch) -> "_Prompts":
        return cls(tuple(batch.serials), tuple(each.id for each in batch.samples))

    @classmethod
    def joined(cls, parts: Sequence[Mapping[str, Any]]) -> "_Prompts":
        """The prompts that states have, one part after the other."""
        return cls(
            tuple(serial for part in parts for serial in part["serials"]),
            tuple(name for part in parts for name in part["ids"]),
        )

    def select(self, rows: Sequence[int]) -> "_Prompts":
        """The given prompts, in that order."""
        serials = tuple(self.serials[row] for row in rows) if self.serials else ()
        return _Prompts(serials, tuple(self.ids[row] for row in rows))

    def rows_of(self, others: "_Prompts") -> list[int] | None:
        """Where others stand among these; None if one is not here."""
        places = {serial: row for row, serial in enumerate(self.serials)}
        if not others.serials or not places.keys() >= set(others.serials):
            return None
        rows = [places[serial] for serial in others.serials]
        return rows if self.select(rows) == others else None


class RolloutsAhead:
    """Has an engine sample iteration i + lag while iteration i is scored and updated.

    Completions of iteration j are always of version max(0, j - 1 - lag) of the weights, where version v is the policy
    after v iterations: never of what happens to be there. So a stage is a function of its configuration, whatever the
    processes' pace, and goes on exactly from a state, which holds the rollouts of the `lag` iterations that follow.
    An importance correction has to make up for the difference (`algorithms.corrections`).

    Takes the place of a `RolloutEngine` in an RL stage, except that a rollout is asked for and taken separately:

        ahead.start(finished)
        ahead.submit(iteration, batch, order)    # before the rollout of this iteration is taken
        rollout = ahead.take(iteration, poll)
        ahead.load_weights(policy, iteration)    # when the update is done

    Args:
        engine: Samples beside this process.
        lag: Iterations that an engine samples ahead, at least 1.
        upcoming: Returns the prompts of the `lag` iterations after the present one, in order; fewer at the end.
        poll: Called while a rollout is awaited; an error that it raises ends the wait.
        note: Takes what engine and trainer did when, for a profile: see `CostMeter.beside`.

    Attributes:
        engine: The engine.
        lag: The lag.
        taken: The rollout that was taken last, with its times.

    Raises:
        ValueError: The lag is below 1.
    """

    reads_features = False

    def __init__(
        self,
        engine: QueuedEngine,
        lag: int,
        upcoming: Callable[[], Sequence[PromptBatch]],
        poll: Callable[[], None] = lambda: None,
        note: Callable[[tuple[str, str, float, float]], None] = lambda span: None,
    ) -> None:
        if lag < 1:
            raise ValueError(f"rollout.lag is {lag}; rollouts are sampled ahead from 1 on")
        self.engine, self.lag = engine, lag
        self._upcoming, self._poll, self._note = upcoming, poll, note
        self._tickets: dict[int, int] = {}
        self._restored: dict[int, TimedRollout] = {}
        self._prompts: dict[int, _Prompts] = {}  # of both
        self._version, self._next = 0, 1
        self._unsent: nn.Module | None = None
        self._awaited_s = 0.0  # when the last rollout was there, in seconds since 1970
        self.taken: TimedRollout | None = None

    def load_weights(self, policy: nn.Module, version: int) -> None:
        """Notes that the policy has the weights after so many iterations; it keeps them until the next `submit`.

        `submit` sends them, if anything is still to be sampled with them: so a stage that is over, or in its last
        iterations, starts no engine and moves no weights.
        """
        if self._awaited_s:
            self._note(("trainer", f"update {version}", self._awaited_s, time.time()))
        self._unsent, self._version = policy, version

    def sleep(self) -> None:
        """Does nothing, because the engine has other rollouts to sample."""

    def close(self) -> None:
        """Ends the engine."""
        self.engine.close()

    def start(self, finished: int) -> None:
        """Begins the stage after so many iterations; drops what a state holds of them."""
        self._restored = {number: found for number, found in self._restored.items() if number > finished}
        self._next = max(self._restored, default=finished) + 1

    def submit(self, iteration: int, batch: PromptBatch, order: Callable[[PromptBatch, int], SamplingOrder]) -> None:
        """Asks for the rollouts of all iterations up to `lag` ahead that nothing was asked for yet.

        Args:
            iteration: The iteration that begins, from 1.
            batch: Its prompts.
            order: Says what is sampled for the prompts of an iteration.

        Raises:
            RolloutError: The engine failed.
            StageError: A rollout of the state answers other prompts than the batches have.
        """
        for number in [each for each in self._tickets if each < iteration]:
            self.engine.release(self._tickets.pop(number))
        self._restored = {number: found for number, found in self._restored.items() if number >= iteration}
        self._prompts = {number: known for number, known in self._prompts.items() if number >= iteration}
        batches = dict(enumerate([batch, *self._upcoming()], iteration))
        for number in self._restored.keys() & batches.keys():
            self._restored[number] = self._of_prompts(number, _Prompts.of(batches[number]))
        for number in range(self._next, min(iteration + self.lag, max(batches)) + 1):
            if self._unsent is not None:
                self.engine.load_weights(self._unsent, self._version)
                self._unsent = None
            self._tickets[number] = self.engine.submit(order(batches[number], number))
            self._prompts[number] = _Prompts.of(batches[number])
            self._next = number + 1

    def take(self, iteration: int, device: torch.device) -> Rollout:
        """Waits for the rollout of an iteration.

        Raises:
            RolloutError: The engine failed, or the rollout is of other weights than those of the iteration.
            StageError: Nothing was asked for, and no state has it.
        """
        start = time.time()
        self.taken = found = self._found(iteration, self._poll)
        self._awaited_s = time.time()
        version, found_versions = max(0, iteration - 1 - self.lag), found.rollout.policy_version
        others = found_versions[found_versions != version].tolist()
        if others:
            raise RolloutError(
                f"completions of iteration {iteration} are of the weights after {others[0]} iterations; with "
                f"rollout.lag {self.lag} these must be those after {version}"
            )
        self._note(("trainer", f"await {iteration}", start, self._awaited_s))
        if found.ended_s:
            self._note(("engine", f"sample {iteration}", found.started_s, found.ended_s))
        return found.rollout.to(device)

    def stats(self, iteration: int) -> dict[str, float]:
        """Updates between the weights that sampled and those that are updated, and the engine's own time."""
        if self.taken is None:
            return {}
        staleness = iteration - 1 - self.taken.rollout.policy_version.double()
        return {"rollout/staleness": float(staleness.mean()), "time/beside/engine_s": self.taken.seconds}

    def state_dict(self) -> dict[str, Any]:
        """Rollouts of the iteration just finished and the `lag` that follow; waits for those in flight.

        Raises:
            RolloutError: The engine failed.
        """
        due = [number for number in {*self._tickets, *self._restored} if number <= self._version + self.lag]
        return {str(number): _plain(self._found(number), self._prompts[number]) for number in sorted(due)}

    def gathered_states(self, ranks: Ranks) -> list[dict[str, Any]]:
        """What `state_dict` returns on each rank; a collective, also if an engine failed.

        Raises:
            RolloutError: The engine of a rank failed; on all ranks.
        """
        state, problem = {}, None
        try:
            state = self.state_dict()
        except MmrlError as error:
            problem = str(error)
        found = ranks.gather((state, problem))
        for _, each in found:
            if each is not None:
                raise RolloutError(each)
        return [each for each, _ in found]

    def load_state_dict(self, states: Sequence[Mapping[str, Any]] | None, ranks: Ranks) -> None:
        """Restores what `state_dict` returned on each rank, also on another number of ranks.

        Nothing of it is sampled again.

        Raises:
            StageError: The state has no rollouts: it was written without a lag.
        """
        if states is None:
            raise StageError(
                f"the state that this stage goes on from has no rollouts sampled ahead, and rollout.lag is {self.lag}; "
                "train the stage anew (--from-stage)"
            )
        for number in states[0]:
            self._restore(int(number), [state[number] for state in states], ranks)

    def _restore(self, number: int, parts: Sequence[Mapping[str, Any]], ranks: Ranks) -> None:
        """Takes over a rollout that a state has in parts.

        On another number of ranks, `submit` selects this rank's prompts once it knows which these are. Only prompts
        without serials are shared here, in the order of the ranks.
        """
        if len(parts) == ranks.world_size:
            own = parts[ranks.rank]
            self._restored[number], self._prompts[number] = _timed(own), _Prompts.joined([own])
            return
        timed = [_timed(part) for part in parts]
        whole, prompts = join_rollouts([each.rollout for each in timed]), _Prompts.joined(parts)
        if ranks.rank:
            whole = replace(whole, decoding={})  # counts are summed over the ranks
        if not prompts.serials:
            rows = Share(rank=ranks.rank, world_size=ranks.world_size).of(range(len(prompts.ids)))
            whole, prompts = _selected(whole, rows), prompts.select(rows)
        self._restored[number] = TimedRollout(rollout=whole, seconds=max(each.seconds for each in timed))
        self._prompts[number] = prompts

    def _of_prompts(self, number: int, prompts: _Prompts) -> TimedRollout:
        """What the state has of an iteration for this rank's prompts."""
        found, known = self._restored[number], self._prompts[number]
        if known == prompts:
            return found
        rows = known.rows_of(prompts)
        if rows is None:
            raise StageError(
                f"the state that this stage goes on from has a rollout of iteration {number} for other prompts than "
                "the data give now; put the data back as they were, or train the stage anew (--from-stage)"
            )
        self._prompts[number] = prompts
        return replace(found, rollout=_selected(found.rollout, rows))

    def _found(self, iteration: int, poll: Callable[[], None] = lambda: None) -> TimedRollout:
        if iteration in self._restored:
            return self._restored[iteration]
        if iteration not in self._tickets:
            raise StageError(
                f"the state that this stage goes on from has no rollout of iteration {iteration}, which was sampled "
                "ahead; train the stage anew (--from-stage)"
            )
        return self.engine.wait(self._tickets[iteration], poll)


def sampling_order(
    phases: Phases, seed: int, prompts: PromptBatch, iteration: int, sampling: int = 0, place: int | float | None = None
) -> SamplingOrder:
    """What an iteration samples for its prompts; noise depends on (seed, iteration, sampling, prompt, sample) alone.

    `place` is how many iterations of the schedules lie before it; None: as many as iterations.
    """
    limits, ids = phases.at(iteration - 1 if place is None else place), [each.id for each in prompts.samples]
    assert limits.group_size is not None
    seeds = group_seeds(seed, iteration, ids, limits.group_size, sampling)
    return SamplingOrder(prompts=prompts, seeds=seeds, limits=limits)


def check_ahead(algorithm: Algorithm) -> None:
    """Refuses an algorithm whose rollouts cannot be sampled ahead.

    Raises:
        ConfigError: It has no correction, samples further prompts within an iteration, or trains a critic, whose loss
            the correction leaves as it is.
    """
    settings = algorithm.settings
    problems = {
        "correction is null": algorithm.correction is None,
        f"max_samplings is {settings.max_samplings}": settings.max_samplings > 1,
        "a critic is trained": settings.critic is not None,
    }
    for problem, holds in problems.items():
        if holds:
            raise ConfigError(f"{problem}, which rollout.lag above 0 does not allow; set rollout.lag=0 or change it")


def _selected(rollout: Rollout, rows: Sequence[int]) -> Rollout:
    """The completions of some prompts, as wide as the longest of these."""
    own = select_rollout(rollout, rows)
    width = int(own.completion_mask.any(0).sum())
    names = ("completion_ids", "completion_mask", "sampler_logprobs")
    return replace(own, **{name: getattr(own, name)[:, :width] for name in names})


def _plain(found: TimedRollout, prompts: _Prompts) -> dict[str, Any]:
    rollout = found.rollout
    return {
        "serials": list(prompts.serials),
        "ids": list(prompts.ids),
        "seconds": found.seconds,
        "completion_ids": rollout.completion_ids,
        "completion_mask": rollout.completion_mask,
        "sampler_logprobs": rollout.sampler_logprobs,
        "policy_version": rollout.policy_version,
        "group_size": rollout.group_size,
        "decoding": dict(rollout.decoding),
        "texts": [each.text for each in rollout.completions],
        "lengths": [each.num_tokens for each in rollout.completions],
        "truncated": [each.truncated for each in rollout.completions],
    }


def _timed(plain: Mapping[str, Any]) -> TimedRollout:
    fields = {name: value for name, value in plain.items() if name not in ("serials", "ids")}
    rows = zip(fields.pop("texts"), fields.pop("lengths"), fields.pop("truncated"), strict=True)
    completions = tuple(Completion(text=text, num_tokens=length, truncated=cut) for text, length, cut in rows)
    seconds = fields.pop("seconds")
    return TimedRollout(rollout=Rollout(completions=completions, **fields), seconds=seconds)
