"""`mmrl reward-test TABLE`: reruns rewards on saved rollouts and shows the changes; torch is not loaded."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.registry.own_code import FLAG, opened, split_prefixes

if TYPE_CHECKING:
    from lightning_mmrl.settings.algorithm import RewardSettings

EXIT_CHANGED = 1

EXAMPLES = """\
TABLE is a file of rollouts, or a folder of such files. A run writes one every rollout_table_every iterations of an RL
stage. The rewards come from the configuration of the run; KEY=VALUE changes them, with the keys of `mmrl train`.
No model is loaded, and no file is written without --out.

examples:
  mmrl reward-test runs/quickstart/stages/02-reason/rollouts
  mmrl reward-test runs/quickstart/stages/02-reason/rollouts stages.reason.rewards.weights.format=0.5
  mmrl reward-test runs/quickstart/stages/02-reason/rollouts/iteration_000010.jsonl --show 20 --fail-on-change
  mmrl reward-test old.jsonl --run runs/quickstart --stage reason \\
      '+stages.reason.rewards.components.label.synonyms={cross: angry}' --out rescored.jsonl
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The arguments of one call, after their checks."""

    table: Path
    overrides: list[str]
    run: Path | None
    stage: str | None
    show: int
    out: Path | None


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    options = _parser().parse_intermixed_args(arguments)
    if options.show < 0:
        raise ConfigError(f"--show is {options.show}; it must be at least 0")
    if options.out is not None and options.out.exists():
        raise ConfigError(f"--out {options.out} exists; name a new file, or remove it first")
    if options.out is not None and not options.out.absolute().parent.is_dir():
        raise ConfigError(f"--out {options.out}: {options.out.absolute().parent} is no folder; make it first")
    settings = vars(options)
    fail_on_change, prefixes = settings.pop("fail_on_change"), settings.pop("allow_targets")
    with opened(split_prefixes(prefixes)):
        num_changed = rescore(Request(**settings))
    return EXIT_CHANGED if fail_on_change and num_changed else 0


def rescore(request: Request) -> int:
    """Scores all responses again, prints the comparison, and returns how many totals changed."""
    # Loaded here, so that `--help` and argument errors load no libraries.
    from lightning_mmrl.app.rewards import reward_pool
    from lightning_mmrl.cli.reward_report import print_rescoring
    from lightning_mmrl.data.rollout_table import read_table, table_files, write_table
    from lightning_mmrl.evaluation.rescoring import compare_scores
    from lightning_mmrl.training.console import ConsoleProgress

    rows = [row for path in table_files(request.table) for row in read_table(path)]
    stage, settings, num_prompts = _rewards(request)
    new = []
    with ConsoleProgress() as console, reward_pool(settings, f"stages.{stage}.rewards") as pool:
        # Each call scores as many prompts as a training iteration, since the time budget is set for that number.
        for start in range(0, len(rows), num_prompts):
            chunk = rows[start : start + num_prompts]
            new += pool.score([row.sample for row in chunk], [row.completions for row in chunk])
            console.update("scoring prompts", len(new), len(rows))
    rescored = [replace(row, scores=tuple(scores), advantages=None) for row, scores in zip(rows, new, strict=True)]
    comparison = compare_scores([row.scores for row in rows], new, rows[0].pass_component)
    print_rescoring(comparison, rows, stage=stage, show=request.show)
    if request.out is not None:
        write_table(request.out, rescored)
        print(f"new scores in {request.out}")
    return len(comparison.changes)


def _rewards(request: Request) -> "tuple[str, RewardSettings, int]":
    """The name of the stage, its configured rewards, and its number of prompts per iteration."""
    from lightning_mmrl.config.saved import run_folder, saved_config
    from lightning_mmrl.suggestions import did_you_mean

    folder = request.run or run_folder(request.table)
    if folder is None:
        raise ConfigError(f"{request.table} does not lie in a run's folder; name the run by --run DIR")
    config = saved_config(folder, request.overrides)
    choices = [name for name in config.order if config.stages[name].rewards is not None]
    # The path of a table names its stage, as in `02-reason`.
    parts = (re.fullmatch(r"\d\d-(.+)", part) for part in reversed(request.table.absolute().parts))
    named = next((part[1] for part in parts if part is not None and part[1] in choices), None)
    name = request.stage or named or (choices[0] if len(choices) == 1 else None)
    if name is None:
        raise ConfigError(
            f"--stage is missing; name a stage of the run that has rewards: {' or '.join(choices) or 'there is none'}"
        )
    if name not in choices:
        raise ConfigError(f"--stage {name} is no stage with rewards in {folder}{did_you_mean(name, choices)}")
    stage = config.stages[name]
    assert stage.rewards is not None
    return name, stage.rewards, stage.data.batch_size


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mmrl reward-test",
        usage="mmrl reward-test TABLE [KEY=VALUE ...] [options]",
        description="Rerun the rewards of a stage on saved rollouts and show the changes.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("table", type=Path, metavar="TABLE", help="a rollout table, or a folder of them")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the run's configuration")
    parser.add_argument("--run", type=Path, metavar="DIR", help="the run (default: the one that TABLE lies in)")
    parser.add_argument("--stage", metavar="NAME", help="stage of the rewards (default: the one that TABLE lies in)")
    parser.add_argument("--show", type=int, default=5, metavar="N", help="most changed responses shown (default 5)")
    parser.add_argument(
        FLAG,
        action="append",
        default=[],
        metavar="PREFIX",
        help="code of your own that the rewards may use, as given to mmrl train",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write a rollout table with the new scores")
    parser.add_argument(
        "--fail-on-change", action="store_true", help=f"exit with {EXIT_CHANGED} if any total or validity changed"
    )
    return parser
