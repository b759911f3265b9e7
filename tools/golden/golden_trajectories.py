"""Shows that a change of the code changes no number of short runs of `mmrl train`.

    python tools/golden/golden_trajectories.py compare main HEAD --work FOLDER
                                                        two commits on this machine: equal to the last bit
    python tools/golden/golden_trajectories.py check           the working tree beside the recorded numbers
    python tools/golden/golden_trajectories.py record          writes tests/golden/recorded anew

tests/golden/runs.yaml lists the runs: SFT, DPO, the RL algorithms, selection, LoRA, a correction, resuming, two ranks.
Of each are compared: the prompts of every iteration and what was sampled, the rows that stages make, every metric of
every step but times and memory, hashes of the weights and of the optimizer's state after every step, the handoff, and
the answers and scores of its evaluation.

`compare` takes both commits out of git into --work and trains there on one thread, each commit with the table it brings
along: keys and modules may be renamed in between, and metrics by `renamed_metrics: {OLD: NEW}` in the later table. It
names the first difference of each run, and exits with 1 if there is one. What is done lies in --work: the same command
goes on with what is missing.

`check` and the tests of tests/golden allow a relative error of 1e-5 and leave out hashes of weights: another processor
rounds otherwise.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from golden_differences import OTHER_MACHINE, SAME_MACHINE, Rules, differences, told
from golden_runs import read_table, with_sources

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TABLE = ROOT / "tests" / "golden" / "runs.yaml"
RECORDED = ROOT / "tests" / "golden" / "recorded"
VERSIONS = ("torch", "transformers", "lightning", "peft")
LIBRARIES = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def main() -> int:
    """Runs a command and returns the exit code: 1 if a number differs, 2 if a run failed."""
    options = _options()
    try:
        return {"record": _record, "check": _check, "compare": _compare}[options.command](options)
    except ChildProcessError as error:
        print(error, file=sys.stderr)
        return 2


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    compare = commands.add_parser("compare", help="two commits, to the last bit")
    check = commands.add_parser("check", help="the working tree beside the recorded numbers")
    record = commands.add_parser("record", help="record the numbers of the working tree")
    for command in (compare, check, record):
        command.add_argument("--runs", nargs="*", default=[], help="by name, with those they start from; default: all")
    for command in (compare, check):
        command.add_argument("--with", dest="extra", nargs="*", default=[], help="overrides of all runs, KEY=VALUE")
        command.add_argument("--except", dest="without", nargs="*", default=[], help="names left out, 'train/*'")
    compare.add_argument("commits", nargs=2, metavar="COMMIT", help="before and after")
    compare.add_argument("--table", type=Path, help="for both commits; default: the one that each brings along")
    compare.add_argument("--work", type=Path, help="keeps checkouts, runs and numbers; default: a temporary folder")
    return parser.parse_args()


def _record(options: argparse.Namespace) -> int:
    from golden_reading import write_trajectory  # loads torch

    with tempfile.TemporaryDirectory(prefix="golden-") as folder:
        work = Path(folder)
        found = trained(ROOT, TABLE, work, options.runs)
        overrides = {name: " ".join(run.overrides) for name, run in read_table(TABLE, work).items()}
    if not options.runs:
        shutil.rmtree(RECORDED, ignore_errors=True)
    about = {"commit": _commit(), "versions": {name: version(name) for name in VERSIONS}}
    for name, stages in found.items():
        command = f"mmrl train {overrides[name]}".replace(folder, "WORK")
        write_trajectory(RECORDED / f"{name}.json", {"about": {**about, "command": command}, "stages": stages})
    print(f"{len(found)} runs recorded in {RECORDED}")
    return 0


def _commit() -> str:
    """The last commit that changed what is recorded, and whether the working tree has changed it since."""
    parts = ("lightning_mmrl", "configs")
    changed = " and changes" if _git("status", "--porcelain", "--", *parts) else ""
    return _git("log", "-1", "--format=%H", "--", *parts) + changed


def recorded(name: str) -> dict[str, Any]:
    """The recorded stages of a run; none if it was never recorded."""
    path = RECORDED / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["stages"] if path.exists() else {}


def _check(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="golden-") as folder:
        found = trained(ROOT, TABLE, Path(folder), options.runs, options.extra)
    rules = replace(OTHER_MACHINE, without=(*OTHER_MACHINE.without, *options.without))
    return _report({name: (recorded(name), stages) for name, stages in found.items()}, rules)


def _compare(options: argparse.Namespace) -> int:
    with _workplace(options.work) as folder:
        # Names are looked up now, since a branch may move. A commit that is compared with itself is trained twice.
        commits = [_git("rev-parse", "--verify", f"{commit}^{{commit}}") for commit in options.commits]
        places = zip(commits, ("before", "after"), strict=True)
        before, after = (_of_commit(commit, Path(folder) / place, options) for commit, place in places)
    rules = replace(SAME_MACHINE, without=tuple(options.without), renamed=before.renamed | after.renamed)
    names = [*before.runs, *(name for name in after.runs if name not in before.runs)]
    return _report({name: (before.runs.get(name, {}), after.runs.get(name, {})) for name in names}, rules)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trained:
    """The stages of each run of a commit, and the metrics that its table says were renamed."""

    runs: dict[str, dict[str, Any]]
    renamed: dict[str, str]


def _of_commit(commit: str, work: Path, options: argparse.Namespace) -> _Trained:
    folder = work / commit[:12]
    tree = _checkout(commit, folder)
    own = tree / TABLE.relative_to(ROOT)
    table = options.table or (own if own.is_file() else TABLE)
    print(f"{commit[:12]}, runs of {table}", file=sys.stderr, flush=True)
    text = table.read_text(encoding="utf-8")
    # Another table, other overrides and another way to read a run are other numbers.
    reading = (HERE / "golden_reading.py").read_text(encoding="utf-8")
    runs = hashlib.sha256("\n".join([reading, text, *options.extra]).encode()).hexdigest()[:12]
    found = trained(tree, table, folder / f"runs-{runs}", options.runs, options.extra)
    return _Trained(runs=found, renamed=yaml.safe_load(text).get("renamed_metrics") or {})


def _checkout(commit: str, folder: Path) -> Path:
    """The files of a commit, taken out of git once."""
    tree, partial = folder / "tree", folder / "tree.partial"
    if not tree.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        archive = subprocess.run(["git", "-C", str(ROOT), "archive", commit], check=True, stdout=subprocess.PIPE)
        subprocess.run(["tar", "-x", "-C", str(partial)], input=archive.stdout, check=True)
        partial.rename(tree)
    return tree


def trained(
    package: Path, table: Path, work: Path, names: Sequence[str] = (), extra: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Trains the runs of a table that are not done, with the package of a checkout, and returns the stages of each.

    Args:
        package: The checkout.
        table: The YAML file of the runs.
        work: Folder of the runs; what is done there is not done again.
        names: The runs, with those they start from; all of them if there are none.
        extra: Further overrides of every run.

    Raises:
        ChildProcessError: A run failed; it has said why.
    """
    work.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(HERE / "golden_runs.py"), "--table", str(table), "--work", str(work)]
    environment = {**os.environ, **LIBRARIES, "PYTHONPATH": str(package)}
    ended = subprocess.run([*command, "--runs", *names, "--with", *extra], env=environment, check=False)
    if ended.returncode:
        raise ChildProcessError("a run failed, as said above; nothing was compared")
    chosen = [run.name for run in with_sources(read_table(table, work), names)]
    return {name: json.loads((work / "trajectories" / f"{name}.json").read_text(encoding="utf-8")) for name in chosen}


def _report(pairs: Mapping[str, tuple[dict[str, Any], dict[str, Any]]], rules: Rules) -> int:
    """Prints a line for each run and returns the exit code."""
    found = {name: differences(*pair, rules) for name, pair in pairs.items()}
    for name, each in found.items():
        print(told(name, each))
    equal = sum(not each for each in found.values())
    how = f"within {rules.relative}" if rules.relative else "to the last bit"
    print(f"{equal} of {len(found)} runs are equal {how}")
    return 0 if equal == len(found) else 1


def _workplace(work: Path | None) -> AbstractContextManager[str]:
    """The folder, made if it is not there; a temporary one for None."""
    if work is None:
        return tempfile.TemporaryDirectory(prefix="golden-")
    work.mkdir(parents=True, exist_ok=True)
    return nullcontext(str(work.resolve()))


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
