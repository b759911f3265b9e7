import json

import pytest

from lightning_mmrl.errors import DataError
from lightning_mmrl.evaluation.consistency import CueLexicon

CUES = {
    "face": {"lowered": ["lowered brows", "knitted brows"], "smile": ["smile", "raised lip corners"]},
    "voice": {"fast": ["fast", "rapid speech"], "slow": ["slow"]},
}
IMPLIED = {"lowered+fast": "angry", "smile+fast": "happy", "lowered+slow": "sad"}
LEXICON = CueLexicon(cues=CUES, cue_to_label=IMPLIED)


@pytest.mark.parametrize(
    ("think", "label"),
    [
        ("Lowered brows and a fast voice.", "angry"),
        ("The voice is fast; knitted\n  brows, too.", "angry"),
        ("Lowered brows, knitted brows, fast, rapid speech", "angry"),
        ("KNITTED-BROWS; SLOW!", "sad"),
        ("smile_fast", "happy"),
        ("\uff53mile and fast", "happy"),
        ("Lowered brows.", None),
        ("A fast voice.", None),
        ("Lowered brows, a smile, a fast voice.", None),
        ("Lowered brows, fast, then slow.", None),
        ("A smile and slow speech.", None),
        ("She smiles, fast.", None),
        ("Lowered brows, steadfast.", None),
        ("lowered the brows, fast", None),
        ("", None),
    ],
)
def test_implied_label(think, label):
    assert LEXICON.implied_label(think) == label


@pytest.mark.timeout(20)
def test_a_long_thought_is_cheap():
    assert LEXICON.implied_label("lowered " * 200_000 + "\n_" * 200_000) is None


@pytest.mark.parametrize(
    ("cues", "implied", "sentence"),
    [
        ({"face": {"a": []}}, {}, "cues.face.a is empty"),
        ({"face": {"a": ["..."]}}, {}, "cues.face.a is empty or has a blank"),
        ({"face": {"a": ["brows"], "b": ["Lowered brows"]}}, {}, "'brows' of 'a' and 'lowered brows' of 'b' overlap"),
        ({"face": {"a": ["x"], "b": ["X"]}}, {}, "overlap"),
        (CUES, {"lowered": "angry"}, "cue_to_label.lowered.*<lowered|smile>"),
        (CUES, {"fast+lowered": "angry"}, r"cue_to_label.fast\+lowered"),
        (CUES, {"lowered+fast+slow": "angry"}, r"cue_to_label.lowered\+fast\+slow"),
    ],
)
def test_a_table_that_cannot_work_is_refused(cues, implied, sentence):
    with pytest.raises(DataError, match=sentence):
        CueLexicon(cues=cues, cue_to_label=implied)


def test_the_same_word_may_serve_two_channels():
    lexicon = CueLexicon(
        cues={"face": {"tense": ["tense"]}, "voice": {"tense": ["tense"]}}, cue_to_label={"tense+tense": "fear"}
    )
    assert lexicon.implied_label("all tense") == "fear"


def labels_file(path, **changes):
    content = {"name": "dfew7", "labels": ["angry", "happy", "sad"], "cues": CUES, "cue_to_label": IMPLIED} | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return path


def test_a_file_gives_the_same_lexicon(tmp_path):
    assert CueLexicon.from_file(labels_file(tmp_path / "labels.json")) == LEXICON


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"cues": None}, "'cues'"),
        ({"cues": ["face"]}, "needs labels, cues"),
        ({"cue_to_label": {"lowered+fast": "mad"}}, "'mad'"),
        ({"cue_to_label": {"x": "angry"}}, "cue_to_label.x"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, changes, sentence):
    path = labels_file(tmp_path / "labels.json", **changes)
    with pytest.raises(DataError, match=sentence) as caught:
        CueLexicon.from_file(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [None, "{", "[]", b"\xff"])
def test_an_unreadable_file_is_named(tmp_path, content):
    path = tmp_path / "labels.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=r"labels\.json"):
        CueLexicon.from_file(path)
