"""Types of weights and of computation that do not go together, or in which nothing would be learned."""

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.settings.model import ModelSettings
from lightning_mmrl.settings.stage import AUTO, SHARDED_PRECISIONS, StageSettings, TrainerSettings

HALF_WEIGHTS = ("bf16-true", "16-true")
"""Lightning's precisions that convert the whole module, buffers included."""
NOT_TOGETHER = {
    ("bfloat16", "16-mixed"): "float16 overflows where bfloat16 does not",
    ("bfloat16", "64-true"): "weights that were rounded to bfloat16 gain nothing in float64",
    ("float64", "bf16-mixed"): "float64 is never computed in half precision",
    ("float64", "16-mixed"): "float64 is never computed in half precision",
}
"""Pairs of `model.dtype` and `trainer.precision`, and why each is refused."""
MOVED = "2 %"
"""Share of bfloat16 weights that 250 steps of AdamW at a learning rate of 1e-6 move (tools/bench/weights_moved.py)."""


def with_precision(trainer: TrainerSettings, model: ModelSettings) -> None:
    """Puts the precision that a model of this type usually has in the place of `auto`."""
    if trainer.precision == AUTO:
        trainer.precision = "bf16-mixed" if model.dtype == "bfloat16" else "32-true"


def refuse_half_weights(path: str, trainer: TrainerSettings) -> None:
    """Refuses precisions that no stage can have; `path` is the key of the trainer.

    Raises:
        ConfigError: Naming the precision to take.
    """
    if trainer.precision in HALF_WEIGHTS:
        raise ConfigError(
            f"{path}.precision is {trainer.precision}, which would round rotary angles and rewards to half precision "
            f"too; take {trainer.precision.removesuffix('true')}mixed, which keeps them and weights that train in "
            "float32"
        )


def check_precision(path: str, trainer: TrainerSettings, model: ModelSettings) -> None:
    """Refuses a precision that the strategy or the type of the weights does not go with.

    Raises:
        ConfigError: Naming both keys.
    """
    if trainer.shards and trainer.precision not in SHARDED_PRECISIONS:
        raise ConfigError(
            f"{path}.precision is {trainer.precision}; it must be one that fsdp2 runs: {', '.join(SHARDED_PRECISIONS)}"
        )
    reason = NOT_TOGETHER.get((model.dtype, trainer.precision))
    if reason is not None:
        raise ConfigError(
            f"{path}.precision is {trainer.precision}, which does not go with model.dtype {model.dtype}: {reason}; "
            f"take trainer.precision={AUTO}"
        )


def refuse_rounded_weights(path: str, stage: StageSettings, model: ModelSettings) -> None:
    """Refuses a stage that would train bfloat16 weights with one of torch's optimizers; `path` is its key.

    Adapters are float32 in any precision, and an optimizer of the user's own may know how to round.

    Raises:
        ConfigError: Naming both keys and the share of weights that would move.
    """
    optimizer = str(stage.optimizer.get("_target_", ""))
    plain = optimizer.startswith("torch.optim.") and stage.adapter is None
    if plain and model.dtype == "bfloat16" and stage.trainer.precision == "32-true":
        raise ConfigError(
            f"{path}.trainer.precision is 32-true with model.dtype bfloat16, where rounding undoes small updates: 250 "
            f"steps of AdamW at a learning rate of 1e-6 move {MOVED} of such weights; take bf16-mixed, which keeps "
            "float32 weights and moves all of them"
        )
