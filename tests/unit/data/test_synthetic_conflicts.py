"""Conflicts of the generated emotions: a face and a voice that no emotion has together, from clips of one speaker."""

from collections import Counter

import pytest

from lightning_mmrl.data.synthetic.conflicts import conflict_rows
from lightning_mmrl.data.synthetic.factors import FACE_GROUPS, VOICE_GROUPS, cue_to_label
from lightning_mmrl.data.synthetic.plan import manifest_row, plan_split
from lightning_mmrl.data.synthetic.settings import EmotionSetSettings

TEST = [manifest_row(plan, 0.3) for plan in plan_split(EmotionSetSettings(), "test")]
BY_FILE = {row["videos"][0]: row for row in TEST}
ROWS = conflict_rows(TEST, 0)


def test_no_emotion_has_the_cues_of_a_pair_and_the_truths_are_those_of_the_cues():
    for row in ROWS:
        picture, sound = BY_FILE[row["videos"][0]], BY_FILE[row["audios"][0]]
        assert f"{picture['face_cue']}+{sound['voice_cue']}" not in cue_to_label()
        assert picture["solution"] in row["picture_truth"] == list(FACE_GROUPS[picture["face_cue"]])
        assert sound["solution"] in row["sound_truth"] == list(VOICE_GROUPS[sound["voice_cue"]])
        assert not set(row["picture_truth"]) & set(row["sound_truth"])
        assert "solution" not in row


def test_both_clips_are_of_one_speaker_and_all_nine_contradictions_occur():
    assert [row["speaker"] for row in ROWS] == [row["speaker"] for row in TEST]
    assert all(BY_FILE[row["audios"][0]]["speaker"] == row["speaker"] for row in ROWS)
    pairs = Counter((row["face_cue"], row["voice_cue"]) for row in ROWS)
    assert len(pairs) == 9
    for face in FACE_GROUPS:  # its voices take turns, as far as a speaker has them
        own = [number for (shown, _), number in pairs.items() if shown == face]
        assert max(own) <= 2 * min(own)


def test_a_guess_follows_the_picture_as_often_as_the_sound():
    sizes = [sum(len(row[f"{sense}_truth"]) for row in ROWS) / 7 / len(ROWS) for sense in ("picture", "sound")]
    assert sizes == [pytest.approx(0.26, abs=0.02)] * 2  # two labels or one, of seven


def test_the_seed_decides_and_a_set_of_seven_clips_has_seven_conflicts():
    assert conflict_rows(TEST, 0) == ROWS != conflict_rows(TEST, 1)
    few = [manifest_row(plan, 0.3) for plan in plan_split(EmotionSetSettings(scale=0.001), "test")]
    assert len(conflict_rows(few, 0)) == len(few) == 7
