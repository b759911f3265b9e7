"""Streams damaged media files as training does, and checks that each is read or left out with a sentence.

    PYTHONPATH=tools/truth:tools/mutation python tools/campaigns/mutated_media.py DIR
                                             3,000 files, with results and files in DIR, which lies outside the checkout
    ... DIR --files 300 --seed 1             a slice, of another seed

The files are mutations of some 25 formats, see tools/mutation/media_mutations.py. Each group of `--group` files, with a
good file for every tenth, is one data set: it goes once through `StreamedSets`, `StreamLoader` and decode workers. Then
each of its files is read alone, without a cache. Faults: a file that is neither used nor left out, or both; another
decision or sentence alone than within the stream; a batch with a sample that was left out, or without one that is used;
a reason that is no sentence on one line that names the file, or that names a Python exception; a decode worker that
died; and a file that took longer than `--deadline`. Results of finished groups stay in DIR, and the same command goes
on with the next group. Exits with 1 if there is a fault.
"""

import argparse
import json
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from media_mutations import FILMS, SOUNDS, mutated, write_bases

from lightning_mmrl.data.collate import collate_prompts
from lightning_mmrl.data.exclusions import Exclusions
from lightning_mmrl.data.media import guard
from lightning_mmrl.data.media.cache import MediaCache
from lightning_mmrl.data.media.examine import fault
from lightning_mmrl.data.pipeline import MediaPipeline
from lightning_mmrl.data.prepared import Fault, PreparedSet, Quarantined
from lightning_mmrl.data.sampler import Draw, DrawSampler, SourceRows
from lightning_mmrl.data.schema import read_manifest
from lightning_mmrl.data.stream import StreamedSets, StreamLoader
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.protocols.ranks import ALONE
from lightning_mmrl.protocols.tensors import PromptEncoder
from lightning_mmrl.settings.data import MediaSettings, ReadAheadSettings, SourceSettings, StageDataSettings

CHECKOUT = Path(__file__).resolve().parents[2]
TIMES = "MUTATED_MEDIA_TIMES"
"""Variable that names the file to which decode workers write how long each file took."""
BATCH = 5
PASSES = 3
"""Passes that a group may take until all its files are decided on."""
MAX_MESSAGE = 600
EXCEPTION = re.compile(r"\b(?!Errno)[A-Z]\w*(?:Error|Exception|Interrupt|Iteration)\b")
DIED = ("worker died", "was stopped", "deadline of")


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """Bounds of decoding: worker processes, and seconds for a file."""

    workers: int = 2
    deadline_s: float = 30.0


class Monitor:
    """Counts what is left out; implements `DataMonitor`."""

    def __init__(self) -> None:
        self.left_out: dict[str, str] = {}
        self.num_left_out = 0

    def progress(self, description: str, done: int, total: int) -> None:
        """Does nothing."""

    def quarantine(self, manifest: str, num_usable: int, left_out: Sequence[Quarantined]) -> None:
        """Does nothing: streamed sets do not call it."""

    def leave_out(self, manifest: str, num_samples: int, num_left_out: int, new: Sequence[Quarantined]) -> None:
        """Keeps the reasons and the count."""
        self.left_out.update((each.sample_id, each.reason) for each in new)
        self.num_left_out = num_left_out

    def warn(self, manifest: str, warnings: Sequence[str]) -> None:
        """Does nothing: warnings are about files that are used."""


class TimedDecoder(guard.GuardedDecoder):
    """A decoder whose workers write down how long each file took."""

    def session(self) -> guard.DecoderSession:
        """A session of timed decoding."""
        return guard.DecoderSession(timed_decode, self, workers=self.workers)


def timed_decode(task: guard.DecodeTask) -> object:
    """Decodes a file; `TIMES` names a file that gets a line at the start, and one with the seconds at the end."""
    start = time.monotonic()
    _note(task.path.name, None)
    try:
        return guard.decode(task)
    finally:
        _note(task.path.name, round(time.monotonic() - start, 3))


