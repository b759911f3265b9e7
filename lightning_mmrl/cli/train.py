"""`mmrl train`: runs a curriculum, or reports one that is finished."""

from collections.abc import Sequence

from lightning_mmrl.cli.hydra_app import run_with_config
from lightning_mmrl.config.schema import RootConfig


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    run_with_config(train, "mmrl train", arguments)
    return 0


def train(config: RootConfig) -> None:
    """Trains what is not finished yet, then shows what every stage added."""
    # Loaded here: a bad configuration is refused before torch is imported.
    from lightning_mmrl.cli.tables import print_comparison
    from lightning_mmrl.config.run import run_curriculum
    from lightning_mmrl.training.console import ConsoleProgress

    with ConsoleProgress() as console:
        outcome = run_curriculum(config, console)
    print_comparison(outcome)
