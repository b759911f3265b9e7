"""The runs that the kill campaign disturbs, as overrides of `mmrl train`."""

from pathlib import Path

from damaged_set import write_damaged_set
from quick_runs import trained_base

CORRECTION = "lightning_mmrl.algorithms.corrections.importance.ImportanceCorrection"

CURRICULA = {
    "orders": ("cold_start", "grpo", "rloo"),
    "own_answers": ("cold_start", "draw", "again", "count"),
    "damaged_clips": ("cold_start",),
    "lag": ("grpo",),
}
"""Names to stages."""

UNCACHED = frozenset({"damaged_clips"})
"""Curricula whose runs have a cache of their own, so that each reads its clips from their files."""


def overrides(curriculum: str, work: Path, data_root: Path) -> list[str]:
    """The overrides of a curriculum; the base of `orders` and `lag` is trained first."""
    if curriculum == "lag":
        return _lag(trained_base(work, data_root))
    if curriculum == "damaged_clips":
        write_damaged_set(data_root)
        return damaged_clips()
    return _orders(trained_base(work, data_root)) if curriculum == "orders" else _own_answers()


def _orders(base: Path) -> list[str]:
    """SFT, GRPO and RLOO on clips, each from the stage before."""
    names = CURRICULA["orders"]
    stages = [f"stages.{stage}.num_steps=24" for stage in names]
    stages += [f"stages.{stage}.start_from={before}" for stage, before in zip(names, ("base", *names), strict=False)]
    stages += [f"stages.{stage}.data.batch_size=4" for stage in names[1:]]
    validate = [f"stages.{stage}.validate_every=7" for stage in names]
    small = ["data.limit=64", "data.validation_limit=16", "evaluation.ablations=[]"]
    model = [f"model.checkpoint={base}", "model.build=null"]
    return ["experiment=emotions_orders", *stages, *validate, *small, *model]


def _lag(base: Path) -> list[str]:
    """GRPO on clips whose rollouts are sampled two iterations ahead, by a process of its own."""
    stage = {"num_steps": 24, "data.batch_size": 4, "start_from": "base", "validate_every": 7}
    stages = [f"stages.grpo.{key}={value}" for key, value in stage.items()]
    ahead = ["rollout.lag=2", f"+stages.grpo.algorithm.correction._target_={CORRECTION}"]
    small = ["data.limit=64", "data.validation_limit=16", "evaluation.ablations=[]"]
    return ["experiment=emotions_orders", *stages, *ahead, *small, f"model.checkpoint={base}", "model.build=null"]


def _own_answers() -> list[str]:
    """SFT on sums, 16 batches of answers to other sums, SFT on the right ones, and RL on pictures of dots."""
    learn = [
        "stages.cold_start.num_steps=60",
        "stages.cold_start.stop_when=null",
        "stages.cold_start.validate_every=null",
    ]
    draw = ["stages.draw.data.limit=48", "stages.draw.data.batch_size=3", "stages.draw.keep.max_per_prompt=2"]
    # A score that takes too long is left out: on a busy machine another one than on an idle machine.
    draw += [f"stages.draw.rewards.{limit}=600" for limit in ("deadline_s", "soft_deadline_s", "batch_budget_s")]
    again = ["stages.again.num_epochs=null", "stages.again.num_steps=12", "stages.again.data.batch_size=4"]
    count = ["stages.count.num_steps=12", "stages.count.validate_every=null", "stages.count.data.batch_size=4"]
    small = ["+data.build.scale=0.1", "+datasets.dots.build.scale=0.1", "datasets.dots.root=${data.root}-dots"]
    return ["experiment=numbers_then_dots", *small, *learn, *draw, *again, *count]


def damaged_clips() -> list[str]:
    """SFT of three passes over clips of which one in ten is damaged, read while it trains."""
    stage = {
        "data.manifest": "train.jsonl",
        "num_steps": 27,
        "data.batch_size": 4,
        "stop_when": "null",
        "validate_every": "null",
    }
    small = ["evaluation.max_new_tokens=4", "evaluation.ablations=[]"]
    return ["experiment=own_clips", *(f"stages.cold_start.{key}={value}" for key, value in stage.items()), *small]
