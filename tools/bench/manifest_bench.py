"""Measures how long a run takes to check a large manifest and to set up its data, and how much memory that takes.

    python tools/bench/manifest_bench.py make DIR                    # 1,000,000 lines of about 300 bytes, 1,000 sounds
    python tools/bench/manifest_bench.py starts DIR                  # first and second start, and one with a new prompt
    python tools/bench/manifest_bench.py make DIR --lines 100000     # a smaller one

Each start is a process of its own that does what `mmrl train` does up to the first batch, without model and training:
it counts the steps, checks all data, hashes them, builds the DataModule of an SFT stage that draws labels equally
often, and plans the first batch. The sounds are never opened. Peak memory is that of the kernel (VmHWM), apart for the
process and for the largest of its workers; `imports MB` is how much of it the packages and the tokenizer take.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LABELS = ("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear")
NUM_SOUNDS = 1_000
PARTS = ("steps", "checks", "digests", "datamodule", "fingerprint", "total")


def main() -> int:
    """Runs a subcommand and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "starts", "start"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--work", type=Path, help="folder of the run and its cache; default: a new one below DIR")
    parser.add_argument("--suffix", default="", help="start: the suffix of the prompt")
    options = parser.parse_args()
    if options.what == "make":
        make(options.folder, options.lines)
    elif options.what == "start":
        print(json.dumps(start(options.folder, options.work, options.suffix)))
    else:
        show(starts(options.folder, options.work or Path(tempfile.mkdtemp(prefix="run-", dir=options.folder))))
    return 0


def make(folder: Path, num_lines: int) -> None:
    """Writes the manifest and the files that it names."""
    (folder / "sounds").mkdir(parents=True, exist_ok=True)
    for number in range(NUM_SOUNDS):
        (folder / "sounds" / f"{number:04d}.wav").write_bytes(b"never opened")
    (folder / "labels.json").write_text(json.dumps({"labels": LABELS}))
    rng = random.Random(0)
    words = [f"word{number}" for number in range(2_000)]
    with (folder / "train.jsonl").open("w") as file:
        for number in range(num_lines):
            file.write(json.dumps(_row(number, rng, words)) + "\n")
    for name in ("validation", "test"):
        rows = (json.dumps(_row(number, rng, words)) + "\n" for number in range(20))
        (folder / f"{name}.jsonl").write_text("".join(rows))
    size = (folder / "train.jsonl").stat().st_size
    print(f"{num_lines:,} lines, {size / num_lines:.0f} bytes each, in {folder / 'train.jsonl'}")


def _row(number: int, rng: random.Random, words: list[str]) -> dict[str, object]:
    has_sound, label = number % 2 == 1, rng.choice(LABELS)
    question = ("<audio>" if has_sound else "") + " ".join(rng.choices(words, k=14))
    answer = f"<think>as it sounds</think><answer>{label}</answer>"
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    row: dict[str, object] = {"id": f"sample-{number:07d}", "messages": turns, "solution": label}
    return row | ({"audios": [f"sounds/{number % NUM_SOUNDS:04d}.wav"]} if has_sound else {})


