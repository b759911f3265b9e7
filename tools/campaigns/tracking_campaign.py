"""Lets a tracking server fail in many ways while a run is logged, and counts what it has afterwards.

    python tools/campaigns/tracking_campaign.py                                  every kind of outage at 5 moments
    python tools/campaigns/tracking_campaign.py --kinds html_400 lost --seeds 0  some of it

A process logs as a stage does (`RunLogger` over `MlflowTracker`) through a loopback proxy to a real `mlflow server`
with a SQLite database. A second one does the same beside it, through a proxy that never fails, to another server: its
steps are what the others are compared with. A step waits 50 ms, as for a device, and logs 12 values. After the run and,
if something is left, after `mmrl tracking flush`, the points in the database are counted.

Results are kept in --work, one file a case; the same command goes on where it was stopped. With PYTHONPATH at another
checkout its code is measured; one without the command opens the spool again instead.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "helpers"))

from outage_proxy import PAGES, Proxy

from lightning_mmrl.settings.run import TrackingSettings

DONE_ELSEWHERE = ("empty_database", "experiment_deleted", "run_deleted", "server_killed")
KINDS = (*PAGES, "reset", "lost", "cut", "part", "hang", "slow_create", *DONE_ELSEWHERE)
NUM_KEYS = 12
STEP_S = 0.05
PATIENCE_S = 180.0
MOST_LINES = 5
MOST_SLOWER = 1.05


def main() -> int:
    """Runs what is missing and returns the exit code: 1 if a case is not good, or steps are slower than MOST_SLOWER."""
    options = _options()
    options.work.mkdir(parents=True, exist_ok=True)
    cases = [(kind, seed) for kind in options.kinds for seed in options.seeds]
    missing = [case for case in cases if not _result_file(options.work, *case).exists()]
    if missing:
        # Its children have the packages loaded already.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["lightning_mmrl.tracking.mlflow", "lightning_mmrl.tracking.lightning_logger"])
        with Servers(options.work) as servers:
            for kind in options.kinds:
                seeds = [seed for each, seed in missing if each == kind]
                together = 1 if kind == "server_killed" else options.parallel  # they would kill each other's server
                with ThreadPoolExecutor(together) as pool:
                    list(pool.map(partial(_run_and_keep, servers, options, kind), seeds))
    return _report(options)


def _run_and_keep(servers: "Servers", options: argparse.Namespace, kind: str, seed: int) -> None:
    print(f"{kind}, {seed}", file=sys.stderr, flush=True)
    result = run_case(servers, options, kind, seed)
    _result_file(options.work, kind, seed).write_text(json.dumps(result) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="of the moments (default: 0-4)")
    parser.add_argument("--steps", type=int, default=160, help="of a run (default: 160)")
    parser.add_argument("--outage", type=float, default=3.0, help="how long the server fails, in s (default: 3)")
    parser.add_argument("--parallel", type=int, default=1, help="moments of a kind at the same time (default: 1)")
    parser.add_argument("--work", type=Path, default=Path("runs/tracking-campaign"), help="databases and results")
    return parser.parse_args()


def _result_file(work: Path, kind: str, seed: int) -> Path:
    return work / f"{kind}-{seed}.json"


class Servers:
    """A tracking server to fail and a spare one, each with its database."""

    def __init__(self, work: Path) -> None:
        self._work = work.absolute()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.ports = {"main": _free_port(), "spare": _free_port()}

    def __enter__(self) -> "Servers":
        # Loaded here, before the first outage: it takes seconds.
        import mlflow.tracking  # noqa: F401

        for name in self.ports:
            self._start(name)
        for name in self.ports:
            self._wait(name)
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.ports:
            self.kill(name)

    def database(self, name: str) -> Path:
        return self._work / f"{name}.db"

    def restart(self, name: str) -> None:
        self._start(name)
        self._wait(name)

    def kill(self, name: str) -> None:
        """Ends a server and its workers, which are a process group of their own."""
        process = self._processes.pop(name, None)
        if process is not None:
            os.killpg(process.pid, 9)
            process.wait()

    def _start(self, name: str) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.ports[name])]
        command += ["--backend-store-uri", f"sqlite:///{self.database(name)}", "--workers", "1"]
        command += ["--artifacts-destination", str(self._work / f"{name}-artifacts")]
        settings = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}
        # Seven more processes, which only start.
        settings["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
        environment = {**os.environ, **settings}
        with (self._work / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def _wait(self, name: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            try:
                with socket.create_connection(("127.0.0.1", self.ports[name]), timeout=1):
                    return
            except OSError:
                time.sleep(0.2)
        raise SystemExit(f"the server does not start; {self._work}/{name}.log says why")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def run_case(servers: Servers, options: argparse.Namespace, kind: str, seed: int) -> dict[str, Any]:
    """One run with an outage, one without at the same time, and the databases' records of both."""
    folder = options.work / f"{kind}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    name = f"{kind}-{seed}-{time.time_ns()}"
    moment = random.Random(f"{seed}/{kind}").randrange(options.steps // 8, options.steps // 2)
    proxies = {"main": Proxy(servers.ports["main"]), "spare": Proxy(servers.ports["spare"])}
    try:
        if kind == "slow_create":
            proxies["main"].mode = kind
        processes = {
            each: start_logging(folder / each, proxy.uri, name, options.steps) for each, proxy in proxies.items()
        }
        if kind != "slow_create":
            _wait_for_step(folder / "main" / "metrics.jsonl", moment, processes["main"])
            _fail(servers, proxies["main"], kind, name, options.outage)
        codes = {}
        for each, process in processes.items():
            process.join(PATIENCE_S)
            codes[each] = process.exitcode
            process.kill()
        num_failures = proxies["main"].failures
        counts = [count(servers.database("main"), name, options.steps)]
        if counts[-1]["points"] != counts[-1]["expected"]:
            _flush(folder / "main", proxies["main"].uri, name)
            counts.append(count(servers.database("main"), name, options.steps))
    finally:
        for proxy in proxies.values():
            proxy.close()
    *lines, package = (folder / "main" / "output.txt").read_text().splitlines()
    times = {each: json.loads((folder / each / "times.json").read_text()) for each in proxies}
    return {
        "kind": kind, "seed": seed, "moment": moment, "exit_code": codes["main"], "failures": num_failures,
        "at_the_end": counts[0], "later": counts[-1], "lines": len(lines), "output": lines[:20], "step_s": times,
        "package": package,
    }  # fmt: skip


def start_logging(folder: Path, uri: str, name: str, num_steps: int) -> Any:
    """A process that logs a run; what it prints goes to `output.txt`, the time of each step to `times.json`."""
    folder.mkdir(parents=True)
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=_log, args=(str(folder), uri, name, num_steps))
    process.start()
    return process


