"""Sampled rollouts on disk: one JSON line per prompt, the format that routing, filtering and diagnosis read."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_mmrl.types.batches import Rollout, Scores
from lightning_mmrl.types.records import Sample


class RolloutTable:
    """Writes `iteration_000010.jsonl` and so on, every `every` iterations.

    A row holds the prompt's id, media and solution, its G responses with component rewards, length and whether it was
    truncated, and the pass rate: the fraction of valid responses whose `pass_component` is at least 1.

    Args:
        directory: Folder of the tables.
        every: Iterations between two tables.
        pass_component: The reward component that says whether a response is right.
    """

    def __init__(self, directory: Path, *, every: int = 10, pass_component: str = "label") -> None:
        self._directory = directory
        self._every = every
        self._pass_component = pass_component

    def write(self, iteration: int, samples: Sequence[Sample], rollout: Rollout, scores: Scores) -> Path | None:
        """Writes one iteration's table if it is due, and returns its path."""
        if iteration % self._every and iteration != 1:
            return None
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / f"iteration_{iteration:06d}.jsonl"
        rows = [self._row(sample, group, rollout, scores) for group, sample in enumerate(samples)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    def _row(self, sample: Sample, group: int, rollout: Rollout, scores: Scores) -> Mapping[str, Any]:
        size = rollout.group_size
        valid = scores.valid[group].tolist()
        components = {name: values[group].tolist() for name, values in scores.components.items()}
        responses = [
            {
                "text": completion.text,
                "num_tokens": completion.num_tokens,
                "truncated": completion.truncated,
                "valid": valid[index],
                "reward": float(scores.rewards[group, index]),
                "components": {name: values[index] for name, values in components.items()},
            }
            for index, completion in enumerate(rollout.completions[group * size : (group + 1) * size])
        ]
        judged = [row["components"].get(self._pass_component, 0.0) >= 1.0 for row in responses if row["valid"]]
        return {
            "id": sample.id,
            "media": [{"kind": ref.kind, "path": ref.path} for ref in sample.media],
            "solution": sample.solution,
            "policy_version": rollout.policy_version,
            "pass_rate": sum(judged) / len(judged) if judged else None,
            "responses": responses,
        }
