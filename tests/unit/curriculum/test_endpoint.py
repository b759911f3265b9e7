"""An expert at an endpoint that fails in every way: nothing hangs, nothing is asked twice, all requests are counted."""

import base64
import json
import os
import socket
import threading
import time
from dataclasses import fields

import pytest
from faulty_endpoint import ANSWERS, BILLED, COUNTED, FINAL, PASSING, REFUSED, FaultyEndpoint, expected, question

from lightning_mmrl.curriculum.experts.chat import ChatBodies, asker
from lightning_mmrl.curriculum.experts.endpoint import ChatEndpoint
from lightning_mmrl.curriculum.experts.ledger import Ledger
from lightning_mmrl.errors import ConfigError, StageError
from lightning_mmrl.protocols.experts import ExpertRequest
from lightning_mmrl.settings.algorithm import SamplingSettings
from lightning_mmrl.settings.experts import EndpointSettings, ExpertSettings
from lightning_mmrl.types.records import MediaRef, Message
from lightning_mmrl.types.redaction import redact

RETRIES = 2
QUICK = {
    "retries": RETRIES,
    "first_wait_s": 0.01,
    "longest_wait_s": 0.1,
    "request_timeout_s": 0.6,
    "max_failed_rate": 1.0,
}
PROBLEMS = {
    **{status: f"status_{status}" for status in ("400", "422", "429", "500", "503")},
    **dict.fromkeys(("html", "half"), "malformed"),
    **dict.fromkeys(("lost", "reset"), "unreachable"),
    "redirect": "status_302",
    "busy": "status_429",
    "slow": "timeout",
    "empty": "empty",
    "cut_empty": "cut_before_answer",
    "declined": "declined",
}


def request(number, **changes):
    text = question(number, 1)
    turns = (Message(role="system", content="Add."), Message(role="user", content=text))
    return ExpertRequest(**{"key": f"sum-{number}", "turns": turns, "most_tokens": 64, "draw_seed": 7, **changes})


def expert(url, folder, *, media_root=None, extra=None, thoughts=False, shared=None, model="adder", **settings):
    asked, sampling = ExpertSettings(model=model, extra=extra or {}, thoughts=thoughts), SamplingSettings(0.5, 0.9)
    with Ledger.opened(folder / "answers.jsonl", shared, asker(asked, sampling)) as ledger:
        endpoint = EndpointSettings(base_url=url, **{**QUICK, "give_up_after": 1000, **settings})
        bodies = ChatBodies(asked, sampling, endpoint, media_root or folder)
        return ChatEndpoint(expert=asked, endpoint=endpoint, bodies=bodies, ledger=ledger)


def lines(folder):
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def test_a_body_has_the_prompt_the_sampling_and_nothing_else(tmp_path):
    with FaultyEndpoint() as server:
        (answer,) = expert(server.url, tmp_path).ask([request(3)])
    assert (answer.key, answer.text, answer.num_tokens, answer.is_cut) == ("sum-3", "<answer>4</answer>", 5, False)
    assert server.bodies == [
        {
            "model": "adder",
            "temperature": 0.5,
            "top_p": 0.9,
            "max_tokens": 64,
            "seed": 7,
            "messages": [{"role": "system", "content": "Add."}, {"role": "user", "content": "3 + 1 = ?"}],
        }
    ]


def test_further_keys_of_the_body_replace_and_remove(tmp_path):
    with FaultyEndpoint() as server:
        expert(server.url, tmp_path, extra={"seed": None, "max_tokens": None, "max_completion_tokens": 9}).ask(
            [request(3)]
        )
    assert server.bodies[0].keys() == {"model", "temperature", "top_p", "max_completion_tokens", "messages"}


