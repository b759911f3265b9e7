"""Places where the product writes, a trap at each of them, and what must be true of a run whose disk refused there.

A trap waits for the product to open, make or rename something, by Python's audit events, and calls `strike` then: the
campaign fills a disk or makes it read-only, a test raises what such a disk would raise. What libraries in C++ or Rust
write has no event; the trap lies at the event before it.
"""

import errno
import fnmatch
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from small_runs import SMALL

STAGES = ("cold_start", "reason")
STEPS = 4
OPEN, MAKE, RENAME, CONNECT = "open", "os.mkdir", "os.rename", "sqlite3.connect"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the product writes.

    Attributes:
        event: What the trap waits for.
        path: A pattern of the path, below the folder of the campaign.
        nth: How often it must happen.
        volume: The disk that refuses: a folder of the campaign, or "file" for the file alone.
        command: What runs: a name of `commands`.
        goes_on: Whether it must end as if nothing had been, but for what it says is missing.
    """

    event: str
    path: str
    nth: int = 1
    volume: str = "out"
    command: str = "train"
    goes_on: bool = False


HERE = "out/run/"
SFT, RL = HERE + "stages/00-cold_start/", HERE + "stages/01-reason/"

PLACES: Mapping[str, Place] = {
    "run lock": Place(event=OPEN, path=HERE + ".lock"),
    "attempt": Place(event=OPEN, path=SFT + "attempt.json*"),
    "run manifest, at the start": Place(event=OPEN, path=HERE + "manifest.json*"),
    "run manifest, after a stage": Place(event=OPEN, path=HERE + "manifest.json*", nth=3),
    "resolved configuration": Place(event=OPEN, path=HERE + "config.yaml*"),
    "exclusions": Place(event=OPEN, path=HERE + "exclusions.jsonl"),
    "exclusions of a later set": Place(event=OPEN, path=HERE + "exclusions.jsonl", nth=3),
    "quarantine list": Place(event=OPEN, path=HERE + "quarantine.jsonl", volume="file", goes_on=True),
    "metrics": Place(event=OPEN, path=RL + "metrics.jsonl", nth=3, volume="file", goes_on=True),
    "metrics, and all else from then on": Place(event=OPEN, path=RL + "metrics.jsonl", nth=3),
    "CSV logger": Place(
        event=OPEN, path=RL + "csv/metrics.csv", nth=2, volume="file", command="train logging", goes_on=True
    ),
    "TensorBoard": Place(
        event=OPEN, path=RL + "tensorboard/events*", volume="file", command="train logging", goes_on=True
    ),
    "rollout table": Place(event=OPEN, path=RL + "rollouts/iteration_000001*", volume="rollouts", goes_on=True),
    "rollout table, and all else": Place(event=OPEN, path=RL + "rollouts/iteration_000002*"),
    "first state": Place(event=MAKE, path=SFT + "state/step-00000001.partial"),
    "state": Place(event=MAKE, path=RL + "state/step-00000002.partial"),
    "manifest of a state": Place(event=OPEN, path=RL + "state/step-00000003.partial/MANIFEST.json"),
    "pointer to the newest state": Place(event=OPEN, path=RL + "state/LATEST*", nth=2),
    "last state": Place(event=MAKE, path=RL + "state/step-00000004.partial"),
    "handoff": Place(event=MAKE, path=SFT + ".handoff.mmrl-partial"),
    "weights of a handoff": Place(event=OPEN, path=RL + ".handoff.mmrl-partial/generation_config.json"),
    "processor of a handoff": Place(event=OPEN, path=RL + ".handoff.mmrl-partial/tokenizer_config.json"),
    "seal of a handoff": Place(event=OPEN, path=RL + ".handoff.mmrl-partial/mmrl.json*"),
    "handoff taking its place": Place(event=RENAME, path=RL + ".handoff.mmrl-partial"),
    "predictions": Place(event=OPEN, path=SFT + "evaluation/test.jsonl*"),
    "confusion figure": Place(event=OPEN, path=RL + "evaluation/test.png"),
    "evaluation": Place(event=OPEN, path=RL + "evaluation/evaluation.json*"),
    "comparison": Place(event=OPEN, path=HERE + "comparison.json*", nth=3),
    "page of the run": Place(event=OPEN, path=HERE + "report.html*", volume="file", goes_on=True),
    "media cache": Place(event=OPEN, path="cache/*", nth=20, volume="cache", command="train decoding", goes_on=True),
    "media cache, its folder": Place(
        event=MAKE, path="cache/*", nth=2, volume="cache", command="train decoding", goes_on=True
    ),
    "feature cache": Place(
        event=OPEN, path="features/*", nth=6, volume="features", command="train caching", goes_on=True
    ),
    "tracking database": Place(event=CONNECT, path="track/mlflow.db", volume="track", command="train tracking"),
    "tracking database, while training": Place(
        event=OPEN, path=RL + "metrics.jsonl", nth=2, volume="track", command="train tracking", goes_on=True
    ),
    "tracking spool": Place(event=OPEN, path="out/spool/*/.lock", command="train tracking"),
    "temporary folder": Place(event=MAKE, path=SFT + ".handoff.mmrl-partial", volume="tmp", goes_on=True),
    "base model": Place(event=MAKE, path="models/.tiny.mmrl-partial", volume="models", command="train building"),
    "weights of the base model": Place(
        event=OPEN, path="models/.tiny.mmrl-partial/generation_config.json", volume="models", command="train building"
    ),
    "tokenizer of the base model": Place(
        event=OPEN, path="models/.tiny.mmrl-partial/tokenizer_config.json", volume="models", command="train building"
    ),
    "generated data": Place(event=MAKE, path="out/made/.tones.partial-*", command="data synth"),
    "media of generated data": Place(event=OPEN, path="out/made/.tones.*.wav", nth=9, command="data synth"),
    "record of generated data": Place(event=OPEN, path="out/made/.tones.*/dataset.json*", command="data synth"),
    "dataset of a table": Place(event=OPEN, path="out/own/*/train.jsonl", command="data from-csv"),
    "report of a validation": Place(event=OPEN, path="out/report.json*", command="data validate"),
    "rescored table": Place(event=OPEN, path="out/rescored.jsonl*", command="reward-test"),
    "export": Place(event=MAKE, path="out/.shared.mmrl-partial", command="export"),
    "card of an export": Place(event=OPEN, path="out/.shared.mmrl-partial/README.md*", command="export"),
    "predictions of mmrl evaluate": Place(event=OPEN, path="out/run/evaluations/*/test.jsonl*", command="evaluate"),
}

DISK = {"full": errno.ENOSPC, "read-only": errno.EROFS}


def commands(work: Path, name: str = "run") -> dict[str, list[str]]:
    """The command lines by name; they read what `train` left in `finished`."""
    places = [f"output_dir={work}/out", f"data.root={work}/data/set", f"data.media.cache_dir={work}/cache"]
    places += [f"model.checkpoint={work}/models/tiny", f"run_name={name}"]
    tracking = ["tracking=mlflow", f"tracking.uri=sqlite:///{work}/track/mlflow.db"]
    small = [
        "data.validation=null",
        "~evaluation.sets.ood",
        "evaluation.base=false",
        "evaluation.limit=4",
        "evaluation.max_new_tokens=4",
        "trainer=cpu",
        *SMALL,
    ]
    small += ["state.every_n_steps=1", "state.keep=2", "seed=0"]
    for stage in STAGES:
        small += [f"stages.{stage}.num_steps={STEPS}", f"stages.{stage}.validate_every=null"]
        small += [f"stages.{stage}.freeze=[vision,audio]", f"stages.{stage}.optimizer.lr=1e-3"]
    small += ["stages.cold_start.data.batch_size=4", "stages.reason.data.batch_size=2"]
    small += ["stages.reason.algorithm.group_size=2", "stages.reason.sampling.max_new_tokens=4"]
    small += ["stages.reason.algorithm.entropy.coefficient=0.1", "stages.reason.rollout_table_every=2"]
    train = ["train", "curriculum=sft_then_rl", *small, *places, "tracking=none"]

    def media(folder: str) -> list[str]:
        return ["--media-root", f"{work}/{folder}"]

    handoff = str(work / "finished" / "stages" / "01-reason" / "handoff")
    table = str(work / "finished" / "stages" / "01-reason" / "rollouts")
    return {
        "train": train,
        "train caching": [*train, f"+model.feature_cache.directory={work}/features"],
        "train logging": [*train, "tracking.loggers=[csv,tensorboard]"],
        "train tracking": [*train, *tracking],
        "train decoding": train,
        "train building": train,
        "evaluate": ["evaluate", handoff, *train[1:]],
        "export": ["export", handoff, f"{work}/out/shared"],
        "reward-test": ["reward-test", table, "--out", f"{work}/out/rescored.jsonl"],
        "data synth": ["data", "synth", f"{work}/out/made/tones", "--task", "tones", "--scale", "0.03", "--workers=1"],
        "data validate": [
            "data",
            "validate",
            f"{work}/data/set/train.jsonl",
            *media("data/set"),
            "--json",
            f"{work}/out/report.json",
        ],
        "data from-csv": [
            "data",
            "from-csv",
            f"{work}/clips.csv",
            *media("."),
            "--out",
            f"{work}/out/own",
            "--copy",
            "--ignore-speakers",
        ],
    }


class Trap:
    """Calls `strike` with the path when the product is at a place for the n-th time; set for one place at a time."""

    def __init__(self) -> None:
        self.sprung: list[str] = []
        self._wanted: tuple[Place, str, Callable[[str], None]] | None = None
        self._count = 0
        self._refused: tuple[list[str], int] = [], 0
        sys.addaudithook(self._hear)

    def set(self, place: Place, work: Path, strike: Callable[[str], None]) -> None:
        """Waits for a place below a folder."""
        self.sprung, self._count = [], 0
        self._wanted = place, f"{work}/{place.path}", strike

    def refuse(self, patterns: Sequence[str], code: int) -> None:
        """From now on, whatever begins to write to such a path hears this of the system: a disk without a disk."""
        self._refused = list(patterns), code

    def clear(self) -> None:
        """Waits for nothing and refuses nothing; an audit hook cannot be taken away."""
        self._wanted, self._refused = None, ([], 0)

    def _hear(self, event: str, arguments: Sequence[object]) -> None:
        path = _written(event, arguments) if self._wanted is not None or self._refused[0] else None
        if path is None:
            return
        patterns, code = self._refused
        if any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns):
            raise OSError(code, os.strerror(code), path)
        if self._wanted is None or event != self._wanted[0].event:
            return
        place, pattern, strike = self._wanted
        if not fnmatch.fnmatchcase(path, pattern):
            return
        self._count += 1
        if self._count == place.nth:
            self._wanted = None
            self.sprung.append(path)
            strike(path)


def _written(event: str, arguments: Sequence[object]) -> str | None:
    """The path that is about to be written, made or renamed, if that is what happens."""
    if event not in (OPEN, MAKE, RENAME, CONNECT) or not isinstance(arguments[0], str | bytes | os.PathLike):
        return None
    if event == OPEN:
        flags = arguments[2]
        if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return None
    return os.path.abspath(os.fsdecode(arguments[0]).removeprefix("file:"))


def left_over(work: Path) -> list[str]:
    """Files and folders that were begun and are of no use."""
    found = [
        path for path in work.rglob("*") if any(mark in path.name for mark in (".partial", ".mmrl-partial", ".tmp"))
    ]
    return sorted(str(path.relative_to(work)) for path in found if not any(part in found for part in path.parents))


def metrics(stage: Path) -> dict[tuple[int, str], float]:
    """Values that a stage logged, without times and counts of tower runs; the first of those logged twice."""
    values: dict[tuple[int, str], float] = {}
    path = stage / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        record = json.loads(line)
        for key, value in record["metrics"].items():
            if "time/" not in key and "/media/" not in key:  # a cache spares runs of towers
                values.setdefault((record["step"], key), value)
    return values


def outcome(run: Path) -> dict[str, object]:
    """All of a finished run that must not differ."""
    found: dict[str, object] = {}
    for number, name in enumerate(STAGES):
        stage = run / "stages" / f"{number:02d}-{name}"
        found[f"metrics of {name}"] = metrics(stage)
        found[f"handoff of {name}"] = json.loads((stage / "handoff" / "mmrl.json").read_text())["digest"]
        found[f"evaluation of {name}"] = json.loads((stage / "evaluation" / "evaluation.json").read_text())
    found["comparison"] = json.loads((run / "comparison.json").read_text())
    return found


def differences(found: Mapping[str, object], expected: Mapping[str, object], *, gaps: bool = False) -> list[str]:
    """Differences from the undisturbed run; with `gaps` points of metrics may be missing."""
    wrong = []
    for key, value in expected.items():
        here = found[key]
        if gaps and isinstance(here, dict) and isinstance(value, dict) and key.startswith("metrics"):
            here = {**value, **here}
        if here != value:
            wrong.append(key)
    return wrong
