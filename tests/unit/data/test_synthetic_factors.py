"""The factors name each emotion once, and one modality alone cannot pass the ceiling."""

from collections.abc import Mapping
from itertools import product

import pytest

from lightning_mmrl.data.synthetic.factors import (
    FACE_GROUPS,
    FACE_WORDINGS,
    LABELS,
    VOICE_GROUPS,
    VOICE_WORDINGS,
    cue_to_label,
    group_of,
    unimodal_ceiling,
)

Groups = Mapping[str, tuple[str, ...]]
both_modalities = pytest.mark.parametrize("groups", [FACE_GROUPS, VOICE_GROUPS], ids=["face", "voice"])


def best_recall(groups: Groups) -> float:
    """The best unweighted average recall over all 7**4 maps from group to answer, by trying each of them."""
    seen = [group_of(label, groups) for label in LABELS]
    names = list(groups)
    return max(
        sum(answers[names.index(group)] == label for label, group in zip(LABELS, seen, strict=True)) / len(LABELS)
        for answers in product(LABELS, repeat=len(names))
    )


@both_modalities
def test_every_label_is_in_exactly_one_group(groups: Groups) -> None:
    assert sorted(label for members in groups.values() for label in members) == sorted(LABELS)


def test_the_pair_of_groups_names_the_emotion() -> None:
    assert sorted(cue_to_label().values()) == sorted(LABELS)
    assert cue_to_label()["lowered+fast"] == "angry"
    assert cue_to_label()["raised+rising"] == "surprise"


@both_modalities
def test_one_modality_reaches_four_of_seven_and_no_more(groups: Groups) -> None:
    assert unimodal_ceiling(groups) == best_recall(groups) == 4 / 7


def test_the_ceiling_follows_the_groups() -> None:
    assert unimodal_ceiling({"all": LABELS}) == 1 / 7
    assert unimodal_ceiling({label: (label,) for label in LABELS}) == 1.0


def test_a_wording_names_its_group_uniquely() -> None:
    wordings = [words for pair in (*FACE_WORDINGS.values(), *VOICE_WORDINGS.values()) for words in pair]
    assert len(set(wordings)) == len(wordings)
    assert all(len(words.split()) == 2 for words in wordings)
    assert FACE_WORDINGS.keys() == FACE_GROUPS.keys()
    assert VOICE_WORDINGS.keys() == VOICE_GROUPS.keys()
