"""The campaign reads the answers of runs, and pools gains by question over seeds."""

import pytest
import smollm2_campaign as campaign

from lightning_mmrl.evaluation.records import Judgement


def judged(sample_id, family, right):
    scores = {"accuracy": float(right), "unparseable": 0.0, "unjudged": 0.0}
    return Judgement(
        sample_id=sample_id, speaker=family, truth="3", predicted="3", valid_format=True, text="3", scores=scores
    )


def test_a_gain_is_paired_over_questions_and_seeds_and_resamples_questions():
    before = [judged(f"{seed}/{k}", f"2-{k}", k == 0) for seed in (0, 1) for k in range(4)]
    own = [judged(f"{seed}/{k}", f"2-{k}", k <= 1 + seed) for seed in (0, 1) for k in range(4)]
    gain = campaign.pooled_gain(own, before[::-1])
    assert gain.estimate == pytest.approx((1 + 2) / 8)
    assert gain.unit == "speaker"
    assert gain.low == 0.0, "a resample may hold only questions without a gain"
    assert campaign.pooled_gain(own, own).high == 0.0


def test_answers_of_all_runs_are_read_with_their_seed(tmp_path):
    folders = {}
    for seed in (0, 2):
        folders[seed] = tmp_path / f"run{seed}"
        for place, right in (("base", False), ("stages/02-reason", True), ("stages/03-reason_first", False)):
            file = folders[seed] / place / "evaluation/test.jsonl"
            file.parent.mkdir(parents=True)
            file.write_text(judged("test-0", "2-2", right).to_json() + "\n")
    assert [each.sample_id for each in campaign._pooled(folders, "base")] == ["0/test-0", "2/test-0"]
    assert [each.scores["accuracy"] for each in campaign._pooled(folders, "reason")] == [1.0, 1.0]
    lines = campaign._accuracies({"RL": campaign._pooled(folders, "reason")}, [0, 2])
    assert lines[-1] == "| RL | 100.0 | 100.0 | 100.0 | 100.0 |"
