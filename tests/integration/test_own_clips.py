"""Twenty clips, two of them damaged, one without sound, and a CSV: from there to a trained and evaluated model."""

import csv
import json
import random

import pytest

from lightning_mmrl.cli.main import main
from lightning_mmrl.data.synthetic import faces, voices
from lightning_mmrl.data.synthetic.plan import plan_split, render_signals
from lightning_mmrl.data.synthetic.settings import EmotionSetSettings
from lightning_mmrl.data.synthetic.video_file import write_clip, write_silent_clip

pytestmark = pytest.mark.slow

TRUNCATED, RANDOM, MUTE = 3, 8, 11

SMALL = (
    "stages.cold_start.num_steps=2",
    "stages.cold_start.data.batch_size=2",
    "stages.cold_start.validate_every=2",
    "stages.reason.num_steps=2",
    "stages.reason.data.batch_size=2",
    "stages.reason.algorithm.group_size=2",
    "stages.reason.sampling.max_new_tokens=8",
    "stages.reason.validate_every=2",
    "evaluation.max_new_tokens=8",
    "evaluation.num_resamples=50",
    "trainer.num_threads=1",
    "tracking=none",
    "+data.media.decode_workers=1",
)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder of clips and labels.csv, as a user would have them."""
    folder = tmp_path_factory.mktemp("own")
    clips = folder / "clips"
    clips.mkdir()
    settings = EmotionSetSettings(scale=0.06)
    plans = plan_split(settings, "test")[:20]
    for index, plan in enumerate(plans):
        frames, waveform = render_signals(plan, settings.style)
        path = clips / f"clip{index:02d}.mp4"
        if index == MUTE:
            write_silent_clip(path, frames, faces.FRAMES_PER_SECOND)
        else:
            write_clip(path, frames, faces.FRAMES_PER_SECOND, waveform, voices.SAMPLE_RATE_HZ)
    whole = (clips / f"clip{TRUNCATED:02d}.mp4").read_bytes()
    (clips / f"clip{TRUNCATED:02d}.mp4").write_bytes(whole[: len(whole) // 2])
    (clips / f"clip{RANDOM:02d}.mp4").write_bytes(random.Random(0).randbytes(20_000))
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("clip", "emotion", "speaker"))
        writer.writerows((f"clip{index:02d}.mp4", plan.label, f"s{index % 6}") for index, plan in enumerate(plans))
    return folder


@pytest.fixture(scope="module")
def dataset(workplace):
    out = workplace / "emotions"
    arguments = ["--media-root", str(workplace / "clips"), "--out", str(out), "--workers", "1"]
    assert main(["data", "from-csv", str(workplace / "labels.csv"), *arguments]) == 0
    return out


@pytest.fixture(scope="module")
def run(workplace, dataset):
    """The overrides of the trained run."""
    overrides = ["experiment=own_clips", f"data.root={dataset}", f"output_dir={workplace}/runs", *SMALL]
    assert main(["train", *overrides]) == 0
    return overrides


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_damaged_clips_are_named_and_the_rest_is_split(dataset):
    with (dataset / "rejected.csv").open() as file:
        rejected = list(csv.DictReader(file))
    assert [int(row["line"]) for row in rejected] == [TRUNCATED + 2, RANDOM + 2]
    assert {row["group"] for row in rejected} == {"cannot be decoded"}
    splits = {name: rows(dataset / f"{name}.jsonl") for name in ("train", "validation", "test")}
    found = [row for split in splits.values() for row in split]
    assert len(found) == 18
    assert [row["id"] for row in found if "audios" not in row] == [f"clip{MUTE:02d}"]
    assert all(splits.values())
    speakers = [{row["speaker"] for row in split} for split in splits.values()]
    assert sum(map(len, speakers)) == len(set.union(*speakers)) == 6


def test_the_dataset_is_valid(dataset, capsys):
    manifests = [str(path) for path in sorted(dataset.glob("*.jsonl"))]
    assert main(["data", "validate", *manifests, "--media-root", str(dataset), "--workers", "1"]) == 0
    assert " 0 bad" in capsys.readouterr().out.splitlines()[-1]


def test_the_model_is_trained_and_evaluated_on_the_test_split(run, workplace, dataset):
    folder = workplace / "runs" / "own_clips"
    comparison = json.loads((folder / "comparison.json").read_text())
    found = {(row["stage"], row["name"]): row["num_samples"] for row in comparison["results"]}
    num_test = len(rows(dataset / "test.jsonl"))
    assert found == {(stage, "test"): num_test for stage in ("base", "cold_start", "reason")}
    facts = json.loads((folder / "stages" / "01-reason" / "handoff" / "mmrl.json").read_text())
    assert facts["labels"] == json.loads((dataset / "labels.json").read_text())["labels"]


def test_the_checkpoint_evaluates_and_answers(run, workplace, capsys):
    checkpoint = workplace / "runs" / "own_clips" / "stages" / "01-reason" / "handoff"
    assert main(["evaluate", str(checkpoint), *run]) == 0
    assert "test" in capsys.readouterr().out
    assert main(["predict", str(checkpoint), str(workplace / "clips" / "clip00.mp4")]) == 0
    assert "reasoning:" in capsys.readouterr().out


def test_a_clip_that_breaks_later_is_left_out_and_found_by_validate(run, workplace, dataset, capsys):
    """The original must survive: the dataset's link is replaced, not written through."""
    victim = dataset / rows(dataset / "train.jsonl")[0]["videos"][0]
    victim.unlink()
    victim.write_bytes(b"\x00" * 1000)
    arguments = ["--media-root", str(dataset), "--workers", "1"]
    assert main(["data", "validate", str(dataset / "train.jsonl"), *arguments]) == 1
    assert "train.jsonl:1: " in capsys.readouterr().out
    assert main(["train", *run, "run_name=again", "order=[cold_start]", "stages.cold_start.data.batch_size=16"]) == 0
    quarantined = rows(workplace / "runs" / "again" / "quarantine.jsonl")
    assert victim.name in quarantined[0]["reason"]
