"""Adds the verdicts of language models to the scores of other rewards, a whole batch at a time."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

from lightning_mmrl.errors import RewardError
from lightning_mmrl.protocols.experts import Expert, ExpertRequest
from lightning_mmrl.rewards.compose import NOTHING_APPLIES
from lightning_mmrl.rewards.llm_judge import LlmJudge
from lightning_mmrl.rewards.pool import InlineRewards, RewardPool
from lightning_mmrl.settings.algorithm import RewardSettings
from lightning_mmrl.types.records import Completion, Sample, Score

AGREES = "_agrees"
"""Suffix of a recorded component: 1.0 if a judge and `pass_component` say the same of an answer, else 0.0."""


@dataclass(kw_only=True)
class AskedRewards(AbstractContextManager["AskedRewards"]):
    """Scores as `WeightedReward` does, with components that are asked for.

    A judge is not asked about an answer whose other components failed, nor twice about the same answer. Where the
    component `rewards.pass_component` is another one, NAME_agrees records whether the judge agrees with it; it has no
    weight. A grade of at least one half counts as right there.

    Attributes:
        inner: The other rewards; None if there are none.
        judges: The judges by the name of their component, each with whom it asks.
        settings: Weights and limits.
        closing: What is closed at the end, besides the inner rewards.
    """

    inner: InlineRewards | RewardPool | None
    judges: Mapping[str, tuple[LlmJudge, Expert]]
    settings: RewardSettings
    closing: AbstractContextManager[object] | None = field(default=None)

    @property
    def max_invalid_rate(self) -> float:
        """The largest share of invalid scores."""
        return self.settings.max_invalid_rate

    def score(self, samples: Sequence[Sample], completions: Sequence[Sequence[Completion]]) -> list[list[Score]]:
        """Scores the completions `completions[i]` of each `samples[i]`; the result has the same shape.

        Raises:
            StageError: An endpoint is down or refuses all; what it said so far is kept.
            RewardError: As the inner rewards.
        """
        if self.inner is None:
            groups = [[Score(total=0.0, components={}) for _ in group] for group in completions]
        else:
            groups = self.inner.score(samples, completions)
        scores = [_without_reason(score) for group in groups for score in group]
        pairs = [(sample, each.text) for sample, group in zip(samples, completions, strict=True) for each in group]
        for name, (judge, expert) in self.judges.items():
            scores = self._judged(name, judge, expert, pairs, scores)
        whole = iter(self._summed(score) for score in scores)
        return [[next(whole) for _ in group] for group in completions]

    def _judged(
        self,
        name: str,
        judge: LlmJudge,
        expert: Expert,
        pairs: Sequence[tuple[Sample, str]],
        scores: Sequence[Score],
    ) -> list[Score]:
        requests: dict[tuple[str, str], ExpertRequest] = {}
        found: dict[tuple[str, str], float | RewardError] = {}
        for (sample, text), score in zip(pairs, scores, strict=True):
            if score.valid and (sample.id, text) not in requests:
                try:
                    requests[sample.id, text] = judge.request(sample, text)
                except RewardError as error:
                    found[sample.id, text] = error
        answers = expert.ask(list(requests.values())) if requests else []
        for key, answer in zip(requests, answers, strict=True):
            try:
                found[key] = judge.value(answer)
            except RewardError as error:
                found[key] = error
        return [
            self._with(name, score, found[sample.id, text]) if score.valid else score
            for (sample, text), score in zip(pairs, scores, strict=True)
        ]

    def _with(self, name: str, score: Score, value: float | RewardError) -> Score:
        if isinstance(value, RewardError):
            return replace(score, total=0.0, valid=False, reason=f"{name}: {value}", failed=name)
        components = {**score.components, name: value}
        rule = score.components.get(self.settings.pass_component)
        if rule is not None and self.settings.pass_component not in self.judges:
            components[f"{name}{AGREES}"] = float((rule >= 1.0) == (value >= 0.5))
        return replace(score, components=components)

    def _summed(self, score: Score) -> Score:
        if not score.valid:
            return score
        weights = self.settings.weights
        total = sum(weights[name] * value for name, value in score.components.items() if name in weights)
        return replace(score, total=total)

    def close(self) -> None:
        """Ends the processes of the inner rewards, and releases what the judges keep."""
        if self.inner is not None:
            self.inner.close()
        if self.closing is not None:
            self.closing.__exit__(None, None, None)
            self.closing = None

    def __exit__(self, *_: object) -> None:
        self.close()


def _without_reason(score: Score) -> Score:
    """The score, valid if no other reward applies to the answer: the judges do."""
    if score.valid or score.reason != NOTHING_APPLIES:
        return score
    return Score(total=0.0, components={})
