"""Right answers become samples, all others get one reason, and nothing is lost or counted twice."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_mmrl.data.answer_selection import (
    REASONS,
    Dropped,
    Totals,
    answer_sample,
    select_answers,
    select_row,
)
from lightning_mmrl.data.manifest_lines import write_manifest
from lightning_mmrl.data.rollout_table import RolloutRow, read_table, write_table
from lightning_mmrl.data.schema import read_manifest
from lightning_mmrl.errors import DataError
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.settings.data import PromptSettings
from lightning_mmrl.settings.selection import ORDERS, SelectionSettings
from lightning_mmrl.types.records import Completion, MediaRef, Message, Sample, Score

PROMPT = Sample(
    id="clip-1",
    messages=(Message(role="user", content="<video>Which emotion?"),),
    media=(MediaRef(kind="video", path="1.mp4", start_s=0.5, end_s=2.0),),
    solution="angry",
    speaker="s01",
    split="train",
    extras={"difficulty": 3, "tags": ["loud"]},
)
RIGHT = Score(total=1.0, components={"label": 1.0})
WRONG = Score(total=2.0, components={"label": 0.5, "format": 1.0})
INVALID = Score(total=0.0, components={}, valid=False, reason="label: deadline of 8 s exceeded")


def answer(text, tokens=None, *, truncated=False):
    return Completion(text=text, num_tokens=len(text.split()) if tokens is None else tokens, truncated=truncated)


def row(*responses, **changes):
    """A row of texts or completions, right ones unless a score stands beside."""
    pairs = [each if isinstance(each, tuple) else (each, RIGHT) for each in responses]
    completions = tuple(each if isinstance(each, Completion) else answer(each) for each, _ in pairs)
    scores = tuple(score for _, score in pairs)
    return RolloutRow(
        **{"sample": PROMPT, "completions": completions, "scores": scores, "policy_version": 0, **changes}
    )


def select(row, **settings):
    """The places that are kept, and the reasons of the others by place."""
    selection = select_row(row, SelectionSettings(**{"max_per_prompt": 9, **settings}))
    return [each.place for each in selection.kept], {each.place: each.reason for each in selection.dropped}


CASES = {
    "wrong": (row("a", ("b", WRONG)), {}, [0], {1: "wrong"}),
    "wrong, and asked for": (row("a", ("b", WRONG), ("c", INVALID)), {"wrong": True}, [0, 1], {2: "invalid_score"}),
    "right by another component": (row("a", ("b", WRONG), pass_component="format"), {}, [1], {0: "wrong"}),
    "an invalid score": (row(("a", INVALID), "b"), {}, [1], {0: "invalid_score"}),
    "truncated": (row(answer("a", truncated=True), "b"), {}, [1], {0: "truncated"}),
    "truncated, and asked for": (row(answer("a", truncated=True), "b"), {"truncated": True}, [0, 1], {}),
    "short": (row("a", "a b", "a b c"), {"min_tokens": 2}, [1, 2], {0: "too_short"}),
    "long": (row("a", "a b", "a b c"), {"max_tokens": 2}, [0, 1], {2: "too_long"}),
    "duplicates": (row("a b", " a\n\tb ", "\uff41\u00a0b", "a  c"), {}, [0, 3], {1: "duplicate", 2: "duplicate"}),
    "duplicates, and asked for": (row("a b", " a\n\tb "), {"deduplicate": False}, [0, 1], {}),
    "case makes a difference": (row("a", "A"), {}, [0, 1], {}),
    "many": (row("a", "b", "c"), {"max_per_prompt": 2}, [0, 1], {2: "over_limit"}),
    "the shortest": (
        row(answer("a", 3), answer("b", 1), answer("c", 2), answer("d", 1)),
        {"max_per_prompt": 2, "order": "shortest"},
        [1, 3],
        {0: "over_limit", 2: "over_limit"},
    ),
    "the longest": (
        row(answer("a", 3), answer("b", 1), answer("c", 3), answer("d", 2)),
        {"max_per_prompt": 2, "order": "longest"},
        [0, 2],
        {1: "over_limit", 3: "over_limit"},
    ),
    "the shortest of equal texts": (
        row(answer("a", 3), answer("a ", 2), answer(" a", 2)),
        {"order": "shortest"},
        [1],
        {0: "duplicate", 2: "duplicate"},
    ),
    "a duplicate of one over the limit": (
        row("a", "b", "b"),
        {"max_per_prompt": 1},
        [0],
        {1: "over_limit", 2: "duplicate"},
    ),
    "the lower end of the band": (row("a", ("b", WRONG)), {"min_pass_rate": 0.5}, [0], {1: "wrong"}),
    "the upper end of the band": (row("a", ("b", WRONG)), {"max_pass_rate": 0.5}, [0], {1: "wrong"}),
    "below the band": (row("a", ("b", WRONG)), {"min_pass_rate": 0.51}, [], dict.fromkeys((0, 1), "outside_pass_rate")),
    "above the band": (row("a", ("b", WRONG)), {"max_pass_rate": 0.49}, [], dict.fromkeys((0, 1), "outside_pass_rate")),
    "one of ten": (
        row("a", *[("b", WRONG)] * 9),
        {"min_pass_rate": 0.1, "max_pass_rate": 0.1},
        [0],
        dict.fromkeys(range(1, 10), "wrong"),
    ),
    "invalid ones do not count for the band": (
        row("a", ("b", INVALID), ("c", INVALID)),
        {"min_pass_rate": 1.0},
        [0],
        dict.fromkeys((1, 2), "invalid_score"),
    ),
    "no valid score": (row(("a", INVALID), ("b", INVALID)), {}, [], dict.fromkeys((0, 1), "no_judged_answer")),
    "the first of several reasons": (
        row(
            (answer("<|im_end|>", 9, truncated=True), WRONG),
            answer("<|im_end|>", 9, truncated=True),
            answer("<|im_end|>", 9),
            answer("<|im_end|>", 1),
        ),
        {"max_tokens": 8},
        [],
        {0: "wrong", 1: "truncated", 2: "too_long", 3: "unwritable"},
    ),
}


@pytest.mark.parametrize(("given_row", "settings", "kept", "dropped"), CASES.values(), ids=CASES)
def test_every_answer_is_kept_or_has_a_reason(given_row, settings, kept, dropped):
    assert select(given_row, **settings) == (kept, dropped)


def test_every_reason_has_a_case():
    assert {reason for *_, dropped in CASES.values() for reason in dropped.values()} == set(REASONS)


def test_a_reason_comes_with_the_verifiers_sentence():
    [dropped] = select_row(row("a", ("b", INVALID)), SelectionSettings()).dropped
    assert dropped == Dropped(place=1, reason="invalid_score", detail="label: deadline of 8 s exceeded")
    [dropped] = select_row(row(("b", INVALID)), SelectionSettings()).dropped
    assert dropped == Dropped(place=0, reason="no_judged_answer", detail="label: deadline of 8 s exceeded")
    [dropped] = select_row(row("a", ("b", WRONG)), SelectionSettings()).dropped
    assert dropped.detail is None


def test_kept_answers_come_by_preference_and_others_by_place():
    answers = row(answer("a", 3), answer("b", 4), ("c", WRONG), answer("d", 2), answer("e", 1))
    selection = select_row(answers, SelectionSettings(max_per_prompt=2, order="shortest"))
    assert [each.place for each in selection.kept] == [4, 3]
    assert [each.place for each in selection.dropped] == [0, 1, 2]


UNWRITABLE = {
    "a media tag": ("I see <image> here", "holds the media tag <image>"),
    "a control token": ("angry<|im_end|>", r"control token '<\|im_end\|>'"),
    "no text": ("", "turn 2, the assistant's, is blank"),
    "whitespace alone": (" \n\t\u00a0\u3000", "turn 2, the assistant's, is blank"),
    "half a character": ("angry \ud83d", r"the lone surrogate \\ud83d"),
    "the other half": ("\ude00", r"the lone surrogate \\ude00"),
    "more than a line may hold": ("x" * 2**24, "longer than 16777216 bytes"),
}


@pytest.mark.parametrize(("text", "message"), UNWRITABLE.values(), ids=UNWRITABLE)
def test_an_answer_that_no_manifest_can_hold_is_dropped_with_the_readers_sentence(text, message):
    selection = select_row(row(text, "angry"), SelectionSettings())
    assert [each.place for each in selection.kept] == [1], "it takes no other answer's place"
    [dropped] = selection.dropped
    assert (dropped.place, dropped.reason) == (0, "unwritable")
    with pytest.raises(DataError, match=message):
        raise DataError(dropped.detail)


def test_an_answer_is_no_duplicate_of_one_that_cannot_be_written():
    # The full-width form is ordinary text, and NFKC makes the control token of it.
    assert select(row("<|im_end|>", "\uff1c|im_end|>")) == ([1], {0: "unwritable"})


WRITABLE = {
    "control characters": "a\x00\x1b[31mb\x7f\x85",
    "separators of lines": "a\r\n\u2028b\u2029c\x0b\x0c",
    "what JSON escapes": '{"id": "\\u0041"}\\',
    "marks": "\ufeff\u202e\u200dangry",
    "beyond the first plane": "\U0001f600\U0010ffff",
    "not composed": "e\u0301 \u00e9 \ufb01",
    "outer whitespace": "  <think>x</think>\n\n<answer>angry</answer> \n",
    "tags of other things": "<Image> < image> <images> <|x|>",
    "a megabyte": "brow " * 200_000,
}


@pytest.mark.parametrize("text", WRITABLE.values(), ids=WRITABLE)
def test_any_other_answer_is_read_back_to_the_letter(text, tmp_path):
    (tmp_path / "1.mp4").write_bytes(b"x")
    write_table(tmp_path / "table.jsonl", [row(text)])
    kept = [
        each.sample
        for selection in select_answers(read_table(tmp_path / "table.jsonl"), SelectionSettings())
        for each in selection.kept
    ]
    write_manifest(tmp_path / "train.jsonl", kept)
    [sample] = read_manifest(tmp_path / "train.jsonl", tmp_path)
    target = Message(role="assistant", content=text)
    assert sample == replace(PROMPT, id="clip-1#0", messages=(*PROMPT.messages, target))


def test_an_answer_takes_the_place_of_the_prompts_own_target():
    prompt = replace(PROMPT, messages=(*PROMPT.messages, Message(role="assistant", content="sad")))
    turns = answer_sample(row("calm", "angry", sample=prompt), 1).messages
    assert [(turn.role, turn.content) for turn in turns] == [
        ("user", "<video>Which emotion?"),
        ("assistant", "angry"),
    ]


def test_earlier_turns_of_the_assistant_stay():
    earlier = (
        Message(role="user", content="Hello"),
        Message(role="assistant", content="Hello!"),
        Message(role="user", content="<video>Which emotion?"),
    )
    sample = answer_sample(row("angry", sample=replace(PROMPT, messages=earlier)), 0)
    assert sample.messages == (*earlier, Message(role="assistant", content="angry"))


def test_the_target_is_the_text_after_the_prefill():
    template = PromptTemplate(PromptSettings(prefill="<think>"))
    sampled = template.complete("Brows.</think><answer>angry</answer>")
    prompt, target = template.split_target(answer_sample(row(sampled), 0).messages)
    assert (prompt, target) == (PROMPT.messages, "Brows.</think><answer>angry</answer>")


def test_prompts_with_one_id_are_refused():
    other = row("b", sample=replace(PROMPT, id="clip-2"))
    with pytest.raises(DataError, match=r"prompt 'clip-1' has two rows; .* make the ids of the prompts unique"):
        list(select_answers([row("a"), other, row("b")], SelectionSettings()))


def test_ids_that_look_like_an_answers_do_not_collide(tmp_path):
    (tmp_path / "1.mp4").write_bytes(b"x")
    rows = [row("a", "b", sample=replace(PROMPT, id=name)) for name in ("p", "p#0", "p#", "#0", "p#0#0")]
    kept = [
        each.sample
        for selection in select_answers(rows, SelectionSettings(max_per_prompt=2))
        for each in selection.kept
    ]
    assert write_manifest(tmp_path / "train.jsonl", kept) == 10
    assert read_manifest(tmp_path / "train.jsonl", tmp_path) == kept


texts = st.sampled_from(
    ["a", "b", " a ", "\uff41", "c d", "c  d", "", "  ", "<image>", "<|im_end|>", "\ud800", "e\x00"]
)
responses = st.tuples(texts, st.integers(1, 6), st.booleans(), st.sampled_from(["right", "right", "wrong", "invalid"]))
tables = st.lists(st.lists(responses, min_size=1, max_size=8), max_size=5)
rates = st.none() | st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
all_settings = st.builds(
    SelectionSettings,
    max_per_prompt=st.integers(1, 4),
    deduplicate=st.booleans(),
    min_tokens=st.none() | st.integers(1, 6),
    max_tokens=st.none() | st.integers(1, 6),
    order=st.sampled_from(ORDERS),
    min_pass_rate=rates,
    max_pass_rate=rates,
    truncated=st.booleans(),
)


def rows_of(table):
    """Rows with ids of their own; built in tests, since the shape checker draws random numbers when they are built."""
    scores = {"right": RIGHT, "wrong": WRONG, "invalid": INVALID}
    return [
        row(
            *((answer(text, tokens, truncated=cut), scores[score]) for text, tokens, cut, score in responses),
            sample=replace(PROMPT, id=f"p{number}"),
        )
        for number, responses in enumerate(table)
    ]


@given(table=tables, settings=all_settings)
def test_counts_add_up_to_the_input(table, settings):
    rows = rows_of(table)
    selections = list(select_answers(rows, settings))
    for selection in selections:
        places = [each.place for each in (*selection.kept, *selection.dropped)]
        assert sorted(places) == list(range(len(selection.row.completions)))
    totals = sum((selection.totals for selection in selections), Totals())
    assert totals.num_prompts == len(rows)
    assert totals.num_answers == sum(len(row.completions) for row in rows)
    assert totals.num_kept + sum(totals.dropped.values()) == totals.num_answers
    assert totals.dropped == Counter(each.reason for selection in selections for each in selection.dropped)
    assert totals.num_prompts_kept == sum(bool(selection.kept) for selection in selections)


@given(table=tables, settings=all_settings)
def test_kept_answers_are_right_and_within_all_bounds(table, settings):
    rows = rows_of(table)
    for selection in select_answers(rows, settings):
        row = selection.row
        assert len(selection.kept) <= settings.max_per_prompt
        if selection.kept:
            judged = [score for score in row.scores if score.valid]
            rate = sum(score is RIGHT for score in judged) / len(judged)
            assert (settings.min_pass_rate or 0.0) <= rate
            assert settings.max_pass_rate is None or rate <= settings.max_pass_rate
        for each in selection.kept:
            completion = row.completions[each.place]
            assert row.scores[each.place] is RIGHT
            assert each.sample.messages[-1].content == completion.text
            assert settings.truncated or not completion.truncated
            assert (settings.min_tokens or 1) <= completion.num_tokens <= (settings.max_tokens or 6)
        if settings.deduplicate:
            texts = [each.sample.messages[-1].content.replace("\uff41", "a").split() for each in selection.kept]
            assert len({tuple(text) for text in texts}) == len(texts)


@given(table=tables, settings=all_settings)
def test_what_is_kept_is_kept_again(table, settings):
    rows = rows_of(table)
    # All that is kept is right, so that its pass rate would lie above a band.
    again = replace(settings, min_pass_rate=None, max_pass_rate=None)
    for selection in select_answers(rows, settings):
        places = [each.place for each in selection.kept]
        completions = tuple(selection.row.completions[place] for place in places)
        scores = tuple(selection.row.scores[place] for place in places)
        second = select_row(replace(selection.row, completions=completions, scores=scores), again)
        assert [each.place for each in second.kept] == list(range(len(places)))
        assert second.dropped == ()


@given(table=tables, settings=all_settings, data=st.data())
def test_a_row_does_not_depend_on_other_rows(table, settings, data):
    rows = rows_of(table)
    shuffled = data.draw(st.permutations(rows))
    by_id = {selection.row.sample.id: selection for selection in select_answers(shuffled, settings)}
    assert [by_id[row.sample.id] for row in rows] == list(select_answers(rows, settings))


@given(table=tables, settings=all_settings)
def test_a_preferred_answer_is_never_left_for_another(table, settings):
    rows = rows_of(table)
    sign = {"first": 0, "shortest": 1, "longest": -1}[settings.order]
    for selection in select_answers(rows, settings):
        ranks = {
            place: (sign * completion.num_tokens, place) for place, completion in enumerate(selection.row.completions)
        }
        kept = [ranks[each.place] for each in selection.kept]
        assert kept == sorted(kept)
        left = [ranks[each.place] for each in selection.dropped if each.reason == "over_limit"]
        assert not left or (len(kept) == settings.max_per_prompt and max(kept) < min(left))


@given(table=tables, settings=all_settings)
def test_a_selection_is_read_back_from_its_manifest(table, settings, tmp_path_factory):
    rows = rows_of(table)
    folder = tmp_path_factory.mktemp("kept")
    (folder / "1.mp4").write_bytes(b"x")
    kept = [each.sample for selection in select_answers(rows, settings) for each in selection.kept]
    if not kept:
        return
    assert write_manifest(folder / "train.jsonl", kept) == len(kept)
    assert read_manifest(folder / "train.jsonl", folder) == kept
