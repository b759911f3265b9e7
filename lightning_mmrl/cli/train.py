"""`mmrl train`: runs a curriculum, or reports one that is finished."""

from collections.abc import Sequence
from functools import partial

from lightning_mmrl.cli.hydra_app import run_with_config, take_flags
from lightning_mmrl.cli.plan import batch_arithmetic
from lightning_mmrl.config.schema import RootConfig
from lightning_mmrl.config.tracking import settle_tracking
from lightning_mmrl.errors import GateError


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    values, rest = take_flags(arguments, valued=("--from-stage", "--only-stage"), switches=("--allow-changes",))
    task = partial(
        train,
        from_stage=values.get("--from-stage"),
        only_stage=values.get("--only-stage"),
        allow_changes="--allow-changes" in values,
    )
    run_with_config(task, "mmrl train", rest)
    return 0


def train(
    config: RootConfig, from_stage: str | None = None, only_stage: str | None = None, allow_changes: bool = False
) -> None:
    """Trains what is not finished yet, or what is selected, then shows what every stage added."""
    config = settle_tracking(config)
    # Loaded here: a bad configuration is refused before torch is imported.
    from lightning_mmrl.cli.tables import print_comparison
    from lightning_mmrl.config.run import run_curriculum
    from lightning_mmrl.curriculum.selection import Selection
    from lightning_mmrl.training.console import ConsoleProgress
    from lightning_mmrl.training.interruption import Interruption

    selection = Selection(from_stage=from_stage, only_stage=only_stage, allow_changes=allow_changes)
    for name in config.order:
        print(f"{name}: {config.stages[name].num_steps} x {batch_arithmetic(config.stages[name])}")
    with Interruption() as interruption, ConsoleProgress() as console:
        outcome = run_curriculum(config, console, selection, interruption)
    print_comparison(outcome)
    if outcome.ended_by_gate is not None:
        raise GateError(outcome.ended_by_gate)