def test_media_go_as_data_urls_where_their_tags_are(tmp_path):
    files = {"a.png": b"\x89PNG1", "b.mp4": b"\0\0\0\0ftypmp42", "c.wav": b"RIFF1234WAVEfmt "}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    media = tuple(MediaRef(kind=kind, path=name) for kind, name in zip(("image", "video", "audio"), files, strict=True))
    turns = (Message(role="user", content="<image>1 + 1<video><audio> = ?"),)
    with FaultyEndpoint() as server:
        expert(server.url, tmp_path).ask([request(1, turns=turns, media=media)])
    coded = [base64.b64encode(content).decode() for content in files.values()]
    assert server.bodies[0]["messages"][0]["content"] == [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{coded[0]}"}},
        {"type": "text", "text": "1 + 1"},
        {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{coded[1]}"}},
        {"type": "input_audio", "input_audio": {"data": coded[2], "format": "wav"}},
        {"type": "text", "text": " = ?"},
    ]


@pytest.mark.parametrize(
    ("ref", "problem"),
    [
        (MediaRef(kind="image", path="large.png"), "media_too_large"),
        (MediaRef(kind="image", path="none.png"), "unreadable_media"),
        (MediaRef(kind="image", path="../answers.png"), "unreadable_media"),
        (MediaRef(kind="video", path="large.png", start_s=1.0), "media_span"),
    ],
)
def test_media_that_cannot_be_sent_are_not_asked_about(tmp_path, ref, problem):
    (tmp_path / "large.png").write_bytes(b"\x89PNG" + b"0" * 1_000_000)
    turns = (Message(role="user", content=f"<{ref.kind}>1 + 1 = ?"),)
    with FaultyEndpoint() as server:
        (answer,) = expert(server.url, tmp_path, max_media_mb=1).ask([request(1, turns=turns, media=(ref,))])
    assert (answer.problem, answer.text, sum(server.asked.values())) == (problem, None, 0)


@pytest.mark.parametrize("fault", [*ANSWERS, *PASSING, *FINAL])
def test_each_fault_ends_in_an_answer_or_a_reason(tmp_path, fault):
    with FaultyEndpoint({question(5, 1): (fault,)}) as server:
        asking = expert(server.url, tmp_path)
        (answer,) = asking.ask([request(5)])
    number, end = expected((fault,), RETRIES)
    assert server.asked[question(5, 1)] == number == asking.ledger.num_requests
    assert (answer.problem, answer.text is None) == (PROBLEMS.get(end), end not in ANSWERS)
    assert answer.is_cut == (fault == "cut_short")


@pytest.mark.parametrize("fault", [fault for fault in PASSING if fault != "slow"])
def test_what_passes_is_asked_again_and_answered(tmp_path, fault):
    with FaultyEndpoint({question(5, 1): (fault, fault, "right")}) as server:
        (answer,) = expert(server.url, tmp_path).ask([request(5)])
    assert (answer.text, server.asked[question(5, 1)]) == ("<answer>6</answer>", 3)


def test_the_answers_are_in_the_order_of_the_requests_and_the_accounting_is_exact(tmp_path):
    """A slice of tools/campaigns/expert_endpoint.py."""
    kinds = [fault for fault in (*ANSWERS, *PASSING, *FINAL) if fault != "slow"]
    plans = {question(n, 1): tuple(kinds[(n + k * 5) % len(kinds)] for k in range(1 + n % 3)) for n in range(60)}
    asked = [request(n) for n in range(60)]
    with FaultyEndpoint(plans) as server:
        asking = expert(server.url, tmp_path, concurrency=4)
        answers = asking.ask(asked)
    ends = [expected(plans[question(n, 1)], RETRIES) for n in range(60)]
    assert [server.asked[question(n, 1)] for n in range(60)] == [number for number, _ in ends]
    assert [answer.key for answer in answers] == [each.key for each in asked]
    assert [answer.problem for answer in answers] == [PROBLEMS.get(end) for _, end in ends]
    assert asking.ledger.num_requests == sum(number for number, _ in ends)
    sent = [
        plans[text][min(n, len(plans[text])) - 1] for text, times in server.asked.items() for n in range(1, times + 1)
    ]
    guessed = [line["billed"] for line in lines(tmp_path) if line.get("problem") in ("malformed", "unreachable")]
    assert asking.ledger.num_tokens == BILLED * sum(fault in COUNTED for fault in sent) + sum(guessed)
    assert [billed > 0 for billed in guessed].count(True) == sum(fault in ("half", "lost") for fault in sent)
    assert server.most_at_once <= 4
    kept = {answer.key: answer.text for answer in answers if answer.text is not None}
    with FaultyEndpoint() as server:  # everything is right now, and what has an answer is not asked
        again = expert(server.url, tmp_path).ask(asked)
    assert sum(server.asked.values()) == 60 - len(kept) - sum(end in REFUSED for _, end in ends)
    assert kept.items() <= {answer.key: answer.text for answer in again}.items()


def test_an_answer_is_known_by_all_that_decides_it(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG1")
    turns = (Message(role="user", content="<image>1 + 1 = ?"),)
    ref = MediaRef(kind="image", path="a.png")
    others = [{"draw": 1}, {"draw_seed": 8}, {"most_tokens": 65}, {"turns": turns, "media": (ref,)}]
    endpoint = EndpointSettings(base_url="http://127.0.0.1/v1")
    bodies = ChatBodies(ExpertSettings(model="adder"), SamplingSettings(), endpoint, tmp_path)
    found = [bodies.hash(request(1)), *(bodies.hash(request(1, **other)) for other in others)]
    (tmp_path / "a.png").write_bytes(b"\x89PNG2")
    found.append(bodies.hash(request(1, **others[-1])))
    experts = (ExpertSettings(model="other"), ExpertSettings(model="adder", thoughts=True))
    found += [ChatBodies(expert, SamplingSettings(), endpoint, tmp_path).hash(request(1)) for expert in experts]
    found.append(
        ChatBodies(ExpertSettings(model="adder"), SamplingSettings(top_p=0.5), endpoint, tmp_path).hash(request(1))
    )
    assert len(set(found)) == len(found)
    assert bodies.hash(request(1)) == bodies.hash(request(1, key="another-id")) == found[0]


def test_an_endpoint_that_is_down_ends_the_stage_and_keeps_what_was_gained(tmp_path):
    with FaultyEndpoint() as server:
        expert(server.url, tmp_path).ask([request(1)])
    before = lines(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(
        StageError, match=r"left 3 questions in a row without an answer \(the last: unreachable"
    ) as ended:
        expert(url, tmp_path, give_up_after=3, concurrency=1).ask([request(n) for n in range(1, 50)])
    assert f"answers so far are kept in {tmp_path / 'answers.jsonl'}, and the same command asks" in str(ended.value)
    assert [line for line in lines(tmp_path) if "answer" in line] == [line for line in before if "answer" in line]
    assert sum("sent" in line for line in lines(tmp_path)) == 1 + 3 * (RETRIES + 1)


def test_too_large_a_share_of_failures_ends_the_stage(tmp_path):
    plans = {question(n, 1): ("503",) for n in range(5)}
    with FaultyEndpoint(plans) as server:
        with pytest.raises(StageError, match=r"5 of 10 questions to adder .*\(the first: status_503\)") as ended:
            expert(server.url, tmp_path, max_failed_rate=0.4).ask([request(n) for n in range(10)])
        assert "set endpoint.max_failed_rate above 0.4 to go on without them; answers so far are kept" in str(
            ended.value
        )
        assert len(expert(server.url, tmp_path, max_failed_rate=0.5).ask([request(n) for n in range(10)])) == 10


def test_the_share_of_failures_is_that_of_the_whole_stage(tmp_path):
    """A second try asks few questions, and one of them may fail."""
    with FaultyEndpoint({question(9, 1): ("503",)}) as server:
        asking = expert(server.url, tmp_path, max_failed_rate=0.1)
        asking.ask([request(n) for n in range(9)])
        assert asking.ask([request(9, draw=1)])[0].problem == "status_503"
        with pytest.raises(StageError, match="2 of 11 questions"):
            asking.ask([request(9, draw=2)])


def test_media_that_cannot_be_sent_leave_a_way_out(tmp_path):
    turns = (Message(role="user", content="<image>1 + 1 = ?"),)
    asked = [request(1, turns=turns, media=(MediaRef(kind="image", path="none.png"),))]
    with FaultyEndpoint() as server:
        with pytest.raises(
            StageError, match=r"mend the media of 1 of them, which cannot be sent, or raise max_media_mb"
        ):
            expert(server.url, tmp_path, max_failed_rate=0.5).ask(asked)
        assert expert(server.url, tmp_path, max_failed_rate=1.0).ask(asked)[0].missing == "not_asked"


@pytest.mark.parametrize("fault", REFUSED)
def test_a_refused_question_is_its_own_outcome_and_ends_no_stage(tmp_path, fault):
    plans = {question(n, 1): (fault,) for n in range(1, 10)}
    patience = {"give_up_after": 2, "max_failed_rate": 0.0, "concurrency": 1}
    asked = [request(n) for n in range(10)]
    with FaultyEndpoint(plans) as server:
        answers = expert(server.url, tmp_path, **patience).ask(asked)
        assert [answer.problem for answer in answers] == [None] + [PROBLEMS[fault]] * 9
        assert {answer.missing for answer in answers[1:]} == {"refused"}
        assert expert(server.url, tmp_path, **patience).ask(asked)[1].missing == "refused"
        assert set(server.asked.values()) == {1}
    with FaultyEndpoint() as server:
        again = expert(server.url, tmp_path, ask_refused_again=True, **patience)
        assert all(answer.text for answer in again.ask(asked))
        assert sum(server.asked.values()) == 9
        assert all(answer.text for answer in expert(server.url, tmp_path, **patience).ask(asked))
        assert sum(server.asked.values()) == 9


def test_an_endpoint_that_refuses_all_from_the_start_ends_the_stage_and_is_asked_again(tmp_path):
    asked = [request(n) for n in range(10)]
    with FaultyEndpoint({question(n, 1): ("400",) for n in range(9)}) as server:
        with pytest.raises(StageError, match=r"has answered nothing and refused 3 questions \(the last: st") as ended:
            expert(server.url, tmp_path, give_up_after=3, concurrency=1).ask(asked)
        assert "raise endpoint.give_up_after if other questions will be answered" in str(ended.value)
        assert sum(server.asked.values()) == 3
        answers = expert(server.url, tmp_path, give_up_after=10, concurrency=1, max_failed_rate=0.0).ask(asked)
        assert [answer.text is None for answer in answers] == [True] * 9 + [False]
        assert [server.asked[question(n, 1)] for n in range(10)] == [2, 2, 2, *[1] * 7]
        expert(server.url, tmp_path, give_up_after=1).ask(asked)  # one was answered, so the others are refused for good
        assert sum(server.asked.values()) == 13


def test_answers_of_another_model_say_nothing_about_refusals(tmp_path):
    shared, asked = tmp_path / "shared" / "sort.jsonl", [request(n) for n in range(9)]
    with FaultyEndpoint() as server:
        expert(server.url, tmp_path / "a", shared=shared).ask(asked)
    with FaultyEndpoint({question(n, 1): ("400",) for n in range(9)}) as server:
        for folder in ("a", "b"):
            with pytest.raises(StageError, match="has answered nothing and refused 3 questions"):
                expert(server.url, tmp_path / folder, shared=shared, model="sage", give_up_after=3).ask(asked)


def test_a_status_of_all_after_an_answer_is_a_failure_of_one_question(tmp_path):
    """Such as 403 of a provider that moderates questions; a key that expires meanwhile still ends the stage."""
    with FaultyEndpoint({question(n, 1): ("403",) for n in (1, 3, 4)}) as server:
        asking = expert(server.url, tmp_path, give_up_after=2, concurrency=1)
        answers = asking.ask([request(n) for n in range(3)])
        assert [(answer.problem, answer.missing) for answer in answers][1] == ("status_403", "failed")
        with pytest.raises(StageError, match="refuses all requests"):
            asking.ask([request(n) for n in (3, 4, 5)])


@pytest.mark.parametrize("fault", [*COUNTED, "half", "lost"])
def test_every_reply_that_was_billed_counts_also_in_the_next_process(tmp_path, fault):
    with FaultyEndpoint({question(5, 1): (fault,)}) as server:
        first = expert(server.url, tmp_path)
        first.ask([request(5)])
        times = server.asked[question(5, 1)]
    assert times == (1 if fault in (*ANSWERS, *REFUSED) else RETRIES + 1)
    tokens = first.ledger.num_tokens
    if fault in COUNTED:
        assert tokens == times * BILLED
    else:  # "Add.", "5 + 1 = ?" and at most the 150 characters of the answer
        assert times * 4 <= tokens <= times * (4 + 50)
    assert Ledger(tmp_path / "answers.jsonl").num_tokens == tokens
    with FaultyEndpoint() as server:
        asking = expert(server.url, tmp_path, max_total_tokens=tokens)
        assert asking.ask([request(6)])[0].problem == "over_budget"
        assert (asking.ask([request(6)])[0].missing, not server.asked) == ("not_asked", True)


def test_a_page_that_is_no_reply_is_not_billed(tmp_path):
    for number, fault in enumerate(("html", "400", "503", "reset")):
        with FaultyEndpoint({question(number, 1): (fault,)}) as server:
            asking = expert(server.url, tmp_path)
            asking.ask([request(number)])
    assert asking.ledger.num_tokens == 0


def test_an_answer_of_too_many_bytes_is_billed_and_not_asked_again(tmp_path, monkeypatch):
    from lightning_mmrl.curriculum.experts import endpoint

    monkeypatch.setattr(endpoint, "MOST_BYTES", 50)
    with FaultyEndpoint() as server:
        asking = expert(server.url, tmp_path)
        (answer,) = asking.ask([request(1)])
        assert (answer.problem, asking.ledger.num_tokens > 12) == ("too_long", True)
        assert sum(server.asked.values()) == 1


def test_a_budget_is_that_of_the_stage_alone_and_what_is_shared_is_asked_once(tmp_path):
    folder, asked = tmp_path / "shared", [request(n) for n in range(10)]
    with FaultyEndpoint({question(1, 1): ("400",)}) as server:
        for name, stage, limit, most in (
            ("a", "sort", 4, 4),
            ("b", "sort", 3, 7),
            ("c", "other", 2, 9),
            ("a", "sort", 5, 10),
        ):
            limits = {"concurrency": 1, "max_requests": limit}
            asking = expert(server.url, tmp_path / name, shared=folder / f"{stage}.jsonl", **limits)
            answers = asking.ask(asked)
            assert [answer.problem for answer in answers[most:]] == ["over_budget"] * (10 - most)
            assert [answer.text is None for answer in answers[:most]] == [n == 1 for n in range(most)]
            assert asking.ledger.num_requests == limit
        assert set(server.asked.values()) == {1}
        tokens = [Ledger(tmp_path / name / "answers.jsonl").num_tokens for name in "abc"]
        assert tokens == [4 * BILLED, 3 * BILLED, 2 * BILLED]


def test_an_outcome_that_a_kill_left_unshared_is_shared_by_the_next_process(tmp_path):
    shared = tmp_path / "shared" / "sort.jsonl"
    with FaultyEndpoint() as server:
        expert(server.url, tmp_path / "a", shared=shared).ask([request(1), request(2)])
        kept = shared.read_text().splitlines()
        shared.write_text(f"{kept[0]}\n")
        expert(server.url, tmp_path / "a", shared=shared)
        assert sorted(shared.read_text().splitlines()) == sorted(kept)
        expert(server.url, tmp_path / "b", shared=shared).ask([request(1), request(2)])
        assert set(server.asked.values()) == {1}


def test_two_processes_do_not_share_a_folder_at_once(tmp_path):
    one, other = (tmp_path / "shared" / f"{name}.jsonl" for name in "ab")
    with Ledger.opened(tmp_path / "a.jsonl", one), pytest.raises(ConfigError, match="in use by another process"):  # noqa: SIM117
        with Ledger.opened(tmp_path / "b.jsonl", other):
            pass


@pytest.mark.parametrize(("limit", "most"), [({"max_requests": 4}, 4), ({"max_total_tokens": 46}, 4)])
def test_nothing_is_sent_beyond_the_budget(tmp_path, limit, most):
    asked = [request(n) for n in range(10)]
    with FaultyEndpoint() as server:
        answers = expert(server.url, tmp_path, concurrency=1, **limit).ask(asked)
        assert [answer.problem for answer in answers] == [None] * most + ["over_budget"] * (10 - most)
        again = expert(server.url, tmp_path, concurrency=1, **limit).ask(asked)
        assert [answer.text for answer in again] == [answer.text for answer in answers]
    assert sum(server.asked.values()) == most


def test_a_key_is_sent_and_stands_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("ADDER_KEY", "sk-very-secret")
    with FaultyEndpoint(key="sk-very-secret") as server:
        assert expert(server.url, tmp_path, key_variable="ADDER_KEY").ask([request(1)])[0].text == "<answer>2</answer>"
        monkeypatch.setenv("ADDER_KEY", "sk-another-one")
        with pytest.raises(StageError, match=r"refuses all requests \(the last: status_401") as ended:
            expert(server.url, tmp_path, key_variable="ADDER_KEY").ask([request(2)])
    assert "sk-" not in str(ended.value) + (tmp_path / "answers.jsonl").read_text() + redact("sk-another-one")
    monkeypatch.delenv("ADDER_KEY")
    with pytest.raises(ConfigError, match="key_variable is ADDER_KEY, and the environment has no usable key"):
        expert(server.url, tmp_path, key_variable="ADDER_KEY").ask([request(1)])


def test_an_answer_that_repeats_the_key_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("ADDER_KEY", "<answer>")
    with FaultyEndpoint(key="<answer>") as server:
        asking = expert(server.url, tmp_path, key_variable="ADDER_KEY")
        (answer,) = asking.ask([request(1)])
    assert (answer.problem, asking.ledger.num_tokens, sum(server.asked.values())) == ("repeats_key", BILLED, 1)
    assert "<answer>" not in (tmp_path / "answers.jsonl").read_text()


def test_a_wait_that_the_endpoint_asks_for_is_kept_by_all(tmp_path):
    """Its second request comes no earlier than asked, and so do those of another worker."""
    with FaultyEndpoint({question(1, 1): ("wait", "right")}) as server:
        start = time.monotonic()
        expert(server.url, tmp_path, longest_wait_s=5.0, concurrency=1).ask([request(1), request(2)])
        assert time.monotonic() - start >= 1.0
    assert server.asked == {question(1, 1): 2, question(2, 1): 1}


class Stop(BaseException):
    """As a signal, which is raised in the main thread."""


def test_an_interruption_ends_the_requests_and_keeps_what_was_gained(tmp_path):
    plans = {question(n, 1): ("slow",) for n in range(3, 9)}
    with FaultyEndpoint(plans) as server:
        asking = expert(server.url, tmp_path, request_timeout_s=60.0, concurrency=2)

        def poll():
            if asking.ledger.num_requests >= 4:
                raise Stop

        asking.poll = poll
        before = threading.active_count()
        with pytest.raises(Stop):
            asking.ask([request(n) for n in range(1, 9)])
        assert {thread.name for thread in threading.enumerate()}.isdisjoint({"expert"})
        assert before <= threading.active_count()
    assert sum("answer" in line for line in lines(tmp_path)) == 2


def test_a_line_that_a_kill_cut_off_is_asked_again_and_no_other(tmp_path, caplog):
    with FaultyEndpoint() as server:
        expert(server.url, tmp_path).ask([request(1), request(2)])
        path = tmp_path / "answers.jsonl"
        size = path.read_bytes().rindex(b'{"answer"') + 20
        os.truncate(path, size)
        expert(server.url, tmp_path).ask([request(1), request(2)])
        assert sorted(server.asked.values()) == [1, 2]
        expert(server.url, tmp_path).ask([request(1), request(2)])
    assert sorted(server.asked.values()) == [1, 2]
    assert "was cut off by a crash" in caplog.text


def test_two_processes_do_not_share_a_ledger(tmp_path):
    with Ledger.opened(tmp_path / "a.jsonl"), pytest.raises(ConfigError, match="in use by another process"):  # noqa: SIM117
        with Ledger.opened(tmp_path / "a.jsonl"):
            pass


def test_a_file_of_something_else_is_no_ledger(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": "sum-1", "text": "2"}\n')
    with pytest.raises(StageError, match="which is no line of an expert's answers; move the file away"):
        Ledger(tmp_path / "a.jsonl")


def test_a_request_has_no_place_for_a_solution_and_ends_with_a_question():
    assert {each.name for each in fields(ExpertRequest)} == {
        "key",
        "turns",
        "media",
        "most_tokens",
        "draw",
        "draw_seed",
    }
    for turns in (
        (),
        (Message(role="assistant", content="4"),),
        (*request(1).turns, Message(role="assistant", content="4")),
    ):
        with pytest.raises(StageError, match="an expert must not see a target"):
            request(1, turns=turns)
