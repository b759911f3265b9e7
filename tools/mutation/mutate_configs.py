"""Mutates configurations and overrides, gives them to `mmrl train`, and counts what becomes of them.

    python tools/mutation/mutate_configs.py --seed 0

Every mutation must be refused with one sentence and exit code 2, or be valid up to the first thing that is written.
A refusal must leave the working folder as it was; what needs no import to be refused must leave torch alone; and a
single wrong letter in a key must be answered with the right key in at least 90 % of the cases. Exits 1 otherwise.
"""

import argparse
import contextlib
import importlib
import io
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from config_mutations import Mutation, mutations

MIN_MUTATIONS = 300
MIN_HIT_RATE = 0.9
MAX_SECONDS = 20.0
"""Of the processor: the machine may be busy."""
MAX_COMMAND_SECONDS = 300.0
"""For a whole process, which may import torch on a busy machine."""
MAX_LENGTH = 700
SHELL_SAMPLE = 20


class Reached(BaseException):
    """All checks have passed; training would begin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The outcome of a mutation: `refused`, `valid` or `failed`, and the message."""

    mutation: Mutation
    outcome: str
    message: str

    @property
    def names_the_key(self) -> bool:
        """The message offers what the mistyped word should have been."""
        wanted = self.mutation.right
        return wanted is not None and re.search(rf"['.@]{re.escape(wanted)}['.@]", self.message) is not None


def judge(mutation: Mutation, *, checked_targets: bool) -> Verdict:
    """Runs `mmrl train` on a mutation in this process, in the current folder.

    Args:
        mutation: The mutation; its files are already in place.
        checked_targets: Also import torch and bind every target; otherwise only what needs no import is checked.
    """
    from lightning_mmrl.cli.main import main

    # The first thing that training writes is its output folder; without targets, training itself is cut off.
    place = "lightning_mmrl.app.run.writable" if checked_targets else "lightning_mmrl.cli.train.train"
    before, start = snapshot(Path.cwd()), time.process_time()
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), patch(place, side_effect=Reached):
        try:
            code = main(["train", *mutation.arguments])
        except Reached:
            return _written(mutation, before, Verdict(mutation=mutation, outcome="valid", message=""))
        except (Exception, SystemExit):
            return Verdict(mutation=mutation, outcome="failed", message=traceback.format_exc())
    seconds = time.process_time() - start
    problem = refusal_problem(code, err.getvalue()) or (
        f"took {seconds:.0f} s of CPU time" if seconds > MAX_SECONDS else ""
    )
    if problem:
        return Verdict(mutation=mutation, outcome="failed", message=f"{problem}: {err.getvalue()}")
    return _written(mutation, before, Verdict(mutation=mutation, outcome="refused", message=err.getvalue().strip()))


def refusal_problem(code: int, err: str) -> str:
    """The fault of a refusal; empty if it is one clear sentence."""
    problems = {
        f"exit code {code}": code != 2,
        "not one line": err.count("\n") != 1 or not err.endswith("\n"),
        "not by mmrl": not err.startswith("mmrl train: "),
        "a traceback": "Traceback" in err,
        "too long": len(err) > MAX_LENGTH,
    }
    return ", ".join(problem for problem, present in problems.items() if present)


