"""Samples completions of prompts with a policy that does not change, scores them, and keeps them in parts on disk."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning

from lightning_mmrl.data.rollout_table import RolloutRow, write_table
from lightning_mmrl.errors import RolloutError, StageError
from lightning_mmrl.files import dispensable, read_json, write_json
from lightning_mmrl.models.parallelize import Sharding
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.protocols.ranks import ALONE, Ranks
from lightning_mmrl.protocols.tensors import RolloutEngine
from lightning_mmrl.rollout.sampling import group_seeds, refuse_broken
from lightning_mmrl.settings.algorithm import RewardSettings
from lightning_mmrl.settings.sample import SampleSettings
from lightning_mmrl.stages.context import place
from lightning_mmrl.stages.costs import CostMeter, Rates, count_samples, timed
from lightning_mmrl.stages.failures import refuse_failures
from lightning_mmrl.stages.rollout_table import rows_of
from lightning_mmrl.stages.scores import RewardSource, score_rollout
from lightning_mmrl.types.batches import PromptBatch, Rollout
from lightning_mmrl.types.records import Sample

_log = logging.getLogger(__name__)

COSTS = "costs.json"
"""File beside the parts with what they cost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartStore:
    """The table of an unfinished stage: one file for each batch, `part-000000.jsonl` and so on.

    A part is written beside its place and renamed, so that a part that exists is whole.

    Attributes:
        directory: Folder of the parts.
        before: Called before a part is written: waits until that on which it rests is on disk.
    """

    directory: Path
    before: Callable[[], None] = lambda: None

    def path(self, number: int) -> Path:
        """The file of the part with a number."""
        return self.directory / f"part-{number:06d}.jsonl"

    def write(self, number: int, rows: Sequence[RolloutRow]) -> None:
        """Writes a part."""
        self.before()
        write_table(self.path(number), rows)

    def write_costs(self, state: Mapping[str, Any]) -> None:
        """Writes the costs of all parts up to one that is about to be written, with and without that part."""
        with dispensable(f"costs of batches ({COSTS})", self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            write_json(self.directory / COSTS, state)

    def read_costs(self, costs: CostMeter) -> str | None:
        """Gives a meter the costs as they were written, if they were.

        Returns:
            Why the file cannot be used; the meter is as before then. Its content stops nothing, and the next batch
            replaces it.
        """
        path, lacking = self.directory / COSTS, "the costs of the stage lack the batches up to here"
        if not path.is_file():
            return None
        try:
            costs.load_state_dict(read_json(path, lacking))
        except StageError as error:
            return str(error)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{path} cannot be used ({error!r}); {lacking}"
        return None

    def num_parts(self) -> int:
        """How many parts exist, counted from the first one up to the first gap."""
        number = 0
        while self.path(number).is_file():
            number += 1
        return number


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplePlan:
    """How much is sampled, and from which prompts.

    Attributes:
        settings: Completions per prompt, prompts of a batch, and the component of the reward that says whether a
            completion is right.
        seed: Seed of the stage.
        places: Place of each prompt in the data, by its id, also of prompts that cannot be used.
        left_out: Gives the prompts that were found unusable so far: all of them once the last batch was read, and all
            up to the last prompt of a batch once that batch was read.
    """

    settings: SampleSettings
    seed: int
    places: Mapping[str, int]
    left_out: Callable[[], Sequence[tuple[Sample, str]]] = tuple

    @property
    def num_batches(self) -> int:
        """Number of batches, and therefore of parts, of the whole stage, if no more prompts are left out."""
        return math.ceil(len(self.usable()) / self.settings.data.batch_size)

    def usable(self) -> list[str]:
        """The ids of the prompts that are not left out, in their order."""
        left_out = {sample.id for sample, _ in self.left_out()}
        return [name for name in self.places if name not in left_out]


class SampleModule(lightning.LightningModule):
    """Samples G completions of each prompt of the trainer's test loader, and writes one part for each batch.

    The noise of a completion depends on (seed, prompt, sample) alone: not on the batch, the ranks or an interruption.

    Args:
        policy: The model, so that the trainer moves it to its device.
        engine: Samples.
        rewards: Scores the completions.
        plan: How much is sampled.
        parts: Where the parts are written, by rank 0.
        ranks: The processes that share each batch.
        sharding: How weights are spread over the ranks; None if each rank has all of them.
        rank_local: Entered around work that is not synchronized across ranks.

    Attributes:
        num_parts: Number of parts on disk; the loader begins after the parts of an earlier process.
    """

    def __init__(
        self,
        policy: Policy,
        engine: RolloutEngine,
        rewards: RewardSource,
        *,
        plan: SamplePlan,
        parts: PartStore,
        ranks: Ranks = ALONE,
        sharding: Sharding | None = None,
        rank_local: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        super().__init__()
        self.policy = policy
        self._engine = engine
        self._rewards = rewards
        self._plan = plan
        self._parts = parts
        self._sharding = sharding
        self._rank_local = rank_local
        self.num_parts = 0
        self.costs = CostMeter()
        self._ranks = timed(ranks, self.costs)
        self._waited_s: Callable[[], float] = lambda: 0.0
        self._report: Callable[[int, Mapping[str, float]], None] = lambda number, metrics: None

    def watch(
        self, rates: Rates, waited_s: Callable[[], float], report: Callable[[int, Mapping[str, float]], None]
    ) -> None:
        """Has the costs of batches reported, and goes on with the totals of the parts on disk.

        Args:
            rates: What counted work and the devices amount to.
            waited_s: Says how many seconds this rank waited for the batch in hand.
            report: Takes the number of a batch, from 1, and its metrics.
        """
        self.costs.rates = rates
        problem = self._parts.read_costs(self.costs)
        if problem is not None and self._ranks.rank == 0:
            _log.warning("%s", problem)
        self._waited_s, self._report = waited_s, report

    def configure_model(self) -> None:
        """Spreads the policy over the ranks."""
        place(self, self.policy, self._ranks, self._sharding)

    def on_test_start(self) -> None:
        """Gives the engine the weights."""
        self.costs.start(self.device, self._ranks, self.num_parts)
        with self.costs.phase("push"):
            self._engine.load_weights(self.policy, 0)

    def on_test_batch_start(self, batch: object, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Counts the wait for the batch, which was in no phase."""
        self.costs.moved("data", self._waited_s())

    def on_test_end(self) -> None:
        """Adds the time since the last batch to the costs."""
        self.costs.finish()

    def test_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Samples this rank's share of a batch; rank 0 writes the part of all ranks.

        Raises:
            RolloutError: A rank could not sample; raised on all of them.
            RewardError: Too many scores are invalid; raised on all ranks.
        """
        rollout, problem = None, None
        with self.costs.phase("generate"), self.costs.meeting(self._rank_local()):
            try:
                rollout = self._sampled(batch)
            except RolloutError as error:  # raised below, on all ranks: here the others would wait for this one
                problem = error
        problems = [each for each in self._ranks.gather(None if problem is None else str(problem)) if each is not None]
        if problems or rollout is None:
            raise problem or RolloutError(problems[0])
        count_samples(self.costs, batch, rollout)
        with self.costs.phase("score"), self.costs.meeting(self._rank_local()):
            scores = score_rollout(self._rewards, batch.samples, rollout)
        refuse_failures(scores, self._rewards.max_invalid_rate, self._ranks)
        rewards = self._plan.settings.rewards or RewardSettings()
        self.costs.take_counters(self.policy, updates=False)
        own = rows_of(batch.samples, rollout, scores, rewards.pass_component), self.costs.taken()
        shares, costs = zip(*self._ranks.gather(own), strict=True)
        metrics = self.costs.took(costs)
        if self._ranks.rank == 0:
            # A rank whose share of a batch would be empty repeats a prompt of another.
            found = {row.sample.id: row for share in shares for row in share}
            ordered = sorted(found.values(), key=lambda row: self._plan.places[row.sample.id])
            with self.costs.phase("state"):
                self._parts.write_costs(self.costs.state_dict())
                self._parts.write(self.num_parts, ordered)
        self.num_parts += 1
        self._report(self.num_parts, metrics)

    def on_test_epoch_end(self) -> None:
        """Compares the number of parts with the number of batches, so that no loop ends early unnoticed.

        Raises:
            StageError: A part is missing.
        """
        if self.num_parts != self._plan.num_batches:
            raise StageError(
                f"{self._parts.directory} has {self.num_parts} of {self._plan.num_batches} parts: its loop ended "
                "early; run the same command again"
            )

    def _sampled(self, prompts: PromptBatch) -> Rollout:
        size = self._plan.settings.num_completions
        seeds = group_seeds(self._plan.seed, 0, [sample.id for sample in prompts.samples], size)
        rollout = self._engine.generate(prompts, group_size=size, seeds=seeds)
        refuse_broken(rollout.sampler_logprobs, prompts, size)
        return rollout
