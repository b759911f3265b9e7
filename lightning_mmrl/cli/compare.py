"""`mmrl compare`: trains arms over one experiment with several seeds, at an equal budget, and compares them."""

import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from lightning_mmrl.app.arms import folds_named, planned, refuse_own
from lightning_mmrl.app.compare import Comparison, run_comparison
from lightning_mmrl.app.shared_stages import segments
from lightning_mmrl.cli.arms_table import print_comparison
from lightning_mmrl.cli.hydra_app import run_with_config, take_flags
from lightning_mmrl.cli.launch import started_processes
from lightning_mmrl.cli.mlproject import split_overrides
from lightning_mmrl.config.checks.values import check_name
from lightning_mmrl.config.comparisons import comparison_of, read_comparison
from lightning_mmrl.curriculum.manifest import FILE as MANIFEST
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.evaluation.arms import power_line
from lightning_mmrl.report.arms_page import write_comparison
from lightning_mmrl.report.comparison import FILE
from lightning_mmrl.settings.compare import ArmSettings, CompareSettings
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.suggestions import shown
from lightning_mmrl.training.console import report_console

HELP = """mmrl compare - train arms over one experiment with several seeds, at an equal budget, and compare them

usage: mmrl compare compare=NAME [KEY=VALUE ...] [flags]
       mmrl compare experiment=NAME --arm NAME=OVERRIDES --arm NAME=OVERRIDES [KEY=VALUE ...] [flags]

An arm is a list of overrides over one experiment, such as order=[pretrain,reason]. compare=NAME reads arms, seeds,
budget and measure from compare/NAME.yaml, in a folder of --config-dir or among the shipped ones. KEY=VALUE go to all
arms. Each arm with each seed is a run of mmrl train in OUTPUT_DIR/NAME/runs; stages that several arms share are trained
once. The same command continues: finished runs are kept, stopped ones go on, failed ones are tried again.

  --arm NAME=OVERRIDES   an arm; several overrides are separated by spaces, the first arm is the baseline
  --baseline NAME        the arm that the others are compared with
  --seeds 0-7            seeds of each arm: 0-7, or 0,2,4
  --folds SET            a folder of folds, as mmrl folds takes it, or names that {fold} in an override stands for
  --budget flops=1e12    what each arm may spend after the stages that all arms share; or steps=N, or seconds=N
  --shares A=0.3,B=0.7   how the stages A and B share the budget, in each arm that has both; without it,
                         the last trained stage of an arm gets what its other stages leave
  --parallel N           processes at a time (default 1); give trainer.num_threads, or they share the processors
  --output-dir DIR       folder of comparisons (default: output_dir of the experiment)
  --name N               name of the comparison's folder (default: NAME of the file, or EXPERIMENT-compare)
  --plan                 show arms, shared stages, budget, runs and what so many seeds can find, and run nothing

Arms that start from other models, or have other data or evaluations, are refused unless the file says may_differ. The
exit code is 1 if a run failed; the others are run all the same. Logs of the runs are in OUTPUT_DIR/NAME/logs.

examples:
  mmrl compare compare=NAME --plan
  mmrl compare experiment=own_clips data.root=emotions --arm sft_then_rl='order=[cold_start,reason]' \\
      --arm rl_then_sft='order=[reason,cold_start]' --shares cold_start=0.3,reason=0.7 --budget flops=1e12 --seeds 0-2
  mmrl compare compare=NAME --seeds 0-7 --parallel 2 trainer.num_threads=1
"""
VALUED = ("--baseline", "--seeds", "--folds", "--budget", "--shares", "--parallel", "--output-dir", "--name")
ARM = "--arm"
FILE_KEY = "compare="
EXIT_FAILED = 1
"""Exit code if a run, or the evaluation of one's best weights, failed; a bad argument gives 2."""


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code.

    Raises:
        ConfigError: An argument, the file or the configuration of an arm is refused.
    """
    if any(argument in ("-h", "--help") for argument in arguments):
        print(HELP)
        return 0
    if {"--multirun", "-m"} & set(arguments):
        raise ConfigError("--multirun is refused; give the values as arms, or the seeds by --seeds")
    if started_processes(os.environ, world_size=1)[1] is not None:
        raise ConfigError("a launcher started mmrl compare; start it once by itself, and each run starts its own ranks")
    arms, rest = take_arms(arguments)
    flags, rest = take_flags(rest, valued=VALUED, switches=("--plan",))
    name, rest = take_file(rest)
    settings = settings_of(name, arms, flags, rest)
    parallel = _whole("--parallel", flags.get("--parallel", "1"))
    comparison = plan(settings, name, flags, rest, arguments)
    if "--plan" in flags:
        show_plan(comparison)
        return 0
    state = run_comparison(comparison, parallel, partial(print, flush=True))
    print_comparison(write_comparison(comparison.directory), report_console(width=140))
    failed = [name for name, code in state.codes.items() if code]
    if failed:
        print(
            f"{len(failed)} of {len(state.codes)} runs failed: {', '.join(failed)}; the same command tries them again"
        )
    if lacking := [name for name in state.failed if name not in failed]:
        print(f"best weights not evaluated: {', '.join(lacking)}; the same command tries again")
    print(f"all runs in {comparison.directory / FILE}")
    return EXIT_FAILED if state.failed else 0


def take_arms(arguments: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Separates the arms of the command line, each with its overrides, from all other arguments.

    >>> take_arms(["--arm", "sft=order=[cold_start] seed=1", "x=1", "--arm=rl=order=[reason]"])
    ({'sft': ['order=[cold_start]', 'seed=1'], 'rl': ['order=[reason]']}, ['x=1'])

    Raises:
        ConfigError: An arm has no name, or two have the same.
    """
    arms: dict[str, list[str]] = {}
    others, rest = [], iter(arguments)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if flag != ARM:
            others.append(argument)
            continue
        name, has_overrides, overrides = (value if equals else next(rest, "")).partition("=")
        if not name or not has_overrides:
            raise ConfigError(f"{ARM} {name or value!r} has no overrides; write {ARM} NAME='KEY=VALUE ...'")
        if name in arms:
            raise ConfigError(f"{ARM} {name} is given twice; give each arm a name of its own")
        arms[name] = split_overrides(overrides)
    return arms, others


