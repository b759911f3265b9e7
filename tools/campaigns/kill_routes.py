"""Kills a run that samples, filters, routes and asks an expert in 22 places, and compares it with one left alone.

    python tools/campaigns/kill_routes.py --work DIR

A tiny model learns sums first. Then one run is left alone, and a second one is sent SIGKILL in each place, one after
the other, and continued by the same command. All tables, manifests, reasons, seals and weights must be equal, byte for
byte. The endpoint on the loopback counts: only a request that was under way at a kill may come twice.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "helpers"))

from faulty_endpoint import FaultyEndpoint

from lightning_mmrl.curriculum.manifest import Manifest
from lightning_mmrl.data.rollout_table import read_table

PLACES = Path(__file__).with_name("kill_places.py")
WHERE = (
    *(
        ("sampling", 1),
        ("part", 1),
        ("rename", 2),
        ("sampling", 2),
        ("export", 1),
        ("seal", 1),
        ("export", 2),
        ("seal", 2),
    ),
    *(("border", 4), ("export", 1), ("seal", 1), ("consult", 1), ("traces", 1), ("consult", 2), ("ledger", 1)),
    *(("ledger", 2), ("ledger", 7), ("judge", 3), ("export", 1), ("seal", 2), ("export", 4), ("seal", 5)),
)
"""Places, and how often a process has been there when it is killed; see `kill_places`."""
STAGES = "draw,hard,sort,again"
SMALL = (
    *("experiment=task_arithmetic", "model=tiny_qwen2", "tracking=none", "trainer=cpu", "trainer.num_threads=1"),
    *("+data.build.scale=0.1", "evaluation.limit=4", "evaluation.max_new_tokens=4", "evaluation.num_resamples=20"),
    *("stages.cold_start.num_steps=40", "stages.cold_start.data.batch_size=8", "stages.cold_start.stop_when=null"),
    *("stages.cold_start.validate_every=null", "+stage@stages.draw=sample", "stages.draw.num_completions=4"),
    *("stages.draw.data.limit=40", "stages.draw.data.batch_size=16", "stages.draw.sampling.max_new_tokens=16"),
    *("+stage@stages.hard=filter", "stages.hard.mixed=true", "+stage@stages.sort=route", "stages.sort.tries=2"),
    *("stages.sort.data.manifest=traces.jsonl", "stages.sort.expert={model: adder}"),
    *("+stage@stages.again=tiny/task_cold_start", "stages.again.data.manifest=null", "stages.again.data.batch_size=2"),
    "+stages.again.data.sources={own: {stage: sort, artifact: own}, expert: {stage: sort, artifact: expert}}",
    *("stages.again.num_steps=4", "stages.again.stop_when=null", "stages.again.validate_every=null"),
)


def train(work: Path, name: str, order: str, *more: str, place: tuple[str, int] | None = None) -> int:
    """Runs the command in a process of its own, with a kill in a place, and returns its exit code."""
    arguments = ["train", *SMALL, f"output_dir={work}/runs", f"data.root={work}/sums", f"run_name={name}"]
    there, number = place or ("border", 0)  # no process is anywhere for the 0th time
    send = f"SIGKILL:{there}:{number}:{work}/{name}"
    command = [sys.executable, str(PLACES), "--send", send, "--", *arguments, f"order=[{order}]", *more]
    with (work / f"{name}.log").open("ab") as log:
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, stdout=log, stderr=log, env=env, check=False).returncode


def write_traces(work: Path) -> None:
    """Writes a trace for each third prompt of the table that is never solved; the endpoint is asked for the others."""
    made = Manifest.read(work / "runs" / "base").stages["draw"].result.artifacts["rollouts"].path
    rows = [row for path in sorted((work / "runs/base" / made).glob("*.jsonl")) for row in read_table(path)]
    lines = []
    for row in [row for row in rows if row.pass_rate == 0][::3]:
        said = f"<think>so</think><answer>{row.sample.solution}</answer>"
        turns = [{"role": "user", "content": row.sample.messages[0].content}, {"role": "assistant", "content": said}]
        lines.append(json.dumps({"id": row.sample.id, "messages": turns}) + "\n")
    (work / "sums" / "traces.jsonl").write_text("".join(lines))


def files(run: Path) -> dict[str, bytes]:
    """The content of all that stages sealed, their seals included."""
    folders = [path.parent for path in sorted((run / "stages").rglob("mmrl.json"))]
    return {str(path.relative_to(run)): path.read_bytes() for each in folders for path in each.iterdir()}


def main() -> int:
    """Runs the campaign and returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    work = parser.parse_args().work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    if train(work, "base", "cold_start,draw"):
        raise SystemExit(f"the base fails, see {work}/base.log")
    write_traces(work)
    handoff = work / "runs" / "base" / "stages" / "00-cold_start" / "handoff"
    asked: dict[str, Counter[str]] = {}
    problems: list[str] = []
    for name, places in (("alone", ()), ("killed", WHERE)):
        shutil.rmtree(work / "runs" / name, ignore_errors=True)
        with FaultyEndpoint() as server:
            url = f"stages.sort.endpoint={{base_url: {server.url}, concurrency: 1}}"
            starts = [f"stages.{stage}.checkpoint={handoff}" for stage in ("draw", "again")]
            for place in places:
                start = time.monotonic()
                code = train(work, name, STAGES, url, *starts, place=place)
                print(f"{place[0]} {place[1]}: exit code {code}, {time.monotonic() - start:.0f} s", flush=True)
                problems += [] if code == -signal.SIGKILL else [f"{place} was not reached: exit code {code}"]
            code = train(work, name, STAGES, url, *starts)
            problems += [f"{name} ends with {code}, see {work}/{name}.log"] if code else []
            asked[name] = server.asked
    one, other = (files(work / "runs" / name) for name in ("alone", "killed"))
    problems += [f"{name} differs" for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]
    twice = {text: number - asked["alone"][text] for text, number in asked["killed"].items()}
    under_way = sum(place == "ledger" and number % 2 == 0 for place, number in WHERE)
    more = sum(twice.values())
    problems += [f"{more} requests came again, and {under_way} were under way"] if more > under_way else []
    print(f"{len(WHERE)} kills, {len(one)} files, {sum(asked['alone'].values())} requests, {more} of them again")
    print("\n".join([*problems, f"{len(problems)} problems"]))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
