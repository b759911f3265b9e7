"""Rollout tables: what is written is read back, and nothing else is taken for a table."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_mmrl.data.rollout_table import RolloutRow, iter_table, read_table, table_files, write_table
from lightning_mmrl.errors import DataError
from lightning_mmrl.types.records import Completion, MediaRef, Message, Sample, Score

SAMPLE = Sample(
    id="clip-1",
    messages=(Message(role="user", content="<video>Which emotion?"),),
    media=(MediaRef(kind="video", path="clips/1.mp4", start_s=0.5, end_s=2.0),),
    solution="angry",
    speaker="s01",
    split="train",
    extras={"difficulty": 3, "tags": ["loud"]},
)


def completion(text, truncated=False):
    return Completion(text=text, num_tokens=len(text), truncated=truncated)


def row(**changes):
    fields = {
        "sample": SAMPLE,
        "completions": (completion("angry"), completion("sad", truncated=True)),
        "scores": (
            Score(total=1.5, components={"label": 1.0, "format": 0.5}),
            Score(total=0.0, components={}, valid=False, reason="label: deadline of 8 s exceeded"),
        ),
        "policy_version": 4,
    }
    return RolloutRow(**{**fields, **changes})


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "iteration_000001.jsonl"
    write_table(path, [row(), row(policy_version=5)])
    return path


def edited(table, line, edit):
    """The table with one line changed."""
    lines = table.read_text().splitlines()
    content = json.loads(lines[line - 1])
    edit(content)
    lines[line - 1] = json.dumps(content)
    table.write_text("\n".join(lines) + "\n")
    return table


def test_a_table_is_read_back_as_it_was_written(table):
    assert read_table(table) == [row(), row(policy_version=5)]
    assert [path.name for path in table.parent.iterdir()] == [table.name]


def test_rows_are_read_one_by_one(table):
    rows = iter_table(edited(table, 2, lambda content: content.update(id=7)))
    assert next(rows) == row()
    with pytest.raises(DataError, match="line 2: 'id' is 7"):
        next(rows)


def test_a_response_is_right_wrong_or_not_judged():
    scores = (
        Score(total=0.0, components={"label": 1.0}),
        Score(total=3.0, components={"label": 0.5, "format": 1.0}),
        Score(total=1.0, components={"label": 1.0}, valid=False),
        Score(total=3.0, components={}),
    )
    judged = row(completions=(completion("a"),) * 4, scores=scores)
    assert judged.right == (True, False, None, False)
    assert judged.pass_rate == 1 / 3


def test_the_pass_rate_leaves_invalid_responses_out():
    assert row().pass_rate == 1.0
    assert row(scores=(row().scores[1],), completions=row().completions[1:]).pass_rate is None
    assert row(pass_component="format").pass_rate == 0.0


def test_files_of_a_folder_come_in_order(tmp_path):
    for number in (20, 1, 10):
        write_table(tmp_path / f"iteration_{number:06d}.jsonl", [row()])
    names = ["iteration_000001.jsonl", "iteration_000010.jsonl", "iteration_000020.jsonl"]
    assert [path.name for path in table_files(tmp_path)] == names
    assert table_files(tmp_path / names[1]) == [tmp_path / names[1]]


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"missing\.jsonl does not exist; name a \.jsonl file"):
        table_files(tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match="holds no rollout table"):
        table_files(tmp_path)
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(DataError, match=r"empty\.jsonl is empty; take the table of another iteration"):
        read_table(empty)


def test_a_table_that_was_cut_off_is_refused_with_its_line(table):
    table.write_bytes(table.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"iteration_000001\.jsonl line 2: not valid JSON .* cut off or damaged"):
        read_table(table)


def test_a_table_without_samples_is_refused_with_its_version(table):
    def first_version(content):
        for key in ("version", "messages", "extras"):
            del content[key]

    with pytest.raises(
        DataError, match=r"line 1: this is a rollout table of version 1, version 2 is needed; write the"
    ):
        read_table(edited(table, 1, first_version))


def test_a_manifest_is_no_table(tmp_path):
    manifest = tmp_path / "train.jsonl"
    manifest.write_text('{"id": "a", "messages": []}\n')
    with pytest.raises(DataError, match=r"train\.jsonl line 1: this is no rollout table"):
        read_table(manifest)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("id", 7),
        ("messages", None),
        ("messages", ["hello"]),
        ("messages", [{"role": "judge", "content": "hello"}]),
        ("messages", [{"role": "user"}]),
        ("media", [{"kind": "smell", "path": "x"}]),
        ("media", [{"kind": "video", "path": "x", "start_s": "0", "end_s": None}]),
        ("solution", 3),
        ("extras", []),
        ("policy_version", True),
        ("responses", []),
        ("responses", [{}]),
    ],
)
def test_a_damaged_row_is_refused_with_its_line_and_the_key(key, value, table):
    with pytest.raises(DataError, match=r"line 2.*(" + key + r"|role|content|kind|start_s|end_s|components).*damaged"):
        read_table(edited(table, 2, lambda content: content.update({key: value})))


@pytest.mark.parametrize("value", [None, "1.0", True, float("nan"), float("inf"), 10**400])
def test_a_reward_that_is_no_finite_number_is_refused(value, table):
    def break_reward(content):
        content["responses"][1]["reward"] = value

    with pytest.raises(DataError, match=r"line 1, responses\[1\]: 'reward' is .*; the table is damaged"):
        read_table(edited(table, 1, break_reward))


@given(edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=3))
def test_any_damage_is_a_sentence_with_the_line(edits, tmp_path_factory):
    path = tmp_path_factory.mktemp("damage") / "table.jsonl"
    write_table(path, [row()])
    content = bytearray(path.read_bytes())
    for place, byte in edits:
        content[round(place * (len(content) - 2))] = byte
    path.write_bytes(bytes(content))
    try:
        [read] = read_table(path)
    except DataError as error:
        assert f"{path} line " in str(error)  # noqa: PT017  most damage shows, but a changed letter of a text cannot
    else:
        assert isinstance(read, RolloutRow)


def test_reading_loads_no_torch():
    script = "import sys, lightning_mmrl.data.rollout_table; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
