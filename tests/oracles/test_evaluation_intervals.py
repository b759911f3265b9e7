"""Bootstrap intervals against a loop that builds every resample as a list of predictions, and their coverage."""

from dataclasses import replace

import numpy as np
import pytest

from lightning_mmrl.evaluation.intervals import ClusterBootstrap, resample_weights
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.tasks.closed_labels import ClosedLabels
from lightning_mmrl.settings.run import EvaluationSettings

LABELS = ("angry", "happy", "sad")
TASK = ClosedLabels(labels=LABELS)


def drawn(seed, *, num_speakers, clips_per_speaker, accuracy, spread=0.0):
    """Predictions whose speakers have the accuracy plus or minus `spread`, by the toss of a coin."""
    generator = np.random.default_rng(seed)
    predictions = []
    for speaker in range(num_speakers):
        chance = accuracy + spread * generator.choice([-1, 1])
        for clip in range(clips_per_speaker):
            truth = str(generator.choice(LABELS))
            guess = truth if generator.random() < chance else generator.choice(["angry", "happy", "sad", ""])
            predictions.append(
                Judgement(
                    sample_id=f"{speaker}-{clip}",
                    speaker=f"s{speaker:03}",
                    truth=truth,
                    predicted=str(guess) or None,
                    valid_format=True,
                    consistent=None,
                    text="",
                )
            )
    return predictions


def slow_uar(predictions):
    recalls = []
    for label in LABELS:
        hits = [each.predicted == label for each in predictions if each.truth == label]
        if hits:
            recalls.append(sum(hits) / len(hits))
    return sum(recalls) / len(recalls)


def slow_war(predictions):
    return sum(each.predicted == each.truth for each in predictions) / len(predictions)


def resamples(predictions, num_resamples, seed):
    """The lists of predictions that the bootstrap's own weights stand for."""
    speakers = sorted({each.speaker for each in predictions})
    weights = resample_weights(np.random.default_rng(seed), len(speakers), num_resamples)
    assert (weights.sum(1) == len(speakers)).all()
    for row in weights:
        times = dict(zip(speakers, row.astype(int), strict=True))
        yield [each for each in predictions for _ in range(times[each.speaker])]


def percentiles(values, level):
    return np.quantile(values, [(1 - level) / 2, (1 + level) / 2]).tolist()


@pytest.mark.parametrize("seed", [0, 1])
def test_intervals_equal_the_loop(seed):
    # Few clips, so that some resamples miss a class.
    predictions = drawn(seed, num_speakers=4, clips_per_speaker=2, accuracy=0.5)
    lists = list(resamples(predictions, 150, seed))
    assert any(len({each.truth for each in resample}) < 3 for resample in lists)
    ours = ClusterBootstrap(settings=EvaluationSettings(num_resamples=150), level=0.9, seed=seed).intervals(
        predictions, TASK
    )
    for name, slow in (("war", slow_war), ("uar", slow_uar)):
        assert ours[name].estimate == pytest.approx(slow(predictions), abs=1e-12)
        expected = percentiles([slow(resample) for resample in lists], 0.9)
        assert [ours[name].low, ours[name].high] == pytest.approx(expected, abs=1e-12)


def test_the_paired_difference_equals_the_loop():
    candidate = drawn(2, num_speakers=6, clips_per_speaker=5, accuracy=0.7)
    changed = [replace(each, predicted=None) if index % 4 == 0 else each for index, each in enumerate(candidate)]
    baseline = {each.sample_id: each for each in changed}
    differences = [
        slow_uar(resample) - slow_uar([baseline[each.sample_id] for each in resample])
        for resample in resamples(candidate, 150, 5)
    ]
    assert len(set(differences)) > 10
    ours = ClusterBootstrap(settings=EvaluationSettings(num_resamples=150), seed=5).paired_difference(
        candidate, changed[::-1], TASK
    )
    assert [ours.low, ours.high] == pytest.approx(percentiles(differences, 0.95), abs=1e-12)


def coverage(*, by_speaker):
    """The share of 95 % intervals that hold the true accuracy: 0.6, and one in four guesses is right."""
    hits = 0
    for seed in range(100):
        predictions = drawn(seed, num_speakers=30, clips_per_speaker=8, accuracy=0.6, spread=0.3)
        if not by_speaker:
            predictions = [replace(each, speaker=None) for each in predictions]
        interval = ClusterBootstrap(settings=EvaluationSettings(num_resamples=300), seed=seed).intervals(
            predictions, TASK
        )["war"]
        hits += interval.low <= 0.6 + 0.4 / 4 <= interval.high
    return hits / 100


def test_speaker_intervals_cover_the_truth_and_clip_intervals_too_rarely():
    # Nominal 0.95; the standard error of 100 trials is 0.022, and 30 speakers cost about 0.02.
    assert 0.87 <= coverage(by_speaker=True) <= 0.995
    assert coverage(by_speaker=False) < 0.87
