"""Turns scored rollouts into rows of rollout tables, and writes the tables of RL iterations."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from lightning_mmrl.data.rollout_table import RolloutRow, write_table
from lightning_mmrl.files import dispensable
from lightning_mmrl.protocols.ranks import ALONE, Ranks
from lightning_mmrl.settings.algorithm import RewardSettings
from lightning_mmrl.settings.stage import StageSettings
from lightning_mmrl.types.batches import Rollout, Scores
from lightning_mmrl.types.records import Sample


class RolloutTable:
    """Writes `iteration_000010.jsonl` and so on, every `rollout_table_every` iterations.

    Args:
        directory: Folder of the tables.
        settings: Iterations between two tables, and the reward component that says whether a response is right.
    """

    def __init__(self, directory: Path, settings: StageSettings | None = None) -> None:
        settings = settings or StageSettings()
        self._directory = directory
        self._every = settings.rollout_table_every
        self._pass_component = (settings.rewards or RewardSettings()).pass_component

    def write(
        self,
        iteration: int,
        samples: Sequence[Sample],
        rollout: Rollout,
        scores: Scores,
        ranks: Ranks = ALONE,
        serials: Sequence[int] = (),
        advantages: Float[Tensor, "B G"] | None = None,
        routes: Sequence[str | None] = (),
    ) -> Path | None:
        """Writes one iteration's table with the rows of all ranks, if it is due, on rank 0; returns its path.

        The rows are in the order of their `serials`, or one rank after the other without any. `advantages` are those
        that the policy is trained on, NaN for completions that do not count; `routes` are those of a router. Training
        goes on without a table that the disk refuses.
        """
        if iteration % self._every and iteration != 1:
            return None
        own = rows_of(samples, rollout, scores, self._pass_component)
        if advantages is not None:
            known = [tuple(None if math.isnan(one) else one for one in group) for group in advantages.tolist()]
            own = [replace(row, advantages=group) for row, group in zip(own, known, strict=True)]
        if routes:
            own = [replace(row, route=route) for row, route in zip(own, routes, strict=True)]
        numbered = list(zip(serials or [0] * len(own), own, strict=True))
        gathered = [each for share in ranks.gather(numbered) for each in share]
        rows = [row for _, row in sorted(gathered, key=lambda each: each[0])]
        if ranks.rank:
            return None
        path = self._directory / f"iteration_{iteration:06d}.jsonl"
        with dispensable("rollout tables", self._directory):
            write_table(path, rows)
            return path
        return None


def rows_of(samples: Sequence[Sample], rollout: Rollout, scores: Scores, pass_component: str) -> list[RolloutRow]:
    """One row for each prompt of a scored rollout."""
    size = rollout.group_size
    return [
        RolloutRow(
            sample=sample,
            completions=tuple(rollout.completions[group * size : (group + 1) * size]),
            scores=scores.details[group],
            policy_version=int(rollout.policy_version[group * size]),
            pass_component=pass_component,
        )
        for group, sample in enumerate(samples)
    ]
