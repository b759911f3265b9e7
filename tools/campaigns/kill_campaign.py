"""Kills and interrupts runs of `mmrl train`, continues them, and compares with the run that was left alone.

    python tools/campaigns/kill_campaign.py       40 SIGKILLs, 20 strikes on decode workers, then a signal in
                                                  each place
    python tools/campaigns/kill_campaign.py --kills 5 --places --workers 0
                                                           5 SIGKILLs alone
    python tools/campaigns/kill_campaign.py --ranks 2 --strategy fsdp2 --kills 10 --signals 4 --workers 0
                                                           one of two ranks is killed; signals go to torchrun
    python tools/campaigns/kill_campaign.py --kills 0 --places --workers 20
                                                           20 decode workers killed or stopped, and nothing else
    python tools/campaigns/kill_campaign.py --curriculum own_answers --kills 20 --strikes 40 --places --workers 0
                                                           20 SIGKILLs at random moments of a run that samples answers
                                                           and learns from them, and 40 in drawn places; give it
                                                           --work and --data-root of its own
    python tools/campaigns/kill_campaign.py --curriculum damaged_clips --kills 20 --places --workers 0
                                                           20 SIGKILLs within passes over clips of which one in ten is
                                                           damaged, read while it trains
    python tools/campaigns/kill_campaign.py --curriculum lag --kills 20 --places --workers 0
                                                           20 SIGKILLs of GRPO whose rollouts are sampled ahead, with
                                                           rollouts in the buffer

A base is trained first (three minutes, once). The run is SFT, GRPO and RLOO from it, with a state after each step and
MLflow in a database of its own. A SIGKILL comes at a random moment; the same command then continues. At the end every
metric of every step (times left out) and the weights of every stage must be bit-identical to those of the run that was
left alone, at most one step may have been repeated for each kill, and MLflow must hold each point once under true
statuses. Decode workers are sent SIGKILL or SIGSTOP while a run without a cache prepares its data; it must train on the
same samples, to the same weights. The places of `--strikes` are drawn from steps, sampling, the parts of a table, the
sealing of artifacts, and changes of the manifest; tables must be equal too, and the samples that are left
out, with their reasons. Finished cases are kept in --work; the same command goes on with what is missing.
"""

import argparse
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from kill_curricula import CURRICULA, UNCACHED, overrides
from kill_places import KILLED, SIGNALLED
from kill_verdicts import statuses, to_repeat, verdict
from quick_runs import finish, shared_arguments, start_training

PLACES = Path(__file__).with_name("kill_places.py")
"""The program that sends itself a signal in a place."""
SIGNALS = ("SIGTERM", "SIGINT")
GRACE_S = 30.0
RANKS_END_S = 60.0
"""How long the other ranks may go on after one was killed."""
KILLS_PER_RUN = 10
STRIKES = ("SIGKILL", "SIGSTOP")
DECODE_S = 5.0
"""Deadline of a medium where workers are stopped: nobody lets them go on."""
MOST_WITHOUT = 3
"""Runs in a row without a strike before it is given up."""
WHILE_STARTING = 0.2
"""Share of the kills that come before the first step of a process."""


def main() -> int:
    """Runs what is missing and returns the exit code: 1 if anything differed."""
    options = _options()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.curriculum == "damaged_clips":
        options.data_root = options.work / "damaged-clips"
    base = overrides(options.curriculum, options.work, options.data_root)
    reference = _reference(options, base)
    cases: list[dict[str, Any]] = []
    if options.kills:
        cases.append(_kept(options, f"{options.kills} x SIGKILL", lambda name: _kill(options, base, name, reference)))
    if options.strikes:
        case = f"{options.strikes} x SIGKILL in drawn places"
        cases.append(_kept(options, case, lambda name: _strike(options, base, name)))
    if options.workers:
        case = f"{options.workers} decode workers killed or stopped"
        cases.append(_kept(options, case, lambda name: _disturb(options, base, name)))
    for number in range(options.signals):
        name = SIGNALS[number % len(SIGNALS)]
        cases.append(
            _kept(
                options,
                f"{name} at a random moment {number}",
                lambda run, s=name: _signal(options, base, run, s, reference),
            )
        )
    for place in options.places if options.ranks == 1 else ():
        for name in SIGNALS:
            case = f"{name} in {place}"
            cases.append(_kept(options, case, lambda run, p=place, s=name: _interrupt(options, base, run, p, s)))
    print("| case | continued | exit s | repeated, most | fell back | equal to the run left alone | MLflow |")
    print("|---|---|---|---|---|---|---|")
    for case in cases:
        print("| " + " | ".join(str(case[key]) for key in _COLUMNS) + " |")
    failed = [case["case"] for case in cases if case["equal"] != "yes" or case["tracking"] != "yes"]
    print(f"{len(cases) - len(failed)} of {len(cases)} cases as they must be; reference: {reference['seconds']:.0f} s")
    return 1 if failed else 0


