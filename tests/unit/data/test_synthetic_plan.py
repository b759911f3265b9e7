"""The plan of a set: sizes, balance, speakers, tasks, words and settings that are refused."""

from collections import Counter
from typing import Any

import pytest

from lightning_mmrl.data.synthetic.factors import (
    FACE_WORDINGS,
    LABELS,
    VOICE_WORDINGS,
    cue_to_label,
)
from lightning_mmrl.data.synthetic.plan import SPLITS, WEAK_THOUGHT, manifest_row, plan_split
from lightning_mmrl.data.synthetic.settings import BaseTaskWeights, EmotionSetSettings, SplitSizes
from lightning_mmrl.errors import DataError


def rows_of(settings: EmotionSetSettings, split: str) -> list[dict[str, Any]]:
    return [manifest_row(plan, settings.weak_label_accuracy) for plan in plan_split(settings, split)]


def test_default_sizes_and_speakers() -> None:
    settings = EmotionSetSettings()
    sizes = {split: len(plan_split(settings, split)) for split in SPLITS}
    num_speakers = {split: len({plan.speaker for plan in plan_split(settings, split)}) for split in SPLITS}
    assert sizes == {"base": 800, "cold_start": 580, "train": 2002, "validation": 350, "test": 350, "ood": 350}
    assert num_speakers == {"base": 40, "cold_start": 29, "train": 100, "validation": 25, "test": 25, "ood": 25}


def test_scale_multiplies_sizes_down_to_one_clip_per_label() -> None:
    settings = EmotionSetSettings(scale=0.02)
    assert [settings.size_of(split) for split in SPLITS] == [16, 12, 40, 7, 7, 7]


@pytest.mark.parametrize("split", SPLITS)
def test_labels_are_balanced(split: str) -> None:
    plans = plan_split(EmotionSetSettings(), split)
    num_parts = len({plan.part for plan in plans})
    counts = Counter(plan.label for plan in plans)
    assert counts.keys() == set(LABELS)
    assert max(counts.values()) - min(counts.values()) <= num_parts


def test_every_part_is_balanced_and_spread_over_the_split() -> None:
    plans = plan_split(EmotionSetSettings(), "cold_start")
    assert Counter(plan.part for plan in plans) == {"emer_style": 232, "annotated_style": 348}
    emer = [plan for plan in plans if plan.part == "emer_style"]
    assert set(Counter(plan.label for plan in emer).values()) == {33, 34}
    assert len({plan.speaker for plan in emer}) == 29
    assert 30 < sum(plan.part == "emer_style" for plan in plans[:116]) < 62


def test_speakers_never_cross_splits() -> None:
    speakers = {split: {row["speaker"] for row in rows_of(EmotionSetSettings(scale=0.1), split)} for split in SPLITS}
    assert sum(map(len, speakers.values())) == len(set().union(*speakers.values()))
    assert all(len(names) >= 2 for names in speakers.values())


def test_ids_and_media_paths_are_unique_and_relative() -> None:
    rows = [row for split in SPLITS for row in rows_of(EmotionSetSettings(scale=0.05), split)]
    assert len({row["id"] for row in rows}) == len(rows)
    assert all(row["videos"] == row["audios"] == [f"clips/{row['split']}/{row['id']}.mp4"] for row in rows)


def test_cold_start_traces_state_the_cues_of_the_label() -> None:
    wordings = Counter()
    for row in rows_of(EmotionSetSettings(), "cold_start"):
        thought, answer = row["messages"][1]["content"].removeprefix("<think>").split("</think>")
        face, voice = thought.split(" and ")
        assert face in FACE_WORDINGS[row["face_cue"]]
        assert voice in VOICE_WORDINGS[row["voice_cue"]]
        assert answer == f"<answer>{cue_to_label()[row['face_cue'] + '+' + row['voice_cue']]}</answer>"
        assert answer == f"<answer>{row['solution']}</answer>"
        wordings.update([face, voice])
    assert len(wordings) == 16


@pytest.mark.parametrize("split", ["train", "validation", "test", "ood"])
def test_label_only_splits_have_no_answer(split: str) -> None:
    for row in rows_of(EmotionSetSettings(scale=0.05), split):
        assert [message["role"] for message in row["messages"]] == ["user"]
        assert row["solution"] == cue_to_label()[row["face_cue"] + "+" + row["voice_cue"]]
        assert "source" not in row
        assert "task" not in row


def test_base_tasks_have_their_shares_and_answers() -> None:
    rows = rows_of(EmotionSetSettings(), "base")
    assert Counter(row["task"] for row in rows) == {"face_caption": 300, "voice_caption": 300, "weak_label": 200}
    for row in rows:
        answer = row["messages"][1]["content"]
        if row["task"] == "face_caption":
            assert answer == row["solution"]
            assert answer in FACE_WORDINGS[row["face_cue"]]
        elif row["task"] == "voice_caption":
            assert answer == row["solution"]
            assert answer in VOICE_WORDINGS[row["voice_cue"]]
        else:
            assert answer == f"<think>{WEAK_THOUGHT}</think><answer>{row['solution']}</answer>"
    assert len({(row["task"], row["messages"][0]["content"]) for row in rows}) == 3


@pytest.mark.parametrize(("accuracy", "low", "high"), [(0.0, 0.0, 0.0), (0.5, 0.47, 0.53), (1.0, 1.0, 1.0)])
def test_weak_labels_are_right_as_often_as_asked(accuracy: float, low: float, high: float) -> None:
    settings = EmotionSetSettings(
        sizes=SplitSizes(base=4000),
        base_tasks=BaseTaskWeights(face_caption=0, voice_caption=0, weak_label=1),
        weak_label_accuracy=accuracy,
    )
    rows = rows_of(settings, "base")
    truths = [cue_to_label()[row["face_cue"] + "+" + row["voice_cue"]] for row in rows]
    right = sum(row["solution"] == truth for row, truth in zip(rows, truths, strict=True)) / len(rows)
    assert low <= right <= high
    wrong = Counter(row["solution"] for row, truth in zip(rows, truths, strict=True) if row["solution"] != truth)
    assert accuracy == 1.0 or (wrong.keys() == set(LABELS) and max(wrong.values()) < 1.4 * min(wrong.values()))


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: EmotionSetSettings(seed=-1), "seed"),
        (lambda: EmotionSetSettings(scale=0.0), "scale"),
        (lambda: EmotionSetSettings(weak_label_accuracy=1.5), "weak_label_accuracy"),
        (lambda: EmotionSetSettings(emer_style_share=-0.1), "emer_style_share"),
        (lambda: SplitSizes(train=0), "sizes.train"),
        (lambda: BaseTaskWeights(face_caption=0, voice_caption=0, weak_label=0), "base_tasks"),
    ],
)
def test_a_bad_setting_is_refused_by_name(make: Any, key: str) -> None:
    with pytest.raises(DataError, match=key):
        make()
