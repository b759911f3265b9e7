"""The headline by speaker."""

import json
from dataclasses import replace

import numpy as np
import pytest

from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.speakers import SpeakerScore, SpeakerSpread, speaker_spread
from lightning_mmrl.evaluation.tasks.closed_labels import ClosedLabels

TASK = ClosedLabels(labels=("angry", "sad"))


def judged(place, speaker, truth, predicted):
    return Judgement(
        sample_id=str(place), speaker=speaker, truth=truth, predicted=predicted, valid_format=True, text=""
    )


ANSWERS = [
    judged(place, *row)
    for place, row in enumerate(
        [
            ("b", "sad", "sad"),
            ("a", "sad", "sad"),
            ("b", "sad", None),
            ("c", "angry", "angry"),
            ("b", "angry", "angry"),
            ("c", "angry", "sad"),
            ("c", "angry", "sad"),
            ("c", "angry", "angry"),
        ]
    )
]
VALUES = {"a": 1.0, "b": (0.5 + 1) / 2, "c": 0.5}
"""UAR of each speaker over the labels that it shows."""


def test_each_speaker_has_the_headline_of_its_own_samples():
    found = speaker_spread(ANSWERS[::-1], TASK)
    assert found.each == {
        name: SpeakerScore(num_samples=number, value=VALUES[name]) for name, number in (("a", 1), ("b", 3), ("c", 4))
    }
    values = list(VALUES.values())
    assert (found.headline, found.num_speakers, found.min, found.median, found.max) == ("uar", 3, 0.5, 0.75, 1.0)
    assert found.sd == pytest.approx(np.std(values, ddof=1))
    for name, score in found.each.items():
        own = [each for each in ANSWERS if each.speaker == name]
        assert score.value == TASK.metrics(own)["uar"]


def test_it_comes_back_from_a_file():
    found = speaker_spread(ANSWERS, TASK)
    assert SpeakerSpread.from_plain(json.loads(json.dumps(found.plain()))) == found


def test_without_speakers_there_is_none():
    assert speaker_spread([replace(each, speaker=None) for each in ANSWERS], TASK) is None
    assert speaker_spread([*ANSWERS, replace(ANSWERS[0], speaker=None)], TASK) is None
    assert speaker_spread([each for each in ANSWERS if each.speaker == "b"], TASK) is None