def take_file(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Separates the name of the comparison's file, `compare=NAME`, from all other arguments.

    Raises:
        ConfigError: It is given twice, or has no value.
    """
    found = [argument.partition("=")[2] for argument in arguments if argument.startswith(FILE_KEY)]
    if len(found) > 1 or "" in found:
        raise ConfigError(f"{FILE_KEY}{', '.join(found)}: name one comparison")
    return next(iter(found), None), [argument for argument in arguments if not argument.startswith(FILE_KEY)]


def settings_of(
    name: str | None, arms: Mapping[str, Sequence[str]], flags: Mapping[str, str], arguments: Sequence[str]
) -> CompareSettings:
    """The comparison of a file, or an empty one, with what the command line says.

    Raises:
        ConfigError: The file or a flag is refused, or an arm of the command line has the name of one in the file.
    """
    settings = CompareSettings() if name is None else read_comparison(name, _own_configs(arguments))
    for arm in arms:
        if arm in settings.arms:
            raise ConfigError(f"{ARM} {arm}: {FILE_KEY}{name} has an arm of this name; give it another")
    given: dict[str, Any] = {
        "arms": settings.arms | {arm: ArmSettings(overrides=list(own)) for arm, own in arms.items()}
    }
    if "--baseline" in flags:
        given["baseline"] = flags["--baseline"]
    if "--seeds" in flags:
        given["seeds"] = numbers(flags["--seeds"])
    if "--folds" in flags:
        given["folds"] = flags["--folds"]
    if "--budget" in flags:
        measure, _, limit = flags["--budget"].partition("=")
        try:
            given["budget"] = comparison_of({"budget": {measure: limit}}).budget
        except ConfigError as error:
            raise ConfigError(f"--budget {flags['--budget']}: {error}") from error
    if "--shares" in flags:
        pairs = [each.partition("=") for each in flags["--shares"].split(",")]
        try:
            given["shares"] = comparison_of({"shares": {stage.strip(): share for stage, _, share in pairs}}).shares
        except ConfigError as error:
            raise ConfigError(f"--shares {flags['--shares']}: {error}; write STAGE=0.3,STAGE=0.7") from error
    return replace(settings, **given)


def numbers(text: str) -> list[int]:
    """Whole numbers of a list such as `0-2,5`.

    >>> numbers("0-2,5")
    [0, 1, 2, 5]

    Raises:
        ConfigError: A part is no number and no range.
    """
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ConfigError(f"--seeds is {text!r}; write a range such as 0-7, or a list such as 0,2,4")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return found


def plan(
    settings: CompareSettings,
    name: str | None,
    flags: Mapping[str, str],
    arguments: Sequence[str],
    command: Sequence[str] = (),
) -> Comparison:
    """Composes all runs of a comparison, and finds the stages that they share.

    Args:
        settings: The comparison.
        name: Name of its file, if it has one.
        flags: The command's own flags.
        arguments: Flags and overrides of all arms.
        command: All arguments of the command.

    Raises:
        ConfigError: A configuration is refused, or the folder is one of a run.
    """
    folder = flags.get("--name") or name or f"{_experiment([*settings.overrides, *arguments])}-compare"
    check_name("--name", folder, folder)
    place = [f"output_dir={json.dumps(flags['--output-dir'])}"] if "--output-dir" in flags else []
    refuse_own("the command line", arguments, has_budget=settings.budget is not None)
    folds = _folds(settings, [*settings.overrides, *arguments])
    runs = planned(settings, [*arguments, *place], folder, folds, _composed)
    directory = runs[0].comparison
    if (directory / MANIFEST).is_file():
        raise ConfigError(f"{directory} is the folder of a run; give the comparison another --name")
    return Comparison(settings=settings, runs=runs, shared=segments(runs), command=("compare", *command))


def _composed(arguments: Sequence[str]) -> RunSettings:
    with redirect_stderr(io.StringIO()):  # each run says again what its configuration is told
        found = run_with_config(lambda config: config, "mmrl compare", arguments)
    if len(found) != 1:
        raise ConfigError("a flag asks to show a configuration; mmrl train shows that of one run")
    return found[0]


def _experiment(overrides: Iterable[str]) -> str:
    named = [each.partition("=")[2] for each in overrides if each.startswith("experiment=")]
    return named[-1].replace("/", "-") if named else "experiment"


def _own_configs(arguments: Sequence[str]) -> Path | None:
    """The user's own folder of configs, which `run_with_config` reads as well."""
    for index, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag in ("--config-dir", "-cd"):
            return Path(value if equals else "".join(arguments[index + 1 : index + 2]))
    return None


def _folds(settings: CompareSettings, given: Sequence[str]) -> dict[str | None, list[str]]:
    """Maps each fold to the overrides that choose its data; one fold without a name if there are none.

    Raises:
        ConfigError: `folds` is neither a folder nor names that an override has a place for.
    """
    asked = settings.folds
    if asked is None:
        return {None: []}
    overrides = [*given, *(each for arm in settings.arms.values() for each in arm.overrides)]
    if isinstance(asked, str) and not Path(asked).is_dir():
        asked = [name.strip() for name in asked.split(",")]
    if isinstance(asked, list):
        return folds_named([str(name) for name in asked], overrides)
    if not isinstance(asked, str):
        raise ConfigError(f"folds is {shown(asked)}; it must be a folder with fold_1, fold_2, ..., or a list of names")
    # Loaded here, since it loads torch.
    from lightning_mmrl.app.folds import folds_of_set

    return {name: list(own) for name, own in folds_of_set(Path(asked)).items()}


def _whole(flag: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{flag} is {text!r}; give a whole number that is at least 1")
    return int(text)


def show_plan(comparison: Comparison) -> None:
    """Prints arms, shared stages, budget and runs."""
    console, settings = report_console(width=140), comparison.settings
    first = {arm: next(run for run in comparison.runs if run.arm == arm) for arm in settings.arms}
    table = Table(title=f"{comparison.name}: {settings.question or f'{len(first)} arms'}")
    for title in ("arm", "stages", "not counted", "shares of the budget"):
        table.add_column(title)
    for name, run in first.items():
        budgeted = run.budgeted
        shares = ", ".join(f"{stage} {share:.0%}" for stage, share in budgeted["shares"].items())
        mark = " (baseline)" if name == comparison.baseline else ""
        table.add_row(f"{name}{mark}", ", ".join(run.config.order), ", ".join(budgeted["apart"]) or "-", shares or "-")
    console.print(table)
    for segment in comparison.shared:
        if segment.suffix == comparison.runs[0].suffix:
            arms = ", ".join(run.arm for run in segment.runs)
            console.print(f"shared by {arms}: {', '.join(segment.own) or 'the evaluation of the base model'}")
    folds = len({run.fold for run in comparison.runs})
    of_folds = f" x {folds} folds" if folds > 1 else ""
    counts = f"{len(first)} arms x {len(settings.seeds)} seed{'s' if len(settings.seeds) > 1 else ''}{of_folds}"
    console.print(f"runs: {len(comparison.runs)} ({counts}), and {len(comparison.shared)} of shared stages")
    for measure, limit in (comparison.budget or {}).items():
        console.print(f"budget: {limit:g} {measure} for each arm")
    console.print(f"measure: {settings.measure.metric or 'headline'} on {settings.measure.set} after the last stage")
    pairs = len(first) * (len(first) - 1) // 2 if settings.all_pairs else len(first) - 1
    console.print(power_line(len(settings.seeds), pairs), soft_wrap=True)
    console.print(f"folder: {comparison.directory}", soft_wrap=True)
