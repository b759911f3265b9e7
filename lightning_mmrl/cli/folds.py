"""`mmrl folds`: trains and evaluates an experiment on every fold of a set, and reports the mean over folds."""

import io
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from lightning_mmrl.cli.data_folds import print_folds
from lightning_mmrl.cli.hydra_app import VALUED_FLAGS, run_with_config, take_flags
from lightning_mmrl.cli.launch import started_processes
from lightning_mmrl.data.folds import RECORD
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.files import read_json
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.suggestions import did_you_mean

if TYPE_CHECKING:
    from lightning_mmrl.app.folds import FoldedSet

HELP = """mmrl folds - train and evaluate an experiment on every fold, and report the mean over folds

usage: mmrl folds [SET] [--folds N | --folds NAME,NAME,...] [KEY=VALUE ...]

The folds are, in this order:
  SET          a folder with the folders fold_1, fold_2, ...: published folds of mmrl data prepare, or mmrl data folds
  {fold}       in any argument stands for the fold's name, with --folds 1,2,3,4,5
  otherwise    the run's own dataset is dealt to --folds N folds (default 5) that share no speaker

Each fold is a run of its own, ${run_name}-fold_1 and so on, by mmrl train. The same command continues: a finished fold
is not trained again, and a fold that failed is tried again. The report is ${output_dir}/${run_name}-folds/folds.json.
The exit code is 1 if a fold failed; the others are trained all the same.

examples:
  mmrl folds sets/dfew experiment=own_clips
  mmrl folds experiment=quickstart --folds 5
  mmrl folds --folds 1,2,3,4,5 experiment=r1_omni scale=paper data.root=DATA \\
      'evaluation.sets.dfew.manifest=fold_{fold}/test.jsonl' \\
      'stages.reason.data.sources.dfew.manifest=fold_{fold}/train.jsonl'
"""
PLACED = re.compile(re.escape("{fold}"))
EXIT_FAILED = 1
"""Exit code if a fold failed; a bad argument gives 2."""


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code.

    Raises:
        ConfigError: An argument is refused.
    """
    if any(argument in ("-h", "--help") for argument in arguments):
        print(HELP)
        return 0
    if {"--multirun", "-m"} & set(arguments):
        raise ConfigError("--multirun is refused; a fold is a run already, so start mmrl folds for each value")
    if started_processes(os.environ, world_size=1)[1] is not None:
        raise ConfigError("a launcher started mmrl folds; start it once by itself, and each fold starts its own ranks")
    flags, rest = take_flags(arguments, valued=("--folds",))
    folder, rest = take_folder(rest)
    shown = run_with_config(lambda config: config, "mmrl folds", [PLACED.sub("1", argument) for argument in rest])
    if not shown:  # a flag, such as --cfg, only shows something
        return 0
    # Loaded here: a bad configuration is refused before torch is imported.
    from lightning_mmrl.app.folds import folds_of_set, made_folds, planned, run_folds
    from lightning_mmrl.training.console import ConsoleProgress, report_console

    asked = flags.get("--folds")
    if folder is None and not any(map(PLACED.search, rest)):
        with ConsoleProgress() as progress:
            folder = made_folds(shown[0], _number(asked or "5"), progress)
        print_folds(read_json(folder / RECORD, f"remove {folder}"), folder)
        asked = None
    found = None if folder is None else folds_of_set(folder)
    folds = planned(_chosen(found, asked), rest, _composed)
    results, codes = run_folds(folds, folds[0].shared, partial(print, flush=True))
    console = report_console()
    for each in results:
        if each.stage == results[-1].stage:
            console.print(folds_table(each, len(folds)))
            if each.pooled is not None:
                console.print(_pooled_line(each), soft_wrap=True)
    failed = [name for name, code in codes.items() if code]
    if failed:
        print(f"{len(failed)} of {len(folds)} folds failed: {', '.join(failed)}; the same command tries them again")
    print(f"all stages and metrics in {folds[0].shared / RECORD}")
    return EXIT_FAILED if failed else 0


def take_folder(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Separates the folder of the folds, the first argument that is no flag, value of a flag or override.

    >>> take_folder(["--config-dir", "mine", "sets/dfew", "seed=1"])
    (PosixPath('sets/dfew'), ['--config-dir', 'mine', 'seed=1'])
    """
    is_value = False
    for index, argument in enumerate(arguments):
        is_other = is_value or argument[:1] in "-~+" or ("=" in argument and not Path(argument).is_dir())
        is_value = not is_value and argument in VALUED_FLAGS
        if not is_other:
            return Path(argument), [*arguments[:index], *arguments[index + 1 :]]
    return None, list(arguments)


def _composed(arguments: Sequence[str]) -> RunSettings:
    with redirect_stderr(io.StringIO()):  # each fold says again what its configuration is told
        [config] = run_with_config(lambda config: config, "mmrl folds", arguments)
    return config


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise ConfigError(f"--folds is {text!r}; give a number of folds that is at least 2, such as 5")
    return int(text)


def _chosen(found: Mapping[str, Sequence[str]] | None, asked: str | None) -> Mapping[str, Sequence[str]]:
    """The folds to train: those asked for, all of a set's otherwise."""
    names = [] if asked is None else [name.strip() for name in asked.split(",")]
    if found is None:
        if not names or len(set(names)) < len(names) or not all(re.fullmatch(r"\w+", name) for name in names):
            raise ConfigError(
                f"--folds is {asked!r}, and an argument has {{fold}}; name the folds, as --folds 1,2,3,4,5"
            )
        return {name: [] for name in names}
    named = {name: name if name.startswith("fold_") else f"fold_{name}" for name in names}
    if unknown := [name for name, full in named.items() if full not in found]:
        raise ConfigError(f"--folds {unknown[0]}: there is no such fold{did_you_mean(unknown[0], found)}")
    return {full: found[full] for full in named.values()} if named else found


def folds_table(each: "FoldedSet", num_folds: int) -> Table:
    """Returns the metrics of one stage on one set in percent: a row for each fold, their mean and their spread."""
    measures = [measure for measure in each.task.measures if measure.name in each.spread]
    of = "" if len(each.metrics) == num_folds else f", {len(each.metrics)} of {num_folds} folds"
    table = Table(title=f"{each.stage} on {each.name} by fold, in %{of}")
    table.add_column("fold")
    for title in ("samples", *(measure.title for measure in measures)):
        table.add_column(title, justify="right")
    for fold, values in each.metrics.items():
        cells = [f"{100 * values[measure.name]:.1f}" if measure.name in values else "-" for measure in measures]
        table.add_row(fold, f"{each.num_samples[fold]:,}", *cells)
    spread = [each.spread[measure.name] for measure in measures]
    table.add_row("mean", "", *(f"{100 * one.mean:.1f}" for one in spread))
    table.add_row("deviation", "", *("-" if one.std is None else f"{100 * one.std:.1f}" for one in spread))
    return table


def _pooled_line(each: "FoldedSet") -> str:
    assert each.pooled is not None
    parts = [
        f"{measure.title} {100 * found['estimate']:.1f} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"
        for measure in each.task.measures
        if (found := each.pooled["intervals"].get(measure.name)) is not None
    ]
    return f"all {each.pooled['num_samples']:,} answers pooled, with 95 % intervals: {', '.join(parts)}"