_COLUMNS = ("case", "continued", "exit_s", "repeated", "fell_back", "equal", "tracking")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40, help="SIGKILLs on one run; 0 for none (default: 40)")
    parser.add_argument(
        "--places", nargs="*", choices=SIGNALLED, default=list(SIGNALLED), help="where signals are sent"
    )
    parser.add_argument("--strikes", type=int, default=0, help="SIGKILLs in drawn places of own_answers (default: 0)")
    parser.add_argument("--curriculum", choices=CURRICULA, default="orders", help="the run (default: orders)")
    parser.add_argument("--signals", type=int, default=0, help="signals at random moments (default: 0)")
    parser.add_argument("--workers", type=int, default=20, help="strikes on decode workers; 0 for none (default: 20)")
    parser.add_argument("--ranks", type=int, default=1, help="processes of the run; one of them is killed (default: 1)")
    parser.add_argument(
        "--strategy", default="auto", help="of several ranks: ddp or fsdp2 (default: auto, which is ddp)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--work", type=Path, default=Path("runs/kill-campaign"), help="runs and results")
    parser.add_argument("--data-root", type=Path, default=Path("data/emotions"), help="made if it is not there")
    return parser.parse_args()


def _kept(options: argparse.Namespace, case: str, run: Any) -> dict[str, Any]:
    """The result of a case, from an earlier call or made now."""
    path = options.work / f"{re.sub('[^A-Za-z0-9]+', '-', case)}-seed{options.seed}.json"
    if not path.exists():
        print(f"{time.strftime('%H:%M:%S')} {case}", file=sys.stderr, flush=True)
        path.write_text(json.dumps({"case": case, **run(path.stem)}, indent=1))
    return json.loads(path.read_text())


def _arguments(options: argparse.Namespace, base: Sequence[str], name: str) -> list[str]:
    small = ["evaluation.limit=8", "evaluation.num_resamples=20"]
    tracking = [f"tracking.uri=sqlite:///{(options.work / f'{name}.db').absolute()}", "state.every_n_steps=1"]
    stages = CURRICULA[options.curriculum]
    run = [f"order=[{','.join(stages)}]", f"run_name={name}"]
    ranks = [f"trainer.devices={options.ranks}", f"trainer.strategy={options.strategy}"]
    if options.curriculum in UNCACHED:
        run.append(f"data.media.cache_dir={options.work / name / 'cache'}")
    return [*base, *small, *tracking, *ranks, *shared_arguments(options.work, options.data_root), *run]


def _reference(options: argparse.Namespace, base: Sequence[str]) -> dict[str, Any]:
    """The run that is left alone, its time, and when its first step was."""
    path, log, folder = options.work / "reference.json", options.work / "reference.log", options.work / "reference"
    if not path.exists():
        start = time.monotonic()
        process = start_training(_arguments(options, base, "reference"), log)
        while process.poll() is None and not list(folder.glob("stages/*/attempt.json")):
            time.sleep(0.05)
        begun = time.monotonic() - start
        finish(process, log)
        path.write_text(json.dumps({"seconds": time.monotonic() - start, "begun": begun}))
    return json.loads(path.read_text())


