"""Answers in columns: the two of a pair, and targets that are written from columns; mistakes are told with the fix."""

import json
import re

import pytest
import words

from lightning_mmrl.data.answer_columns import RowError, pair_of
from lightning_mmrl.data.collate import collate_pairs, collate_targets
from lightning_mmrl.data.exchanges import exchanges
from lightning_mmrl.data.exclusions import DecidedSet, Exclusions
from lightning_mmrl.data.prepared import PreparedSet
from lightning_mmrl.data.sources import Source, load_source, place_of
from lightning_mmrl.data.written_targets import with_targets
from lightning_mmrl.errors import DataError
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.settings.data import PromptSettings
from lightning_mmrl.types.records import Message, Sample

ASKED = (Message(role="user", content="Which?"),)


def said(text):
    """An answer as a list of one assistant turn."""
    return [{"role": "assistant", "content": text}]


def sample(messages=ASKED, **columns):
    """A row; columns that are no fields are extras."""
    own = {name: columns.pop(name) for name in ("solution", "id") if name in columns}
    return Sample(**{"id": "one", "messages": messages, "extras": columns, **own})


@pytest.mark.parametrize("chosen", ["happy", said("happy")])
@pytest.mark.parametrize("rejected", ["sad", said("sad")])
def test_the_answers_of_a_pair_are_texts_or_lists_of_one_turn(chosen, rejected):
    assert pair_of(sample(chosen=chosen, rejected=rejected)) == ("happy", "sad")
    assert pair_of(sample(chosen=chosen, rejected=rejected, chosen_score=1.0, rejected_score=0)) == ("happy", "sad")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"rejected": "sad"}, "it has no 'chosen' answer; add 'chosen' to the row"),
        ({"chosen": "happy"}, "it has no 'rejected' answer; add 'rejected' to the row"),
        ({}, "it has no 'chosen' answer; name a file of pairs"),
        ({"chosen": " ", "rejected": "sad"}, "'chosen' is blank; write an answer or drop the row"),
        ({"chosen": "happy", "rejected": said("")}, "'rejected' is blank; write an answer or drop the row"),
        ({"chosen": "a", "rejected": "a "}, "'chosen' and 'rejected' are both 'a'; a pair needs two answers"),
        ({"chosen": 7, "rejected": "a"}, "'chosen' is 7; it must be text"),
        ({"chosen": said("a") * 2, "rejected": "b"}, "it must be a text or a list of one assistant turn"),
        ({"chosen": [{"role": "user", "content": "a"}], "rejected": "b"}, "a list of one assistant turn"),
        ({"chosen": "a<|im_end|>", "rejected": "b"}, "'chosen' holds the control token '<|im_end|>'"),
        ({"chosen": "a", "rejected": "<video>"}, "'rejected' holds the media tag <video>"),
        (
            {"chosen": "a", "rejected": "b", "chosen_score": 0.1, "rejected_score": 0.9},
            "'chosen_score' 0.1 is below 'rejected_score' 0.9; exchange the answers or drop the row",
        ),
    ],
)
def test_what_is_no_pair_is_refused_with_the_fix(columns, message):
    with pytest.raises(RowError, match=f"^sample one: .*{re.escape(message)}"):
        pair_of(sample(**columns))


def test_an_assistant_turn_at_the_end_is_no_part_of_the_prompt():
    told = sample((*ASKED, Message(role="assistant", content="happy")), chosen="happy", rejected="sad")
    found = exchanges(told, PromptTemplate(), supervised=True, lesson="pair")
    assert [each.turns for each in found] == [ASKED, ASKED]


def test_both_answers_of_a_pair_have_one_prompt_and_the_prefill():
    template = PromptTemplate(PromptSettings(suffix=" Think.", prefill="<think>"))
    found = exchanges(sample(chosen="<think>a", rejected="<think>b"), template, supervised=True, lesson="pair")
    assert [each.target for each in found] == ["a", "b"]
    assert found[0].turns == found[1].turns == (Message(role="user", content="Which? Think."),)
    with pytest.raises(RowError, match=r"^sample one: 'rejected': the assistant turn 'b' does not start with"):
        exchanges(sample(chosen="<think>a", rejected="b"), template, supervised=True, lesson="pair")


def test_a_pair_is_one_prompt_with_two_targets(root, pipeline):
    pairs = [sample(chosen="ab", rejected="c"), sample(chosen="c", rejected="ab", id="two")]
    prepared = PreparedSet(
        pairs, media_root=root, pipeline=pipeline, template=PromptTemplate(), supervised=True, lesson="pair"
    )
    prepared.check("pairs.jsonl")
    items = [words.read(prepared, index=place) for place in range(2)]
    batch = collate_pairs(items, pad_token_id=0)
    assert (len(batch.prompts.samples), batch.scoring.group_size) == (2, 2)
    ended = [row[mask].tolist() for row, mask in zip(batch.completion_ids, batch.completion_mask, strict=True)]
    assert ended == [[*map(ord, "ab"), 1], [ord("c"), 1], [ord("c"), 1], [*map(ord, "ab"), 1]]
    assert [each.id for each in batch.samples] == ["one", "one", "two", "two"]
    # The negative control: as targets of one prompt, the pairs would lie in one group of four.
    assert len(collate_targets(items, pad_token_id=0).prompts.samples) == 1


