"""Profiles the stages of a run: a few steps of each, in a folder of their own, without tracking or evaluation."""

import shutil
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_mmrl.app.run import run_curriculum
from lightning_mmrl.config.fitting import fitted
from lightning_mmrl.config.specs import cap_samples, stage_specs
from lightning_mmrl.curriculum.graph import with_ancestors
from lightning_mmrl.curriculum.manifest import FILE
from lightning_mmrl.errors import ConfigError, StageError
from lightning_mmrl.files import write_whole
from lightning_mmrl.planning.profile_page import page
from lightning_mmrl.settings.bridge import BridgeSettings
from lightning_mmrl.settings.filter import FilterSettings
from lightning_mmrl.settings.route import RouteSettings
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.settings.sample import SampleSettings
from lightning_mmrl.settings.stage import NodeSettings, StageSettings
from lightning_mmrl.training.callbacks.profile import ProfileSteps
from lightning_mmrl.training.console import ConsoleProgress
from lightning_mmrl.training.group import RankGroup
from lightning_mmrl.types.profile import StageProfile

PAGE = "profile.md"
WORK = "profiled_run.tmp"
"""Folder of the short run below the folder of the profile; it is removed in the end."""
BESIDE = 2
"""Steps besides the timed ones: the first, which also loads and allocates, and the traced one."""


def profiled_stages(config: RunSettings, only: str | None) -> list[str]:
    """Returns the names of the stages that are profiled: the one that is asked for, or all that make steps.

    Raises:
        ConfigError: The run has no such stage, or it makes no steps.
    """
    kinds = {name: config.stages[name].kind for name in config.order}
    making = [name for name in config.order if isinstance(config.stages[name], StageSettings | SampleSettings)]
    has = f"the stages that train or sample are {', '.join(making)}" if making else "no stage trains or samples"
    if only is not None and only not in kinds:
        raise ConfigError(f"--stage {only}: the run has no such stage; {has}")
    if only is not None and only not in making:
        raise ConfigError(f"--stage {only}: a stage of kind {kinds[only]} makes no steps; {has}")
    if not making:
        listed = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
        raise ConfigError(f"{config.run_name} has nothing to profile: {has} among {listed}")
    return making if only is None else [only]


def short_run(config: RunSettings, folder: Path, names: Collection[str], num_steps: int) -> RunSettings:
    """Returns the configuration of the short run: every stage that makes steps makes `num_steps` timed ones, and two.

    Stages that make data from data stay, since later stages read from them, but ask no expert. Nothing is evaluated,
    validated or tracked, no gate ends the run, and stages on which none of `names` builds are left out.
    """
    needed = with_ancestors(names, stage_specs(config))
    stages = {name: _shortened(name, config.stages[name], num_steps + BESIDE) for name in config.order}
    return replace(
        config,
        run_name=WORK,
        output_dir=str(folder),
        order=[name for name in config.order if name in needed],
        stages=stages,
        budget=None,
        state=replace(config.state, every_n_steps=max(1, num_steps + BESIDE - 1)),
        tracking=replace(config.tracking, uri=None, tracker=None, loggers=[]),
        evaluation=replace(config.evaluation, base=False),
    )


def profile_run(
    config: RunSettings, console: ConsoleProgress, group: RankGroup, *, folder: Path, names: Sequence[str], steps: int
) -> str:
    """Trains the short run, and writes a trace for each profiled stage and a page; returns the page.

    Every rank of `group` must call this function; only rank 0 writes.

    Raises:
        ConfigError: The folder is that of a run.
        StageError: A stage had nothing to do; the page has the others.
        MmrlError: A stage failed.
    """
    if (folder / FILE).exists():
        raise ConfigError(f"--out {folder} is the folder of a run; give a profile a folder of its own")
    found: list[StageProfile] = []
    with group.first():
        if group.leads:
            shutil.rmtree(folder / WORK, ignore_errors=True)  # what a killed profile left
            folder.mkdir(parents=True, exist_ok=True)
    traces = folder if group.leads else None

    def callbacks(stage: str) -> list[Any]:
        return [ProfileSteps(stage, traces, found, num_states=2)] if stage in names else []

    try:
        run_curriculum(short_run(config, folder, names, steps), console, group=group, callbacks=callbacks)
    finally:
        if group.leads:
            shutil.rmtree(folder / WORK, ignore_errors=True)
    text = page(config, found)
    if group.leads:
        write_whole(folder / PAGE, text)
    missing = [name for name in names if name not in {each.stage for each in found}]
    if missing:
        raise StageError(f"no profile of {', '.join(missing)}, which had nothing to do; {folder / PAGE} has the others")
    return text


def _shortened(name: str, stage: NodeSettings, num_steps: int) -> NodeSettings:
    if isinstance(stage, StageSettings):
        short = replace(
            stage, num_steps=num_steps, num_epochs=None, validate_every=None, stop_when=None, cooldown_steps=0,
            gate=None, evaluation_sets=[],
        )  # fmt: skip
        return fitted(short, f"stages.{name}", lambda line: None)
    if isinstance(stage, SampleSettings):
        keep = stage.keep.for_debugging()  # a model after a few steps may have no right answer
        return cap_samples(replace(stage, keep=keep, trainer=replace(stage.trainer, max_steps=num_steps)))
    return stage.for_debugging() if isinstance(stage, BridgeSettings | FilterSettings | RouteSettings) else stage
