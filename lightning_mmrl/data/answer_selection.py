"""Selects right answers of a rollout table as samples for supervised training; each dropped answer has a reason."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from lightning_mmrl.data.formats.turns import quoted
from lightning_mmrl.data.manifest_lines import manifest_line
from lightning_mmrl.data.rollout_table import RolloutRow
from lightning_mmrl.data.schema import LineError
from lightning_mmrl.errors import DataError
from lightning_mmrl.settings.selection import SelectionSettings
from lightning_mmrl.types.records import Completion, Message, Sample

Reason = Literal[
    "no_judged_answer",
    "outside_pass_rate",
    "invalid_score",
    "wrong",
    "truncated",
    "too_short",
    "too_long",
    "unwritable",
    "duplicate",
    "over_limit",
]
REASONS: tuple[Reason, ...] = get_args(Reason)
"""Reasons why an answer is not kept; of several, the first counts. The first two concern the whole prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The answer at `place` among a prompt's responses, counted from 0, and the sample that teaches it."""

    place: int
    sample: Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """An answer that is not kept; `detail` is the message of the verifier or the manifest reader, if there is one."""

    place: int
    reason: Reason
    detail: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Counts of a selection; `num_kept` and the counts of `dropped` add up to `num_answers`.

    `+` adds the totals of several selections.

    >>> one = Totals(num_prompts=1, num_prompts_kept=1, num_answers=2, num_kept=1, dropped={"wrong": 1})
    >>> (one + one).dropped, (one + one).num_answers
    ({'wrong': 2}, 4)
    """

    num_prompts: int = 0
    num_prompts_kept: int = 0
    num_answers: int = 0
    num_kept: int = 0
    dropped: Mapping[Reason, int] = field(default_factory=dict)

    def __add__(self, other: "Totals") -> "Totals":
        both = Counter(self.dropped) + Counter(other.dropped)
        return Totals(
            num_prompts=self.num_prompts + other.num_prompts,
            num_prompts_kept=self.num_prompts_kept + other.num_prompts_kept,
            num_answers=self.num_answers + other.num_answers,
            num_kept=self.num_kept + other.num_kept,
            dropped={reason: both[reason] for reason in REASONS if reason in both},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The answers of one prompt: `kept` in the order of preference, `dropped` in the order of their places."""

    row: RolloutRow
    kept: tuple[Kept, ...]
    dropped: tuple[Dropped, ...]

    @property
    def totals(self) -> Totals:
        """The counts of this prompt."""
        return Totals(
            num_prompts=1,
            num_prompts_kept=int(bool(self.kept)),
            num_answers=len(self.row.completions),
            num_kept=len(self.kept),
            dropped=Counter(each.reason for each in self.dropped),
        )


def select_answers(rows: Iterable[RolloutRow], settings: SelectionSettings) -> Iterator[Selection]:
    """Selects the answers of each row; a row's selection depends on no other row.

    Raises:
        DataError: Two rows have the same id, so that the ids of kept answers could repeat.
    """
    seen: set[str] = set()
    for row in rows:
        if row.sample.id in seen:
            raise DataError(
                f"prompt {quoted(row.sample.id)} has two rows; an answer's id is its prompt's with its place: select "
                "from the tables one by one, or make the ids of the prompts unique"
            )
        seen.add(row.sample.id)
        yield select_row(row, settings)


def select_row(row: RolloutRow, settings: SelectionSettings) -> Selection:
    """Selects the answers of one prompt."""
    dropped: dict[int, Dropped] = {}
    writable: list[Kept] = []
    of_all = _prompt_reason(row, settings)
    for place, (right, completion) in enumerate(zip(row.right, row.completions, strict=True)):
        reason = of_all or _answer_reason(right, completion, settings)
        detail = row.scores[place].reason if right is None else None
        if reason is None:
            sample = answer_sample(row, place)
            try:
                manifest_line(sample)
                writable.append(Kept(place=place, sample=sample))
                continue
            except LineError as error:
                reason, detail = "unwritable", error.reason
        dropped[place] = Dropped(place=place, reason=reason, detail=detail)
    kept, left = _preferred(row, writable, settings)
    dropped |= left
    return Selection(row=row, kept=tuple(kept), dropped=tuple(dropped[place] for place in sorted(dropped)))


def answer_sample(row: RolloutRow, place: int) -> Sample:
    """The sample that teaches one answer: the prompt with the answer's text, prefill included, as its target.

    If the row's messages end with an assistant turn, the answer replaces that turn, which was the prompt's target. The
    new id is the prompt's id, `#` and the place, so answers of different prompts have different ids.
    """
    turns = row.sample.messages
    prompt = turns[:-1] if turns and turns[-1].role == "assistant" else turns
    target = Message(role="assistant", content=row.completions[place].text)
    return replace(row.sample, id=f"{row.sample.id}#{place}", messages=(*prompt, target))


def _prompt_reason(row: RolloutRow, settings: SelectionSettings) -> Reason | None:
    """Returns the reason why no answer of a prompt is kept; None if answers may be kept."""
    rate, low, high = row.pass_rate, settings.min_pass_rate, settings.max_pass_rate
    if rate is None:
        return "no_judged_answer"
    # k / n is the same float as a bound of that value in the configuration: 1 of 10 is within 0.1.
    within = (low is None or low <= rate) and (high is None or rate <= high)
    return None if within else "outside_pass_rate"


def _answer_reason(right: bool | None, completion: Completion, settings: SelectionSettings) -> Reason | None:
    """Returns the first reason why an answer is not kept, whatever the other answers are; None if it may be kept."""
    low, high = settings.min_tokens, settings.max_tokens
    reasons: Mapping[Reason, bool] = {
        "invalid_score": right is None,
        "wrong": not right and not settings.wrong,
        "truncated": completion.truncated and not settings.truncated,
        "too_short": low is not None and completion.num_tokens < low,
        "too_long": high is not None and completion.num_tokens > high,
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


def _preferred(
    row: RolloutRow, candidates: Sequence[Kept], settings: SelectionSettings
) -> tuple[list[Kept], dict[int, Dropped]]:
    """Returns up to `max_per_prompt` candidates in the order of preference (ties by place), and the dropped ones."""
    sign = {"first": 0, "shortest": 1, "longest": -1}[settings.order]
    kept: list[Kept] = []
    left: dict[int, Dropped] = {}
    seen: set[str] = set()
    for each in sorted(candidates, key=lambda each: sign * row.completions[each.place].num_tokens):
        text = " ".join(unicodedata.normalize("NFKC", row.completions[each.place].text).split())
        if settings.deduplicate and text in seen:
            left[each.place] = Dropped(place=each.place, reason="duplicate")
        elif len(kept) == settings.max_per_prompt:
            left[each.place] = Dropped(place=each.place, reason="over_limit")
        else:
            kept.append(each)
        seen.add(text)
    return kept, left
