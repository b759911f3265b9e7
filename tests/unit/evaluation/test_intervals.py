from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from lightning_mmrl.errors import ConfigError, DataError
from lightning_mmrl.evaluation import intervals
from lightning_mmrl.evaluation.intervals import ClusterBootstrap, Interval
from lightning_mmrl.evaluation.metrics import ratio
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.tasks.closed_labels import ClosedLabels
from lightning_mmrl.settings.run import EvaluationSettings

LABELS = ("angry", "happy", "sad")
TASK = ClosedLabels(labels=LABELS)


def drawn(seed, size, accuracy=0.6, *, speakers=None):
    """Predictions whose speaker is one of `speakers` in turn."""
    generator = np.random.default_rng(seed)
    predictions = []
    for index in range(size):
        truth = LABELS[index % 3]
        right = generator.random() < accuracy
        guess = generator.choice([label for label in LABELS if label != truth])
        predictions.append(
            Judgement(
                sample_id=f"clip-{index}",
                speaker=None if speakers is None else f"s{index % speakers}",
                truth=truth,
                predicted=truth if right else str(guess),
                valid_format=True,
                consistent=None,
                text="",
            )
        )
    return predictions


def test_all_right_and_all_wrong_have_no_width():
    for accuracy in (0.0, 1.0):
        for interval in ClusterBootstrap().intervals(drawn(0, 30, accuracy), TASK).values():
            assert (interval.estimate, interval.low, interval.high) == (accuracy, accuracy, accuracy)


def test_the_settings_are_in_the_interval():
    interval = ClusterBootstrap(settings=EvaluationSettings(num_resamples=50), level=0.9).intervals(drawn(0, 30), TASK)[
        "war"
    ]
    assert isinstance(interval, Interval)
    assert (interval.level, interval.num_resamples, interval.unit) == (0.9, 50, "clip")
    assert interval.low < interval.estimate < interval.high


def test_the_clip_interval_of_accuracy_is_the_binomial_one():
    predictions = drawn(1, 400)
    interval = ClusterBootstrap(settings=EvaluationSettings(num_resamples=4000)).intervals(predictions, TASK)["war"]
    p = np.mean([each.truth == each.predicted for each in predictions])
    half = 1.97 * np.sqrt(p * (1 - p) / 400)
    # Monte-Carlo error of a 2.5 % quantile with 4000 resamples is about 0.05 standard errors; accuracy moves by 1/400.
    assert [interval.low, interval.high] == pytest.approx([p - half, p + half], abs=0.005)


def test_a_higher_level_is_wider():
    predictions = drawn(2, 60)
    widths = []
    for level in (0.5, 0.9, 0.99):
        interval = ClusterBootstrap(level=level).intervals(predictions, TASK)["uar"]
        widths.append(interval.high - interval.low)
    assert widths == sorted(set(widths))


def test_the_seed_decides():
    predictions = drawn(3, 60)
    assert ClusterBootstrap().intervals(predictions, TASK) == ClusterBootstrap().intervals(predictions, TASK)
    assert ClusterBootstrap(seed=1).intervals(predictions, TASK) != ClusterBootstrap().intervals(predictions, TASK)


@pytest.mark.parametrize(("speakers", "unit"), [(None, "clip"), (1, "clip"), (2, "speaker"), (6, "speaker")])
def test_speakers_are_resampled_if_there_are_several(speakers, unit):
    assert (
        ClusterBootstrap(settings=EvaluationSettings(num_resamples=10))
        .intervals(drawn(0, 30, speakers=speakers), TASK)["uar"]
        .unit
        == unit
    )


def test_one_unknown_speaker_means_clips():
    predictions = drawn(0, 30, speakers=5)
    predictions[3] = replace(predictions[3], speaker=None)
    assert (
        ClusterBootstrap(settings=EvaluationSettings(num_resamples=10)).intervals(predictions, TASK)["uar"].unit
        == "clip"
    )


def test_speakers_of_one_clip_each_equal_clips():
    clips, speakers = drawn(4, 40), drawn(4, 40, speakers=40)
    order = np.argsort([each.speaker for each in speakers])  # units are sorted by name
    ours = ClusterBootstrap().intervals([clips[index] for index in order], TASK)["uar"]
    theirs = ClusterBootstrap().intervals(speakers, TASK)["uar"]
    assert theirs == replace(ours, unit="speaker")


def test_the_difference_to_itself_is_exactly_zero():
    predictions = drawn(5, 50, speakers=5)
    interval = ClusterBootstrap().paired_difference(predictions, predictions[::-1], TASK)
    assert (interval.estimate, interval.low, interval.high, interval.unit) == (0.0, 0.0, 0.0, "speaker")


