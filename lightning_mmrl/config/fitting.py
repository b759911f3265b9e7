"""Fits settings in units of steps to a stage that has fewer steps, and tells the user about it."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from lightning_mmrl.settings.stage import StageSettings


def fitted(stage: StageSettings, path: str, say: Callable[[str], object]) -> StageSettings:
    """Fits validations, cooldown and phases of a stage to `num_steps`, so that a user can set this key alone.

    A warm-up that is longer than the stage is kept, since every learning rate within the warm-up is valid.

    Args:
        stage: The stage as it was composed.
        path: The key of the stage, such as stages.reason.
        say: Gets each change as a sentence.
    """
    num_steps = stage.num_steps
    if num_steps is None or num_steps < 1:
        return stage  # not known yet, or refused by the checks
    fits = replace(stage)
    if stage.validate_every is not None and stage.validate_every > num_steps:
        fits.validate_every = num_steps
        say(f"{path}.validate_every is {stage.validate_every}, and the stage has {num_steps} steps: its last validates")
    if stage.cooldown_steps >= num_steps:
        fits.cooldown_steps = num_steps - 1
        say(f"{path}.cooldown_steps is {stage.cooldown_steps}, and the stage has {num_steps} steps: taken as the most")
    if stage.algorithm is not None:
        phases = stage.algorithm.phases
        within = {name: phase for name, phase in phases.items() if phase.after < num_steps}
        for name in phases.keys() - within.keys():
            say(f"{path}.algorithm.phases.{name} begins after step {phases[name].after} of {num_steps}: it never does")
        fits.algorithm = replace(stage.algorithm, phases=within)
    warmup = stage.schedule.get("warmup_steps") if isinstance(stage.schedule, Mapping) else None
    if isinstance(warmup, int) and warmup > num_steps:
        say(f"{path}.schedule.warmup_steps is {warmup}, and the stage has {num_steps}: optimizer.lr is never reached")
    return fits