def start(folder: Path, work: Path, suffix: str) -> dict[str, float | str]:
    """Does what a run does with its data up to the first batch; returns seconds, and hashes of what came out."""
    from lightning_mmrl.app.assembly import Assembly
    from lightning_mmrl.app.data_checks import check_data
    from lightning_mmrl.app.stages import data_module
    from lightning_mmrl.config.compose import compose
    from lightning_mmrl.config.epochs import with_steps
    from lightning_mmrl.config.specs import manifest_digests, stage_specs
    from lightning_mmrl.data.datamodules import Feed
    from lightning_mmrl.training.console import ConsoleProgress

    stage = "stages.cold_start"
    keys = [f"data.root={folder}", f"output_dir={work}", "run_name=run", "order=[cold_start]", "tracking=none"]
    keys += [f"{stage}.data.manifest=train.jsonl", f"{stage}.num_steps=null", f"{stage}.num_epochs=1"]
    keys += [f"{stage}.data.balance=label", f"{stage}.validate_every=null", f"prompt.suffix='{suffix}'"]
    config = compose(["experiment=own_clips", *keys])
    parts = Assembly(config=config, console=ConsoleProgress())
    encoder = parts.encoder(parts.base_folder())
    clock = Clock()
    clock.seconds["imports_mb"] = peak_mb(os.getpid())
    known = with_steps(config, "cold_start")
    clock.lap("steps")
    check_data(config)
    clock.lap("checks")
    specs = stage_specs(config, manifest_digests(config))
    clock.lap("digests")
    made = data_module(stage, known, config)(
        pipeline=parts.pipeline(encoder),
        template=parts.template,
        feed=Feed(
            settings=known,
            supervised=True,
            sources=known.data.located(config.data),
            seed=specs[0].seed,
            matcher=parts.matcher,
        ),
        monitor=parts.monitor,
        exclusions=parts.exclusions,
    )
    made.setup("fit")
    batch = made.sampler.upcoming(1)[0]
    first = [made.train_sets[0].samples[draw.index].id for draw in batch]
    clock.lap("datamodule")
    samples = made.state_dict()["samples"]
    clock.lap("fingerprint")
    clock.seconds["total"] = sum(clock.seconds[part] for part in PARTS[:-1])
    clock.seconds["processor"] = processor_s() - clock.processor_s
    return {
        **clock.seconds,
        "peak_mb": peak_mb(os.getpid()),
        "digest": specs[0].digest,
        "samples": f"{samples} {first}",
    }


class Clock:
    """Seconds of the parts of a start."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.processor_s = processor_s()
        self._last = time.monotonic()

    def lap(self, part: str) -> None:
        """Ends a part."""
        now = time.monotonic()
        self.seconds[part], self._last = now - self._last, now


def processor_s() -> float:
    """Processor seconds of this process and of its children that have ended."""
    found = os.times()
    return found.user + found.system + found.children_user + found.children_system


def starts(folder: Path, work: Path) -> dict[str, dict[str, float | str]]:
    """Starts three times: without an index, with it, and with another prompt, whose check is not known yet."""
    found = {name: watched(folder, work, suffix) for name, suffix in (("first", ""), ("second", ""), ("prompt", " ?"))}
    one, two = found["first"], found["second"]
    if (one["digest"], one["samples"]) != (two["digest"], two["samples"]):
        sys.exit("the second start has other digests or samples than the first")
    shutil.rmtree(work)
    return found


def watched(folder: Path, work: Path, suffix: str) -> dict[str, float | str]:
    """One start in a process of its own, with the peak memory of its largest worker."""
    command = [sys.executable, __file__, "start", str(folder), "--work", str(work), f"--suffix={suffix}"]
    process, workers = subprocess.Popen(command, stdout=subprocess.PIPE, text=True), {0: 0.0}
    while process.poll() is None:
        for child in _children(process.pid):
            workers[child] = max(workers.get(child, 0.0), peak_mb(child))
        time.sleep(0.1)
    assert process.stdout is not None
    if process.returncode:
        sys.exit(f"the start ended with {process.returncode}")
    return {**json.loads(process.stdout.read().splitlines()[-1]), "worker_mb": max(workers.values())}


def show(found: dict[str, dict[str, float | str]]) -> None:
    """Prints the table."""
    columns = (*PARTS, "processor s", "imports MB", "peak MB", "worker MB")
    print(f"{'start':10}" + "".join(f"{part:>13}" for part in columns))
    for name, row in found.items():
        numbers = [float(row[part]) for part in (*PARTS, "processor")]
        sizes = [float(row[key]) for key in ("imports_mb", "peak_mb", "worker_mb")]
        print(f"{name:10}" + "".join(f"{each:13.2f}" for each in numbers) + "".join(f"{each:13.0f}" for each in sizes))


def peak_mb(process: int) -> float:
    """The most memory that a process has had, in MB of 10^6 bytes; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM")), 0.0)


def _children(process: int) -> list[int]:
    """The child processes that run another program by now: before, the kernel counts the memory of the parent."""
    try:
        found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        own = Path(f"/proc/{process}/cmdline").read_bytes()
        return [int(each) for each in found if Path(f"/proc/{each}/cmdline").read_bytes() != own]
    except (FileNotFoundError, ProcessLookupError):
        return []


if __name__ == "__main__":
    sys.exit(main())
