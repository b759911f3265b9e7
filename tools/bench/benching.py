"""The benchmarks' shared frame: variants side by side, each in its own process, interleaved, after a parity gate.

A case is a list of variants that do the same work. Every variant is a worker process of the same script, which loads
its model once and then takes one step at a time when it is told to, so that A, B, A, B alternate on one machine while
nothing else of the benchmark runs. The first step of each is a warm-up in which the work is counted.

This module imports no torch: it starts workers, asks them, and writes down what they say.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench_report import ROOT, brief, busy_cores, commit, machine, ratio, spread, versions

WORKER_FLAG = "--worker"
BUSY = 0.2
"""Cores kept busy by others above which a person is warned."""


class BenchError(Exception):
    """Something that ends a benchmark; its message is one line for a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way of doing the work.

    Attributes:
        name: Its name in tables.
        spec: What its worker is told.
        warmups: Steps of its own before the first round, for a worker that learns from its steps.
    """

    name: str
    spec: Mapping[str, Any]
    warmups: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Variants that are compared.

    Attributes:
        key: Name under which results are kept; a case that is there already is not run again.
        variants: What is measured, in the order of the first round.
        ratios: Pairs (slow, fast) of names whose seconds are divided, round by round.
        gate: Asks the workers, by name, whether they compute the same; raises BenchError if not, else says how nearly.
    """

    key: str
    variants: tuple[Variant, ...]
    ratios: tuple[tuple[str, str], ...] = ()
    gate: Callable[[Mapping[str, "Worker"]], dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How often and where everything is measured; `facts` say more of the machine than its processor."""

    script: Path
    work: Path
    out: Path
    warmups: int
    repeats: int
    threads: int
    again: bool
    facts: Mapping[str, Any] = field(default_factory=dict)


class Worker:
    """A variant in a process of its own, which answers one line of JSON to each command.

    Args:
        variant: What it measures.
        plan: Its script, folder and number of threads.
        log: Where its standard error goes.
    """

    def __init__(self, variant: Variant, plan: Plan, log: Path) -> None:
        self.name = variant.name
        self._log = log
        spec = json.dumps({**variant.spec, "threads": plan.threads, "work": str(plan.work)})
        with log.open("w", encoding="utf-8") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, str(plan.script), WORKER_FLAG, spec],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=_worker_environment(plan),
            )

    def answer(self) -> dict[str, Any]:
        """The next line that the worker prints.

        Raises:
            BenchError: It ended instead.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it said nothing"]
        raise BenchError(f"{self.name} ended with exit code {code}: {lines[-1].strip()} (all of it in {self._log})")

    def ask(self, **command: Any) -> dict[str, Any]:
        """Sends a command and waits for what came of it."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the worker is gone; `answer` says why
        return self.answer()

    def close(self) -> None:
        """Lets the worker end, by force if it does not within a few seconds."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _worker_environment(plan: Plan) -> dict[str, str]:
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
    threads = {name: str(plan.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    own = {**threads, "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **offline, **own}


def run_cases(cases: Sequence[Case], plan: Plan) -> dict[str, Any]:
    """Measures what has not been measured yet and returns the whole report, which is on disk after every case."""
    report = read_report(plan.out)
    report |= {"machine": machine() | dict(plan.facts), "versions": versions()}
    report.setdefault("cases", {})
    for number, case in enumerate(cases, start=1):
        heading = f"case {number} of {len(cases)}, {case.key}"
        known = report["cases"].get(case.key, {"variants": {}})["variants"]
        if not plan.again and all(variant.name in known for variant in case.variants):
            say(f"{heading}: in {plan.out} already (--again measures it again)")
            continue
        say(f"{heading}: {', '.join(variant.name for variant in case.variants)}")
        report["cases"][case.key] = run_case(case, plan)
        write_report(plan.out, report)
    return report


def run_case(case: Case, plan: Plan) -> dict[str, Any]:
    """Gate, warm-ups and interleaved repeats of one case."""
    plan.work.mkdir(parents=True, exist_ok=True)
    busy = busy_cores()
    if busy > BUSY:
        say(f"  warning: others keep {busy:.1f} cores busy; the figures will be noisy")
    record: dict[str, Any] = {"commit": commit(), "busy_cores_before": busy, "threads": plan.threads}
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for variant in case.variants:
            log = plan.work / f"{_file_name(case.key)}.{_file_name(variant.name)}.log"
            workers[variant.name] = Worker(variant, plan, log)
            stack.callback(workers[variant.name].close)
        for worker in workers.values():
            worker.answer()
        if case.gate is not None:
            record["parity"] = case.gate(workers)
            say(f"  parity: {brief(record['parity'])}")
        counted = {name: worker.ask(do="step", count=True) for name, worker in workers.items()}
        for variant in case.variants:
            for _ in range(variant.warmups):
                workers[variant.name].ask(do="step")
        for _ in range(plan.warmups - 1):
            for worker in workers.values():
                worker.ask(do="step")
        rounds = list(_rounds(workers, plan.repeats))
    steps = {name: [round_[name] for round_ in rounds] for name in workers}
    record["variants"] = {name: _summary(counted[name], steps[name]) for name in workers}
    for kind, unit in (("ratios", "seconds"), ("cpu_ratios", "cpu_seconds")):
        record[kind] = {f"{slow} / {fast}": ratio(steps[slow], steps[fast], unit) for slow, fast in case.ratios}
    peaks = {name: variant["peak_bytes"] for name, variant in record["variants"].items()}
    record["memory"] = {f"{fast} / {slow}": peaks[fast] / peaks[slow] for slow, fast in case.ratios}
    return record


def _rounds(workers: Mapping[str, Worker], repeats: int) -> Iterator[dict[str, dict[str, Any]]]:
    """One step of every variant per round; each round starts with another one."""
    names, started = list(workers), time.monotonic()
    for done in range(repeats):
        turn = done % len(names)
        yield {name: workers[name].ask(do="step") for name in names[turn:] + names[:turn]}
        left = (time.monotonic() - started) / (done + 1) * (repeats - done - 1)
        say(f"  round {done + 1} of {repeats}" + (f", {left:.0f} s left in this case" if left else ""))


def _summary(counted: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    phases = dict.fromkeys(name for step in steps for name in step["phases"])
    return {
        "seconds": spread([step["seconds"] for step in steps]),
        "cpu_seconds": spread([step["cpu_seconds"] for step in steps]),
        "phases": {name: spread([step["phases"].get(name, 0.0) for step in steps])["median"] for name in phases},
        "peak_bytes": max(step["peak_bytes"] for step in steps),
        "baseline_bytes": counted["baseline_bytes"],
        "counters": counted["counters"],
        "notes": counted["notes"] | _medians([step["notes"] for step in steps]),
    }


def _medians(notes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each note over the rounds that have it."""
    names = dict.fromkeys(name for each in notes for name in each)
    return {name: spread([each[name] for each in notes if name in each])["median"] for name in names}


def _file_name(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text)


def read_report(path: Path) -> dict[str, Any]:
    """The measurements of earlier runs; empty if there are none.

    Raises:
        BenchError: The file is no report.
    """
    if not path.exists():
        return {}
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(report, dict) and isinstance(report.get("cases", {}), dict):
            return report
    except (OSError, ValueError) as error:
        raise BenchError(f"--out {path} cannot be read ({error}); name another file") from error
    raise BenchError(f"--out {path} is no report of this tool; name another file")


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Replaces the report at once, so that an interrupted run leaves a whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def say(message: str) -> None:
    """One line of progress."""
    print(message, file=sys.stderr, flush=True)


def base_parser(description: str | None, *, out: str) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=positive, help="measured rounds (default: 5; 2 with --quick)")
    parser.add_argument("--warmups", type=positive, help="rounds before them (default: 2; 1 with --quick)")
    parser.add_argument("--threads", type=positive, help="torch threads of every worker (default: 2; 1 with --quick)")
    parser.add_argument("--out", type=Path, help=f"report as JSON (default: {out}; with --quick a file beside it)")
    parser.add_argument("--work", type=Path, default=Path("runs/bench"), help="models and logs (default: runs/bench)")
    parser.add_argument("--again", action="store_true", help="measure cases that are in the report already once more")
    parser.add_argument("--quick", action="store_true", help="a few seconds at toy size, to see that everything runs")
    parser.set_defaults(default_out=Path(out))
    return parser


def plan_of(options: argparse.Namespace, script: str, facts: Mapping[str, Any] | None = None) -> Plan:
    """The plan that the options ask for."""
    quick, out = options.quick, options.default_out
    return Plan(
        script=Path(script).resolve(),
        work=options.work.resolve(),
        out=options.out or (out.with_name(f"{out.stem}-quick.json") if quick else out),
        warmups=options.warmups or (1 if quick else 2),
        repeats=options.repeats or (2 if quick else 5),
        threads=options.threads or (1 if quick else 2),
        again=options.again,
        facts=facts or {},
    )


def parse_lengths(text: str) -> tuple[int, int]:
    """Tokens of prompt and completion.

    >>> parse_lengths("3000x200")
    (3000, 200)
    """
    prompt, _, completion = text.partition("x")
    if not (prompt.isdigit() and completion.isdigit() and int(completion)):
        raise argparse.ArgumentTypeError(f"{text!r} is not PROMPTxCOMPLETION, such as 3000x200")
    return int(prompt), int(completion)


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


@contextmanager
def one_line_errors(tool: str) -> Iterator[None]:
    """Ends the program with one sentence where a benchmark cannot go on, and quietly when a person stops it."""
    try:
        yield
    except BenchError as error:
        sys.exit(f"{tool}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{tool}: interrupted; finished cases are kept, the same command goes on")
