"""Short runs of `mmrl train` give the numbers that tools/golden/golden_trajectories.py recorded."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from golden_differences import OTHER_MACHINE, SAME_MACHINE, differences, told
from golden_trajectories import trained

ROOT = Path(__file__).parents[2]
TABLE = yaml.safe_load((ROOT / "tests" / "golden" / "runs.yaml").read_text(encoding="utf-8"))
RECORDED = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))["stages"]
    for path in (ROOT / "tests" / "golden" / "recorded").glob("*.json")
}
HOTTER = "hotter"
"""The run grpo with a learning rate that is 1 % higher."""

ADVICE = """If this is meant, say so in the change and record anew: tools/golden/golden_trajectories.py record.
Runs in float64 differ by 1e-12 from processor to processor, and a sampled token lies within that of another one once in
1e9. If the first difference is an answer or a length all the same, and this machine alone has it, it is such a token:
tools/golden/golden_trajectories.py compare COMMIT COMMIT tells, which compares two commits on one machine."""

MAIN_PATH = ("base", "grpo")
"""The runs of `make test`: SFT from random weights, and GRPO from its handoff."""

# A busy machine takes minutes where a quiet one takes one.
pytestmark = pytest.mark.timeout(1200)


def asked_for(request):
    """The runs of the selected tests; none, which stands for all, if a test compares runs with each other."""
    tests = [item for item in request.session.items if item.path == request.path and "fresh" in item.fixturenames]
    if any(item.originalname != test_a_run_gives_the_recorded_numbers.__name__ for item in tests):
        return []
    return [item.callspec.params["name"] for item in tests]


@pytest.fixture(scope="module")
def fresh(request, tmp_path_factory):
    """The stages of the runs by name, trained now in one process after the other, which share their imports."""
    work, content = tmp_path_factory.mktemp("golden"), copy.deepcopy(TABLE)
    grpo = content["runs"]["grpo"]
    [rate] = [line for line in content["shapes"]["rl"] if line.startswith("stages.reason.optimizer.lr=")]
    key, _, value = rate.partition("=")
    content["runs"][HOTTER] = grpo | {"overrides": [*grpo["overrides"], f"{key}={float(value) * 1.01}"]}
    table = work / "runs.yaml"
    table.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return trained(ROOT, table, work / "runs", asked_for(request))


def first(before, after, rules):
    """The first difference, or None."""
    found = differences(before, after, rules)
    return str(found[0]) if found else None


def test_every_run_is_recorded():
    assert sorted(RECORDED) == sorted(TABLE["runs"])


def marked(name):
    return pytest.param(name, marks=pytest.mark.main_path) if name in MAIN_PATH else name


@pytest.mark.slow
@pytest.mark.parametrize("name", [marked(name) for name in TABLE["runs"]])
def test_a_run_gives_the_recorded_numbers(fresh, name):
    found = differences(RECORDED[name], fresh[name], OTHER_MACHINE)
    assert not found, f"recorded and now: {told(name, found)}\n{ADVICE}"


@pytest.mark.slow
def test_an_interrupted_run_is_the_one_that_was_left_alone(fresh):
    assert first(fresh["grpo"], fresh["interrupted"], SAME_MACHINE) is None


@pytest.mark.slow
def test_cached_features_change_no_number(fresh):
    counters = replace(SAME_MACHINE, without=("media/*",))
    assert first(fresh["frozen"], fresh["cached"], counters) is None
    assert sum(fresh["cached"]["00-reason"]["metrics"]["media/cache_hits"].values()) > 0


@pytest.mark.slow
def test_sharded_ranks_take_the_steps_of_replicated_ones(fresh):
    rules = replace(OTHER_MACHINE, relative=1e-9, absolute=1e-9)
    assert first(fresh["replicated"], fresh["sharded"], rules) is None


@pytest.mark.slow
def test_a_learning_rate_that_is_a_hundredth_higher_is_found(fresh):
    assert fresh[HOTTER]["00-reason"]["rollouts"]["prompts"] == fresh["grpo"]["00-reason"]["rollouts"]["prompts"]
    found = differences(RECORDED["grpo"], fresh[HOTTER], OTHER_MACHINE)
    weights = [each for each in found if each.name.startswith("states/weights")]
    assert weights[0].step == 1, "found in the weights after the first step, not only as train/learning_rate"


def test_selection_refills_and_the_runs_have_a_signal():
    """Otherwise equal numbers would say little."""
    for name in ("signal", "band"):
        metrics = RECORDED[name]["00-reason"]["metrics"]
        assert max(metrics["rollout/samplings"].values()) > 1, name
        assert max(metrics["rollout/batch_filled"].values()) > 0, name
    for name, stages in RECORDED.items():
        *_, last = stages.values()
        norms = last["train"].get("train/grad_norm", {"1": 1.0})
        assert all(value > 0 for value in norms.values()), name


NUMBERS = [
    ("metrics", "rollout/reward_mean", "3"),
    ("metrics", "validation/valid_format", "4"),
    ("train", "train/grad_norm", "4"),
    ("states", "weights_norm", "2"),
    ("states", "optimizer_wave", "1"),
    ("handoff", "norm"),
    ("handoff", "wave"),
    ("evaluation", "scores", "test", "metrics", "valid_format"),
]


def changed(stages, path, change):
    """The stages with one value changed."""
    other = copy.deepcopy(stages)
    *way, last = path
    place = other["00-reason"]
    for key in way:
        place = place[key]
    place[last] = change(place[last])
    return other


@pytest.mark.parametrize("path", NUMBERS, ids="/".join)
def test_a_number_that_is_a_thousandth_larger_is_found_and_rounding_is_not(path):
    stages = RECORDED["grpo"]
    larger, rounded = (changed(stages, path, lambda value, by=by: value * by) for by in (1.001, 1 + 1e-9))
    assert first(stages, larger, OTHER_MACHINE) is not None
    assert first(stages, rounded, OTHER_MACHINE) is None
    assert first(stages, rounded, SAME_MACHINE) is not None


@pytest.mark.parametrize(
    ("path", "change"),
    [
        (("rollouts", "prompts", "1"), lambda ids: [*ids[1:], ids[0]]),
        (("rollouts", "num_tokens", "2"), lambda lengths: [lengths[0] + 1, *lengths[1:]]),
        (("rollouts", "answers", "2"), lambda digest: digest[::-1]),
        (("evaluation", "answers", "test"), lambda digest: digest[::-1]),
        (("metrics", "rollout/label"), lambda values: {step: values[step] for step in sorted(values)[:-1]}),
        (("metrics", "rollout/new"), lambda _: {"1": 0.0}),
    ],
    ids=["order of prompts", "length", "answer", "judged answer", "step without a metric", "new metric"],
)
def test_what_is_no_number_is_compared_exactly(path, change):
    stages = copy.deepcopy(RECORDED["grpo"])
    stages["00-reason"]["metrics"].setdefault(path[1] if path[0] == "metrics" else "rollout/label", {})
    assert first(stages, changed(stages, path, change), OTHER_MACHINE) is not None


def test_pairs_come_from_sampled_answers_and_train():
    stages = RECORDED["preferences"]
    assert len(stages["01-sort"]["artifacts"]["pairs/pairs.jsonl"]["ids"]) > 4
    margins = stages["02-prefer"]["train"]["train/reward_margin"]
    assert margins["1"] == 0
    assert margins["4"] > 0.1


@pytest.mark.parametrize("stage", ["00-draw", "01-sort"])
@pytest.mark.parametrize(("part", "change"), [("rows", lambda digest: digest[::-1]), ("ids", lambda ids: ids[1:])])
def test_rows_that_a_stage_makes_are_compared_exactly(stage, part, change):
    stages, other = RECORDED["preferences"], copy.deepcopy(RECORDED["preferences"])
    own = other[stage]["artifacts"]["own/own.jsonl"]
    own[part] = change(own[part])
    assert f"stage {stage}, at its end, artifacts/own/own.jsonl/{part}" in first(stages, other, OTHER_MACHINE)


def test_the_first_difference_is_named_with_both_values():
    stages = RECORDED["grpo"]
    later = changed(stages, ("train", "train/grad_norm", "3"), lambda value: value + 1)
    both = changed(later, ("metrics", "rollout/reward_mean", "2"), lambda value: 9.5)
    value = stages["00-reason"]["metrics"]["rollout/reward_mean"]["2"]
    found = first(stages, both, SAME_MACHINE)
    assert found == f"stage 00-reason, step 2, rollout/reward_mean: {value!r} and 9.5"


def test_hashes_of_weights_count_on_one_machine_alone():
    stages = RECORDED["grpo"]
    other = changed(stages, ("states", "weights_digest", "4"), lambda digest: digest[::-1])
    assert first(stages, other, OTHER_MACHINE) is None
    assert "weights_digest" in first(stages, other, SAME_MACHINE)


def test_a_metric_that_was_renamed_is_found_under_its_new_name():
    stages, other = RECORDED["grpo"], copy.deepcopy(RECORDED["grpo"])
    metrics = other["00-reason"]["metrics"]
    metrics["rollout/points"] = metrics.pop("rollout/reward_mean")
    assert first(stages, other, SAME_MACHINE) is not None
    rules = replace(SAME_MACHINE, renamed={"rollout/reward_mean": "rollout/points"})
    assert first(stages, other, rules) is None
