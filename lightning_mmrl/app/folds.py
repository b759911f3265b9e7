"""Trains and evaluates an experiment on each fold, in a process of its own, and sums up what the folds found."""

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning_mmrl.app.assembly import Assembly
from lightning_mmrl.app.processes import exit_code, forwarding, mmrl
from lightning_mmrl.data.folds import RECORD, FoldSettings, make_folds
from lightning_mmrl.errors import ConfigError, DataError
from lightning_mmrl.evaluation.folds import Spread, over_folds, pooled
from lightning_mmrl.evaluation.intervals import ClusterBootstrap
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.tasks.task import Task
from lightning_mmrl.files import read_json, write_json
from lightning_mmrl.registry.tasks import built_tasks, task_of_result
from lightning_mmrl.report.run_files import Evaluated, read_run
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.training.console import ConsoleProgress
from lightning_mmrl.training.interruption import Interrupted

SHARED = "-folds"
"""Suffix of the folder that the folds of a run share."""
PLACE = "{fold}"
"""Stands for the fold in an argument of `mmrl folds`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """One fold: its name, the arguments of its `mmrl train`, and the configuration that they compose."""

    name: str
    arguments: Sequence[str]
    config: RunSettings

    @property
    def directory(self) -> Path:
        """The folder of its run."""
        return Path(self.config.output_dir) / self.config.run_name

    @property
    def shared(self) -> Path:
        """The folder of what the folds of a run share: `folds.json`, and folds that were made for the run."""
        return self.directory.with_name(f"{self.config.run_name.removesuffix(_suffix(self.name))}{SHARED}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldedSet:
    """One stage on one set over folds. `metrics` and `num_samples` are by fold; `pooled` is as `pooled` gives it."""

    stage: str
    name: str
    task: Task
    num_samples: Mapping[str, int]
    metrics: Mapping[str, Mapping[str, float]]
    spread: Mapping[str, Spread]
    pooled: Mapping[str, Any] | None

    def plain(self) -> dict[str, Any]:
        """Plain values for a file."""
        return {
            "stage": self.stage,
            "name": self.name,
            "headline": self.task.headline,
            "num_samples": dict(self.num_samples),
            "folds": {fold: dict(values) for fold, values in self.metrics.items()},
            "over_folds": {name: asdict(spread) for name, spread in self.spread.items()},
            "pooled": self.pooled,
        }


def made_folds(config: RunSettings, num_folds: int, console: ConsoleProgress) -> Path:
    """Deals the dataset of a run to folds, see `make_folds`; returns their folder.

    Raises:
        DataError: As `make_folds`.
    """
    Assembly(config=config, console=console).ensure_data()
    out = Path(config.output_dir) / f"{config.run_name}{SHARED}" / "data"
    media = None if config.data.media_root is None else Path(config.data.media_root)
    make_folds(
        Path(config.data.root), out, media_root=media, settings=FoldSettings(num_folds=num_folds, seed=config.seed)
    )
    return out


def folds_of_set(folder: Path) -> dict[str, list[str]]:
    """Maps the name of each fold in a folder to the overrides that choose its data.

    A folder of `mmrl data prepare` has a config for each fold, which is taken; one of `mmrl data folds` has none, and
    `folds.json` says where the media are.

    Raises:
        DataError: The folder holds no folds.
    """
    names = sorted(path.name for path in folder.glob("fold_*") if path.is_dir())
    if not names:
        raise DataError(
            f"{folder} has no folders fold_1, fold_2, ...; name a folder of mmrl data prepare or data folds"
        )
    configs = {name: sorted(folder.glob(f"configs/data/*_{name}.yaml")) for name in names}
    if all(len(found) == 1 for found in configs.values()):
        option = {name: found[0].stem for name, found in configs.items()}
        own = ["--config-dir", str(folder / "configs")]
        return {name: [*own, f"data={option[name]}", _root(folder / name)] for name in names}
    record = read_json(folder / RECORD, "name a folder of mmrl data prepare or of mmrl data folds")
    media = f"data.media_root={json.dumps(str(record.get('media_root')))}"
    return {name: [_root(folder / name), media, "data.build=null"] for name in names}


def _root(folder: Path) -> str:
    return f"data.root={json.dumps(str(folder.resolve()))}"


def planned(
    folds: Mapping[str, Sequence[str]], arguments: Sequence[str], compose: Callable[[Sequence[str]], RunSettings]
) -> list[Fold]:
    """Composes the configuration of each fold, so that a bad key is refused before anything trains.

    Args:
        folds: Maps the name of each fold to the overrides that choose it.
        arguments: All other arguments, in which `{fold}` stands for the fold.
        compose: Composes arguments.

    Raises:
        ConfigError: A configuration is refused, or names an output_dir of its own.
    """
    found = []
    for name, own in folds.items():
        given = [argument.replace(PLACE, name) for argument in arguments]
        whole = compose([*given, *own])
        run = f"{whole.run_name}{_suffix(name)}"
        config = compose([*given, *own, f"run_name={run}"])
        if config.run_name != run:  # a debug run has put its prefix before the name a second time
            run = run.removeprefix(config.run_name.removesuffix(run))
            config = compose([*given, *own, f"run_name={run}"])
        found.append(Fold(name=name, arguments=[*given, *own, f"run_name={run}"], config=config))
    if len({fold.config.output_dir for fold in found}) > 1 or len({fold.directory for fold in found}) < len(found):
        raise ConfigError("the folds have different output_dir or equal run_name; give {fold} in neither of them")
    return found


def _suffix(name: str) -> str:
    return f"-{name}" if name.startswith("fold") else f"-fold_{name}"


def train_fold(fold: Fold) -> int:
    """Runs `mmrl train` for a fold, which continues what is unfinished and only reports what is finished.

    The process has a session of its own, so that a signal reaches it once, from here.

    Returns:
        Its exit code.

    Raises:
        Interrupted: A signal came; the process has ended.
    """
    started: list[subprocess.Popen[bytes]] = []
    with (
        forwarding(started) as received,
        subprocess.Popen(mmrl(["train", *fold.arguments]), start_new_session=True) as process,
    ):
        started.append(process)
        for signum in tuple(received):  # those that came before there was a process
            process.send_signal(signum)
        code = process.wait()
    if received:
        raise Interrupted(received[0])
    return exit_code(code)


def summed_up(folds: Sequence[Fold]) -> list[FoldedSet]:
    """The results of the folds that were evaluated, by stage and set.

    Raises:
        MmrlError: A result or its predictions cannot be read.
    """
    found: dict[tuple[str, str], dict[str, Evaluated]] = {}
    for fold in folds:
        for each in read_run(fold.directory).evaluated:
            found.setdefault((each.stage, each.name), {})[fold.name] = each
    if not found:
        return []
    config = folds[0].config
    tasks, bootstrap = built_tasks(config), ClusterBootstrap(settings=config.evaluation)
    sets = []
    for (stage, name), by_fold in found.items():
        task = task_of_result(name, tasks)
        metrics = {fold: each.metrics for fold, each in by_fold.items()}
        sets.append(
            FoldedSet(
                stage=stage,
                name=name,
                task=task,
                num_samples={fold: each.num_samples for fold, each in by_fold.items()},
                metrics=metrics,
                spread=over_folds(metrics),
                pooled=pooled([_answers(each) for each in by_fold.values()], task, bootstrap),
            )
        )
    return sets


def _answers(each: Evaluated) -> list[Judgement]:
    path = each.folder / f"{each.name}.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); evaluate the stage again") from error
    return [Judgement.from_json(line) for line in lines]


def run_folds(
    folds: Sequence[Fold], directory: Path, say: Callable[[str], object], train: Callable[[Fold], int] = train_fold
) -> tuple[list[FoldedSet], dict[str, int]]:
    """Trains each fold, and writes `folds.json` after each of them; a fold that fails does not stop the others.

    Args:
        folds: The folds.
        directory: Folder of `folds.json`.
        say: Shows a line.
        train: Trains a fold and returns its exit code.

    Returns:
        The results over the folds that succeeded, and the exit code of each fold.

    Raises:
        Interrupted: A signal came; `folds.json` has the folds before.
    """
    codes: dict[str, int] = {}
    sets: list[FoldedSet] = []
    for number, fold in enumerate(folds, start=1):
        say(f"fold {fold.name} ({number} of {len(folds)}): {fold.directory}")
        codes[fold.name] = train(fold)
        if codes[fold.name]:
            say(f"fold {fold.name} failed with exit code {codes[fold.name]}; the same command tries it again")
        sets = summed_up([each for each in folds if codes.get(each.name) == 0])
        begun = {each.name: {"run": each.config.run_name, "exit_code": codes.get(each.name)} for each in folds}
        write_json(directory / RECORD, {"folds": begun, "results": [each.plain() for each in sets]})
    return sets, codes