def values_at(step: int) -> dict[str, float]:
    """The points of a step."""
    return {f"stage/group/value_{key}": step + key / 16 for key in range(NUM_KEYS)}


def _log(folder: str, uri: str, name: str, num_steps: int) -> None:
    # Loaded here: the campaign itself needs none of it.
    from lightning_mmrl.tracking.lightning_logger import RunLogger
    from lightning_mmrl.tracking.mlflow import MlflowTracker

    place = Path(folder)
    output = os.open(place / "output.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    tracker = MlflowTracker(TrackingSettings(uri=uri, experiment=name), place / "spool" / "store")
    run = tracker.open_run(name)
    logger = RunLogger(run, place)
    times = []
    for step in range(num_steps):
        start = time.perf_counter()
        time.sleep(STEP_S)
        logger.log_metrics(values_at(step), step)
        times.append(time.perf_counter() - start)
    run.finish("FINISHED")
    tracker.close()
    (place / "times.json").write_text(json.dumps(times))
    print(f"with {sys.modules[MlflowTracker.__module__].__file__}")


def _wait_for_step(metrics: Path, step: int, process: Any) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and process.is_alive():
        if metrics.exists() and metrics.read_bytes().count(b"\n") > step:
            return
        time.sleep(0.02)


def _fail(servers: Servers, proxy: Proxy, kind: str, name: str, seconds: float) -> None:
    """The outage, from its begin to its end."""
    if kind not in DONE_ELSEWHERE:
        proxy.mode = kind
        time.sleep(seconds)
        proxy.mode = "up"
        return
    if kind == "empty_database":
        proxy.port = servers.ports["spare"]
        time.sleep(seconds)
        proxy.port = servers.ports["main"]
    elif kind == "server_killed":
        servers.kill("main")
        time.sleep(seconds)
        servers.restart("main")
    else:
        delete, restore = _calls(servers.ports["main"], kind, name)
        delete()
        proxy.failures += 1
        time.sleep(seconds)
        restore()


def _calls(port: int, kind: str, name: str) -> tuple[Callable[[], None], Callable[[], None]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"http://127.0.0.1:{port}")
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    if kind == "experiment_deleted":
        number = experiment.experiment_id
        return lambda: client.delete_experiment(number), lambda: client.restore_experiment(number)
    run_id = client.search_runs([experiment.experiment_id])[0].info.run_id
    return lambda: client.delete_run(run_id), lambda: client.restore_run(run_id)


def count(database: Path, name: str, num_steps: int) -> dict[str, Any]:
    """Runs of this name, those that have ended, their points, and how many of these are there twice or are wrong."""
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=60)
    try:
        runs = dict(connection.execute("SELECT run_uuid, status FROM runs WHERE name = ?", (name,)).fetchall())
        rows = connection.execute(
            "SELECT m.key, m.step, count(*), min(m.value), max(m.value) "
            "FROM metrics m JOIN runs r ON r.run_uuid = m.run_uuid "
            "WHERE r.name = ? AND m.key NOT LIKE 'system/%' GROUP BY m.key, m.step",
            (name,),
        ).fetchall()
    finally:
        connection.close()
    return {
        "runs": len(runs),
        "finished": sum(status == "FINISHED" for status in runs.values()),
        "points": len(rows),
        "double": sum(number > 1 for _, _, number, _, _ in rows),
        "wrong": sum(not low == high == values_at(step).get(key) for key, step, _, low, high in rows),
        "expected": NUM_KEYS * num_steps,
    }


