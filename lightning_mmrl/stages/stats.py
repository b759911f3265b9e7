"""Metrics of one RL iteration."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_mmrl.protocols.ranks import Ranks
from lightning_mmrl.stages.collect import Collected
from lightning_mmrl.stages.failures import failed_components
from lightning_mmrl.types.batches import Rollout, Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSummary:
    """The part of a rollout that metrics are made of, in host memory: small enough to be gathered from all ranks.

    Attributes:
        rewards: The reward of each completion.
        valid: True where no verifier failed.
        components: The components of the rewards, by name.
        has_signal: True for completions whose advantage is not zero.
        lengths: Tokens of each completion.
        truncated: Whether the length limit ended the completion.
        failed: Number of invalid scores by the component that failed.
        decoding: Counts of passes and drafts, as in `Rollout`; empty if the engine drafts nothing.
    """

    rewards: Float[Tensor, "B G"]
    valid: Bool[Tensor, "B G"]
    components: Mapping[str, Float[Tensor, "B G"]]
    has_signal: Bool[Tensor, "B G"]
    lengths: Float[Tensor, " N"]
    truncated: tuple[bool, ...]
    failed: Counter[str]
    decoding: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, scores: Scores, rollout: Rollout, has_signal: Bool[Tensor, "B G"]) -> Self:
        """The summary of this rank's rollout."""
        return cls(
            rewards=scores.rewards.cpu(),
            valid=scores.valid.cpu(),
            components={name: values.cpu() for name, values in scores.components.items()},
            has_signal=has_signal.cpu(),
            lengths=rollout.completion_mask.sum(-1).float().cpu(),
            truncated=tuple(completion.truncated for completion in rollout.completions),
            failed=failed_components(scores),
            decoding=Counter(rollout.decoding),
        )

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The summary over all ranks; a component that a rank lacks is zero there, and invalid."""
        names = dict.fromkeys(name for part in parts for name in part.components)
        return cls(
            rewards=torch.cat([part.rewards for part in parts]),
            valid=torch.cat([part.valid for part in parts]),
            components={
                name: torch.cat([part.components.get(name, torch.zeros_like(part.rewards)) for part in parts])
                for name in names
            },
            has_signal=torch.cat([part.has_signal for part in parts]),
            lengths=torch.cat([part.lengths for part in parts]),
            truncated=tuple(truncated for part in parts for truncated in part.truncated),
            failed=sum((part.failed for part in parts), Counter[str]()),
            decoding=sum((part.decoding for part in parts), Counter[str]()),
        )


def rollout_stats(summary: RolloutSummary) -> dict[str, float]:
    """Rewards by component, lengths, truncation, failures and signal of a rollout; means are over valid completions."""
    valid = summary.valid
    num_valid = max(1, int(valid.sum()))
    stats = {
        "rollout/reward_mean": float(summary.rewards.where(valid, 0.0).sum()) / num_valid,
        "rollout/length_mean": float(summary.lengths.mean()),
        "rollout/truncated": sum(summary.truncated) / len(summary.truncated),
        "rollout/invalid_scores": 1.0 - float(valid.float().mean()),
        "rollout/groups_with_signal": float(summary.has_signal.any(-1).float().mean()),
    }
    for name, count in summary.failed.items():
        stats[f"rollout/invalid/{name}"] = count / valid.numel()
    for name, values in summary.components.items():
        stats[f"rollout/{name}"] = float(values.where(valid, 0.0).sum()) / num_valid
    return stats | draft_stats(summary.decoding)


def draft_stats(decoding: Mapping[str, int]) -> dict[str, float]:
    """Yield of the drafts of an iteration, over all ranks; nothing if nothing was drafted.

    - `rollout/decode_passes`: passes of the decoder, the ones over prompts included, summed over ranks and samplings.
    - `rollout/passes_per_token`: the same for each token of the longest completion; 1 without drafts.
    - `rollout/drafted/SOURCE` and `rollout/accepted/SOURCE`: drafted tokens, and the share of them that was right.

    >>> draft_stats({"passes": 6, "longest": 12, "drafted/own": 4, "accepted/own": 3})["rollout/passes_per_token"]
    0.5
    """
    if not decoding:
        return {}
    stats = {
        "rollout/decode_passes": float(decoding["passes"]),
        "rollout/passes_per_token": decoding["passes"] / decoding["longest"],
    }
    for key, count in decoding.items():
        kind, _, source = key.partition("/")
        if kind == "drafted":
            stats[f"rollout/drafted/{source}"] = float(count)
            stats[f"rollout/accepted/{source}"] = decoding.get(f"accepted/{source}", 0) / count
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


def update_stats(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Metrics over all optimizer steps of an iteration, from the sums of each; nothing if there was no step.

    - `train/loss`: mean of the steps' losses, each weighted by its own denominator. It is the sum of all token losses
      over the sum of all denominators.
    - clip fractions, `ratio_mean`, `approx_kl`, `entropy` and `reference_kl`: mean over all tokens that were scored, a
      token once for each epoch.
    - `train/ratio_max`: largest ratio. `train/tokens`: number of tokens that were scored.
    - `train/grad_norm`: mean over the steps, before clipping.
    - `train/value_loss` and `value_clip_fraction`: mean over all tokens that the critic learned from.
    - `train/sft_loss`: mean over all target tokens that a router had learned, `train/sft_tokens` in number.
    - `train/critic_grad_norm`: mean over the steps. `train/critic_learning_rate`: the same in all of them.
    """
    if not steps:
        return {}

    def total(name: str) -> float:
        return math.fsum(step[name] for step in steps)

    def mean(name: str, weight: str) -> float:
        # The share is computed first: a single step has exactly 1, so the mean is its value to the last bit.
        whole = total(weight) or 1.0
        return math.fsum(step[name] * (step[weight] / whole) for step in steps)

    tokens = max(1.0, total("tokens"))
    stats = {
        "train/loss": mean("loss", "denominator"),
        "train/clip_fraction": total("clipped") / tokens,
        "train/clip_fraction_low": total("clipped_low") / tokens,
        "train/clip_fraction_high": total("clipped_high") / tokens,
        "train/ratio_mean": total("ratio") / tokens,
        "train/ratio_max": max(step["ratio_max"] for step in steps),
        "train/approx_kl": total("kl") / tokens,
        "train/entropy": total("entropy") / tokens,
        "train/tokens": total("tokens"),
        "train/grad_norm": total("grad_norm") / len(steps),
    }
    if "reference_kl" in steps[0]:
        stats["train/reference_kl"] = total("reference_kl") / tokens
    if "sft_loss" in steps[0]:
        stats["train/sft_loss"] = mean("sft_loss", "sft_tokens")
        stats["train/sft_tokens"] = total("sft_tokens")
    if "value_loss" in steps[0]:
        stats["train/value_loss"] = mean("value_loss", "value_tokens")
        stats["train/value_clip_fraction"] = mean("value_clip_fraction", "value_tokens")
        stats["train/critic_grad_norm"] = total("critic_grad_norm") / len(steps)
        stats["train/critic_learning_rate"] = steps[-1]["critic_learning_rate"]
    return stats