def test_the_difference_is_candidate_minus_baseline():
    better, worse = drawn(6, 90, 0.9), drawn(7, 90, 0.4)
    forward = ClusterBootstrap().paired_difference(better, worse, TASK)
    backward = ClusterBootstrap().paired_difference(worse, better, TASK)
    assert forward.low > 0
    assert [backward.low, backward.high] == pytest.approx([-forward.high, -forward.low], abs=1e-12)
    single = ClusterBootstrap(settings=EvaluationSettings(num_resamples=1))
    estimates = [single.intervals(each, TASK)["uar"].estimate for each in (better, worse)]
    assert forward.estimate == pytest.approx(estimates[0] - estimates[1], abs=1e-12)


def test_pairing_matters():
    """Two sets that err on mostly the same clips: unpaired resamples would hide their difference."""
    baseline = drawn(8, 150, 0.6)
    candidate = [
        replace(each, predicted=each.truth) if index % 15 == 0 else each for index, each in enumerate(baseline)
    ]
    paired = ClusterBootstrap().paired_difference(candidate, baseline, TASK)
    ours = ClusterBootstrap(seed=1).intervals(candidate, TASK)["uar"]
    theirs = ClusterBootstrap(seed=2).intervals(baseline, TASK)["uar"]
    unpaired = np.hypot(ours.high - ours.low, theirs.high - theirs.low)
    assert paired.high - paired.low < 0.5 * unpaired


def test_clustered_errors_widen_the_speaker_interval():
    """Speakers that are all right or all wrong: resampling clips would claim too much."""
    predictions = [
        replace(each, predicted=each.truth if int(each.speaker[1:]) % 2 else None)
        for each in drawn(9, 200, speakers=10)
    ]
    by_speaker = ClusterBootstrap().intervals(predictions, TASK)["war"]
    by_clip = ClusterBootstrap().intervals([replace(each, speaker=None) for each in predictions], TASK)["war"]
    assert by_speaker.estimate == by_clip.estimate == 0.5
    assert by_speaker.high - by_speaker.low > 3 * (by_clip.high - by_clip.low)


def test_different_samples_are_refused():
    full = drawn(0, 10)
    bootstrap = ClusterBootstrap(settings=EvaluationSettings(num_resamples=10))
    with pytest.raises(DataError, match="clip-9"):
        bootstrap.paired_difference(full, full[:-1], TASK)
    with pytest.raises(DataError, match="clip-9"):
        bootstrap.paired_difference(full[:-1], full, TASK)
    with pytest.raises(DataError, match="repeated"):
        bootstrap.paired_difference(full, [*full, full[0]], TASK)
    with pytest.raises(DataError, match="repeated"):
        bootstrap.paired_difference([*full, full[0]], [*full, full[0]], TASK)
    for change in ({"truth": "sad"}, {"speaker": "s1"}):
        with pytest.raises(DataError, match="clip-0"):
            bootstrap.paired_difference([replace(full[0], **change), *full[1:]], full, TASK)


def test_no_predictions_are_refused():
    with pytest.raises(DataError, match="no predictions"):
        ClusterBootstrap().intervals([], TASK)
    with pytest.raises(DataError, match="no predictions"):
        ClusterBootstrap().paired_difference([], [], TASK)


@pytest.mark.parametrize("level", [0.0, 1.0, 95])
def test_a_level_out_of_range_is_refused(level):
    with pytest.raises(ConfigError, match=f"bootstrap.level is {level}"):
        ClusterBootstrap(level=level)


def test_no_resamples_are_refused():
    with pytest.raises(ConfigError, match=r"evaluation\.num_resamples is 0"):
        ClusterBootstrap(settings=EvaluationSettings(num_resamples=0))


def test_chunks_do_not_change_the_result(monkeypatch):
    predictions = drawn(10, 50)
    whole = ClusterBootstrap(settings=EvaluationSettings(num_resamples=97)).intervals(predictions, TASK)
    monkeypatch.setattr(intervals, "_MAX_WEIGHTS", 50 * 10)
    assert ClusterBootstrap(settings=EvaluationSettings(num_resamples=97)).intervals(predictions, TASK) == whole


@pytest.mark.parametrize(
    ("speakers", "size", "unit", "number", "reliable"),
    [
        (25, 100, "speaker", 25, True),
        (15, 60, "speaker", 15, True),
        (14, 60, "speaker", 14, False),
        (1, 60, "clip", 60, False),
        (None, 60, "clip", 60, True),
        (None, 14, "clip", 14, False),
    ],
)
def test_few_speakers_are_not_reliable(speakers, size, unit, number, reliable):
    predictions = drawn(0, size, speakers=speakers)
    single = ClusterBootstrap(settings=EvaluationSettings(num_resamples=10))
    for found in (single.intervals(predictions, TASK)["uar"], single.paired_difference(predictions, predictions, TASK)):
        assert (found.unit, found.num_units, found.reliable) == (unit, number, reliable)
        assert (found.caution is None) == (unit == "speaker" and reliable)
        assert ("not reliable" in (found.caution or "")) == (not reliable)
        assert ("single samples were resampled" in (found.caution or "")) == (unit == "clip")


