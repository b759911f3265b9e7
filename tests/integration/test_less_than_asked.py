"""Nothing is trained or evaluated on less than was asked without a word: a sound of 20 ms costs itself, by name."""

import json
import shutil

import clips
import numpy as np
import pytest
import soundfile
from PIL import Image

from lightning_mmrl.cli.main import main

pytestmark = pytest.mark.slow

NUM_TEST, SHORT_LINE = 100, 71
ANSWER = "<think>The clip shows it.</think><answer>{}</answer>"
SMALL = (
    "stages.cold_start.num_steps=6",
    "stages.cold_start.validate_every=3",
    "stages.reason.num_steps=2",
    "stages.reason.validate_every=2",
    "stages.reason.data.batch_size=2",
    "stages.reason.algorithm.group_size=2",
    "stages.reason.sampling.max_new_tokens=8",
    "evaluation.max_new_tokens=8",
    "evaluation.num_resamples=50",
    "trainer.num_threads=1",
    "tracking=none",
    "+data.media.decode_workers=1",
)


def line(name, sound, label, *, target=False):
    turns = [{"role": "user", "content": "<audio>Which emotion?"}]
    turns += [{"role": "assistant", "content": ANSWER.format(label)}] if target else []
    return {"id": name, "messages": turns, "audios": [sound], "solution": label}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Four sounds and one of 20 ms to train on; a hundred to evaluate on; line 71 is the short one."""
    root = tmp_path_factory.mktemp("asked") / "ds"
    (root / "media").mkdir(parents=True)
    labels = ["sad", "happy"] * 3
    for index in range(6):
        clips.write_wav(root / "media" / f"a{index}.wav", clips.tone(300 + 50 * index, 0.4, 8000), 8000)
    clips.write_wav(root / "media" / "x.wav", clips.tone(440, 0.02, 16_000), 16_000)
    train = [(f"a{index}", f"media/a{index}.wav", labels[index]) for index in range(4)] + [("x", "media/x.wav", "sad")]
    write(root / "train.jsonl", [line(*row) for row in train])
    write(root / "cold_start.jsonl", [line(*row, target=True) for row in train])
    write(root / "validation.jsonl", [line("v", "media/a4.wav", "happy")])
    test = [line(f"t{index:03d}", f"media/a{index % 6}.wav", labels[index % 6]) for index in range(NUM_TEST)]
    test[SHORT_LINE - 1] = line(f"t{SHORT_LINE - 1:03d}", "media/x.wav", "sad")
    write(root / "test.jsonl", test)
    (root / "labels.json").write_text('{"labels": ["happy", "sad"]}')
    return root


@pytest.fixture(scope="module")
def overrides(dataset):
    return ["experiment=own_clips", f"data.root={dataset}", f"output_dir={dataset.parent}/runs", *SMALL]


@pytest.fixture(scope="module")
def checkpoint(dataset, overrides):
    assert main(["train", *overrides, "evaluation.limit=2"]) == 0
    return dataset.parent / "runs" / "own_clips" / "stages" / "01-reason" / "handoff"


def validate(root, *more, manifests=("train", "cold_start", "validation", "test")):
    files = [str(root / f"{name}.jsonl") for name in manifests]
    return main(["data", "validate", *files, "--media-root", str(root), "--workers", "1", *more])


def test_validate_finds_with_the_model_what_it_cannot_find_without(dataset, overrides, capsys):
    validate(dataset)
    without = capsys.readouterr().out
    assert "encoding not checked" in without
    assert without.splitlines()[-1] == "106 samples usable, 0 bad lines"
    report = dataset.parent / "report.json"
    assert validate(dataset, "--json", str(report), "--for", *overrides) == 1
    found = json.loads(report.read_text())
    assert found["encoding_checked"] is True
    bad = {(problem["file"].rpartition("/")[2], problem["line"]) for problem in found["problems"]}
    assert bad == {("train.jsonl", 5), ("cold_start.jsonl", 5), ("test.jsonl", SHORT_LINE)}
    assert {problem["group"] for problem in found["problems"]} == {"cannot be encoded"}
    assert all("x.wav: sound of 20 ms is too short" in problem["reason"] for problem in found["problems"])
    assert found["num_samples"] == 104


def test_every_step_is_trained_and_the_short_sound_is_named(checkpoint, dataset):
    folder = dataset.parent / "runs" / "own_clips"
    rows = [json.loads(row) for row in (folder / "quarantine.jsonl").read_text().splitlines()]
    assert [(row["manifest"], row["sample_id"]) for row in rows] == [("cold_start.jsonl", "x"), ("train.jsonl", "x")]
    assert all("x.wav: sound of 20 ms is too short" in row["reason"] for row in rows)
    lines = [json.loads(line) for line in (folder / "exclusions.jsonl").read_text().splitlines()]
    manifests = [line["manifest"] for line in lines if "manifest" in line]
    left_out = {manifest: [] for manifest in manifests}
    for line in lines:
        if "left_out" in line:
            left_out[manifests[line["set"]]] += line["left_out"]
    assert left_out == {"cold_start.jsonl": ["x"], "train.jsonl": ["x"], "validation.jsonl": [], "test.jsonl": []}
    # Metrics of a stage are written at its last step.
    stages = json.loads((folder / "manifest.json").read_text())["stages"]
    assert {"cold_start/train/loss", "cold_start/validation/uar"} <= stages["cold_start"]["training_metrics"].keys()
    assert len(list((folder / "stages" / "01-reason" / "rollouts").iterdir())) > 0


def test_an_evaluation_judges_all_but_the_short_sound_and_counts_it_both_ways(checkpoint, overrides, dataset, capsys):
    """The case evaluation_cut_short."""
    assert main(["evaluate", str(checkpoint), *overrides]) == 0
    captured = capsys.readouterr()
    assert "test.jsonl: left out" in captured.err
    assert f"t{SHORT_LINE - 1:03d}" in captured.err
    assert "test + 1 left out" in captured.out
    folder = dataset.parent / "runs" / "own_clips" / "evaluations" / "01-reason"
    found = json.loads((folder / "evaluation.json").read_text())["test"]
    assert found["num_samples"] == len((folder / "test.jsonl").read_text().splitlines()) == NUM_TEST - 1
    assert [each["sample_id"] for each in found["left_out"]] == [f"t{SHORT_LINE - 1:03d}"]
    metrics = found["metrics"]
    assert metrics["war_counted_wrong"] == pytest.approx(metrics["war"] * (NUM_TEST - 1) / NUM_TEST)


def test_the_same_command_again_leaves_the_decisions_as_they_are(checkpoint, overrides, dataset, capsys):
    path = dataset.parent / "runs" / "own_clips" / "exclusions.jsonl"
    before = path.read_bytes()
    assert main(["train", *overrides, "evaluation.limit=2"]) == 0
    assert path.read_bytes() == before
    assert "left out" not in capsys.readouterr().err


NAN = np.where(np.arange(6400) == 100, np.nan, 0.1).astype(np.float32)
A0 = {"audios": ["media/a0.wav"]}
BAD = {
    "nan": {"audios": ["media/nan.wav"]},
    "tag-in-target": {"audios": ["media/a0.wav"] * 2, "answer": "<think>An <audio></think><answer>sad</answer>"},
    "token": {**A0, "question": "<audio>Which? <|IMAGE|>"},
    "token-in-target": {**A0, "answer": "<think>a</think><answer><|AUDIO|></answer>"},
    "long": {**A0, "question": "<audio>" + "Which? " * 4000},
    "long-target": {**A0, "answer": "Which? " * 4000},
    "narrow": {"images": ["media/narrow.png"], "question": "<image>Which?"},
    "no-target": {**A0, "answer": None},
    "solution": {**A0, "solution": "sorrow"},
}


@pytest.fixture(scope="module")
def own(dataset, tmp_path_factory):
    """A folder with a sound and a picture more, to write manifests into."""
    folder = shutil.copytree(dataset, tmp_path_factory.mktemp("own") / "ds")
    soundfile.write(folder / "media" / "nan.wav", NAN, 16_000, subtype="FLOAT")
    Image.new("RGB", (1, 300)).save(folder / "media" / "narrow.png")
    return folder


@pytest.mark.parametrize("name", BAD)
def test_validate_names_each_line_that_training_would_not_take(own, overrides, capsys, name):
    """The line is bad as a target of the cold start, or as what is trained with a reward if it is about solutions."""
    bad = dict(BAD[name])
    answer, question = bad.pop("answer", ANSWER.format("sad")), bad.pop("question", "<audio>Which emotion?")
    manifest, target = ("train", False) if name == "solution" else ("cold_start", True)
    turns = [{"role": "user", "content": question}]
    turns += [{"role": "assistant", "content": answer}] if target and answer is not None else []
    good = line("good", "media/a0.wav", "sad", target=target)
    write(own / f"{manifest}.jsonl", [good, {"id": "bad", "messages": turns, "solution": "sad", **bad}])
    assert validate(own, "--for", *overrides, f"data.root={own}", manifests=(manifest,)) == 1
    out = capsys.readouterr().out
    assert f"{own / manifest}.jsonl:2: " in out
    assert out.splitlines()[-1] == "1 sample usable, 1 bad line"


def test_validate_prepares_a_manifest_with_the_prompt_of_its_stage(own, overrides, capsys):
    """Only the prompt of the second stage is too long, so only the manifest that it reads is refused."""
    good = {name: line(name, "media/a0.wav", "sad", target=name == "cold_start") for name in ("cold_start", "train")}
    for name, row in good.items():
        write(own / f"{name}.jsonl", [row])
    given = [*overrides, f"data.root={own}", f"+stages.reason.prompt={{system: '{'Look. ' * 4000}'}}"]
    assert validate(own, "--for", *given, manifests=("cold_start",)) == 0
    capsys.readouterr()
    assert validate(own, "--for", *given, manifests=("train",)) == 1
    out = capsys.readouterr().out
    assert f"{own / 'train'}.jsonl:1: " in out
    assert out.splitlines()[-1] == "0 samples usable, 1 bad line"
