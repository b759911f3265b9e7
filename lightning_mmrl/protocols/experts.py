"""Experts: whoever answers the prompts that a model does not solve. Needs no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from lightning_mmrl.errors import StageError
from lightning_mmrl.types.records import MediaRef, Message

Missing = Literal["failed", "refused", "not_asked"]
"""Why there is no answer: the expert failed, and may answer another time; it has none to this question; or nobody put
the question to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertRequest:
    """A question to an expert: the turns and media of a prompt. It has no place for a solution or a target.

    Attributes:
        key: The id of the prompt; experts with answers on disk look it up, and no endpoint is told.
        turns: The turns of the prompt; the last one is the user's.
        media: Media in the order of their tags in the turns.
        most_tokens: Tokens of the longest answer.
        draw: How many answers to the same prompt were asked for before.
        draw_seed: Seed of the expert's sampling.

    Raises:
        StageError: The turns do not end with the user's, so that a target may be among them.
    """

    key: str
    turns: tuple[Message, ...]
    media: tuple[MediaRef, ...] = ()
    most_tokens: int = 512
    draw: int = 0
    draw_seed: int = 0

    def __post_init__(self) -> None:
        if not self.turns or self.turns[-1].role != "user":
            raise StageError(
                f"prompt {self.key!r} has no question at its end, and an expert must not see a target; write each "
                "prompt with a last turn of the user"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertAnswer:
    """The answer to a request, or the reason why there is none; whether it is right is for the stage's rewards to say.

    Attributes:
        key: The id of the prompt.
        text: The answer; None if there is none.
        problem: Why there is none, in one word such as `timeout`.
        missing: Whose the problem is, if there is one.
        num_tokens: Tokens of the answer; of an expert that does not count them, its words.
        is_cut: Whether a length limit ended it.
        answered_s: Seconds until it was there.
    """

    key: str
    text: str | None = None
    problem: str | None = None
    missing: Missing = "failed"
    num_tokens: int = 0
    is_cut: bool = False
    answered_s: float = 0.0


class Expert(Protocol):
    """Answers prompts."""

    @property
    def name(self) -> str:
        """The name of the expert in counts and in the lineage."""
        ...

    def ask(self, requests: Sequence[ExpertRequest]) -> Sequence[ExpertAnswer]:
        """Returns an answer for each request, in their order.

        Raises:
            StageError: The expert cannot be asked; the answers until then are not lost.
        """
        ...