def test_speakers_of_unequal_size_count_as_fewer():
    predictions = [replace(each, speaker="s0") if index < 20 else each for index, each in enumerate(drawn(0, 40))]
    predictions = [replace(each, speaker=each.speaker or f"s{index}") for index, each in enumerate(predictions)]
    found = ClusterBootstrap(settings=EvaluationSettings(num_resamples=10)).intervals(predictions, TASK)["uar"]
    assert (found.num_units, found.effective_units) == (21, pytest.approx(40**2 / (20**2 + 20)))
    equal = ClusterBootstrap().intervals(drawn(0, 40, speakers=8), TASK)["uar"]
    assert equal.effective_units == pytest.approx(8)


@pytest.mark.parametrize("units", [1.2, 2, 3.7, 15, 25, 100, 1e5])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99])
def test_the_tails_are_those_of_students_distribution(units, level):
    """A normal quantile that is t sqrt(S / (S - 1)); with many units the tails are those of plain percentiles."""
    share = intervals.tail_of(units, level)
    assert share < (1 - level) / 2
    expected = stats.t(df=units - 1).ppf((1 + level) / 2) * np.sqrt(units / (units - 1))
    assert -stats.norm.ppf(share) == pytest.approx(expected, rel=1e-9) or share < 1e-300
    if units == 1e5:
        assert share == pytest.approx((1 - level) / 2, rel=1e-3)


def test_the_resampled_metrics_are_bit_for_bit_those_of_before_there_were_tasks(monkeypatch):
    """Plain percentiles, recorded with the code that knew WAR and UAR alone."""
    expected = {
        None: (
            ("0x1.04325c53ef369p-1", "0x1.82192e29f79b4p-2", "0x1.3f2920bc035a4p-1"),
            ("0x1.04e04e04e04e1p-1", "0x1.8576d70e76191p-2", "0x1.44e4852fbbbd6p-1"),
            ("0x1.507507507507ap-3", "-0x1.7f47fddf5abadp-7", "0x1.5417a30f37e47p-2"),
        ),
        7: (
            ("0x1.04325c53ef369p-1", "0x1.9ce739ce739cep-2", "0x1.4210842108421p-1"),
            ("0x1.04e04e04e04e1p-1", "0x1.a12f684bda12fp-2", "0x1.430c30c30c30cp-1"),
            ("0x1.507507507507ap-3", "0x1.ba7862920c9b0p-6", "0x1.4bc5ad4bc5ad6p-2"),
        ),
    }
    for speakers, (weighted, unweighted, gained) in expected.items():
        candidate, baseline = drawn(3, 61, speakers=speakers), drawn(4, 61, 0.4, speakers=speakers)
        candidate = [replace(each, predicted=None) if i % 9 == 0 else each for i, each in enumerate(candidate)]
        monkeypatch.setattr(intervals, "tail_of", lambda effective, level: (1 - level) / 2)
        found = ClusterBootstrap().intervals(candidate, TASK)
        difference = ClusterBootstrap().paired_difference(candidate, baseline, TASK)
        for interval, values in ((found["war"], weighted), (found["uar"], unweighted), (difference, gained)):
            assert tuple(value.hex() for value in (interval.estimate, interval.low, interval.high)) == values


def test_an_interval_of_rows_is_that_of_the_metric_and_undefined_sums_have_none():
    predictions = drawn(3, 60, speakers=6)
    rows = TASK.unit_sums(predictions, np.arange(60), 60)
    assert ClusterBootstrap().of_rows(predictions, rows, TASK.statistic("uar")) == uar_of(predictions)
    assert ClusterBootstrap().of_rows(predictions, rows, lambda sums: sums.sum(-1) * np.nan) is None


def test_a_resample_in_which_a_share_is_undefined_does_not_count():
    """Only the clips of one of six speakers count, so a third of the resamples have none."""
    predictions = drawn(3, 60, speakers=6)
    rows = np.array([[1.0, float(each.speaker == "s0")] for each in predictions]) * (
        np.array([[each.speaker == "s0"] for each in predictions])
    )
    found = ClusterBootstrap().of_rows(predictions, rows, lambda sums: ratio(sums[..., 0], sums[..., 1]))
    assert (found.estimate, found.low, found.high) == (1.0, 1.0, 1.0)


def uar_of(predictions):
    return ClusterBootstrap().intervals(predictions, TASK)["uar"]
