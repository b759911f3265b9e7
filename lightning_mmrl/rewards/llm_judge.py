"""A language model as judge: an endpoint, or a checkpoint on this machine, says whether an answer is right."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from lightning_mmrl.errors import ConfigError, RewardError
from lightning_mmrl.prompts.answers import question_of
from lightning_mmrl.prompts.judging import JudgePrompt
from lightning_mmrl.protocols.experts import ExpertAnswer, ExpertRequest
from lightning_mmrl.settings.algorithm import SamplingSettings
from lightning_mmrl.settings.experts import EndpointSettings, ExpertSettings
from lightning_mmrl.settings.rules import check_rules
from lightning_mmrl.suggestions import did_you_mean
from lightning_mmrl.types.records import Completion, Sample

T = TypeVar("T", ExpertSettings, EndpointSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmJudge:
    """1.0 if a language model says that the answer is right, else 0.0; with `grades`, the grade as a share of the best.

    The judge reads text alone: the question, the sample's solution and the completion. It is asked for a whole batch at
    once (`rewards.asked`), greedily, so it is a component of its own and no part of another reward. What it said is
    kept in the run's folder `judges`: a run that continues reads it there, and asks for the rest. A verdict that cannot
    be read, and an answer for which the budget does not suffice, make the score invalid, which is not the same as zero.

    Attributes:
        expert: The judge at an endpoint: `model`, and further keys of `ExpertSettings`.
        endpoint: Where it is: `base_url`, and further keys of `EndpointSettings`, such as `max_requests`.
        local_checkpoint: In place of both, a Hugging Face folder of a family of this package, loaded beside the policy.
        instructions: See `JudgePrompt`.
        grades: See `JudgePrompt`.
        max_characters: See `JudgePrompt`.
        max_reply_tokens: Tokens of the longest reply.

    Raises:
        ConfigError: There is no judge or there are two, or a value is out of range.

    >>> LlmJudge(expert={"model": "m"}, endpoint={"base_url": "http://127.0.0.1:1/v1"}).name
    'm'
    """

    expert: Mapping[str, Any] | None = None
    endpoint: Mapping[str, Any] | None = None
    local_checkpoint: str | None = None
    instructions: str | None = None
    grades: int | None = None
    max_characters: int = 6000
    max_reply_tokens: int = 256
    prompt: JudgePrompt = field(init=False, repr=False, compare=False)
    asked: tuple[ExpertSettings, EndpointSettings] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        prompt = JudgePrompt(instructions=self.instructions, grades=self.grades, max_characters=self.max_characters)
        object.__setattr__(self, "prompt", prompt)
        if (self.local_checkpoint is None) != (self.expert is not None and self.endpoint is not None):
            raise ConfigError(
                "a judge is either expert.model at endpoint.base_url, or local_checkpoint; give two or one"
            )
        if self.max_reply_tokens < 1:
            raise ConfigError(f"max_reply_tokens is {self.max_reply_tokens}; it must be at least 1")
        asked = None
        if self.expert is not None and self.endpoint is not None:
            asked = _filled(ExpertSettings, self.expert, "expert"), _filled(EndpointSettings, self.endpoint, "endpoint")
        object.__setattr__(self, "asked", asked)

    @property
    def name(self) -> str:
        """The name of the model."""
        return self.local_checkpoint if self.asked is None else self.asked[0].model  # type: ignore[return-value]

    @property
    def sampling(self) -> SamplingSettings:
        """How the judge is sampled: greedily."""
        return SamplingSettings(temperature=0.0, max_new_tokens=self.max_reply_tokens)

    def described(self) -> dict[str, Any]:
        """What decides a verdict, as plain values for the record of a run."""
        asked = {} if self.asked is None else {"expert": asdict(self.asked[0])}
        return {
            "judge": self.name,
            **asked,
            "prompt": self.prompt.text,
            "prompt_version": self.prompt.version,
            "grades": self.grades,
            "max_characters": self.max_characters,
            "max_reply_tokens": self.max_reply_tokens,
        }

    def request(self, sample: Sample, text: str) -> ExpertRequest:
        """The question to the judge about one answer.

        Raises:
            RewardError: The judge is shown the right answer, and the sample has none.
        """
        if sample.solution is None and self.prompt.needs_truth:
            raise RewardError(f"sample {sample.id!r} has no solution for the judge to compare with; add one")
        turns = self.prompt.turns(question_of(sample), sample.solution or "", text)
        return ExpertRequest(key=sample.id, turns=turns, most_tokens=self.max_reply_tokens)

    def value(self, answer: ExpertAnswer) -> float:
        """The value of a verdict, in [0, 1].

        Raises:
            RewardError: There is no reply, or no verdict in it.
        """
        if answer.text is None:
            raise RewardError(f"the judge gave no verdict: {answer.problem}")
        value = self.prompt.verdict(answer.text)
        if value is None:
            form = "right or wrong" if self.grades is None else f"0 to {self.grades}"
            raise RewardError(f"the judge's reply has no line `Verdict: {form}`: {answer.text[-80:]!r}")
        return value

    def __call__(self, sample: Sample, completion: Completion) -> float:
        """Refuses: a judge is asked for a whole batch.

        Raises:
            RewardError: Always.
        """
        raise RewardError(
            "a judge is asked for many answers at once, which is not possible here; leave the component out, or judge "
            "the answers of a finished run by `mmrl judge`"
        )


def _filled(kind: type[T], given: Mapping[str, Any], key: str) -> T:
    """Settings from plain values.

    Raises:
        ConfigError: A key is unknown, or its value is out of range.
    """
    known = [each.name for each in fields(kind)]
    for name in given:
        if name not in known:
            raise ConfigError(f"{key}.{name} is no key of a judge{did_you_mean(str(name), known)}")
    settings = kind(**given)
    check_rules(settings, key)
    return settings