def _note(name: str, seconds: float | None) -> None:
    with Path(os.environ[TIMES]).open("a") as file:
        file.write(json.dumps([name, seconds]) + "\n")


def main() -> int:
    """Runs the groups that are missing and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="a folder outside the checkout")
    parser.add_argument("--files", type=int, default=3000, help="mutated files (default: 3000)")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations (default: 0)")
    parser.add_argument("--group", type=int, default=50, help="files of a data set (default: 50)")
    parser.add_argument("--workers", type=int, default=2, help="decode workers (default: 2)")
    parser.add_argument("--deadline", type=float, default=30.0, help="seconds for a file (default: 30)")
    options = parser.parse_args()
    if options.folder.resolve().is_relative_to(CHECKOUT):
        parser.error(f"{options.folder} lies within the checkout; name another folder")
    limits = Guard(workers=options.workers, deadline_s=options.deadline)
    encoder: list[PromptEncoder] = []
    results = []
    for start in range(0, options.files, options.group):
        numbers = range(start, min(start + options.group, options.files))
        path = options.folder / f"seed{options.seed}-{numbers.start:05d}-{numbers.stop:05d}.json"
        if not path.exists():
            encoder = encoder or [_tiny_encoder(options.folder)]
            found = run_group(options.folder / "group", numbers, options.seed, encoder[0], limits)
            path.write_text(json.dumps(found, indent=1))
            print(f"\r{numbers.stop} of {options.files} files", end="", file=sys.stderr, flush=True)
        results.append(json.loads(path.read_text()))
    print(file=sys.stderr)
    return report(results)


def _tiny_encoder(folder: Path) -> PromptEncoder:
    from lightning_mmrl.models.families.qwen2_5_omni import OmniEncoder
    from lightning_mmrl.models.tiny import build_tiny_omni

    built = folder / "model"
    if not (built / "config.json").exists():
        build_tiny_omni(built, text=["a clip"], max_audio_s=30)
    return OmniEncoder.from_checkpoint(built)


def run_group(folder: Path, numbers: Sequence[int], seed: int, encoder: PromptEncoder, limits: Guard) -> dict[str, Any]:
    """Writes a group of files, streams it, reads each file alone, and returns counts and faults."""
    shutil.rmtree(folder, ignore_errors=True)
    kinds = write_group(folder / "set", folder.with_name("bases"), numbers, seed)
    os.environ[TIMES] = str(folder / "times.jsonl")
    Path(os.environ[TIMES]).touch()
    monitor = Monitor()
    start = time.monotonic()
    delivered = stream_group(folder, encoder, limits, monitor)
    seconds = time.monotonic() - start
    alone = read_alone(folder, encoder, limits)
    used, left_out = decisions(folder / "exclusions.jsonl")
    faults = accounting_faults(set(kinds), used, left_out, delivered, monitor)
    faults += [wrong for name in kinds for wrong in alone_faults(name, alone[name], left_out)]
    faults += [wrong for name, reason in left_out.items() for wrong in sentence_faults(name, reason, folder / "set")]
    times = [json.loads(line) for line in Path(os.environ[TIMES]).read_text().splitlines()]
    faults += time_faults(times, limits.deadline_s)
    mutations = {name: kind for name, kind in kinds.items() if kind != "good"}
    return {
        "files": len(mutations),
        "read": sum(name in used for name in mutations),
        "left_out": sum(name in left_out for name in mutations),
        "good_left_out": sum(name in left_out for name in kinds.keys() - mutations.keys()),
        "reasons": Counter(fault(reason) for reason in left_out.values()),
        "mutations": Counter(f"{kind}: {'read' if name in used else 'left out'}" for name, kind in mutations.items()),
        "longest_s": max((took for _, took in times if took is not None), default=0.0),
        "seconds": round(seconds, 1),
        "faults": faults,
    }


def write_group(root: Path, bases_folder: Path, numbers: Sequence[int], seed: int) -> dict[str, str]:
    """Writes the files and their manifest, and returns the mutations of each sample; "good" without one."""
    contents = {name: path.read_bytes() for name, path in write_bases(bases_folder).items()}
    root.mkdir(parents=True)
    kinds, lines = {}, []
    for number in numbers:
        name, kind, content = mutated(contents, seed, number)
        files = [(f"{number:05d}-{name.replace('.', '-')}.{name.split('.')[-1]}", kind, content)]
        if number % 10 == 0:
            files.append((f"good-{number:05d}.{name.split('.')[-1]}", "good", contents[name]))
        for file, how, data in files:
            (root / file).write_bytes(data)
            kinds[file] = how
            lines.append(_row(file, name))
    (root / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return kinds


def _row(file: str, name: str) -> dict[str, object]:
    """A line of the manifest: a film is seen and heard."""
    is_film = name in FILMS or name == "plain.mp4"
    media = {
        "videos": [file] if is_film or name == "gif" else [],
        "audios": [file] if is_film or name in SOUNDS else [],
    }
    media["images"] = [] if media["videos"] or media["audios"] else [file]
    tags = "".join(f"<{kind[:-1]}>" * len(files) for kind, files in media.items())
    return {"id": file, "messages": [{"role": "user", "content": f"{tags}Which?"}], "solution": "sad", **media}


def _prepared(folder: Path, cache: str, encoder: PromptEncoder, limits: Guard, exclusions: Exclusions) -> PreparedSet:
    pipeline = MediaPipeline(
        encoder=encoder,
        settings=MediaSettings(num_frames=4),
        cache=MediaCache(folder / cache),
        decoder=TimedDecoder(workers=limits.workers, deadline_s=limits.deadline_s),
    )
    return PreparedSet(
        read_manifest(folder / "set" / "train.jsonl", folder / "set"),
        media_root=folder / "set",
        pipeline=pipeline,
        template=PromptTemplate(),
        supervised=False,
        exclusions=exclusions,
    )


def stream_group(folder: Path, encoder: PromptEncoder, limits: Guard, monitor: Monitor) -> Counter[str]:
    """Takes batches until all samples are decided on; how often each sample came."""
    path = folder / "exclusions.jsonl"
    prepared = _prepared(folder, "cache", encoder, limits, Exclusions(path))
    streamed = StreamedSets([("train.jsonl", prepared)], monitor)
    sampler = DrawSampler(
        [SourceRows(num_samples=len(prepared), settings=SourceSettings())],
        settings=StageDataSettings(batch_size=BATCH),
        num_batches=PASSES * len(prepared) // BATCH,
        seed=0,
    )
    loader = StreamLoader(
        streamed,
        sampler,
        partial(collate_prompts, pad_token_id=encoder.pad_token_id),
        ranks=ALONE,
        decoder=TimedDecoder(workers=limits.workers, deadline_s=limits.deadline_s),
        settings=ReadAheadSettings(prefetch_samples=8),
    )
    delivered = Counter[str]()
    for batch in loader:
        delivered.update(sample.id for sample in batch.samples)
        used, left_out = decisions(path)
        if len(used) + len(left_out) == len(prepared):
            break
    return delivered


def read_alone(folder: Path, encoder: PromptEncoder, limits: Guard) -> dict[str, str | None]:
    """Why each sample cannot be used, read by itself; None if it can."""
    prepared = _prepared(folder, "cache-alone", encoder, limits, Exclusions())
    found: dict[str, str | None] = {}
    with TimedDecoder(workers=1, deadline_s=limits.deadline_s).session() as session:
        for index, sample in enumerate(prepared.samples):
            [[read], _] = prepared.read([Draw(index=index, serial=index, variant="full")], session.decode_all)
            found[sample.id] = read.reason if isinstance(read, Fault) else None
    return found


def decisions(path: Path) -> tuple[set[str], dict[str, str]]:
    """The samples that are used, and those left out with their reasons."""
    used: set[str] = set()
    left_out: dict[str, str] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        entry = json.loads(line)
        used |= set(entry.get("used", {}))
        left_out |= {name: each["reason"] for name, each in entry.get("left_out", {}).items()}
    return used, left_out


def accounting_faults(
    names: set[str], used: set[str], left_out: dict[str, str], delivered: Counter[str], monitor: Monitor
) -> list[str]:
    """Samples that were decided on twice or never, or that batches and console tell otherwise."""
    found = [f"{name}: decided on twice" for name in sorted(used & left_out.keys())]
    found += [f"{name}: not decided on" for name in sorted(names - used - left_out.keys())]
    found += [f"{name}: unknown" for name in sorted((used | left_out.keys()) - names)]
    found += [f"{name}: in a batch and not used" for name in sorted(delivered.keys() - used)]
    found += [f"{name}: used and in no batch" for name in sorted(used - delivered.keys())]
    if monitor.left_out != left_out or monitor.num_left_out != len(left_out):
        found.append(f"the console counts {monitor.num_left_out} samples left out, the file {len(left_out)}")
    return found


def time_faults(times: Sequence[tuple[str, float | None]], deadline_s: float) -> list[str]:
    """Files whose decoding began and never ended, as if the worker died, or that took too long."""
    open_ = Counter[str]()
    for name, took in times:
        open_[name] += 1 if took is None else -1
    died = [f"{name}: {number} times its decoding had no end" for name, number in open_.items() if number]
    return died + [f"{name}: took {took} s" for name, took in times if took is not None and took > deadline_s]


def alone_faults(name: str, alone: str | None, left_out: dict[str, str]) -> list[str]:
    """A sample that is judged otherwise by itself."""
    if alone == left_out.get(name):
        return []
    return [f"{name}: alone {alone!r}, in the stream {left_out.get(name)!r}"]


def sentence_faults(name: str, reason: str, root: Path) -> list[str]:
    """A reason that is no clear sentence about the file, or that tells of a crash or a hang."""
    found = []
    if any(words in reason for words in DIED):
        found.append(f"{name}: a worker died or hung: {reason}")
    if reason.count(str(root / name)) != 1 or not reason.startswith(str(root / name)):
        found.append(f"{name}: does not name its file once: {reason}")
    if "\n" in reason or "Traceback" in reason or len(reason) > MAX_MESSAGE or not reason.isprintable():
        found.append(f"{name}: is no sentence: {reason!r}")
    if EXCEPTION.search(reason.replace(str(root), "")):
        found.append(f"{name}: names an exception: {reason}")
    return found


def report(results: Sequence[dict[str, Any]]) -> int:
    """Prints the sums and all faults, and returns the exit code."""
    sums: dict[str, int] = {
        key: sum(result[key] for result in results) for key in ("files", "read", "left_out", "good_left_out")
    }
    reasons, mutations = Counter[str](), Counter[str]()
    for result in results:
        reasons.update(result["reasons"])
        mutations.update({key: number for key, number in result["mutations"].items() if "+" not in key})
    faults = [wrong for result in results for wrong in result["faults"]]
    print(f"{sums['files']} mutated files: {sums['read']} read, {sums['left_out']} left out; {len(faults)} faults")
    print(f"good files that were left out: {sums['good_left_out']}")
    print(f"longest decoding: {max(result['longest_s'] for result in results)} s")
    for title, counts in (("reasons", reasons), ("mutations", mutations)):
        print(f"{title}: " + ", ".join(f"{key} {number}" for key, number in sorted(counts.items())))
    for wrong in faults:
        print(f"FAULT {wrong}")
    return 1 if faults or sums["good_left_out"] else 0


if __name__ == "__main__":
    sys.exit(main())
