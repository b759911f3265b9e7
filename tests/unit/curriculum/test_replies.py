"""Whatever an endpoint sends is an answer or a failure with a word, and never an exception."""

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_mmrl.curriculum.experts.replies import Failure, Reply, read_reply

BODY = {"choices": [{"message": {"content": "4", "reasoning_content": "2 and 2"}, "finish_reason": "length"}]}


def read(body, **how):
    return read_reply(200, {}, body if isinstance(body, bytes) else json.dumps(body).encode(), **how)


def test_an_answer_has_its_text_and_its_counts():
    usage = {"usage": {"prompt_tokens": 7, "completion_tokens": 2}}
    assert read(BODY) == Reply(text="4", is_cut=True, num_prompt_tokens=None, num_tokens=None)
    assert read({**BODY, **usage}) == Reply(text="4", is_cut=True, num_prompt_tokens=7, num_tokens=2)
    assert read(BODY, thoughts=True).text == "<think>2 and 2</think>4"


@pytest.mark.parametrize("count", [True, -1, 2.5, "7", None, 2**60])
def test_a_count_that_is_none_is_unknown(count):
    assert read({**BODY, "usage": {"prompt_tokens": count, "completion_tokens": count}}).num_tokens is None


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
        {"choices": [{"message": {"content": None}}]},
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
        *((status, False, True) for status in (401, 403, 404)),
        *((status, False, False) for status in (302, 400, 413, 422)),
    ],
)
def test_a_status_says_whether_to_ask_again(status, again, of_all):
    found = read_reply(status, {}, b"no")
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
