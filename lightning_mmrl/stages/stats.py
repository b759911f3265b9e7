"""What one RL iteration is summarised by."""

from collections.abc import Sequence

from lightning_mmrl.ops.groups import group_signal_fraction
from lightning_mmrl.types.batches import Experience, Rollout, Scores


def rollout_stats(rollout: Rollout, scores: Scores) -> dict[str, float]:
    """Rewards by component, lengths, truncation and failures of one rollout; means are over valid completions."""
    valid = scores.valid
    num_valid = max(1, int(valid.sum()))
    lengths = rollout.completion_mask.sum(-1).float()
    stats = {
        "rollout/reward_mean": float(scores.rewards.where(valid, 0.0).sum()) / num_valid,
        "rollout/length_mean": float(lengths.mean()),
        "rollout/truncated": _mean([completion.truncated for completion in rollout.completions]),
        "rollout/invalid_scores": 1.0 - float(valid.float().mean()),
    }
    for name, values in scores.components.items():
        stats[f"rollout/{name}"] = float(values.where(valid, 0.0).sum()) / num_valid
    return stats


def experience_stats(experience: Experience) -> dict[str, float]:
    """How much of the rollout carries a signal."""
    return {"rollout/groups_with_signal": float(group_signal_fraction(experience.advantages))}


def update_stats(totals: dict[str, float]) -> dict[str, float]:
    """Per-token means of what an optimizer step accumulated."""
    tokens = max(1.0, totals["tokens"])
    return {
        "train/loss": totals["loss"],
        "train/clip_fraction": totals["clipped"] / tokens,
        "train/approx_kl": totals["kl"] / tokens,
        "train/entropy": totals["entropy"] / tokens,
        "train/tokens": totals["tokens"],
    }


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)
