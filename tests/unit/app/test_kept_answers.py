"""Answers of an earlier evaluation are taken up if checkpoint, settings, data and code are the same, and not else."""

import json
from dataclasses import dataclass, field

import pytest
from run_folders import judgement

from lightning_mmrl.app.kept_answers import KeptAnswers, kept_answers
from lightning_mmrl.stages.evaluate import BOUND, SUMMARY
from lightning_mmrl.stages.judged import PROGRESS, JudgedBatches

ALL = [judgement(number, "sad", "sad") for number in range(5)]
BATCHES = [ALL[:2], ALL[2:4], ALL[4:]]


def bound(*, seed=0, **sets):
    return {"common": {"seed": seed, "batch_size": 2}, "sets": sets or {"test": {"limit": 5}}}


def finished(folder, left_out=(), lines=5, of=None):
    (folder / "test.jsonl").write_text("".join(f"{each.to_json()}\n" for each in ALL[:lines]))
    (folder / SUMMARY).write_text(json.dumps({"test": {"num_samples": 5, "left_out": [*left_out]}}))
    (folder / BOUND).write_text(json.dumps(of or bound()))


def found(folder, now, said=None):
    return kept_answers(folder, now, (said if said is not None else []).append)


def test_an_unfinished_evaluation_continues(tmp_path):
    JudgedBatches(tmp_path / PROGRESS).begin(bound(), {"test": BATCHES[:2]})
    assert found(tmp_path, bound()) == KeptAnswers(batches={"test": BATCHES[:2]}, goes_on=True)


def test_another_setting_starts_afresh_and_is_named(tmp_path):
    JudgedBatches(tmp_path / PROGRESS).begin(bound(), {"test": BATCHES[:2]})
    said = []
    assert found(tmp_path, bound(seed=7), said) == KeptAnswers(batches={})
    assert said == [f"an unfinished evaluation in {tmp_path} is not continued, which had common.seed: 0 -> 7"]


def test_an_evaluation_that_was_killed_before_its_first_batch_hides_no_finished_one(tmp_path):
    finished(tmp_path)
    JudgedBatches(tmp_path / PROGRESS).begin(bound(seed=3), {})
    said = []
    assert found(tmp_path, bound(), said) == KeptAnswers(batches={"test": BATCHES})
    assert said == []


def test_sets_that_are_asked_the_same_continue_and_others_do_not(tmp_path):
    before = bound(test={"limit": 5}, ood={"limit": 5})
    JudgedBatches(tmp_path / PROGRESS).begin(before, {"test": BATCHES[:2], "ood": BATCHES[:1]})
    now = bound(test={"limit": 5}, ood={"limit": 9}, quiz={"limit": 5})
    assert found(tmp_path, now) == KeptAnswers(batches={"test": BATCHES[:2]}, goes_on=True)


def test_a_finished_evaluation_gives_its_answers_again(tmp_path):
    finished(tmp_path)
    assert found(tmp_path, bound()) == KeptAnswers(batches={"test": BATCHES})
    assert found(tmp_path, bound(seed=1)) == KeptAnswers(batches={})


@pytest.mark.parametrize("how", [{"left_out": [{"sample_id": "x"}]}, {"lines": 4}, {"of": [1]}, {"of": {"common": {}}}])
def test_answers_that_may_not_be_all_are_not_taken(tmp_path, how):
    """A sample that was left out may be usable now; and results may be damaged."""
    finished(tmp_path, **how)
    assert found(tmp_path, bound()) == KeptAnswers(batches={})


@pytest.mark.parametrize("name", ["test.jsonl", SUMMARY, BOUND])
def test_half_a_finished_evaluation_is_none(tmp_path, name):
    finished(tmp_path)
    (tmp_path / name).unlink()
    assert found(tmp_path, bound()) == KeptAnswers(batches={})


@dataclass
class Samples:
    """As much of a set as is looked at."""

    ids: list
    reasons: dict = field(default_factory=dict)


NAMES = [each.sample_id for each in ALL]


def test_batches_count_as_long_as_they_are_of_the_samples_that_they_would_be_of_now():
    kept = KeptAnswers(batches={"test": BATCHES}, goes_on=True)
    assert kept.fitting({"test": Samples(NAMES)}, 2) == {"test": BATCHES}
    assert kept.fitting({"test": Samples(["x", *NAMES], {0: "broken"})}, 2) == {"test": BATCHES}
    assert kept.fitting({"test": Samples([*NAMES[:3], "x", *NAMES[3:]])}, 2) == {"test": BATCHES[:1]}
    assert kept.fitting({"test": Samples(NAMES, {0: "broken"})}, 2) == {}
