"""What evaluations hold beside their metrics, as far as it is there."""

import json

import pytest
from parsed_page import missing, parsed
from run_folders import whole_run

INTERVAL = {"estimate": 0.125, "low": 0.0625, "high": 0.1875, "level": 0.95, "num_resamples": 20, "unit": "clip"}
MORE = {
    "by_subject": {"geometry": {"num_samples": 40, "accuracy": 0.325}},
    "by_length": [{"at_least": 8, "below": 16, "num_samples": 2, "accuracy": 0.5}],
    "aha": {"right": {"num_samples": 3, "rate": 0.75}, "wrong": {"num_samples": 0, "rate": None}},
    "truncated": 0.15,
    "speakers": {"metric": "uar", "num_speakers": 7, "min": 0.11, "median": 0.22, "max": 0.33, "sd": 0.044, "each": {}},
}
SHOWN = ("geometry", "32.5", "8 to 15", "right ones that reflect", "75.0", "truncated", "15.0", "11.0", "22.0", "4.4")


@pytest.fixture
def run(tmp_path):
    return whole_run(tmp_path / "run")


def change(run, name, **more):
    summary = run.place("reason") / "evaluation" / "evaluation.json"
    entries = json.loads(summary.read_text())
    entries[name] |= more
    summary.write_text(json.dumps(entries))


def test_what_an_evaluation_holds_is_shown_and_nothing_else_is_needed(run):
    assert "breakdown" not in parsed(run.folder).ids()
    change(run, "test", **MORE)
    found = parsed(run.folder)
    assert "breakdown" in found.ids()
    assert "speakers" not in missing(run.folder)
    for part in SHOWN:
        assert part in found.text, part
    assert "wrong ones that reflect" not in found.text, "a share of nothing"


def test_answers_without_a_thought_and_sampled_answers_are_no_loss_of_an_input(run):
    for name in ("test-no_think", "test-sampled"):
        run.evaluate("reason", [("happy", "happy"), ("sad", "sad")], name=name)
    thinking = {"over": "test", "headline": "uar", "difference": INTERVAL, "num_unpaired": 0}
    change(run, "test-no_think", thinking={**thinking, "mean_tokens": 9.0, "mean_tokens_no_think": 4.5})
    change(run, "test-sampled", metrics={"pass_at_4": 0.625}, intervals={"pass_at_4": {**INTERVAL, "estimate": 0.625}})
    found = parsed(run.folder)
    text = " ".join(found.text)
    for part in ("+12.5", "[+6.2, +18.8]", "9.0 against 4.5", "pass_at_4", "62.5"):
        assert part in text, part
    assert "+12.5 points [+6.2, +18.8] over answers that are forced without a thought" in text
    assert not [each for each in found.text if "no_think" in each and "points)" in each], "nothing was taken away"


@pytest.mark.parametrize("value", [3, [], {"right": 3}, None])
def test_values_of_another_shape_cost_this_section_alone(run, value):
    change(run, "test", aha=value)
    found = parsed(run.folder)
    assert {"scores", "confusion", "rollouts"} <= set(found.ids())
    assert [note for note in missing(run.folder) if "Under the scores: cannot be shown" in note]
