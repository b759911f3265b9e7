"""`mmrl evaluate CHECKPOINT`: evaluates any checkpoint on the configured sets, with intervals."""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from lightning_mmrl.cli.hydra_app import VALUED_FLAGS, run_with_config
from lightning_mmrl.cli.launch import on_all_ranks
from lightning_mmrl.errors import ConfigError, StageError
from lightning_mmrl.protocols.plain import TrackedRun
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.tracking.store import deliver_leftovers, settle_tracking

HELP = """mmrl evaluate - evaluate a checkpoint on the configured sets

usage: mmrl evaluate CHECKPOINT [KEY=VALUE ...] [--allow-targets PREFIX]

CHECKPOINT is a stage's handoff folder, any Hugging Face folder of the model family, or a hub id.
--allow-targets lets the configuration use code of your own, as for mmrl train.
Results go to ${output_dir}/${run_name}/evaluations/NAME and are printed.

examples:
  mmrl evaluate runs/quickstart/stages/02-reason/handoff experiment=quickstart
  mmrl evaluate runs/quickstart/stages/01-cold_start/handoff experiment=quickstart '~evaluation.sets.test'
"""


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code.

    Raises:
        StageError: The checkpoint can be neither a model's folder nor a hub id.
    """
    if any(argument in ("-h", "--help") for argument in arguments):
        print(HELP)
        return 0
    checkpoint, others = take_checkpoint(arguments)
    is_hub_id = len(checkpoint.parts) == 2 and not checkpoint.is_absolute() and checkpoint.name != "handoff"
    if not (checkpoint / "config.json").is_file() and (checkpoint.exists() or not is_hub_id):
        raise StageError(
            f"checkpoint {checkpoint} is no Hugging Face folder; give a stage's handoff folder or a hub id"
        )
    task = partial(evaluate, checkpoint=checkpoint)
    codes = run_with_config(lambda config: on_all_ranks(task, config, "evaluate", arguments), "mmrl evaluate", others)
    return max(codes, default=0)


def take_checkpoint(arguments: Sequence[str]) -> tuple[Path, list[str]]:
    """Separates the checkpoint, which is the first argument that is no flag, value of a flag or override.

    A path to a Hugging Face folder is no override, even if it contains `=`.

    >>> take_checkpoint(["--config-dir", "mine", "experiment=quickstart", "./lr=0.1/handoff", "seed=1"])
    (PosixPath('lr=0.1/handoff'), ['--config-dir', 'mine', 'experiment=quickstart', 'seed=1'])

    Raises:
        ConfigError: There is no checkpoint.
    """
    is_value = False
    for index, argument in enumerate(arguments):
        is_override = argument.startswith("~") or re.match(r"[+]{0,2}[A-Za-z_][\w.@/:-]*=", argument) is not None
        is_other = is_value or argument.startswith("-") or (is_override and not Path(argument, "config.json").is_file())
        is_value = not is_value and argument in VALUED_FLAGS
        if not is_other:
            return Path(argument), [*arguments[:index], *arguments[index + 1 :]]
    print(HELP, file=sys.stderr)
    raise ConfigError("CHECKPOINT is missing; name a folder or a hub id")


def evaluate(config: RunSettings, checkpoint: Path) -> None:
    """Evaluates one checkpoint and prints a table."""
    # Loaded here: a bad configuration is refused before torch is imported.
    from lightning_mmrl.app.assembly import Assembly, quiet_libraries
    from lightning_mmrl.app.evaluation import CheckpointEvaluator
    from lightning_mmrl.app.run import check_all_targets, writable
    from lightning_mmrl.cli.tables import by_task, print_breakdowns, results_table
    from lightning_mmrl.curriculum.compare import compare_stages
    from lightning_mmrl.evaluation.intervals import ClusterBootstrap
    from lightning_mmrl.registry.tasks import task_of_result
    from lightning_mmrl.training.console import ConsoleProgress, report_console
    from lightning_mmrl.training.group import joined
    from lightning_mmrl.training.interruption import Interruption

    config = settle_tracking(config)
    quiet_libraries()
    check_all_targets(config)
    name = checkpoint.parent.name if checkpoint.name == "handoff" else checkpoint.name
    with (
        joined(config.trainer, Interruption()) as group,
        ConsoleProgress(quiet=not group.leads) as console,
    ):
        parts = Assembly(config=config, console=console, group=group)
        with group.first():
            if not (checkpoint / "config.json").is_file():
                parts.encoder(checkpoint)  # an id that the hub lacks is refused before a dataset is generated
            directory = writable(Path(config.output_dir)) / config.run_name / "evaluations" / name
            parts.ensure_data()
        evaluate_all = CheckpointEvaluator(parts, last_stage=name, afresh=True)
        if not group.leads:
            evaluate_all(checkpoint, directory, name, None)
            return
        with _run_of_mlflow(config, name) as run:
            metrics = evaluate_all(checkpoint, directory, name, run)
            if run is not None:
                run.log_metrics(metrics, step=0)
    bootstrap = ClusterBootstrap(settings=config.evaluation)
    comparison = compare_stages({name: directory}, {}, partial(task_of_result, tasks=parts.tasks), bootstrap)
    console = report_console()
    for results, _ in by_task(comparison):
        console.print(results_table(results))
        print_breakdowns(console, name, results)
    deliver_leftovers(config, console.print)
    console.print(f"predictions and figures in {directory}", soft_wrap=True)


@contextmanager
def _run_of_mlflow(config: RunSettings, name: str) -> Iterator[TrackedRun | None]:
    """Yields the run that `mlflow run` opened for this process, if any; metrics and predictions are logged to it."""
    from lightning_mmrl.app.run import open_tracker
    from lightning_mmrl.tracking.status import status_of

    if config.tracking.uri is None or not os.environ.get("MLFLOW_RUN_ID"):
        yield None
        return
    tracker = open_tracker(config)
    try:
        run = tracker.open_run(f"evaluate {name}")
        with status_of(run):
            yield run
    finally:
        tracker.close()
