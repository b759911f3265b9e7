"""Validation over several ranks: every sample judged once, and the same values everywhere."""

from contextlib import contextmanager

import pytest

from lightning_mmrl.data.sampler import Share
from lightning_mmrl.errors import RolloutError
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.tasks.closed_labels import ClosedLabels
from lightning_mmrl.protocols.ranks import Alone
from lightning_mmrl.stages.answers import AnswerEvaluator, Validation, all_predictions
from lightning_mmrl.types.records import Completion, Sample

LABELS = ("angry", "sad")


def prediction(number):
    truth, predicted = LABELS[number % 2], LABELS[number % 3 == 0]
    return Judgement(
        sample_id=f"s{number}",
        speaker=None,
        truth=truth,
        predicted=predicted,
        valid_format=number % 4 != 0,
        consistent=None,
        text="",
    )


class Three(Alone):
    """Three ranks, of which each has judged its shares."""

    def __init__(self, judged):
        self._judged = judged

    def gather(self, item):
        return self._judged


def shares(num_samples, batch_size):
    """What each of three ranks judges of a set, as `eval_loader` deals it out."""
    rows = [prediction(number) for number in range(num_samples)]
    batches = [rows[start : start + batch_size] for start in range(0, num_samples, batch_size)]
    return rows, [[Share(rank=rank, world_size=3, repeats=True).of(batch) for batch in batches] for rank in range(3)]


def test_repeated_samples_count_once_and_the_order_is_that_of_the_manifest():
    """13 = 6 + 6 + 1: of the last batch two ranks would have nothing."""
    rows, judged = shares(13, 6)
    assert [len(each) for each in judged] == [3, 3, 3]
    assert sum(len(share) for each in judged for share in each) == 15
    assert all_predictions(judged[0], Three(judged)) == rows


def test_all_ranks_get_the_metrics_of_one_process():
    rows, judged = shares(13, 6)
    evaluator = AnswerEvaluator(engine=None, task=ClosedLabels(labels=LABELS))  # type: ignore[arg-type]
    alone = Validation(evaluator)
    alone._judged = [rows]
    expected = alone.finish()
    for rank in range(3):
        validation = Validation(evaluator, Three(judged))
        validation._judged = judged[rank]
        assert validation.finish() == expected
    repeated = evaluator.new_metrics()
    repeated.update([each for share in judged for batch in share for each in batch])
    assert repeated.compute() != expected


class OfTwo(Alone):
    """The first of two ranks, of which the other one gathers what is given."""

    def __init__(self, other):
        self.other = other

    def gather(self, item):
        return [item, self.other]


class Engine:
    """Has an answer to every prompt, or to none."""

    def __init__(self, problem=None):
        self.problem = problem

    def generate(self, prompts, **_):
        if self.problem is not None:
            raise self.problem
        completion = Completion(text="<answer>sad</answer>", num_tokens=1, truncated=False)
        return type("Rollout", (), {"completions": [completion] * len(prompts.samples)})()


class Prompts:
    """A batch as far as the evaluator looks at it."""

    samples = (Sample(id="s1", messages=(), solution="sad"),)


BROKEN = RolloutError("the model has no finite probabilities for sample s1")


@pytest.mark.parametrize(("own", "other"), [(None, str(BROKEN)), (BROKEN, None), (BROKEN, "also there")])
def test_an_answer_that_is_not_finite_on_one_rank_ends_the_walk_of_all(own, other):
    """Each of them has passed the safe point before it raises, so that none waits there for another."""
    passed = []

    @contextmanager
    def rank_local():
        yield
        passed.append("safe point")

    evaluator = AnswerEvaluator(engine=Engine(own), task=ClosedLabels(labels=LABELS), rank_local=rank_local)  # type: ignore[arg-type]
    with pytest.raises(RolloutError, match="no finite probabilities for sample s1"):
        Validation(evaluator, OfTwo(other)).step(Prompts())  # type: ignore[arg-type]
    assert passed == ["safe point"]


def test_ranks_that_all_have_their_answers_go_on():
    evaluator = AnswerEvaluator(engine=Engine(), task=ClosedLabels(labels=LABELS))  # type: ignore[arg-type]
    (found,) = evaluator.evaluate(Prompts(), OfTwo(None))  # type: ignore[arg-type]
    assert found.predicted == "sad"