def _kill(
    options: argparse.Namespace, base: Sequence[str], name: str, reference: Mapping[str, float]
) -> dict[str, Any]:
    """Kills runs again and again until that makes as many kills as asked for; each run ends after its last one."""
    generator = random.Random(options.seed)
    # Some kills in a row hit one run; each process gets through a share of it on average.
    pause = 2 * (reference["seconds"] - reference["begun"]) / KILLS_PER_RUN
    killed = repeated = continued = 0
    longest = 0.0
    verdicts = []
    while killed < options.kills:
        run = f"{name}-run{len(verdicts)}"
        log, here = options.work / f"{run}.log", 0
        while True:
            process = start_training(_arguments(options, base, run), log)
            if here == KILLS_PER_RUN or killed == options.kills:
                break
            early = generator.random() < WHILE_STARTING
            delay = generator.uniform(0, reference["begun"] if early else pause)
            took_s = _killed(process, options.work / run, delay, early=early, rank=generator.randrange(options.ranks))
            if took_s is None:
                break
            killed, here, longest = killed + 1, here + 1, max(longest, took_s)
            repeated = max(repeated, to_repeat(options.work / run))
        finish(process, log)
        continued += log.read_text(errors="replace").count("continuing after step")
        verdicts.append(verdict(options.work, run, log, CURRICULA[options.curriculum]))
        print(f"{killed} of {options.kills} kills", file=sys.stderr, flush=True)
    joined = {key: "; ".join(dict.fromkeys(str(verdict[key]) for verdict in verdicts)) for key in ("equal", "tracking")}
    fell_back = sum(verdict["fell_back"] for verdict in verdicts)
    told = f"{killed} of {killed}, {continued} within a stage"
    if longest > RANKS_END_S:
        joined["equal"] = f"a rank went on for {longest:.0f} s"
    return {"continued": told, "exit_s": round(longest, 1), "repeated": repeated, "fell_back": fell_back, **joined}


def _strike(options: argparse.Namespace, base: Sequence[str], name: str) -> dict[str, Any]:
    """Kills runs in one drawn place after the other, until that makes as many kills as asked for."""
    generator, struck, verdicts = random.Random(options.seed), Counter[str](), []
    places = itertools.cycle(generator.sample(list(KILLED), len(KILLED)))
    while struck.total() < options.strikes:
        run = f"{name}-run{len(verdicts)}"
        log, code, most = options.work / f"{run}.log", -signal.SIGKILL, struck.total() + KILLS_PER_RUN
        while code == -signal.SIGKILL and struck.total() < min(most, options.strikes):
            place = next(places)
            send = f"SIGKILL:{place}:{generator.randint(1, KILLED[place])}:{options.work / run}"
            through = (str(PLACES), "--send", send, "--")
            code = start_training(_arguments(options, base, run), log, through=through).wait(3600)
            struck[place] += code == -signal.SIGKILL
            if code not in (0, -signal.SIGKILL):
                raise SystemExit(f"a run ended with {code}; see {log}")
        finish(start_training(_arguments(options, base, run), log), log)
        verdicts.append(verdict(options.work, run, log, CURRICULA[options.curriculum]))
        print(f"{struck.total()} of {options.strikes} strikes", file=sys.stderr, flush=True)
    joined = {key: "; ".join(dict.fromkeys(str(verdict[key]) for verdict in verdicts)) for key in ("equal", "tracking")}
    told = f"{struck.total()} of {struck.total()}: " + ", ".join(f"{each} {struck[each]}" for each in KILLED)
    fell_back = sum(verdict["fell_back"] for verdict in verdicts)
    return {"continued": told, "exit_s": "-", "repeated": "-", "fell_back": fell_back, **joined}


def _killed(
    process: "subprocess.Popen[bytes]", folder: Path, delay_s: float, *, early: bool, rank: int
) -> float | None:
    """Kills a rank some time after its start, or after its first step; the seconds until all of them are gone.

    None if the run ended before.
    """
    before = _logged_bytes(folder)
    while not early and process.poll() is None and _logged_bytes(folder) == before:
        time.sleep(0.02)
    try:
        process.wait(delay_s)
    except subprocess.TimeoutExpired:
        start = time.monotonic()
        ranks = _ranks(process)
        os.kill(ranks[rank % len(ranks)], signal.SIGKILL)
        process.wait(10 * RANKS_END_S)
        return time.monotonic() - start
    return None


