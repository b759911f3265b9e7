"""Kills a small comparison at random moments, continues it, and compares it with one that was left alone.

    python tools/campaigns/kill_comparison.py                   10 SIGKILLs on three arms with two seeds each
    python tools/campaigns/kill_comparison.py --kills 3 --work DIR

Every second SIGKILL ends the comparison and all processes that it started; the others end the comparison alone, so that
a run of it goes on by itself while the same command starts again. At the end the weights, metrics, answers (of the last
weights and of the best validation) and counted operations of each run and the table over arms (times left out) must
equal those of the comparison that was left alone.
Exits with 1 if anything differs. A finished comparison is kept in --work, and not run again.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

STEPS = {"cold_start": 6, "reason": 4}
GIVEN = (
    "+data.build.settings.scale=0.02",
    "data.validation_limit=8",
    "evaluation.num_resamples=50",
    "evaluation.limit=8",
    "evaluation.max_new_tokens=4",
    "trainer=cpu",
    "trainer.num_threads=1",
    "tracking=none",
    "state.every_n_steps=1",
    "stages.cold_start.data.batch_size=4",
    "stages.reason.data.batch_size=2",
    "stages.reason.algorithm.group_size=2",
    "stages.reason.sampling.max_new_tokens=4",
    *(f"stages.{name}.num_steps={steps}" for name, steps in STEPS.items()),
    *(f"stages.{name}.validate_every=2" for name in STEPS),
    *(f"stages.{name}.keep_best=true" for name in STEPS),
)
ARMS = ("sft=order=[cold_start]", "sft_then_rl=order=[cold_start,reason]", "rl=order=[reason]")
SEEDS = "0-1"
BUDGET = "flops=1.5e10"
"""Takes the last stage of an arm about ten steps."""
EARLIEST_S, LATEST_S = 3.0, 45.0
"""A SIGKILL comes so many seconds after the command began."""
TIMES = ("seconds", "time", "started", "took")
"""Parts of the names of what a clock measured."""


def main() -> int:
    """Runs both comparisons, and returns the exit code: 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (default: 0)")
    parser.add_argument("--work", type=Path, default=Path("runs/kill-comparison"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    for name in ("alone", "killed"):
        kills = options.kills if name == "killed" and not (options.work / name / "results.json").exists() else 0
        _strike(options.work, name, kills, random.Random(options.seed))
        code = _begin(options.work, name).wait()
        if code:
            print(f"{name}: exit code {code}; see {options.work / name}.log")
            return 1
    found = [dict(_outcome(options.work / name)) for name in ("alone", "killed")]
    differing = sorted(key for key in {*found[0], *found[1]} if found[0].get(key) != found[1].get(key))
    for key in differing:
        print(f"differs: {key}: {found[0].get(key)!r:.200} and {found[1].get(key)!r:.200}")
    print(f"{len(found[0]) - len(differing)} of {len(found[0])} values are equal after {options.kills} SIGKILLs")
    return 1 if differing or not found[0] else 0


def _begin(work: Path, name: str) -> "subprocess.Popen[bytes]":
    arms = [f"--arm={arm}" for arm in ARMS]
    where = [
        f"data.root={work / 'data'}",
        f"--output-dir={work}",
        f"--name={name}",
        f"--seeds={SEEDS}",
        f"--budget={BUDGET}",
    ]
    command = [sys.executable, "-m", "lightning_mmrl.cli.main", "compare", *GIVEN, *arms, *where]
    with work.joinpath(f"{name}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def _strike(work: Path, name: str, kills: int, moments: random.Random) -> None:
    for number in range(kills):
        process = _begin(work, name)
        delay = moments.uniform(EARLIEST_S, LATEST_S)
        with suppress(subprocess.TimeoutExpired):
            process.wait(delay)
            print(f"kill {number + 1}: the comparison had ended", flush=True)
            return
        victims = [process.pid] if number % 2 else [process.pid, *_descendants(process.pid)]
        for pid in victims:
            with suppress(ProcessLookupError):  # one may have ended meanwhile
                os.kill(pid, signal.SIGKILL)
        process.wait()
        print(f"kill {number + 1}: {len(victims)} processes after {delay:.1f} s", flush=True)
        time.sleep(1)


def _descendants(pid: int) -> list[int]:
    """The processes that a process started, and those that they started."""
    with suppress(OSError):
        own = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return [*own, *(each for child in own for each in _descendants(child))]
    return []


def _outcome(folder: Path) -> Iterator[tuple[str, Any]]:
    """What must be equal: by run and stage the weights, metrics, answers and operations, and the table over arms."""
    for run in json.loads((folder / "compare.json").read_text(encoding="utf-8"))["runs"]:
        yield run["folder"], run["exit_code"]
        manifest = json.loads((folder / run["folder"] / "manifest.json").read_text(encoding="utf-8"))
        for name, stage in manifest["stages"].items():
            place, result = f"{run['folder']}/{name}", stage["result"]
            for artifact, made in result["artifacts"].items():
                yield f"{place}/{artifact}", made["digest"]
            yield f"{place}/metrics", _timeless(result["metrics"])
            ranks = result["costs"]["ranks"]
            yield f"{place}/operations", [{key: rank[key] for key in ("operations", "tokens")} for rank in ranks]
    answers = [*folder.glob("runs/*/stages/*/evaluation/*.jsonl"), *folder.glob("best/**/*.jsonl")]
    for path in sorted(answers):
        yield str(path.relative_to(folder)), path.read_text(encoding="utf-8")
    yield "results.json", _timeless(json.loads((folder / "results.json").read_text(encoding="utf-8")))


def _timeless(value: Any) -> Any:
    """The value without what a clock measured, and without the name of the comparison and its folder."""
    if isinstance(value, dict):
        kept = {key: each for key, each in value.items() if not _is_time(key) and key not in ("name", "folder")}
        return {key: _timeless(each) for key, each in kept.items() if key != "command"}
    return [_timeless(each) for each in value] if isinstance(value, list) else value


def _is_time(key: str) -> bool:
    parts: Sequence[str] = key.split("/")
    return any(part in TIMES or part.endswith("_s") for part in parts)


if __name__ == "__main__":
    sys.exit(main())