def snapshot(folder: Path) -> dict[str, int]:
    """Paths below a folder and their sizes."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.exists()}


def _written(mutation: Mutation, before: dict[str, int], verdict: Verdict) -> Verdict:
    if snapshot(Path.cwd()) == before:
        return verdict
    return Verdict(mutation=mutation, outcome="failed", message=f"wrote something; {verdict.message}")


@contextlib.contextmanager
def scratch(mutation: Mutation) -> Iterator[Path]:
    """An empty working folder with the files of a mutation; the environment is put back afterwards."""
    here, environment = Path.cwd(), dict(os.environ)
    with tempfile.TemporaryDirectory() as name:
        for path, text in mutation.files.items():
            (Path(name) / path).parent.mkdir(parents=True, exist_ok=True)
            (Path(name) / path).write_text(text, encoding="utf-8")
        os.chdir(name)
        try:
            yield Path(name)
        finally:
            os.chdir(here)
            os.environ.clear()
            os.environ.update(environment)


def judged(mutation: Mutation, *, checked_targets: bool) -> Verdict:
    """As `judge`, in a folder of its own."""
    with scratch(mutation):
        return judge(mutation, checked_targets=checked_targets)


def judge_command(mutation: Mutation) -> Verdict:
    """Runs the real command in a process of its own; it must be refused."""
    with scratch(mutation) as folder:
        before = snapshot(folder)
        command = [sys.executable, "-m", "lightning_mmrl.cli.main", "train", *mutation.arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=MAX_COMMAND_SECONDS, check=False)
        problem = refusal_problem(done.returncode, done.stderr)
        outcome = "failed" if problem else "refused"
        return _written(mutation, before, Verdict(mutation=mutation, outcome=outcome, message=problem or done.stderr))


def main(arguments: Sequence[str] | None = None) -> int:
    """Judges all mutations and prints the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shell", type=int, default=SHELL_SAMPLE, help="refusals that are run again as real commands")
    parser.add_argument("--report", type=Path, help="write every verdict to this JSON file")
    options = parser.parse_args(arguments)
    todo = mutations(options.seed)
    verdicts = [judged(mutation, checked_targets=False) for mutation in todo]
    torch_free = "torch" not in sys.modules
    importlib.import_module("lightning_mmrl.app.run")
    num_early = sum(verdict.outcome == "refused" for verdict in verdicts)
    verdicts = [
        judged(verdict.mutation, checked_targets=True) if verdict.outcome == "valid" else verdict
        for verdict in verdicts
    ]
    refused = [verdict for verdict in verdicts if verdict.outcome == "refused"]
    sample = random.Random(options.seed).sample(refused, min(options.shell, len(refused)))
    commands = [judge_command(verdict.mutation) for verdict in sample]
    if options.report is not None:
        rows = [[v.mutation.kind, list(v.mutation.arguments), v.mutation.right, v.outcome, v.message] for v in verdicts]
        options.report.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return report(verdicts, commands, num_early, torch_free)


def report(verdicts: list[Verdict], commands: list[Verdict], num_early: int, torch_free: bool) -> int:
    """Prints the figures and the failures; returns the exit code."""
    for kind in dict.fromkeys(verdict.mutation.kind for verdict in verdicts):
        counts = Counter(verdict.outcome for verdict in verdicts if verdict.mutation.kind == kind)
        print(f"{kind:<16} {', '.join(f'{number} {outcome}' for outcome, number in sorted(counts.items()))}")
    counts = Counter(verdict.outcome for verdict in verdicts)
    typos = [verdict for verdict in verdicts if verdict.mutation.right is not None]
    accepted = [verdict for verdict in typos if verdict.outcome == "valid"]
    missed = [verdict for verdict in typos if verdict.outcome == "refused" and not verdict.names_the_key]
    rate = 1 - (len(missed) + len(accepted)) / max(1, len(typos))
    failed = [verdict for verdict in [*verdicts, *commands] if verdict.outcome == "failed"]
    print(
        f"mutations        {len(verdicts)}: {counts['refused']} refused, {counts['valid']} valid, {len(failed)} failed"
    )
    print(f"before torch     {num_early} refused; torch {'not ' if torch_free else ''}imported")
    print(f"typos in keys    {len(typos)}: the right key named in {rate:.1%}, {len(accepted)} accepted as a new key")
    print(f"real commands    {len(commands)}: {sum(each.outcome == 'refused' for each in commands)} refused")
    for title, some in (("FAILED", failed), ("MISSED", missed), ("ACCEPTED", accepted)):
        for verdict in some:
            print(f"{title} {' '.join(map(repr, verdict.mutation.arguments))}\n    {verdict.message.strip()}")
    good = not failed and not accepted and torch_free and rate >= MIN_HIT_RATE and len(verdicts) >= MIN_MUTATIONS
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
