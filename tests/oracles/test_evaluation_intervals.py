"""Bootstrap intervals against a loop over lists of predictions, against Student's interval, and their coverage."""

from collections import Counter
from dataclasses import replace

import interval_coverage
import numpy as np
import pytest
from expanded import expanded
from scipy import stats

from lightning_mmrl.evaluation.intervals import ClusterBootstrap, Units, resample_weights
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


def sizes_of(predictions):
    return list(Counter(each.speaker for each in predictions).values())


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
        expected = expanded([slow(resample) for resample in lists], [2] * 4, 0.9)
        assert [ours[name].low, ours[name].high] == pytest.approx(expected, abs=1e-12)


def test_the_paired_difference_equals_the_loop():
    candidate = drawn(2, num_speakers=6, clips_per_speaker=5, accuracy=0.7)[:-7]  # speakers of unequal size
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
    assert [ours.low, ours.high] == pytest.approx(expanded(differences, sizes_of(candidate)), abs=1e-12)


def test_the_interval_of_a_mean_is_students_and_plain_percentiles_are_narrower():
    """Speakers of one size, whose accuracies are symmetric: WAR is their mean, and its interval is Student's."""
    right = [10 + offset for offset in (-7, -5, -4, -3, -2, -1, -1, 0, 0, 1, 1, 2, 3, 4, 5, 7)]
    predictions = [
        replace(each, predicted=each.truth if place < number else None, speaker=f"s{speaker:02}")
        for speaker, number in enumerate(right)
        for place, each in enumerate(drawn(speaker, num_speakers=1, clips_per_speaker=20, accuracy=0.5))
    ]
    mean, error = np.mean(right) / 20, stats.sem(right) / 20
    low, high = stats.t.interval(0.95, len(right) - 1, loc=mean, scale=error)
    bootstrap = ClusterBootstrap(settings=EvaluationSettings(num_resamples=40_000))
    found = bootstrap.intervals(predictions, TASK)["war"]
    # A quantile of 40,000 resamples has a standard error of 0.02 standard errors of the mean, accuracies move by 1/320,
    # which is 0.06 of them, and the resampled mean of 16 speakers has shorter tails than the normal distribution.
    assert [found.low, found.high] == pytest.approx([low, high], abs=0.12 * error)
    units = Units.of(predictions)
    resampled = TASK.statistic("war")(bootstrap.resampled(TASK.unit_sums(predictions, units.index, units.number)))
    plain = np.quantile(resampled, [0.025, 0.975])
    assert plain[0] - low > 0.17 * error
    assert high - plain[1] > 0.17 * error


SETTING = interval_coverage.SETTINGS[1]
"""25 speakers with unequal numbers of clips."""


def simulated(setting=SETTING):
    """One data set of the simulation, as the judged answers of two models."""
    [cells] = interval_coverage.simulated(setting, 1, np.random.default_rng(5))
    found = ([], [])
    for speaker, label, outcome in np.ndindex(cells.shape):
        for place in range(cells[speaker, label, outcome]):
            right = ((True, True), (True, False), (False, True), (False, False))[outcome]
            for model, is_right in zip(found, right, strict=True):
                each = Judgement(
                    sample_id=f"{speaker}-{label}-{outcome}-{place}",
                    speaker=f"s{speaker:03}",
                    truth=str(label),
                    predicted=str(label) if is_right else None,
                    valid_format=True,
                    text="",
                )
                model.append(each)
    return cells, found


def test_the_simulation_measures_the_intervals_that_evaluations_have():
    """Sums, metrics and ends of the simulation, against intervals of judged answers."""
    cells, (first, second) = simulated()
    task, bootstrap = ClosedLabels(labels=[str(label) for label in range(7)]), ClusterBootstrap()
    values = interval_coverage.metrics_of(bootstrap.resampled(interval_coverage.sums_of(cells)))
    sizes = cells.sum((-1, -2)).tolist()
    intervals = bootstrap.intervals(first, task)
    gained = bootstrap.paired_difference(second, first, task)
    for place, interval in ((0, intervals["war"]), (1, intervals["uar"]), (3, gained)):
        assert [interval.low, interval.high] == pytest.approx(expanded(values[:, place], sizes), abs=1e-12)


def test_the_truth_of_the_simulation_is_what_many_speakers_show():
    large = interval_coverage.Setting(**{**interval_coverage.SHAPES[1], "speakers": 40_000})
    [cells] = interval_coverage.simulated(large, 1, np.random.default_rng(0))
    found = interval_coverage.metrics_of(interval_coverage.sums_of(cells.sum(0)))
    # 560,000 clips of 40,000 speakers: standard errors of WAR and UAR are at most 0.0012.
    assert found == pytest.approx(interval_coverage.expected(large), abs=0.005)


def test_speaker_intervals_cover_the_truth_plain_percentiles_less_and_clip_intervals_too_rarely():
    """300 simulations; tools/campaigns/interval_coverage.py has 4,000 of each of several settings."""
    bootstrap = ClusterBootstrap(settings=EvaluationSettings(num_resamples=500))
    held = {way: dict.fromkeys(interval_coverage.METRICS, 0.0) for way in interval_coverage.WAYS}
    for batch in range(3):
        for way, found in interval_coverage.misses(SETTING, batch, bootstrap).items():
            for name, each in found.items():
                held[way][name] += (1 - (each["above"] + each["below"]) / each["of"]) / 3
    # Nominal 0.95; the standard error of 300 trials is 0.0126, and of the 75 of `clips` 0.05.
    assert all(0.91 <= share <= 0.99 for share in held["speakers"].values()), held
    assert np.mean(list(held["plain"].values())) < np.mean(list(held["speakers"].values())) - 0.01, held
    assert held["clips"]["WAR"] < 0.87
    assert held["clips"]["UAR"] < 0.87
