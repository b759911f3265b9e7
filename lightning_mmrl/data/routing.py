"""Sorts the prompts of a rollout table by their pass rate, and pairs right answers with wrong ones.

The rule of Metis-RISE (arXiv:2506.13056): a prompt that the model always solves teaches nothing more, one that it
sometimes solves teaches the model's own right answers, and one that it never solves goes to an expert.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, Protocol

from lightning_mmrl.data.answer_selection import answer_sample, select_row
from lightning_mmrl.data.manifest_lines import manifest_line
from lightning_mmrl.data.rollout_table import RolloutRow
from lightning_mmrl.data.schema import LineError
from lightning_mmrl.settings.route import RouteSettings
from lightning_mmrl.types.records import Message, Sample

Standing = Literal["unjudged", "never_solved", "sometimes_solved", "solved"]
OWN, EXPERT, SOLVED, UNSOLVED, PAIRS = ARTIFACTS = ("own", "expert", "solved", "unsolved", "pairs")
ANSWERS = "answers"
"""A table with the right answers of experts to prompts that no model has answered."""


class Bounds(Protocol):
    """The pass rates up to which a prompt is never solved and from which on it is solved; None: no prompt is."""

    @property
    def unsolved_at_most(self) -> float | None: ...

    @property
    def solved_at_least(self) -> float | None: ...


def standing_of(pass_rate: float | None, settings: Bounds) -> Standing:
    """Returns where a prompt stands; both bounds count as within, and the bound of `solved` comes first.

    >>> [standing_of(rate, RouteSettings()) for rate in (None, 0.0, 0.5, 1.0)]
    ['unjudged', 'never_solved', 'sometimes_solved', 'solved']
    """
    if pass_rate is None:
        return "unjudged"
    if settings.solved_at_least is not None and pass_rate >= settings.solved_at_least:
        return "solved"
    unsolved = settings.unsolved_at_most is not None and pass_rate <= settings.unsolved_at_most
    return "never_solved" if unsolved else "sometimes_solved"


def absences(
    standing: Standing,
    settings: RouteSettings,
    *,
    keeps_own: bool,
    no_pair: str | None,
    no_answer: str | None,
) -> Mapping[str, str]:
    """Maps each artifact that a prompt is not in to the reason.

    A judged prompt is at home in exactly one of `own`, `expert`, `solved` and `unsolved`, or has no answer to keep.
    With `replay`, a solved prompt is in `own` as well. In a debug run it is wherever it can be.

    Args:
        standing: Result of `standing_of`.
        settings: The stage.
        keeps_own: Whether `keep` selects one of the model's answers.
        no_pair: Why there is no pair of answers; None if there is one.
        no_answer: Why no expert gave a right answer; None if one did.
    """
    never, debugging = standing == "never_solved", settings.debugging
    teaches = standing == "sometimes_solved" or (settings.replay and standing == "solved") or debugging
    reasons = {
        OWN: (None if keeps_own else "no_answer_kept") if teaches else standing,
        EXPERT: no_answer if never or debugging else standing,
        SOLVED: None if standing == "solved" or debugging else standing,
        UNSOLVED: ("answered_by_expert" if no_answer is None else None) if never else standing,
        PAIRS: no_pair,
    }
    if debugging:
        reasons[UNSOLVED] = None
    return {name: reason for name, reason in reasons.items() if reason is not None}


def prompt_turns(sample: Sample) -> tuple[Message, ...]:
    """Returns the turns of a sample up to its last question: a target at the end is left out.

    >>> turns = tuple(Message(role=role, content="a") for role in ("user", "assistant", "assistant"))
    >>> [turn.role for turn in prompt_turns(Sample(id="1", messages=turns))]
    ['user']
    """
    end = len(sample.messages)
    while end and sample.messages[end - 1].role == "assistant":
        end -= 1
    return sample.messages[:end]


def taught(sample: Sample, answer: str) -> Sample:
    """Returns the sample that teaches an expert's answer.

    Raises:
        LineError: A manifest cannot hold the answer.
    """
    target = Message(role="assistant", content=answer)
    made = replace(sample, id=f"{sample.id}#{EXPERT}", messages=(*prompt_turns(sample), target))
    manifest_line(made)
    return made


def pairs_of(row: RolloutRow, settings: RouteSettings) -> tuple[list[Sample], str | None]:
    """Returns a prompt's pairs of a right and a wrong answer, and the reason if there is none.

    Right and wrong answers come in the order that `keep` prefers, and no answer is in two pairs. A pair is a sample
    whose last turn is the question, with the further columns `chosen`, `rejected`, `chosen_score`, `rejected_score`.
    """
    if settings.pairs_per_prompt == 0:
        return [], "no_pairs_wanted"
    if row.pass_rate is None:
        return [], "unjudged"
    all_of_them = replace(settings.kept, wrong=True, max_per_prompt=len(row.completions))
    places = [each.place for each in select_row(row, all_of_them).kept]
    right, wrong = ([place for place in places if row.right[place] is wanted] for wanted in (True, False))
    if settings.debugging:
        right, wrong = places[:1], places[1:]
    pairs = []
    for chosen, rejected in zip(right, wrong, strict=False):
        pair = _pair(row, chosen, rejected)
        pairs += [] if pair is None or len(pairs) == settings.pairs_per_prompt else [pair]
    reason = "no_right_answer" if not right else "no_wrong_answer" if not wrong else "unwritable"
    return pairs, None if pairs else reason


def _pair(row: RolloutRow, chosen: int, rejected: int) -> Sample | None:
    """Returns the sample of a pair; None if a manifest cannot hold it."""
    columns = {
        "chosen": row.completions[chosen].text,
        "rejected": row.completions[rejected].text,
        "chosen_score": row.scores[chosen].total,
        "rejected_score": row.scores[rejected].total,
    }
    sample = replace(
        answer_sample(row, chosen),
        id=f"{row.sample.id}#{chosen}-{rejected}",
        messages=prompt_turns(row.sample),
        extras={**row.sample.extras, **columns},
    )
    try:
        manifest_line(sample)
    except LineError:
        return None
    return sample
