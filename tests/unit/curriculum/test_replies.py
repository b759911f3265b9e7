"""Whatever an endpoint sends is an answer or a failure with a word, and never an exception."""

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_mmrl.curriculum.experts.replies import Failure, Reply, Usage, read_reply

BODY = {"choices": [{"message": {"content": "4", "reasoning_content": "2 and 2"}, "finish_reason": "length"}]}


def read(body, **how):
    return read_reply(200, {}, body if isinstance(body, bytes) else json.dumps(body).encode(), **how)


def test_an_answer_has_its_text_and_its_counts():
    usage = {"usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 11}}
    assert read(BODY) == Reply(text="4", is_cut=True)
    counts = Usage(num_prompt_tokens=7, num_tokens=2, num_total=11)
    assert read({**BODY, **usage}) == Reply(text="4", is_cut=True, usage=counts)
    assert read(BODY, thoughts=True).text == "<think>2 and 2</think>4"


@pytest.mark.parametrize("count", [True, -1, 2.5, "7", None, 2**60])
def test_a_count_that_is_none_is_unknown(count):
    assert read({**BODY, "usage": {"prompt_tokens": count, "completion_tokens": count}}).usage == Usage()


@pytest.mark.parametrize(
    ("usage", "billed"),
    [
        (Usage(), 3 + 2),  # nine and five characters
        (Usage(num_prompt_tokens=100), 102),
        (Usage(num_tokens=100), 103),
        (Usage(num_prompt_tokens=7, num_tokens=2), 9),
        (Usage(num_prompt_tokens=7, num_tokens=2, num_total=40), 40),  # thoughts that only the total counts
        (Usage(num_total=40), 40),
        (Usage(num_prompt_tokens=0, num_tokens=0), 0),
    ],
)
def test_what_is_billed_is_what_the_endpoint_counts_or_an_estimate(usage, billed):
    assert usage.billed(asked=9, said=5) == billed


def ended(content, reason, **message):
    choice = {"message": {"content": content, **message}, "finish_reason": reason}
    return {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}


@pytest.mark.parametrize("content", ["", " \n", None])
@pytest.mark.parametrize(
    ("reason", "message", "problem", "own"),
    [
        ("length", {}, "cut_before_answer", True),
        ("length", {"reasoning_content": "so"}, "cut_before_answer", True),
        ("content_filter", {}, "content_filter", True),
        ("stop", {"refusal": "I cannot."}, "declined", True),
        ("stop", {"refusal": None}, "empty", False),
        (None, {}, "empty", False),
        (["length"], {}, "empty", False),
    ],
)
def test_a_reply_without_text_is_billed_and_asked_again_only_if_it_may_change(content, reason, message, problem, own):
    for thoughts in (False, True):
        found = read(ended(content, reason, **message), thoughts=thoughts)
        assert (found.problem, found.own, found.again, found.of_all) == (problem, own, not own, False)
        assert found.usage.billed(asked=99, said=99) == 9


@pytest.mark.parametrize(
    ("content", "billed"),
    [
        (b'{"choices": [{"mess', True),
        (b'  {"choices": []}', True),
        (b'{"usage": {}}', True),
        (b"<html>", False),
        (b"null", False),
        (b'{"error": "no"}', False),
    ],
)
def test_what_began_as_an_answer_was_billed(content, billed):
    assert (read(content).usage is not None) == billed
    assert read_reply(500, {}, content).usage is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"\xff\xfe",
        b"[" * 100_000,
        b"null",
        json.dumps(BODY).encode()[:-3],
        {"choices": []},
        {"choices": [{}]},
        {"choices": [{"message": None}]},
        {"choices": [{"message": {"content": 4}}]},
        {"choices": [{"message": {"content": ["4"]}}]},
        {"choices": {"0": 1}},
        {"error": "no"},
        {"choices": [{"message": {"content": "\ud800"}}]},
    ],
)
def test_what_is_no_answer_is_malformed(body):
    found = read(body)
    assert (found.problem, found.again, found.of_all) == ("malformed", True, False)


@given(st.binary(max_size=200), st.sampled_from([200, 201, 302, 400, 404, 429, 500]), st.text(max_size=30))
def test_no_bytes_raise(content, status, wait):
    assert isinstance(read_reply(status, {"Retry-After": wait}, content), Reply | Failure)


@given(st.integers(0, len(json.dumps(BODY))), st.binary(max_size=4))
def test_a_damaged_answer_never_raises(place, noise):
    content = json.dumps(BODY).encode()
    assert isinstance(read_reply(200, {}, content[:place] + noise + content[place + 1 :]), Reply | Failure)


@pytest.mark.parametrize(
    ("status", "again", "of_all"),
    [
        *((status, True, False) for status in (408, 429, 500, 502, 503, 504)),
        *((status, False, True) for status in (401, 402, 403, 404, 405, 407)),
        *((status, False, False) for status in (302, 400, 413, 422)),
    ],
)
def test_a_status_says_whether_to_ask_again(status, again, of_all):
    found = read_reply(status, {}, b"no")
    assert found.own == (status in (400, 413, 422))
    assert (found.problem, found.again, found.of_all) == (f"status_{status}", again, of_all)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7.0), ("0.5", 0.5), ("-3", 0.0), ("soon", None), ("nan", None), ("inf", None), ("", None)],
)
def test_the_wait_is_in_seconds(value, seconds):
    assert read_reply(429, {"retry-after": value}, b"").wait_s == seconds


def test_the_wait_may_be_a_date():
    date = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    assert 3500 < read_reply(503, {"Retry-After": date}, b"").wait_s <= 3600
