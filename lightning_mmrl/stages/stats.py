"""What one RL iteration is summarised by."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_mmrl.ops.groups import group_signal_fraction
from lightning_mmrl.protocols.ranks import Ranks
from lightning_mmrl.stages.collect import Collected
from lightning_mmrl.stages.failures import failed_parts
from lightning_mmrl.types.batches import Rollout, Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the statistics of a rollout look at, in host memory: small enough to be gathered from all ranks."""

    rewards: Float[Tensor, "B G"]
    valid: Bool[Tensor, "B G"]
    components: Mapping[str, Float[Tensor, "B G"]]
    advantages: Float[Tensor, "B G"]
    lengths: Float[Tensor, " N"]
    truncated: tuple[bool, ...]
    failed: Counter[str]

    @classmethod
    def of(cls, scores: Scores, rollout: Rollout, advantages: Float[Tensor, "B G"]) -> Self:
        """Of this rank's rollout."""
        return cls(
            rewards=scores.rewards.cpu(),
            valid=scores.valid.cpu(),
            components={name: values.cpu() for name, values in scores.components.items()},
            advantages=advantages.cpu(),
            lengths=rollout.completion_mask.sum(-1).float().cpu(),
            truncated=tuple(completion.truncated for completion in rollout.completions),
            failed=failed_parts(scores),
        )

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The rollout of all ranks; a component that a rank has no score of is zero there, and invalid."""
        names = dict.fromkeys(name for part in parts for name in part.components)
        return cls(
            rewards=torch.cat([part.rewards for part in parts]),
            valid=torch.cat([part.valid for part in parts]),
            components={
                name: torch.cat([part.components.get(name, torch.zeros_like(part.rewards)) for part in parts])
                for name in names
            },
            advantages=torch.cat([part.advantages for part in parts]),
            lengths=torch.cat([part.lengths for part in parts]),
            truncated=tuple(truncated for part in parts for truncated in part.truncated),
            failed=sum((part.failed for part in parts), Counter[str]()),
        )


def rollout_stats(outcome: Outcome) -> dict[str, float]:
    """Rewards by component, lengths, truncation, failures and signal of a rollout; means are over valid completions."""
    valid = outcome.valid
    num_valid = max(1, int(valid.sum()))
    stats = {
        "rollout/reward_mean": float(outcome.rewards.where(valid, 0.0).sum()) / num_valid,
        "rollout/length_mean": float(outcome.lengths.mean()),
        "rollout/truncated": _mean(outcome.truncated),
        "rollout/invalid_scores": 1.0 - float(valid.float().mean()),
        "rollout/groups_with_signal": float(group_signal_fraction(outcome.advantages)),
    }
    for name, count in outcome.failed.items():
        stats[f"rollout/invalid/{name}"] = count / valid.numel()
    for name, values in outcome.components.items():
        stats[f"rollout/{name}"] = float(values.where(valid, 0.0).sum()) / num_valid
    return stats


def selection_stats(collected: Collected, ranks: Ranks) -> dict[str, float]:
    """How many batches of prompts were sampled, the share of their groups that passed, and how full the batch is."""
    filled = collected.kept[list(collected.rows)]
    counts = torch.tensor([collected.kept.sum(), collected.kept.numel(), filled.sum(), filled.numel()])
    num_kept, num_sampled, num_filled, num_wanted = ranks.sum(counts.double()).tolist()
    return {
        "rollout/samplings": float(collected.num_samplings),
        "rollout/groups_kept": num_kept / num_sampled,
        "rollout/batch_filled": num_filled / num_wanted,
    }


def update_stats(totals: dict[str, float]) -> dict[str, float]:
    """Per-token means of what an optimizer step accumulated."""
    tokens = max(1.0, totals["tokens"])
    compared = {"train/reference_kl": totals["reference_kl"] / tokens} if "reference_kl" in totals else {}
    return {
        "train/loss": totals["loss"],
        "train/clip_fraction": totals["clipped"] / tokens,
        "train/clip_fraction_low": totals["clipped_low"] / tokens,
        "train/clip_fraction_high": totals["clipped_high"] / tokens,
        "train/ratio_mean": totals["ratio"] / tokens,
        "train/ratio_max": totals["ratio_max"],
        "train/approx_kl": totals["kl"] / tokens,
        "train/entropy": totals["entropy"] / tokens,
        "train/tokens": totals["tokens"],
    } | compared


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)
