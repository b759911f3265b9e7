"""R1-Omni on files in their owners' layouts, with one command: EMER, then DFEW and MAFW, tested on RAVDESS too."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from lightning_mmrl.cli.main import main
from lightning_mmrl.data.datamodules import OmniDataModule
from lightning_mmrl.data.synthetic.emotion_trees import SIZES
from lightning_mmrl.prompts.labels import DFEW7, MAFW11, RAVDESS8

pytestmark = pytest.mark.slow

SMALL = (
    "+data.build.scale=0.02",
    "+data.media.decode_workers=1",
    "evaluation.num_resamples=50",
    "evaluation.max_new_tokens=4",
    "trainer.num_threads=1",
    "tracking=none",
    *(f"stages.{name}.num_steps=2" for name in ("pretrain", "cold_start", "reason", "labels")),
    *(f"stages.{name}.data.batch_size=4" for name in ("pretrain", "cold_start", "reason", "labels")),
    "stages.reason.algorithm.group_size=2",
    "stages.reason.sampling.max_new_tokens=4",
    "stages.reason.rollout_table_every=1",
)


@pytest.fixture(scope="module")
def opened():
    """The manifests that the stages and evaluations of the run opened, in order, each with its samples."""
    return []


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, opened):
    """A folder in which the command has run; the data did not exist before."""
    folder = tmp_path_factory.mktemp("r1_omni")
    open_source = OmniDataModule.open_source.__func__

    def noted(cls, source, **given):
        found = open_source(cls, source, **given)
        opened.append((source.path.relative_to(folder / "data").as_posix(), list(found.samples)))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OmniDataModule, "open_source", classmethod(noted))
        assert main(["train", *command(folder)]) == 0
    return folder


def command(folder):
    return ["experiment=r1_omni", "scale=files", f"data.root={folder}/data", f"output_dir={folder}/runs", *SMALL]


def rows(path: Path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def stage_folder(workplace, name):
    [folder] = (workplace / "runs" / "r1_omni_files" / "stages").glob(f"*-{name}")
    return folder


def evaluated(workplace, name):
    return json.loads((stage_folder(workplace, name) / "evaluation" / "evaluation.json").read_text())


def test_each_stage_reads_its_own_files(workplace, opened):
    labeled = ["sets/dfew/fold_1/train.jsonl", "sets/mafw/fold_1/train.jsonl"]
    assert [name for name, _ in opened] == ["BASE/base.json", "EMER/emer.json", *labeled, *labeled]
    samples = dict(opened)
    assert [len(found) for found in samples.values()] == [13, 11, 27, 43]
    assert {sample.solution for sample in samples["EMER/emer.json"]} == set(MAFW11)
    assert all(sample.messages[-1].content.startswith("<think>") for sample in samples["EMER/emer.json"])


def test_rl_draws_from_both_sets_with_the_label_alone(workplace):
    drawn = [row for path in (stage_folder(workplace, "reason") / "rollouts").iterdir() for row in rows(path)]
    assert {row["media"][0]["path"].partition("/")[0] for row in drawn} == {"Clip", "data"}
    assert {row["messages"][-1]["role"] for row in drawn} == {"user"}
    assert all(row["solution"] in MAFW11 for row in drawn)


def test_every_stage_is_evaluated_on_each_set_with_its_own_labels(workplace):
    expected = {"dfew": (7, DFEW7), "mafw": (11, MAFW11), "ravdess": (30, RAVDESS8)}
    for stage in ("pretrain", "cold_start", "reason", "labels"):
        found = evaluated(workplace, stage)
        assert set(found) == set(expected)
        for name, (num_samples, labels) in expected.items():
            assert found[name]["num_samples"] == num_samples
            recalled = {key.removeprefix("recall/") for key in found[name]["metrics"] if key.startswith("recall/")}
            assert recalled == set(labels)
            assert {"war", "uar"} <= set(found[name]["intervals"])
    truths = Counter(row["truth"] for row in rows(stage_folder(workplace, "reason") / "evaluation" / "ravdess.jsonl"))
    assert truths == {label: 2 if label == "neutral" else 4 for label in RAVDESS8}
    assert evaluated(workplace, "reason")["ravdess"]["intervals"]["uar"]["unit"] == "speaker"


def test_no_clip_is_in_two_splits_and_calm_is_in_no_training(workplace, opened):
    for name in ("dfew", "mafw"):
        folder = workplace / "data" / "sets" / name / "fold_1"
        clips = [
            row["videos"][0] for split in ("train", "validation", "test") for row in rows(folder / f"{split}.jsonl")
        ]
        assert len(clips) == len(set(clips)) == {"dfew": 35, "mafw": 55}[name]
    assert all(sample.solution != "calm" for _, found in opened for sample in found)
    assert "calm" in {row["solution"] for row in rows(workplace / "data" / "sets" / "ravdess" / "test.jsonl")}


def test_the_same_command_again_keeps_the_files_and_the_results(workplace, opened, capsys):
    kept = {path: path.stat().st_mtime_ns for path in (workplace / "data").rglob("*.json*")}
    num_opened = len(opened)
    assert main(["train", *command(workplace)]) == 0
    assert "making" not in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (workplace / "data").rglob("*.json*")} == kept
    assert len(opened) == num_opened


def test_a_folder_of_one_s_own_with_this_layout_serves_the_same_command(workplace, tmp_path):
    own = tmp_path / "own"
    for name in ("EMER", "DFEW", "MAFW", "RAVDESS"):
        shutil.copytree(workplace / "data" / name, own / name)
    given = [
        *command(workplace),
        f"data.root={own}",
        "data.build=null",
        "order=[cold_start]",
        "stages.cold_start.start_from=base",
        "run_name=own",
    ]
    assert main(["train", *given]) == 0
    assert (own / "sets" / "mafw" / "fold_5" / "train.jsonl").is_file()


def test_the_sizes_are_those_of_the_published_cold_start(workplace):
    assert SIZES["EMER"] == 232
    assert json.loads((workplace / "data" / "dataset.json").read_text())["settings"] == {"scale": 0.02, "seed": 0}