def _ranks(process: "subprocess.Popen[bytes]") -> list[int]:
    """The processes of a run: those that torchrun started, or the only one."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = [pid for pid in children if b"train" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return [int(pid) for pid in ranks] or [process.pid]


def _disturb(options: argparse.Namespace, base: Sequence[str], name: str) -> dict[str, Any]:
    """Kills or stops decode workers of run after run, until that makes as many strikes as asked for."""
    generator, sent, verdicts, without = random.Random(options.seed), dict.fromkeys(STRIKES, 0), [], 0
    while sum(sent.values()) < options.workers:
        run = f"{name}-run{len(verdicts)}"
        log, before = options.work / f"{run}.log", sum(sent.values())
        fresh = [f"data.media.cache_dir={options.work / run / 'cache'}", f"+data.media.decode_deadline_s={DECODE_S}"]
        process = start_training([*_arguments(options, base, run), *fresh], log)
        while process.poll() is None and sum(sent.values()) < options.workers:
            time.sleep(generator.uniform(0.05, 1.0))
            workers = _decode_workers(process.pid)
            if workers:
                name_of_signal = generator.choice(STRIKES)
                with suppress(ProcessLookupError):  # it ended meanwhile
                    os.kill(generator.choice(workers), getattr(signal, name_of_signal))
                    sent[name_of_signal] += 1
        finish(process, log)
        verdicts.append(verdict(options.work, run, log, CURRICULA[options.curriculum]))
        without = 0 if sum(sent.values()) > before else without + 1
        if without == MOST_WITHOUT:
            raise SystemExit(f"no decode worker was found in {MOST_WITHOUT} runs; see {log}")
        print(f"{sum(sent.values())} of {options.workers} strikes", file=sys.stderr, flush=True)
    joined = {key: "; ".join(dict.fromkeys(str(verdict[key]) for verdict in verdicts)) for key in ("equal", "tracking")}
    told = f"{len(verdicts)} runs, " + ", ".join(f"{number} x {each}" for each, number in sent.items())
    return {"continued": told, "exit_s": "-", "repeated": 0, "fell_back": 0, **joined}


def _decode_workers(pid: int) -> list[int]:
    """The processes that a run has spawned through multiprocessing, of all its ranks."""
    found = []
    for child in _children(pid):
        found += _decode_workers(child)
        with suppress(OSError):
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
    return found


def _children(pid: int) -> list[int]:
    """Of all threads of a process; none if it is gone."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, task.read_text().split())
    return found


def _signal(
    options: argparse.Namespace, base: Sequence[str], name: str, signame: str, reference: Mapping[str, float]
) -> dict[str, Any]:
    """A signal to whoever started the ranks, after some of the run's steps, then the same command again."""
    log, generator = options.work / f"{name}.log", random.Random(name)
    process = start_training(_arguments(options, base, name), log)
    while not _logged_bytes(options.work / name):
        time.sleep(0.02)
    time.sleep(generator.uniform(0, 0.8 * (reference["seconds"] - reference["begun"])))
    process.send_signal(getattr(signal, signame))
    start = time.monotonic()
    code = process.wait(3600)
    return _judged(options, base, name, signame, code, round(time.monotonic() - start, 1))


def _logged_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("stages/*/metrics.jsonl"))


def _interrupt(options: argparse.Namespace, base: Sequence[str], name: str, place: str, signame: str) -> dict[str, Any]:
    """One signal in one place, then the same command again."""
    log = options.work / f"{name}.log"
    send = f"{signame}:{place}:{SIGNALLED[place]}:{options.work / name}"
    through = (str(PLACES), "--send", send, "--")
    process = start_training(_arguments(options, base, name), log, through=through)
    code = process.wait(3600)
    sent = float((options.work / f"{name}.sent").read_text())
    exit_s = round((options.work / f"{name}.ended").stat().st_mtime - sent, 1)
    return _judged(options, base, name, signame, code, exit_s)


def _judged(
    options: argparse.Namespace, base: Sequence[str], name: str, signame: str, code: int, exit_s: float
) -> dict[str, Any]:
    """Continues a run that was sent a signal, and says how it ended and where it came to."""
    log, expected = options.work / f"{name}.log", 128 + getattr(signal, signame)
    tracked = set(statuses(options.work, name).values())
    repeated = to_repeat(options.work / name)
    finish(start_training(_arguments(options, base, name), log), log)
    found = verdict(options.work, name, log, CURRICULA[options.curriculum])
    if code != expected or exit_s > GRACE_S or "KILLED" not in tracked or "RUNNING" in tracked:
        found["equal"] = f"exit code {code}, {exit_s} s, MLflow {sorted(tracked)}"
    return {"continued": "1 of 1", "exit_s": exit_s, "repeated": repeated, **found}


if __name__ == "__main__":
    sys.exit(main())
