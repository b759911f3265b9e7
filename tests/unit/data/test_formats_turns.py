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


USER, OTHER = {"role": "user", "content": "a"}, {"role": "user", "content": "b"}
SYSTEM = {"role": "system", "content": "S"}
HUMAN = {"from": "human", "value": "a"}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER], "system": "S"},
        {"messages": [SYSTEM, USER], "system": None},
        {"messages": [SYSTEM, USER], "system": " "},
        {"messages": [SYSTEM, USER], "system": "S\n"},
        {"conversations": [{"from": "system", "value": "S"}, HUMAN], "system": "S"},
        {"query": "a", "system": "S"},
    ],
)
def test_a_system_column_is_the_first_turn_once(row):
    assert roles_and_texts(row) == [("system", "S"), ("user", "a")]


@pytest.mark.parametrize("empty", [None, "", [], {}])
def test_empty_columns_of_other_layouts_are_passed_over(empty):
    others = {"conversations": None, "query": empty, "response": empty, "history": empty}
    messages, used = read_turns({"messages": [USER], **others, "emotion": "sad"})
    assert [message.content for message in messages] == ["a"]
    assert used == {"messages", "conversations", "query", "response", "history", "system"}


def test_two_turns_of_the_user_in_a_row_are_read():
    assert roles_and_texts({"messages": [USER, OTHER]}) == [("user", "a"), ("user", "b")]


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (
            {"messages": [USER], "query": "b"},
            "^'messages' stands beside 'query', another layout .* keep one layout, or",
        ),
        ({"messages": [USER], "response": "b"}, "'messages' stands beside 'response'"),
        ({"messages": [USER], "history": [["b", "c"]]}, "'messages' stands beside 'history'"),
        ({"messages": [USER], "query": "b", "response": "c"}, "'messages' stands beside 'query', 'response'"),
        ({"messages": [USER], "conversations": [HUMAN]}, "'messages' stands beside 'conversations'"),
        ({"conversations": [HUMAN], "query": "b"}, "'conversations' stands beside 'query'"),
        ({"conversations": [HUMAN], "history": [["b", "c"]]}, "'conversations' stands beside 'history'"),
        ({"messages": [SYSTEM, USER], "system": "T"}, "^the column 'system' is 'T', but the system turn of 'messages'"),
        (
            {"conversations": [{"from": "system", "value": "S"}, HUMAN], "system": "T"},
            "'system' is 'T', but the system turn of 'conversations' is 'S'; keep one of them$",
        ),
        ({"messages": [USER], "system": ["S"]}, r"'system' is \['S'\]; it must be a string"),
        ({"messages": [USER, SYSTEM]}, "^turn 2 is a system turn, but only the first may be; move or merge its text$"),
        ({"messages": [SYSTEM, SYSTEM, USER]}, "turn 2 is a system turn"),
        ({"conversations": [HUMAN, {"from": "system", "value": "S"}]}, "turn 2 is a system turn"),
        ({"messages": [{"role": "user", "content": ""}]}, "^turn 1, the user's, is blank; write its text or leave"),
        ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, "turn 2, the assistant's, is blank"),
        ({"conversations": [HUMAN, {"from": "gpt", "value": ""}]}, "turn 2, the assistant's, is blank"),
        ({"query": " ", "response": "b"}, "turn 1, the user's, is blank"),
        ({"query": "a", "response": ""}, "turn 2, the assistant's, is blank"),
        ({"query": "a", "history": [["b", ""]]}, "turn 2, the assistant's, is blank"),
    ],
)
def test_turns_that_contradict_or_are_blank_are_refused(row, found):
    with pytest.raises(DataError, match=found):
        read_turns(row)


def test_a_turn_of_a_medium_alone_is_not_blank():
    assert roles_and_texts({"query": "<video>"}) == [("user", "<video>")]


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
