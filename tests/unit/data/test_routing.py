"""Every prompt goes where its share of right answers says, for all patterns, and every mutant of the rule shows."""

import inspect
from fractions import Fraction
from functools import lru_cache
from itertools import product
from types import ModuleType

import pytest

from lightning_mmrl.data import routing
from lightning_mmrl.data.answer_selection import select_row
from lightning_mmrl.data.manifest_lines import manifest_line
from lightning_mmrl.data.rollout_table import RolloutRow
from lightning_mmrl.data.routing import ARTIFACTS, pairs_of, prompt_turns, taught
from lightning_mmrl.data.schema import LineError, parse_line
from lightning_mmrl.settings.algorithm import RouterSettings
from lightning_mmrl.settings.route import RouteSettings
from lightning_mmrl.settings.selection import SelectionSettings
from lightning_mmrl.types.records import Completion, Message, Sample, Score

PROMPT = Sample(
    id="sum-1", messages=(Message(role="user", content="1 + 1 = ?"),), solution="2", extras={"topic": "sums"}
)
SCORES = {
    "right": Score(total=1.0, components={"math": 1.0}),
    "wrong": Score(total=0.25, components={"math": 0.0}),
    "invalid": Score(total=0.0, components={}, valid=False, reason="math: deadline"),
}
KEPT = lru_cache(lambda pattern, **keep: bool(select_row(row(pattern), SelectionSettings(**keep)).kept))
PATTERNS = [pattern for size in range(1, 5) for pattern in product(SCORES, repeat=size)]
HOMES = ("own", "expert", "solved", "unsolved")


def row(pattern, texts=None, *, truncated=(), prompt=PROMPT):
    """A row with an answer for each word of the pattern."""
    texts = texts or [f"answer {place}" for place in range(len(pattern))]
    completions = tuple(
        Completion(text=text, num_tokens=3, truncated=place in truncated) for place, text in enumerate(texts)
    )
    scores = tuple(SCORES[word] for word in pattern)
    return RolloutRow(sample=prompt, completions=completions, scores=scores, policy_version=0, pass_component="math")


def stage(**changes):
    return RouteSettings(kind="route", **changes)


def routed(pattern, settings, *, answered=False, rule=routing):
    """The artifacts that a row is in, as the stage computes it."""
    found = row(pattern)
    absent = rule.absences(
        rule.standing_of(found.pass_rate, settings),
        settings,
        keeps_own=KEPT(pattern, **vars(settings.kept)),
        no_pair=rule.pairs_of(found, settings)[1],
        no_answer=None if answered else "wrong",
    )
    return {name for name in ARTIFACTS if name not in absent}, absent


def by_hand(pattern, low, high, *, replay, answered):
    """The same from the words alone, with exact fractions."""
    judged = [word for word in pattern if word != "invalid"]
    homes = set()
    if judged:
        share = Fraction(judged.count("right"), len(judged))
        if share >= high:
            homes = {"solved"} | ({"own"} if replay and "right" in judged else set())
        elif share <= low:
            homes = {"expert"} if answered else {"unsolved"}
        else:
            homes = {"own"}
    return homes | ({"pairs"} if {"right", "wrong"} <= set(judged) else set())


BOUNDS = [
    (0, 1),
    (Fraction(1, 4), Fraction(3, 4)),
    (Fraction(1, 2), Fraction(1, 2) + Fraction(1, 100)),
    (0, Fraction(1, 4)),
]


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("replay", [False, True])
@pytest.mark.parametrize(("low", "high"), BOUNDS)
def test_every_pattern_goes_where_its_share_of_right_answers_says(low, high, replay, answered):
    settings = stage(unsolved_at_most=float(low), solved_at_least=float(high), replay=replay)
    for pattern in PATTERNS:
        found, absent = routed(pattern, settings, answered=answered)
        assert found == by_hand(pattern, low, high, replay=replay, answered=answered), pattern
        assert set(absent) == set(ARTIFACTS) - found
        assert all(absent.values())
        assert len(found & {*HOMES}) == (0 if set(pattern) == {"invalid"} else 1 + ({"own", "solved"} <= found))


def test_there_are_as_many_patterns_as_there_should_be():
    assert len(PATTERNS) == 3 + 9 + 27 + 81


MUTANTS = [
    ("pass_rate >= settings.solved_at_least", "pass_rate > settings.solved_at_least"),
    ("pass_rate <= settings.unsolved_at_most", "pass_rate < settings.unsolved_at_most"),
    ("pass_rate >= settings.solved_at_least", "pass_rate >= 1.0"),
    ("pass_rate <= settings.unsolved_at_most", "pass_rate <= 0.0"),
    ('return "unjudged"', 'return "never_solved"'),
    ('return "solved"', 'return "sometimes_solved"'),
    ('settings.replay and standing == "solved"', "settings.replay"),
    ('settings.replay and standing == "solved"', "False"),
    ('standing == "sometimes_solved" or (', 'standing != "never_solved" or ('),
    ('None if keeps_own else "no_answer_kept"', "None"),
    ("EXPERT: no_answer if never or debugging", "EXPERT: no_answer if True"),
    ('SOLVED: None if standing == "solved"', 'SOLVED: None if standing != "never_solved"'),
    ("if no_answer is None else None", "if no_answer is not None else None"),
    ("for wanted in (True, False)", "for wanted in (False, True)"),
    ('return [], "unjudged"', "return [], None"),
    ("len(pairs) == settings.pairs_per_prompt", "len(pairs) > settings.pairs_per_prompt"),
    ("return pairs, None if pairs else reason", "return pairs, reason"),
]
"""Texts of the rule, and what a mutant has in their place."""


