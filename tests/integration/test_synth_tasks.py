"""The files of generated tasks: the same bytes each time, all or nothing on disk, answers intact after every codec."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import picture_readers as readers
import pytest
import task_decoders as decoders

from lightning_mmrl.data.media.guard import DecodeTask, decode
from lightning_mmrl.data.schema import read_manifest
from lightning_mmrl.data.synthetic.task import SPLITS
from lightning_mmrl.data.synthetic.tasks import TASKS
from lightning_mmrl.errors import DataError
from lightning_mmrl.prompts.scanner import scan
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.records import Sample

NAMES = ("geometry", "counting", "tones", "motion", "arithmetic", "numbers", "relations", "bars", "sokoban")
SCALE = 0.05
SETTINGS = MediaSettings(num_frames=4)

each_task = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every task at a small scale."""
    root = tmp_path_factory.mktemp("tasks")
    return {name: TASKS[name](root / name, scale=SCALE, workers=1) for name in NAMES}


def hashes(directory: Path) -> dict[str, str]:
    """The SHA-256 of every file by its path in the set."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def answer_in(sample: Sample, root: Path) -> str:
    """The answer, from the decoded file or from the question's own text."""
    if not sample.media:
        return decoders.result_of(sample.messages[0].content)
    [ref] = sample.media
    decoded = decode(DecodeTask(path=root / ref.path, ref=ref, settings=SETTINGS))
    question = sample.messages[0].content
    match sample.extras["label_set"]:
        case "geometry":
            return decoders.shape_in(decoded.pixels)
        case "counting":
            return str(sum(decoders.dots_in(decoded.pixels)))
        case "tones":
            return decoders.key_in(decoded.waveform, decoded.sample_rate_hz)
        case "numbers":
            return readers.number_in(question, decoded.pixels)
        case "relations":
            return readers.letter_of(readers.relation_in(question, decoded.pixels), question)
        case "bars":
            return readers.letter_of(readers.chart_answer(question, decoded.pixels), question)
        case "sokoban":
            moves = tuple((sample.solution or "").split(", "))
            return ", ".join(moves) if readers.plays(readers.level_in(decoded.pixels), moves) else "not solved"
    return decoders.direction_in(decoded.frames)


@each_task
@pytest.mark.parametrize("split", SPLITS)
def test_manifests_read_back_and_every_decoded_file_shows_its_answer(
    sets: dict[str, Path], name: str, split: str
) -> None:
    samples = read_manifest(sets[name] / f"{split}.jsonl", sets[name])
    labels = json.loads((sets[name] / "dataset.json").read_text())["labels"]
    answers = {sample.solution if name != "sokoban" else str(sample.extras["moves"]) for sample in samples}
    assert answers == set(labels)
    assert {sample.split for sample in samples} == {split}
    assert [sample.id for sample in samples if answer_in(sample, sets[name]) != sample.solution] == []


@each_task
def test_only_the_cold_start_shows_a_trace_and_it_is_right(sets: dict[str, Path], name: str) -> None:
    for split in SPLITS:
        for sample in read_manifest(sets[name] / f"{split}.jsonl", sets[name]):
            turns = [message.role for message in sample.messages]
            assert turns == (["user", "assistant"] if split == "cold_start" else ["user"])
            if split == "cold_start":
                trace = scan(sample.messages[1].content)
                assert trace.valid
                assert trace.answer == sample.solution


@pytest.mark.parametrize("name", ["numbers", "relations", "bars"])
def test_each_kind_of_question_has_a_manifest_and_together_they_are_the_split(sets: dict[str, Path], name: str) -> None:
    kinds = TASKS[name].kinds  # type: ignore[attr-defined]
    for split in SPLITS:
        everything = read_manifest(sets[name] / f"{split}.jsonl", sets[name])
        parts = {kind: read_manifest(sets[name] / f"{split}_{kind}.jsonl", sets[name]) for kind in kinds}
        assert all({sample.extras["question_type"] for sample in part} == {kind} for kind, part in parts.items())
        assert sorted(sample.id for part in parts.values() for sample in part) == sorted(each.id for each in everything)


@pytest.mark.slow
@each_task
def test_two_workers_write_the_same_bytes_and_another_seed_others(
    sets: dict[str, Path], name: str, tmp_path: Path
) -> None:
    reports: list[tuple[int, int]] = []
    again = TASKS[name](tmp_path / "again", scale=SCALE, workers=2, on_progress=lambda *seen: reports.append(seen))
    other = hashes(TASKS[name](tmp_path / "other", scale=SCALE, seed=1, workers=1))
    this = hashes(sets[name])
    assert hashes(again) == this
    # Another seed may give a medium to other samples of a task that has texts as well.
    assert len(other) == len(this)
    assert not {path for path in this if this[path] == other.get(path)}
    total = sum(json.loads((again / "dataset.json").read_text())["sizes"].values())
    assert reports[-1] == (total, total)


def test_a_complete_set_is_kept_and_another_is_refused(sets: dict[str, Path]) -> None:
    before = {path: path.stat().st_mtime_ns for path in sets["counting"].rglob("*")}
    assert TASKS["counting"](sets["counting"], scale=SCALE) == sets["counting"]
    assert {path: path.stat().st_mtime_ns for path in sets["counting"].rglob("*")} == before
    with pytest.raises(DataError, match=r"settings\.seed is 0, not 3; give another directory or overwrite=True"):
        TASKS["counting"](sets["counting"], seed=3, scale=SCALE)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seed": -1}, "seed is -1; it must be 0 or more"),
        ({"scale": 0.0}, "scale is 0.0; it must be more than 0 and finite"),
        ({"workers": 0}, "workers is 0; it must be at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, wrong: dict[str, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        TASKS["tones"](tmp_path / "set", **wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TASKS["geometry"](tmp_path / "set", scale=SCALE, workers=1, on_progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == [".set.lock"]


def test_generating_needs_no_torch() -> None:
    program = "import sys, lightning_mmrl.data.synthetic.tasks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("name", ["arithmetic", "relations"])
def test_a_share_of_the_training_solutions_is_wrong_and_nothing_else_changes(
    sets: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """The share is exact, wrong solutions are those of other problems of the kind, and a column tells them."""
    noisy = TASKS[name](tmp_path / name, scale=SCALE, workers=1, wrong_golds=0.2)
    for split in SPLITS:
        right, found = (read_rows(root / f"{split}.jsonl") for root in (sets[name], noisy))
        if split != "train":
            assert found == right
            continue
        differs = [a["solution"] != b["solution"] for a, b in zip(right, found, strict=True)]
        assert sum(differs) == round(0.2 * len(right))
        assert [row["gold"] == "wrong" for row in found] == differs
        assert {row["solution"] for row in found} <= {row["solution"] for row in right}
    again = TASKS[name](tmp_path / "again", scale=SCALE, workers=1, wrong_golds=0.2)
    assert hashes(again) == hashes(noisy)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_of_wrong_solutions_out_of_range_is_refused(tmp_path: Path, share: float) -> None:
    """In one sentence with key, value and fix, and nothing is written."""
    with pytest.raises(DataError, match=r"wrong_golds is .*; it must be within 0\.\.1"):
        TASKS["arithmetic"](tmp_path / "set", workers=1, wrong_golds=share)
    assert not (tmp_path / "set").exists()


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a manifest."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
