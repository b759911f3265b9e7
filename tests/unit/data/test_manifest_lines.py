"""Samples that are written as a manifest are read back as they were, and no other sample is written."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_mmrl.data.manifest_lines import manifest_line, write_manifest
from lightning_mmrl.data.schema import LineError, read_manifest
from lightning_mmrl.errors import DataError
from lightning_mmrl.types.records import MediaRef, Message, Sample

PATHS = {"image": "a picture.png", "video": "clips/1.mp4", "audio": "clips/1.mp4"}
SAMPLE = Sample(
    id="clip 1#0",
    messages=(
        Message(role="system", content="Be brief."),
        Message(role="user", content="<audio><video>Which emotion?"),
        Message(role="assistant", content="<think>Brows.</think><answer>angry</answer>"),
    ),
    media=(
        MediaRef(kind="audio", path="clips/1.mp4", end_s=2.0),
        MediaRef(kind="video", path="clips/1.mp4", start_s=0.5, end_s=2.0),
    ),
    solution="angry",
    speaker="s01",
    split="train",
    extras={"difficulty": 3, "tags": ["loud"], "labels": ["angry", "sad"], "nothing": None},
)

# Characters that a reader of lines, of JSON or of Unicode could take for something else.
texts = st.text(st.characters(exclude_categories=("Cs",)) | st.sampled_from('\n\r\x00\u2028\u0085\ufeff"\\<>|{}#'))
words = texts.filter(lambda text: text.strip() and "<" not in text)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
)
columns = st.text("abcxyz _-", min_size=1).map(lambda name: f"my {name}") | st.text("\u00e9\u6f22\x00\n", min_size=1)
seconds = st.none() | st.floats(0, 10)


@st.composite
def references(draw):
    kind = draw(st.sampled_from(sorted(PATHS)))
    start, length = draw(seconds), draw(st.none() | st.floats(0.125, 10))
    if kind == "image":
        start = length = None
    end = None if length is None else (start or 0.0) + length
    return {"kind": kind, "path": PATHS[kind], "start_s": start, "end_s": end}


@st.composite
def samples(draw):
    """The fields of a sample; tests build it, since the shape checker draws random numbers when they do."""
    media = draw(st.lists(references(), max_size=4))
    tags = "".join(f"<{ref['kind']}>" for ref in media)
    system = draw(st.none() | words)
    return {
        "id": draw(texts.filter(bool)),
        "messages": [
            *([] if system is None else [("system", system)]),
            ("user", tags + draw(words)),
            ("assistant", draw(words)),
        ],
        "media": media,
        "solution": draw(st.none() | texts),
        "speaker": draw(st.none() | texts),
        "split": draw(st.none() | texts),
        "extras": draw(st.dictionaries(columns, values, max_size=3)),
    }


def built(fields):
    messages = tuple(Message(role=role, content=content) for role, content in fields["messages"])
    return Sample(**{**fields, "messages": messages, "media": tuple(MediaRef(**ref) for ref in fields["media"])})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    for path in PATHS.values():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(b"x")
    return folder


@given(written=st.lists(samples(), min_size=1, max_size=4, unique_by=lambda fields: fields["id"]))
def test_a_manifest_is_read_back_as_it_was_written(written, root):
    path, written = root / "train.jsonl", [built(fields) for fields in written]
    assert write_manifest(path, iter(written)) == len(written)
    assert read_manifest(path, root) == written


def test_a_line_has_one_column_for_each_field():
    assert json.loads(manifest_line(SAMPLE)) == {
        "id": "clip 1#0",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "<audio><video>Which emotion?"},
            {"role": "assistant", "content": "<think>Brows.</think><answer>angry</answer>"},
        ],
        "videos": [{"path": "clips/1.mp4", "start": 0.5, "end": 2.0}],
        "audios": [{"path": "clips/1.mp4", "start": None, "end": 2.0}],
        "solution": "angry",
        "speaker": "s01",
        "split": "train",
        "difficulty": 3,
        "tags": ["loud"],
        "labels": ["angry", "sad"],
        "nothing": None,
    }


def test_texts_are_written_in_utf8():
    assert b'"solution": "\xe6\xbc\xa2"' in manifest_line(replace(SAMPLE, solution="\u6f22", extras={}))


REFUSED = {
    "an empty id": ({"id": ""}, "its id '' would be read back as 'unnamed'"),
    "half a character in the id": ({"id": "a\ud800"}, r"the lone surrogate \\ud800"),
    "half a character in a column": ({"extras": {"cue": ["\udfff"]}}, r"the lone surrogate \\udfff"),
    "no turns": ({"messages": ()}, "'messages' is \\[\\]"),
    "a media tag without a medium": ({"media": ()}, "1 <video> tags in the messages but 0 entries"),
    "media in another order": ({"media": SAMPLE.media[::-1]}, "its media .* would be read back as"),
    "a column of another field": ({"extras": {"speaker": "s02"}}, "its speaker 's01' would be read back as 's02'"),
    "a column with a field's value": ({"extras": {"split": "train"}}, "its extras .* would be read back as {}"),
    "a column of turns": ({"extras": {"query": "Why?"}}, "'messages' stands beside 'query'"),
    "a span of the line": ({"extras": {"start": 1.0}}, "its extras .* would be read back as"),
    "a solution that is no label": ({"solution": "happy"}, "solution 'happy' is none of 'labels'"),
    "a number that JSON lacks": ({"extras": {"score": float("nan")}}, "NaN is no JSON number"),
    "a tuple": ({"extras": {"tags": ("loud",)}}, "its extras .* would be read back as"),
    "a key that is no text": ({"extras": {"names": {1: "one"}}}, "its extras .* would be read back as"),
    "a value that is no data": ({"extras": {"path": object()}}, "not to be written as JSON"),
    "a number with too many digits": ({"extras": {"count": 10**5000}}, "not to be written as JSON"),
    "a line above the limit": ({"extras": {"text": "x" * 2**24}}, "longer than 16777216 bytes"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_a_sample_that_is_not_read_back_is_not_written(changes, message, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("as before")
    with pytest.raises(LineError, match=message):
        write_manifest(path, [SAMPLE, replace(SAMPLE, **{"id": "other", **changes})])
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("train.jsonl", "as before")]


def test_an_id_is_written_once(tmp_path):
    with pytest.raises(DataError, match=r"train\.jsonl: id 'clip 1#0' would be written twice; make ids unique"):
        write_manifest(tmp_path / "train.jsonl", [SAMPLE, SAMPLE])


def test_a_manifest_without_samples_is_not_written(tmp_path):
    with pytest.raises(DataError, match=r"train\.jsonl would hold no samples"):
        write_manifest(tmp_path / "train.jsonl", [])
    assert list(tmp_path.iterdir()) == []
