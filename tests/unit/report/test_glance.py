"""The few sentences at the top of the page, and the second run against the first."""

import json

import pytest
from parsed_page import parsed
from run_folders import RunFolder, judgement, whole_run

CONFUSED = [*[("happy", "sad")] * 3, ("happy", "happy"), ("sad", None), *[("sad", "sad")] * 3]


@pytest.fixture
def run(tmp_path):
    run = whole_run(tmp_path / "run")
    run.evaluate(
        "reason", CONFUSED, texts=["<think>a frown</think>", "<think>tears</think>", "<think>tears</think>", *"abcde"]
    )
    return run


def glance(found):
    return " ".join(found.text).split("What each stage brought")[1].rpartition("In short")[2]


def test_score_gains_weakest_label_typical_answer_inputs_and_cost_stand_at_the_top(run):
    text = glance(parsed(run.folder))
    for part in (
        "reason on test: uar 50.0 %",
        "reason on test: helped, uar +50.0 points [+10.0, +90.0] over cold_start",
        "happy: 25.0 % right on test; most often answered sad (3 of 4)",
        "3 of 4 wrong answers on test take happy for sad; 2 of these 3 read:",
        "1 of 1 right answers to happy read:",
        "<think>tears</think>",
        "reason on test: with everything 50.0 %, without sound 50.0 % (+0.0 points)",
        "2 min 7 s in 2 finished stages",
        "5,120 generated tokens",
    ):
        assert part in text, part


@pytest.mark.parametrize(
    ("low", "high", "word"), [(0.1, 0.2, "helped"), (-0.2, -0.1, "harmed"), (-0.1, 0.1, "no clear")]
)
def test_a_gain_is_clear_if_its_interval_leaves_out_zero(run, low, high, word):
    run.compare("reason", "cold_start", low, high)
    assert f"reason on test: {word}" in glance(parsed(run.folder))


def test_labels_that_the_last_stage_moved_far_are_told_since_its_gain_hides_them(run):
    run.evaluate("cold_start", [*[("happy", "happy")] * 4, *[("sad", "happy")] * 4])
    run.compare("reason", "cold_start", -0.1, 0.1)
    text = glance(parsed(run.folder))
    moved = "happy 100.0 to 25.0 % (-75.0), sad 0.0 to 75.0 % (+75.0)"
    assert f"right answers by reason on test, against cold_start: {moved}" in text


def test_a_stage_that_gives_one_answer_alone_is_told_as_such(run):
    run.evaluate("reason", [*[("happy", "sad")] * 4, *[("sad", "sad")] * 4])
    text = glance(parsed(run.folder))
    assert "over cold_start; it answers sad to everything" in text
    assert "a guess among 2 labels is right in 50.0 %" in text


def test_a_run_without_scores_tells_its_cost_alone(tmp_path):
    run = RunFolder(tmp_path / "run", order=("cold_start",))
    run.finish("cold_start")
    found = parsed(run.folder)
    text = " ".join(found.text)
    assert "1 min 4 s in 1 finished stages" in text
    assert "Weakest label" not in text


def scored(folder, scores, headline="accuracy", metric=None):
    """A run whose answers have scores of a task that is not one of closed labels."""
    run = RunFolder(folder, order=("cold_start",))
    run.finish("cold_start")
    place = run.place("cold_start") / "evaluation"
    place.mkdir(parents=True)
    metric = sum(scores.values()) / len(scores) if metric is None else metric
    interval = {"estimate": metric, "low": 0.0, "high": 1.0, "level": 0.95, "num_resamples": 20, "unit": "clip"}
    entry = {"num_samples": len(scores), "metrics": {headline: metric}, "intervals": {headline: interval}}
    (place / "evaluation.json").write_text(json.dumps({"test": {**entry, "task": {"headline": headline}}}))
    lines = []
    for number, score in scores.items():
        line = json.loads(judgement(number, "7", "7" if score else "8").to_json())
        lines.append(json.dumps({**line, "scores": {headline: score}}) + "\n")
    (place / "test.jsonl").write_text("".join(lines))
    return run.folder


def test_two_runs_of_any_task_whose_headline_is_a_mean_are_compared(tmp_path):
    first = scored(tmp_path / "first", {0: 1.0, 1: 0.0, 2: 0.0, 3: 0.0, 9: 1.0})
    second = scored(tmp_path / "second", {0: 1.0, 1: 1.0, 2: 1.0, 3: 0.0})
    text = " ".join(parsed(first, second).text)
    assert "second minus first, same samples, in points" in text
    assert "test (1 unlike samples aside)" in text
    assert "+50.0" in text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"headline": "f1"}, "one run was measured by accuracy, the other by f1"),
        ({"metric": 0.4}, "accuracy is no mean of the answers' scores"),
    ],
)
def test_what_cannot_be_compared_is_said_with_its_reason(tmp_path, changes, reason):
    first = scored(tmp_path / "first", {0: 1.0, 1: 0.0})
    second = scored(tmp_path / "second", {0: 1.0, 1: 1.0}, **changes)
    text = " ".join(parsed(first, second).text)
    assert f"cold_start on test: {reason}" in text
    assert "second minus first" not in text


def test_runs_without_a_sample_in_common_are_not_compared(tmp_path):
    first, second = scored(tmp_path / "first", {0: 1.0}), scored(tmp_path / "second", {1: 1.0})
    assert "the runs have no sample in common" in " ".join(parsed(first, second).text)


def test_answers_are_right_by_their_headline_score_or_by_the_truth(run, tmp_path):
    groups = parsed(scored(tmp_path / "scored", {0: 1.0, 1: 0.5})).groups
    assert [group["responses"][0]["right"] for group in groups] == [True, False]
    judged = [group for group in parsed(run.folder).groups if group["table"] == "test"]
    assert [[each["stage"] for each in group["responses"]] for group in judged[:1]] == [
        ["base", "cold_start", "reason"]
    ]
    assert [each["right"] for each in judged[0]["responses"]] == [False, True, False]
    assert [each["predicted"] for each in judged[1]["responses"]] == [None, "happy", "sad"]
