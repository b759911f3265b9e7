"""The generated files: the same bytes each time, readable by both decoders, and all or nothing on disk."""

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from lightning_mmrl.data.synthetic import emotions
from lightning_mmrl.data.synthetic.emotions import synthesize_emotions
from lightning_mmrl.data.synthetic.factors import LABELS
from lightning_mmrl.data.synthetic.plan import SPLITS, plan_split, render_signals
from lightning_mmrl.data.synthetic.settings import EmotionSetSettings
from lightning_mmrl.errors import DataError

TINY = EmotionSetSettings(scale=0.001)


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six splits of seven clips each."""
    return synthesize_emotions(tmp_path_factory.mktemp("emotions") / "set", settings=TINY, workers=1)


def hashes(directory: Path) -> dict[str, str]:
    """The SHA-256 of every file by its path in the set."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.mark.slow
def test_two_workers_and_one_write_the_same_bytes(tiny_set: Path, tmp_path: Path) -> None:
    reports: list[tuple[int, int]] = []
    again = synthesize_emotions(
        tmp_path / "deep" / "again", settings=TINY, workers=2, on_progress=lambda *counts: reports.append(counts)
    )
    assert hashes(again) == hashes(tiny_set)
    assert reports[-1] == (42, 42)
    assert [done for done, _ in reports] == sorted(done for done, _ in reports)


@pytest.mark.slow
def test_another_seed_writes_other_bytes(tiny_set: Path, tmp_path: Path) -> None:
    other = hashes(synthesize_emotions(tmp_path / "other", settings=replace(TINY, seed=1), workers=1))
    this = hashes(tiny_set)
    assert other.keys() == this.keys()
    assert {name for name in this if this[name] == other[name]} <= {"labels.json"}


def test_manifests_and_records_describe_the_files(tiny_set: Path) -> None:
    record = json.loads((tiny_set / "dataset.json").read_text())
    labels = json.loads((tiny_set / "labels.json").read_text())
    rows = [json.loads(line) for split in SPLITS for line in (tiny_set / f"{split}.jsonl").read_text().splitlines()]
    assert record["seed"] == 0
    assert record["license"] == "CC0-1.0"
    assert record["sizes"] == dict.fromkeys(SPLITS, 7)
    assert record["manifests"]["test.jsonl"] == hashes(tiny_set)["test.jsonl"]
    assert labels["labels"] == list(LABELS)
    assert labels["unimodal_ceiling"] == {"face": 4 / 7, "voice": 4 / 7}
    assert labels["cue_to_label"]["lowered+fast"] == "angry"
    assert {row["videos"][0] for row in rows} == {name for name in hashes(tiny_set) if name.endswith(".mp4")}


def test_conflicts_name_clips_of_the_test_split_and_a_set_without_them_gets_them(tiny_set: Path) -> None:
    path = tiny_set / "conflict.jsonl"
    before = path.read_bytes()
    clips = {row["videos"][0] for row in map(json.loads, (tiny_set / "test.jsonl").read_text().splitlines())}
    rows = [json.loads(line) for line in before.splitlines()]
    assert len(rows) == 7
    assert {name for row in rows for name in (*row["videos"], *row["audios"])} <= clips
    path.unlink()
    synthesize_emotions(tiny_set, settings=TINY)
    assert path.read_bytes() == before


def test_pyav_reads_both_tracks_in_time_with_the_source(tiny_set: Path) -> None:
    plan = plan_split(TINY, "train")[0]
    frames, waveform = render_signals(plan, TINY.style)
    with av.open(str(tiny_set / plan.media_path)) as container:
        spans = [float(stream.duration * stream.time_base) for stream in container.streams]
        pictures = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    with av.open(str(tiny_set / plan.media_path)) as container:
        blocks = list(container.decode(audio=0))
    sound = np.concatenate([block.to_ndarray()[0] for block in blocks])
    assert spans == [1.5, 1.5]
    assert [time for time, _ in pictures] == [index / 8 for index in range(12)]
    assert np.abs(np.stack([picture for _, picture in pictures]).astype(float) - frames).mean() < 12
    assert blocks[0].time == 0
    assert blocks[0].sample_rate == 16_000
    assert 24_000 <= len(sound) < 24_000 + 1024
    assert np.corrcoef(sound[:24_000], waveform)[0, 1] > 0.98
    assert abs(np.corrcoef(sound[8:24_000], waveform[:-8])[0, 1]) < 0.95, "eight samples late must be visible"


@pytest.mark.skipif(sys.platform != "linux", reason="decord is installed on Linux only")
def test_decord_reads_twelve_frames(tiny_set: Path) -> None:
    decord = pytest.importorskip("decord")
    plan = plan_split(TINY, "ood")[0]
    frames, _ = render_signals(plan, TINY.ood_style)
    reader = decord.VideoReader(str(tiny_set / plan.media_path))
    decoded = reader.get_batch(range(len(reader))).asnumpy()
    assert reader.get_avg_fps() == 8
    assert decoded.shape == (12, 112, 112, 3)
    assert np.abs(decoded.astype(float) - frames).mean() < 14


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize_emotions(tmp_path / "set", settings=TINY, workers=1, on_progress=stop)
    assert [path.name for path in tmp_path.iterdir()] in ([], [".set.lock"])


def test_a_complete_set_is_kept_and_other_settings_are_refused(tiny_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("drawn again")

    monkeypatch.setattr(emotions, "_write_set", refuse)
    assert synthesize_emotions(tiny_set, settings=TINY) == tiny_set
    with pytest.raises(DataError, match=r"settings\.seed is 0, not 3; give another directory or overwrite=True"):
        synthesize_emotions(tiny_set, settings=replace(TINY, seed=3))
    louder = replace(TINY.style, voice=replace(TINY.style.voice, jitter=0.5))
    with pytest.raises(DataError, match=r"settings\.style\.voice\.jitter is 0\.1, not 0\.5"):
        synthesize_emotions(tiny_set, settings=replace(TINY, style=louder))


@pytest.mark.slow
def test_overwrite_replaces_the_whole_set(tmp_path: Path) -> None:
    directory = synthesize_emotions(tmp_path / "set", settings=TINY, workers=1)
    (directory / "test.jsonl").write_text("changed\n")
    with pytest.raises(DataError, match=r"test\.jsonl is missing or was changed"):
        synthesize_emotions(directory, settings=TINY)
    synthesize_emotions(directory, settings=replace(TINY, seed=1), workers=1, overwrite=True)
    assert json.loads((directory / "dataset.json").read_text())["seed"] == 1
    assert len((directory / "test.jsonl").read_text().splitlines()) == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == [".set.lock", "set"]


def test_a_directory_with_other_content_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match=r"holds no dataset\.json"):
        synthesize_emotions(tmp_path, settings=TINY, overwrite=True)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="give a writable directory"):
        synthesize_emotions(tmp_path / "file" / "set", settings=TINY)
    with pytest.raises(DataError, match="workers is 0"):
        synthesize_emotions(tmp_path / "set", settings=TINY, workers=0)