TARGETS = {
    "label alone": ("<answer>{solution}</answer>", "<answer>happy</answer>"),
    "rationalised": ("<think>{rationale}</think><answer>{solution}</answer>", "<think>r</think><answer>happy</answer>"),
    "bridged": ("{bridged}", "b"),
    "boxed": (r"\boxed{{solution}}", r"\boxed{happy}"),
    "number": ("{level} of 5", "3 of 5"),
}
COLUMNS = {"solution": "happy", "rationale": "r", "bridged": "b", "level": 3}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("answered", [False, True])
def test_a_target_is_written_from_columns(name, answered):
    target, expected = TARGETS[name]
    turns = (*ASKED, Message(role="assistant", content="<think>as written</think>")) if answered else ASKED
    [found] = with_targets([sample(turns, **COLUMNS)], target)
    assert found.messages == (*ASKED, Message(role="assistant", content=expected))


def test_without_a_target_the_answers_stay_as_they_are():
    turns = (*ASKED, Message(role="assistant", content="as written"))
    assert with_targets([sample(turns, **COLUMNS)], None)[0].messages == turns


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"rationale": "r"}, "it has no 'solution', which '{rationale} {solution}' asks for"),
        ({"solution": "s", "rational": "r"}, "it has no 'rationale', .*did you mean 'rational'?"),
        ({"solution": "s", "rationale": None}, "it has no 'rationale'"),
        ({"solution": "s", "rationale": " "}, "'rationale' is blank; write an answer or drop the row"),
        ({"solution": "s", "rationale": ["r"]}, r"'rationale' is \['r'\]; it must be text"),
        ({"solution": "s", "rationale": True}, "'rationale' is True; it must be text"),
        ({"solution": "s", "rationale": "<|im_start|>"}, "'rationale' holds the control token"),
    ],
)
def test_a_row_that_lacks_a_column_is_refused_with_the_fix(columns, message):
    with pytest.raises(RowError, match=f"^sample one: .*{message}"):
        with_targets([sample(**columns)], "{rationale} {solution}")[0]


def written(folder, name, *rows):
    """A file of JSON lines."""
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


USER = {"role": "user", "content": "Which?"}
PUBLISHED = {
    "canonical": {"messages": [USER], "chosen": "happy", "rejected": "sad"},
    "texts": {"prompt": "Which?", "chosen": "happy", "rejected": "sad"},
    "conversations": {"prompt": [USER], "chosen": said("happy"), "rejected": said("sad")},
    "parts": {
        "prompt": [{"role": "user", "content": [{"type": "text", "text": "Which?"}]}],
        "chosen": said([{"type": "text", "text": "happy"}]),
        "rejected": said([{"type": "text", "text": "sad"}]),
    },
    "shared prompt": {"chosen": [USER, *said("happy")], "rejected": [USER, *said("sad")]},
    "prompt twice": {"prompt": "Which?", "chosen": [USER, *said("happy")], "rejected": [USER, *said("sad")]},
    "question": {"question": "Which?", "chosen": "happy", "rejected": "sad"},
}


@pytest.mark.parametrize("layout", PUBLISHED)
def test_published_layouts_of_pairs_are_read_as_one(tmp_path, layout):
    path = written(tmp_path, "pairs.jsonl", {**PUBLISHED[layout], "chosen_score": 2, "rejected_score": 1})
    [found] = load_source(path, tmp_path).samples
    assert found.messages == ASKED
    assert pair_of(found) == ("happy", "sad")
    assert (found.extras["chosen_score"], found.extras["rejected_score"]) == (2, 1)


def test_scores_under_the_names_that_trl_gives_them_are_read(tmp_path):
    row = {**PUBLISHED["shared prompt"], "score_chosen": 9.0, "score_rejected": 3.0}
    [found] = load_source(written(tmp_path, "pairs.jsonl", row), tmp_path).samples
    assert (found.extras["chosen_score"], found.extras["rejected_score"]) == (9.0, 3.0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"chosen": [USER, *said("a")], "rejected": [{**USER, "content": "Who?"}, *said("b")]},
            "'chosen' and 'rejected' begin with different turns; a pair answers one prompt: correct or drop the row",
        ),
        (
            {"prompt": "Who?", "chosen": [USER, *said("a")], "rejected": said("b")},
            "'prompt' and 'chosen' begin with different turns",
        ),
        ({"chosen": "a", "rejected": "b"}, "answers and no prompt; add the column 'prompt' or 'messages'"),
        ({"chosen": [USER, *said("a")], "rejected": ""}, "'rejected' is missing or empty; add the answer"),
        ({"chosen": [USER], "rejected": said("b")}, "'chosen' does not end with an assistant turn"),
    ],
)
def test_a_published_pair_without_one_prompt_is_refused_by_line(tmp_path, row, message):
    path = written(tmp_path, "pairs.jsonl", PUBLISHED["shared prompt"], row)
    with pytest.raises(DataError, match=f"pairs.jsonl:2: .*{re.escape(message)}"):
        load_source(path, tmp_path)


def test_the_place_of_a_row_is_found_by_its_id(tmp_path):
    path = written(
        tmp_path, "pairs.jsonl", {**PUBLISHED["canonical"], "id": "a"}, {**PUBLISHED["canonical"], "id": "b"}
    )
    assert place_of("b", path, tmp_path) == f"{path}:2"
    assert place_of("c", path, tmp_path) == str(path)
    assert Source(path, tmp_path).reader.name == "canonical"


def test_answers_that_changed_make_a_row_a_new_one(root, tmp_path):
    which = DecidedSet(manifest="pairs.jsonl", root=root, use={})
    decisions = Exclusions(tmp_path / "exclusions.jsonl")
    decisions.decide(which, [sample(chosen="a", rejected="b")], {})
    assert decisions.decided(which, [sample(chosen="a", rejected="b")]) == {"one": None}
    assert decisions.decided(which, [sample(chosen="a", rejected="c")]) == {}
