"""The prompts and targets of a conversation."""

from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise

from lightning_mmrl.data.answer_columns import CHOSEN, REJECTED, RowError, pair_of
from lightning_mmrl.data.samples import RowCheck
from lightning_mmrl.errors import DataError
from lightning_mmrl.prompts.template import PromptTemplate, media_tags
from lightning_mmrl.settings.lessons import Lesson
from lightning_mmrl.types.records import Message, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A prompt's turns after the template, and the answer that is learned, without the prefill; None for none."""

    turns: tuple[Message, ...]
    target: str | None

    @property
    def num_media(self) -> int:
        """Number of media in the prompt."""
        return sum(len(media_tags(turn.content)) for turn in self.turns)


def exchanges(
    sample: Sample, template: PromptTemplate, *, supervised: bool, lesson: Lesson = "turns"
) -> tuple[Exchange, ...]:
    """The prompts and targets of a sample, in order; without `supervised` its prompt alone.

    Every assistant turn that answers a user turn is a target. Of the lesson `last_turn` the earlier ones belong to the
    prompt. Of the lesson `pair` there are two, with one prompt: the chosen answer and the rejected one.

    Raises:
        DataError: There is no user turn or no target, or a target does not start with the prefill.
    """
    if supervised and lesson == "pair":
        return _of_pair(sample, template)
    ends = [len(sample.messages)]
    if supervised and lesson == "turns":
        roles = [message.role for message in sample.messages]
        pairs = enumerate(pairwise(roles[:-1]))
        ends = [place + 2 for place, pair in pairs if pair == ("user", "assistant")] + ends
    found = []
    for end in ends:
        try:
            turns, target = template.split_target(sample.messages[:end])
            found.append(Exchange(turns=template.apply(turns), target=target if supervised else None))
        except DataError as error:
            hint = "" if end == ends[-1] else "; or set mask_history=true for the stage, to learn the last turn alone"
            raise DataError(f"sample {sample.id}: {error}{hint}") from error
    if supervised and found[-1].target is None:
        raise DataError(f"sample {sample.id} has no assistant turn to learn from; add one or use it for RL")
    return tuple(found)


def _of_pair(sample: Sample, template: PromptTemplate) -> tuple[Exchange, ...]:
    """The two answers of a pair; as in RL, an assistant turn at the end of the messages is no part of the prompt."""
    asked = sample.messages[:-1] if sample.messages[-1].role == "assistant" else sample.messages
    found = []
    for side, answer in zip((CHOSEN, REJECTED), pair_of(sample), strict=True):
        try:
            turns, target = template.split_target((*asked, Message(role="assistant", content=answer)))
            found.append(Exchange(turns=template.apply(turns), target=target))
        except DataError as error:
            raise RowError(f"sample {sample.id}: {side!r}: {error}", sample.id) from error
    return tuple(found)


def turns_check(template: PromptTemplate, *, supervised: bool, lesson: Lesson = "turns") -> RowCheck:
    """Checks the turns of samples that will be prompts, or prompts with targets if `supervised`.

    It refuses a sample that has no user turn or no target, a target that does not start with the prefill, and a pair
    that lacks an answer. For pairs the error is a `RowError`.
    """
    how = {"supervised": supervised, "lesson": lesson}
    return RowCheck(
        test=partial(exchanges, template=template, **how),
        inputs={"check": "turns", "prompt": asdict(template.settings), **how},
        by_place=supervised and lesson == "pair",
    )
