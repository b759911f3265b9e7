"""Trains the runs of a table one after the other; tools/golden/golden_trajectories.py starts it for each commit.

    PYTHONPATH=CHECKOUT python tools/golden/golden_runs.py --table tests/golden/runs.yaml --work FOLDER

A run is `mmrl train` with the overrides of the table, in a process forked from one that has imported everything, which
takes longer than most runs. The numbers of each go to FOLDER/trajectories/NAME.json; a run that has this file is not
trained again.
"""

import argparse
import importlib
import os
import pkgutil
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

PACKAGE = "lightning_mmrl"
KEPT_STATES = "kept_states"
"""Folder of a stage's states beside the place that they are removed from."""
OPTIONAL = ("vllm", "__main__")
"""Parts of module names that are not imported beforehand."""
TERMINATED = 128 + signal.SIGTERM
"""Exit code of `mmrl train` that was interrupted."""
ATTEMPTS = 3
TIMEOUT_S = 600.0
POLL_S = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a table.

    Attributes:
        overrides: Of `mmrl train`, with the work folder in them.
        after: The run that it starts from; None for the model as it is built.
        ranks: Processes that train together.
        interrupt_after: The run is sent SIGTERM once the state after so many steps is there, and continued; None: not.
    """

    name: str
    overrides: tuple[str, ...]
    after: str | None = None
    ranks: int = 1
    interrupt_after: int | None = None


def read_table(path: Path, work: Path, extra: Sequence[str] = ()) -> dict[str, Run]:
    """The runs of a table by name, in its order.

    Args:
        path: The YAML file; tests/golden/runs.yaml explains it.
        work: What stands for {work} in it.
        extra: Further overrides of every run.

    Raises:
        SystemExit: A run has a key or a shape that is not known, or comes before the one it starts from.
    """
    table = yaml.safe_load(path.read_text(encoding="utf-8"))
    runs: dict[str, Run] = {}
    for name, entry in table["runs"].items():
        shapes = entry.pop("like", ())
        unknown = [shape for shape in shapes if shape not in table["shapes"]]
        if unknown:
            raise SystemExit(f"{path}: run {name}: there is no shape {unknown[0]!r}")
        parts = [table["everywhere"], *(table["shapes"][shape] for shape in shapes)]
        lines = [line for part in (*parts, entry.pop("overrides", ()), extra) for line in part]
        overrides = tuple(line.replace("{work}", str(work)).replace("{name}", name) for line in lines)
        try:
            runs[name] = Run(name=name, overrides=overrides, **entry)
        except TypeError as error:
            raise SystemExit(f"{path}: run {name}: {error}") from error
        if runs[name].after is not None and runs[name].after not in runs:
            raise SystemExit(f"{path}: run {name} comes after {runs[name].after!r}, which is not above it")
    return runs


def with_sources(runs: Mapping[str, Run], chosen: Sequence[str]) -> list[Run]:
    """The chosen runs and those they start from, in the order of the table; all of them if none is chosen.

    Raises:
        SystemExit: A chosen run is not in the table.
    """
    unknown = [name for name in chosen if name not in runs]
    if unknown:
        raise SystemExit(f"no run is called {', '.join(unknown)}; the table has {', '.join(runs)}")
    wanted = set(chosen or runs)
    for run in reversed(runs.values()):
        if run.name in wanted and run.after is not None:
            wanted.add(run.after)
    return [run for run in runs.values() if run.name in wanted]


def train(run: Run, work: Path) -> None:
    """Trains a run from its beginning.

    Raises:
        SystemExit: It ended with another exit code than 0; with the end of its log.
    """
    folder, log = work / run.name, work / "logs" / f"{run.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    if run.interrupt_after is not None:
        _interrupt(run, folder, log)
    codes = _ranks(run, log, lambda: False)
    if any(codes):
        tail = log.read_text(errors="replace")[-3000:]
        raise SystemExit(f"run {run.name} ended with {codes}: mmrl train {' '.join(run.overrides)}\n{tail}")


def _interrupt(run: Run, folder: Path, log: Path) -> None:
    """Trains a run up to a state and stops it there or soon after; one that ends first is trained anew."""
    state = f"stages/*/state/step-{run.interrupt_after:08d}"
    for _ in range(ATTEMPTS):
        codes = _ranks(run, log, lambda: any(folder.glob(state)))
        if set(codes) == {TERMINATED}:
            return
        shutil.rmtree(folder, ignore_errors=True)
    raise SystemExit(f"run {run.name} was to be interrupted and ended with {codes} before, {ATTEMPTS} times; see {log}")


def _ranks(run: Run, log: Path, interrupted: Callable[[], bool]) -> list[int]:
    """Forks the processes of a run, waits for them, and returns their exit codes."""
    environment = {"GLOO_SOCKET_IFNAME": "lo"}
    if run.ranks > 1:
        environment |= _torchrun(run.ranks)
    pids = [_fork(run, log, environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(run.ranks)]
    codes: dict[int, int] = {}
    deadline, sent = time.monotonic() + TIMEOUT_S, False
    while len(codes) < len(pids):
        for pid in [pid for pid in pids if pid not in codes]:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                codes[pid] = os.waitstatus_to_exitcode(status)
        failed, late = any(codes.values()), time.monotonic() > deadline
        if not sent and (failed or late or interrupted()):
            sent = True
            for pid in [pid for pid in pids if pid not in codes]:
                os.kill(pid, signal.SIGKILL if failed or late else signal.SIGTERM)
        time.sleep(POLL_S)
    return [codes[pid] for pid in pids]


def _torchrun(ranks: int) -> dict[str, str]:
    """Variables that torchrun sets for the processes of one node."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    sizes = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "GROUP_RANK": "0"}
    return {**sizes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "golden"}