def check_rule(rule):
    """All that the tests above ask of the rule, of a module that has it."""
    none_kept = stage(keep=SelectionSettings(min_tokens=9))
    for (low, high), replay, answered in product(BOUNDS, (False, True), (False, True)):
        settings = stage(unsolved_at_most=float(low), solved_at_least=float(high), replay=replay)
        for pattern in {tuple(sorted(pattern)) for pattern in PATTERNS}:  # the order decides nothing here
            found = routed(pattern, settings, answered=answered, rule=rule)[0]
            assert found == by_hand(pattern, low, high, replay=replay, answered=answered)
    assert routed(("right", "wrong"), none_kept, rule=rule)[0] == set()
    pairs = rule.pairs_of(row(("wrong", "right", "wrong", "right")), stage())[0]
    assert [(pair.extras["chosen"], pair.extras["rejected"]) for pair in pairs] == [("answer 1", "answer 0")]


def test_the_rule_itself_passes_the_check_of_mutants():
    check_rule(routing)


@pytest.mark.parametrize(("text", "mutant"), MUTANTS)
def test_every_mutant_of_the_rule_is_found(text, mutant):
    source = inspect.getsource(routing)
    assert source.count(text) == 1
    module = ModuleType("mutant")
    exec(source.replace(text, mutant), vars(module))
    with pytest.raises(AssertionError):
        check_rule(module)


def test_a_prompt_whose_right_answers_are_not_kept_is_nowhere_and_says_why():
    settings = stage(keep=SelectionSettings(min_tokens=9))
    found, absent = routed(("right", "wrong"), settings)
    assert found == set()
    assert absent["own"] == "no_answer_kept"
    assert absent["pairs"] == "no_right_answer"


def test_a_debug_run_puts_every_judged_prompt_everywhere():
    settings = stage().for_debugging()
    for pattern in PATTERNS:
        if "invalid" not in pattern and len(pattern) > 1:
            assert routed(pattern, settings, answered=True)[0] == set(ARTIFACTS), pattern


def test_pairs_have_the_prompt_both_answers_and_both_scores():
    found, reason = pairs_of(row(("wrong", "right", "wrong", "right"), ["a", "b", "c", "d"]), stage(pairs_per_prompt=9))
    assert reason is None
    assert [(pair.extras["chosen"], pair.extras["rejected"]) for pair in found] == [("b", "a"), ("d", "c")]
    assert [pair.id for pair in found] == ["sum-1#1-0", "sum-1#3-2"]
    assert {pair.messages for pair in found} == {PROMPT.messages}
    assert found[0].extras == {
        "topic": "sums",
        "chosen": "b",
        "rejected": "a",
        "chosen_score": 1.0,
        "rejected_score": 0.25,
    }
    assert parse_line(manifest_line(found[0]), "x") == found[0]


@pytest.mark.parametrize(
    ("pattern", "changes", "texts", "truncated", "reason"),
    [
        (("right", "right"), {}, None, (), "no_wrong_answer"),
        (("wrong", "invalid"), {}, None, (), "no_right_answer"),
        (("invalid",), {}, None, (), "unjudged"),
        (("right", "wrong"), {"pairs_per_prompt": 0}, None, (), "no_pairs_wanted"),
        (("right", "wrong"), {}, None, (0,), "no_right_answer"),
        (("right", "wrong"), {}, None, (1,), "no_wrong_answer"),
        (("right", "wrong"), {}, ["a", "<video> b"], (), "no_wrong_answer"),
        (("right", "wrong"), {}, ["a", " a "], (), "no_wrong_answer"),
    ],
)
def test_a_prompt_without_a_pair_says_why(pattern, changes, texts, truncated, reason):
    assert pairs_of(row(pattern, texts, truncated=truncated), stage(**changes)) == ([], reason)


def test_a_target_at_the_end_of_a_prompt_is_in_no_pair_and_no_question():
    turns = (*PROMPT.messages, Message(role="assistant", content="2"), Message(role="assistant", content="two"))
    prompt = Sample(id="t", messages=turns, solution="2")
    assert prompt_turns(prompt) == PROMPT.messages
    (pair,), _ = pairs_of(row(("right", "wrong"), prompt=prompt), stage())
    assert pair.messages == PROMPT.messages
    sample = taught(prompt, "I see 2")
    assert sample.messages == (*PROMPT.messages, Message(role="assistant", content="I see 2"))
    assert (sample.id, sample.solution) == ("t#expert", "2")


def test_an_answer_that_a_manifest_cannot_hold_is_not_taught():
    with pytest.raises(LineError, match="media tag"):
        taught(PROMPT, "<image> 2")


@pytest.mark.parametrize(
    ("unsolved", "solved", "expected"),
    [
        (None, None, ["sometimes_solved"] * 3),
        (0.0, None, ["never_solved", "sometimes_solved", "sometimes_solved"]),
        (None, 0.5, ["sometimes_solved", "solved", "solved"]),
        (0.5, 1.0, ["never_solved", "never_solved", "solved"]),
    ],
)
def test_a_router_may_leave_a_bound_out(unsolved, solved, expected):
    bounds = RouterSettings(unsolved_at_most=unsolved, solved_at_least=solved)
    assert [routing.standing_of(rate, bounds) for rate in (0.0, 0.5, 1.0)] == expected
    assert routing.standing_of(None, bounds) == "unjudged"
