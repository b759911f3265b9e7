import json

import pytest

from lightning_mmrl.data.formats.lines import json_object
from lightning_mmrl.data.formats.turns import quoted, read_turns
from lightning_mmrl.errors import DataError


def roles_and_texts(row):
    messages, _ = read_turns(row)
    return [(message.role, message.content) for message in messages]


def test_a_query_with_its_history_reads_as_turns():
    row = {"system": "S", "history": [["a", "b"]], "query": "<video>c", "response": "d"}
    expected = [("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "<video>c"), ("assistant", "d")]
    assert roles_and_texts(row) == expected
    assert roles_and_texts({"query": "c", "history": None, "system": ""}) == [("user", "c")]


def test_conversations_read_as_turns():
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    assert roles_and_texts({"conversations": turns, "system": "S"}) == [
        ("system", "S"),
        ("user", "a"),
        ("assistant", "b"),
    ]


def test_messages_win_and_leave_other_columns_to_the_rewards():
    messages, used = read_turns({"messages": [{"role": "user", "content": "a"}], "query": "b", "system": "c"})
    assert [message.content for message in messages] == ["a"]
    assert used == {"messages"}


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"instruction": "a", "output": "b"}, "'messages' is missing .found 'instruction', 'output'.; give"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "has a list as content; write text"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "needs a role of system, user, assistant"),
        ({"conversations": [{"from": "bot", "value": "a"}]}, "needs a 'from' of human, user, gpt"),
        ({"conversations": [{"from": ["human"], "value": "a"}]}, "needs a 'from' of"),
        ({"conversations": {}}, "'conversations' is {}"),
        ({"query": 5}, "'query' is 5; it must be a string"),
        ({"query": "a", "response": ["b"]}, r"'response' is \['b'\]"),
        ({"query": "a", "history": "b"}, "must be a list of .query, response. pairs"),
        ({"query": "a", "history": [["b"]]}, r"'history' entry \['b'\] must be a pair"),
    ],
)
def test_other_layouts_are_refused_with_the_fix(row, found):
    with pytest.raises(DataError, match=found):
        read_turns(row)


def test_quoted_values_are_short_and_printable():
    deep = []
    for _ in range(10_000):
        deep = [deep]
    for value in ("\ud800" * 10**6, deep, {"x" * 10**6: ["y"] * 10**6}, 10**4000):
        text = quoted(value)
        assert len(text) < 600
        text.encode()


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"a": "b', "Unterminated string starting at column 7"),
        ('{"a": "b\tc"}', "Invalid control character at column 9"),
        ('{"a": "\\x"}', "Invalid \\escape at column 8"),
        ('{"a": 1', "Expecting ',' delimiter at column 8"),
    ],
)
def test_a_cut_line_says_where(line, fault):
    with pytest.raises(DataError) as caught:
        json_object(line)
    assert f"({fault})" in str(caught.value)


def test_a_strict_reader_takes_what_json_writes():
    row = {"a": [1, -2.5, 1e-300, None, True], "b": {"a": "\U0001f600"}}
    assert json_object(json.dumps(row)) == row
    assert json_object(json.dumps(row, ensure_ascii=False)) == row