def _fork(run: Run, log: Path, environment: Mapping[str, str]) -> int:
    """Starts `mmrl train` in a process of its own, and returns its id."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with log.open("ab") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        os.environ.update(environment)
        sys.addaudithook(_keep_states)
        main = importlib.import_module(f"{PACKAGE}.cli.main").main
        code = main(["train", *run.overrides])
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _keep_states(event: str, arguments: tuple[Any, ...]) -> None:
    """Keeps the states of a stage, which are removed once it has handed over, under another name."""
    if event == "shutil.rmtree" and Path(arguments[0]).name == "state" and Path(arguments[0]).is_dir():
        shutil.copytree(arguments[0], Path(arguments[0]).with_name(KEPT_STATES), copy_function=os.link)


def import_everything() -> None:
    """Imports the package with all that it uses: runs are forked from this process.

    Raises:
        SystemExit: The package is not that of PYTHONPATH.
    """
    package = importlib.import_module(PACKAGE)
    root = Path(os.environ.get("PYTHONPATH", "").split(os.pathsep)[0]).resolve()
    if not Path(str(package.__file__)).resolve().is_relative_to(root):
        raise SystemExit(f"{PACKAGE} comes from {package.__file__}; set PYTHONPATH to the checkout")
    for module in pkgutil.walk_packages(package.__path__, f"{PACKAGE}."):
        if not any(part in OPTIONAL for part in module.name.split(".")):
            importlib.import_module(module.name)


def main() -> int:
    """Trains what is missing and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, required=True, help="the runs")
    parser.add_argument("--work", type=Path, required=True, help="runs, what they share, and their numbers")
    parser.add_argument("--runs", nargs="*", default=[], help="by name; default: all")
    parser.add_argument("--with", dest="extra", nargs="*", default=[], help="further overrides of every run")
    options = parser.parse_args()
    # Not above: the package's own workers import this file anew, and torch takes seconds.
    from golden_reading import read_trajectory, write_trajectory

    work = options.work.resolve()
    chosen = with_sources(read_table(options.table, work, options.extra), options.runs)
    missing = [run for run in chosen if not (work / "trajectories" / f"{run.name}.json").exists()]
    if missing:
        started = time.monotonic()
        import_everything()
        _say(f"imports: {time.monotonic() - started:.1f} s")
    for number, run in enumerate(missing, start=1):
        started, before = time.monotonic(), os.times()
        train(run, work)
        write_trajectory(work / "trajectories" / f"{run.name}.json", read_trajectory(work / run.name, KEPT_STATES))
        seconds, processor = time.monotonic() - started, sum(os.times()[:4]) - sum(before[:4])
        _say(f"{number} of {len(missing)} {run.name}: {seconds:.1f} s, {processor:.1f} of a processor")
    return 0


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