def _flush(output_dir: Path, uri: str, name: str) -> None:
    command = [sys.executable, "-m", "lightning_mmrl.cli.main", "tracking", "flush", str(output_dir)]
    ended = subprocess.run([*command, "--tracking-uri", uri], capture_output=True, text=True, check=False)
    if "unknown command" in ended.stderr:
        process = multiprocessing.get_context("forkserver").Process(target=_reopen, args=(str(output_dir), uri, name))
        process.start()
        process.join(PATIENCE_S)


def _reopen(output_dir: str, uri: str, name: str) -> None:
    from lightning_mmrl.tracking.mlflow import MlflowTracker

    MlflowTracker(TrackingSettings(uri=uri, experiment=name), Path(output_dir) / "spool" / "store").close()


def _report(options: argparse.Namespace) -> int:
    print("| outage | cases | points once, at the end | after a flush | runs | most lines | p95 of a step |")
    print("|---|---|---|---|---|---|---|")
    total: list[dict[str, Any]] = []
    for kind in options.kinds:
        files = [_result_file(options.work, kind, seed) for seed in options.seeds]
        results = [json.loads(path.read_text()) for path in files if path.exists()]
        total += results
        if results:
            print(_row(kind, results))
    print(_row("all", total))
    return 0 if total and all(map(_is_good, total)) and _slower(total) <= MOST_SLOWER else 1


def _row(kind: str, results: list[dict[str, Any]]) -> str:
    once = {
        when: sum(each[when]["points"] - each[when]["double"] for each in results) for when in ("at_the_end", "later")
    }
    expected = sum(each["later"]["expected"] for each in results)
    runs = sum(each["later"]["runs"] for each in results)
    shares = [f"{once[when]} of {expected}" for when in once]
    lines = max(each["lines"] for each in results)
    return f"| {kind} | {len(results)} | {' | '.join(shares)} | {runs} | {lines} | x {_slower(results):.3f} |"


def _slower(results: list[dict[str, Any]]) -> float:
    """The 95th percentile of the steps of these cases together, over the percentile of steps without an outage."""
    main, spare = (_p95([t for each in results for t in each["step_s"][name]]) for name in ("main", "spare"))
    return main / spare


def _is_good(result: dict[str, Any]) -> bool:
    later = result["later"]
    whole = later["points"] == later["expected"] and later["double"] == later["wrong"] == 0
    return (
        result["exit_code"] == 0 and whole and later["runs"] == later["finished"] == 1 and result["lines"] <= MOST_LINES
    )


def _p95(values: list[float]) -> float:
    return sorted(values)[int(0.95 * len(values))]


if __name__ == "__main__":
    sys.exit(main())
