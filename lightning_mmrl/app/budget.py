"""The costs that the budget of a run leaves to a stage, after the stages before it."""

from pathlib import Path

from lightning_mmrl.config.budget import counted_before, limits
from lightning_mmrl.curriculum.manifest import Manifest
from lightning_mmrl.errors import ConfigError, StageError
from lightning_mmrl.planning.shapes import read_shape
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.types.costs import StageBudget
from lightning_mmrl.types.records import StageResult


def check_sizes(config: RunSettings) -> None:
    """Refuses a budget of operations for a model whose operations nobody can count.

    Raises:
        ConfigError: The sizes of a model are not known.
    """
    if config.budget is None or config.budget.measure != "flops":
        return
    own = (config.stages[name].checkpoint for name in config.order)
    for checkpoint in dict.fromkeys((config.model.checkpoint, *(each for each in own if each is not None))):
        try:
            shape = read_shape(checkpoint, config.model.known_sizes)
        except ValueError as error:
            raise ConfigError(
                f"budget.flops needs the sizes of {checkpoint}, and {error}; give the budget in steps or seconds"
            ) from error
        if shape is None and not (checkpoint == config.model.checkpoint and config.model.build is not None):
            raise ConfigError(
                f"budget.flops needs the sizes of {checkpoint}, and its config.json is not there; name a folder, set "
                "model.known_sizes, or give the budget in steps or seconds"
            )


def stage_budget(config: RunSettings, name: str, directory: Path) -> StageBudget | None:
    """The budget of one stage; None if the budget of the run does not end it.

    Args:
        config: The run.
        name: The stage.
        directory: The stage's folder, in the folder of the run.

    Raises:
        StageError: Nothing is left for the stage, or a stage before it is not finished, or its costs are not known.
    """
    limit = limits(config).get(name)
    if config.budget is None or limit is None:
        return None
    measure, finished = config.budget.measure, Manifest.read(directory.parent.parent).stages
    counted = counted_before(config, name)
    for each in counted:
        if each not in finished:
            raise StageError(
                f"stages.{name} ends by what stage {each} took of budget.{measure} too, and {each} is not finished; "
                f"run {each} first, or name it in budget.apart"
            )
    spent = [_spent(finished[each].result, measure) for each in counted]
    budget = StageBudget(stage=name, measure=measure, ends_at=limit, before=sum(spent))
    if budget.own <= 0:
        raise StageError(
            f"stages.{name} may go up to {limit:.4g} {measure}, and the stages before it took {budget.before:.4g}; "
            f"raise budget.{measure} or the share of the stage, or name a stage before it in budget.apart"
        )
    return budget


def _spent(result: StageResult, measure: str) -> float:
    """The part of a budget that a finished stage took.

    Raises:
        StageError: Its costs are not known.
    """
    spent = result.spent(measure)
    if spent is not None:
        return spent
    if result.costs is None:
        raise StageError(
            f"the costs of stage {result.name} are not known, since an earlier version ran it; run it again with "
            f"--from-stage {result.name}, or give the budget in steps"
        )
    raise StageError(
        f"the operations of stage {result.name} are not known, because the sizes of its model are not; give the "
        "budget in steps or seconds, or name the stage in budget.apart"
    )
