"""Asks experts for answers to prompts that the model does not solve, and has the rewards of the stage judge them."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_mmrl.app.rewards import Rewards, training_rewards
from lightning_mmrl.curriculum.experts.chat import ChatBodies, asker
from lightning_mmrl.curriculum.experts.endpoint import ChatEndpoint
from lightning_mmrl.curriculum.experts.ledger import Ledger
from lightning_mmrl.data.routing import prompt_turns, taught
from lightning_mmrl.data.schema import LineError
from lightning_mmrl.errors import RewardError
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.protocols.experts import Expert, ExpertAnswer, ExpertRequest
from lightning_mmrl.settings.algorithm import RewardSettings
from lightning_mmrl.settings.route import RouteSettings
from lightning_mmrl.types.records import Completion, Sample, Score, StageSpec

if TYPE_CHECKING:
    from lightning_mmrl.app.assembly import Assembly

AT_ONCE = 32
"""Answers judged at once."""
FEWEST = 20
"""Scores of a stage below which a share of invalid ones says nothing about its rewards."""
NO_EXPERT = "no_expert"


@dataclass(kw_only=True)
class Judge:
    """Says whether answers are right.

    Attributes:
        rewards: The rewards of a stage.
        decides: The component of the rewards whose value 1 means that an answer is right.
        key: The key of the rewards, for messages.
        num_scores: Scores of the whole stage so far.
        num_invalid: Invalid ones among them.
    """

    rewards: Rewards
    decides: str
    key: str
    num_scores: int = 0
    num_invalid: int = 0

    @classmethod
    @contextmanager
    def of(cls, settings: RewardSettings, key: str, parts: "Assembly") -> "Iterator[Judge]":
        """Gives the block a judge, whose processes end with it."""
        with training_rewards(settings, key, parts) as rewards:
            yield cls(rewards=rewards, decides=settings.pass_component, key=key)

    def scores(self, samples: Sequence[Sample], answers: Sequence[Completion]) -> list[Score]:
        """Returns a score for each answer.

        Raises:
            RewardError: Of all scores of the stage so far, at least `FEWEST`, more are invalid than `max_invalid_rate`
                allows: the rewards cannot judge these data.
        """
        found: list[Score] = []
        for start in range(0, len(answers), AT_ONCE):
            end = start + AT_ONCE
            groups = self.rewards.score(samples[start:end], [[answer] for answer in answers[start:end]])
            found += [score for group in groups for score in group]
        invalid = [score for score in found if not score.valid]
        self.num_scores += len(found)
        self.num_invalid += len(invalid)
        limit = self.rewards.max_invalid_rate
        if invalid and self.num_scores >= FEWEST and self.num_invalid > limit * self.num_scores:
            raise RewardError(
                f"{self.key}: {self.num_invalid} of {self.num_scores} scores are invalid, more than max_invalid_rate "
                f"{limit:g} allows (one: {invalid[0].reason}); mend the data or the rewards, or set "
                f"{self.key}.max_invalid_rate to 1 to leave these answers out; the same command judges all again"
            )
        return found

    def verdict(self, score: Score) -> str | None:
        """Returns None for a right answer, otherwise the reason against it."""
        if not score.valid:
            return "invalid_score"
        return None if score.components.get(self.decides, 0.0) >= 1.0 else "wrong"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """A right answer of an expert: as it came, the sample that teaches it, and its score."""

    expert: str
    completion: Completion
    sample: Sample
    score: Score


@dataclass(kw_only=True)
class Consultation:
    """Answers of experts to prompts.

    Attributes:
        settings: The stage.
        stage_seed: Seed of the stage.
        template: Texts around the turns of each prompt.
        judge: Says whether an answer is right.
        verified: Right answers by the id of the prompt.
        problems: Why a prompt has no right answer, by its id.
        verdicts: Counts of answers by verdict, by the name of the expert.
        outcomes: Counts of questions to any expert: `answered`, or why there is no answer.
    """

    settings: RouteSettings
    stage_seed: int
    template: PromptTemplate
    judge: Judge
    verified: dict[str, Verified] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    verdicts: dict[str, Counter[str]] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)

    def consult(self, expert: Expert, prompts: Sequence[Sample]) -> None:
        """Asks an expert for the prompts that have no right answer yet, each at most `tries` times."""
        counts = self.verdicts.setdefault(expert.name, Counter())
        for draw in range(self.settings.tries):
            waiting = [prompt for prompt in prompts if prompt.id not in self.verified]
            answers = expert.ask([self.request(prompt, draw) for prompt in waiting])
            given = [
                (prompt, answer) for prompt, answer in zip(waiting, answers, strict=True) if answer.text is not None
            ]
            for answer in answers:
                self.outcomes["answered" if answer.text is not None else answer.missing] += 1
                if answer.text is None:
                    self._note(answer, counts, str(answer.problem))
            completions = [_completion(answer) for _, answer in given]
            scores = self.judge.scores([prompt for prompt, _ in given], completions)
            for (prompt, answer), score in zip(given, scores, strict=True):
                self._judged(expert, prompt, answer, score, counts)

    def request(self, prompt: Sample, draw: int) -> ExpertRequest:
        """Returns the question of a prompt, made of its turns up to the question and of its media alone."""
        text = f"{self.stage_seed}/{prompt.id}/{draw}".encode()
        sampling = self.settings.sampling
        return ExpertRequest(
            key=prompt.id,
            turns=self.template.apply(prompt_turns(prompt)),
            media=prompt.media,
            most_tokens=1 if sampling is None else sampling.max_new_tokens,
            draw=draw,
            draw_seed=int.from_bytes(blake2b(text, digest_size=4).digest()) % 2**31,
        )

    def _judged(self, expert: Expert, prompt: Sample, answer: ExpertAnswer, score: Score, counts: Counter[str]) -> None:
        text, problem = str(answer.text), self.judge.verdict(score)
        if answer.is_cut and not self.settings.keep.truncated:
            problem = "truncated"
        elif problem is None and not text.startswith(self.template.settings.prefill):
            problem = "lacks_prefill"
        if problem is None:
            try:
                sample = taught(prompt, text)
            except LineError:
                problem = "unwritable"
            else:
                self.verified[prompt.id] = Verified(
                    expert=expert.name, completion=_completion(answer), sample=sample, score=score
                )
                self.problems.pop(prompt.id, None)
                counts["right"] += 1
                return
        self._note(answer, counts, problem)

    def _note(self, answer: ExpertAnswer, counts: Counter[str], problem: str) -> None:
        counts[problem] += 1
        if problem != "no_trace" or answer.key not in self.problems:  # a wrong trace says more than no further one
            self.problems[answer.key] = problem


def _completion(answer: ExpertAnswer) -> Completion:
    return Completion(text=str(answer.text), num_tokens=answer.num_tokens, truncated=answer.is_cut)


@contextmanager
def chat_endpoint(
    spec: StageSpec,
    parts: "Assembly",
    media_root: Path,
    poll: Callable[[], None],
    on_progress: Callable[[int, int, str], None],
) -> Iterator[ChatEndpoint | None]:
    """Gives the block the endpoint of a stage, with its kept answers; None if the stage has none."""
    stage, config = spec.settings, parts.config
    assert isinstance(stage, RouteSettings)
    if stage.expert is None or stage.endpoint is None or stage.sampling is None:
        yield None
        return
    own = Path(config.output_dir) / config.run_name / "experts" / f"{spec.name}.jsonl"
    shared = None if stage.endpoint.answers is None else Path(stage.endpoint.answers) / own.name
    if shared is not None and shared.resolve() == own.resolve():
        shared = None
    with Ledger.opened(own, shared, asker(stage.expert, stage.sampling)) as ledger:
        bodies = ChatBodies(stage.expert, stage.sampling, stage.endpoint, media_root)
        yield ChatEndpoint(
            expert=stage.expert,
            endpoint=stage.endpoint,
            bodies=bodies,
            ledger=ledger,
            poll=poll,
            on_progress=on_progress,
        )


def answer_metrics(consultation: Consultation | None) -> dict[str, float]:
    """The questions to experts as metrics: asked = answered + refused + failed, and the questions that nobody got."""
    outcomes = Counter[str]() if consultation is None else consultation.outcomes
    right = 0 if consultation is None else sum(counts["right"] for counts in consultation.verdicts.values())
    ends = {name: outcomes[name] for name in ("answered", "refused", "failed")}
    found = {"asked": sum(ends.values()), **ends, "right": right, "not_asked": outcomes["not_asked"]}
    return {f"expert/{name}": float(number) for name, number in found.items()}
