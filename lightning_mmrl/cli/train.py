"""`mmrl train`: runs, continues or reports a curriculum."""

from collections.abc import Sequence
from functools import partial

from lightning_mmrl.cli.device_memory import require_memory
from lightning_mmrl.cli.hydra_app import run_with_config, take_flags
from lightning_mmrl.cli.launch import on_all_ranks
from lightning_mmrl.cli.memory_table import memory_hint
from lightning_mmrl.config.budget import with_budget
from lightning_mmrl.config.epochs import with_steps
from lightning_mmrl.curriculum.selection import Selection
from lightning_mmrl.errors import GateError, OutOfMemoryError
from lightning_mmrl.registry.kinds import kind_of
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.settings.stage import StageSettings
from lightning_mmrl.tracking.store import deliver_leftovers, settle_tracking


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    selecting = ("--from-stage", "--only-stage", "--until-stage")
    values, rest = take_flags(arguments, valued=selecting, switches=("--allow-changes",))
    selection = Selection(
        from_stage=values.get("--from-stage"),
        only_stage=values.get("--only-stage"),
        until_stage=values.get("--until-stage"),
        allow_changes="--allow-changes" in values,
    )
    task = partial(train, selection=selection, command=("train", *arguments))
    codes = run_with_config(lambda config: on_all_ranks(task, config, "train", arguments), "mmrl train", rest)
    return max(codes, default=0)  # empty if a flag only shows the configuration


def train(config: RunSettings, selection: Selection, command: Sequence[str] = ()) -> None:
    """Trains the unfinished or selected stages, then shows the results and gain of every stage.

    `command` holds the arguments of `mmrl`, which the tracker shows.

    Raises:
        ConfigError: A stage does not fit the devices of this machine.
        GateError: A stage missed its gate, which ends the curriculum.
        OutOfMemoryError: A stage ran out of memory; the message names keys that reduce the memory use.
    """
    config = settle_tracking(config)
    # Loaded here: a bad configuration is refused before torch is imported.
    from lightning_mmrl.app.run import run_curriculum
    from lightning_mmrl.cli.tables import print_comparison
    from lightning_mmrl.training.console import ConsoleProgress
    from lightning_mmrl.training.group import joined
    from lightning_mmrl.training.interruption import Interruption

    settings = config.trainer
    with Interruption() as interruption, joined(settings, interruption) as group:
        require_memory(config, print if group.leads else lambda line: None)
        for name in config.order if group.leads else ():
            print(f"{name}: {described(config, name)}")
        with ConsoleProgress(quiet=not group.leads) as console:
            try:
                outcome = run_curriculum(config, console, selection, group, command=command)
            except OutOfMemoryError as error:
                raise OutOfMemoryError(f"{error}; {memory_hint(config, error.stage)}") from error
    if outcome is None:
        return
    print_comparison(outcome)
    deliver_leftovers(config, print)
    if outcome.ended_by_gate is not None:
        raise GateError(outcome.ended_by_gate)


def described(config: RunSettings, name: str) -> str:
    """Says how long a stage is, if that is known, and what it does in a step."""
    stage = config.stages[name]
    if not isinstance(stage, StageSettings):
        return kind_of(stage, name).describe(stage)
    stage = with_budget(config, {each: with_steps(config, each) for each in config.trained})[name]
    work = kind_of(stage, name).describe(stage)
    if stage.num_steps is None and stage.num_epochs is None:
        return f"{work}, until its budget is spent"
    return f"{stage.num_steps or f'{stage.num_epochs:g} epochs'} x {work}"
