"""Two ranks equal one process: losses, statistics, gradients, weights and generated tokens, replicated and sharded."""

import math

import omni
import pytest
import rank_cases
import ranks

STAGES = {
    "sft": {"stage": "sft"},
    "dft": {"stage": "sft", "dft": True},
    "grpo": {"stage": "grpo"},
    "rloo": {"stage": "rloo", "aggregation": "constant"},
    "grpo-of-four-updates": {"stage": "grpo", "minibatches": 2, "epochs": 2, "aggregation": "sequences"},
    "reinforce-of-dealt-prompts": {
        "stage": "grpo",
        "advantage": "reinforce",
        "minibatches": 2,
        "epochs": 2,
        "dealt": True,
    },
    "grpo-of-frozen-towers": {"stage": "grpo", "freeze": ["vision", "audio"]},
    "grpo-of-projectors-and-text": {"stage": "grpo", "freeze": ["vision_tower", "audio_tower"]},
    "grpo-of-frozen-text": {"stage": "grpo", "freeze": ["text"]},
    "reinforce-with-divergence": {
        "stage": "grpo",
        "advantage": "reinforce",
        "kl": {"coefficient": 0.1, "estimator": "k2"},
        "entropy": 0.02,
    },
    "reinforce-with-penalized-rewards": {
        "stage": "grpo",
        "advantage": "reinforce",
        "kl": {"coefficient": 0.1, "estimator": "k1", "where": "reward"},
        "minibatches": 2,
        "offload": True,
    },
    "routed": {"stage": "grpo", "router": {}, "missing": ["s0-3", "s1-0"]},
    "routed-of-four-updates": {
        "stage": "grpo",
        "router": {"solved_at_least": 1.0, "rl_coefficient": 0.5, "sft_coefficient": 2.0},
        "minibatches": 2,
        "epochs": 2,
        "dealt": True,
        "kl": {"coefficient": 0.1},
    },
    "ppo": {
        "stage": "ppo",
        "epochs": 2,
        "minibatches": 2,
        "kl": {"coefficient": 0.1, "estimator": "k1", "where": "reward"},
    },
    "ppo-of-frozen-towers": {
        "stage": "ppo",
        "freeze": ["vision", "audio"],
        "group_size": 1,
        "kl": {"coefficient": 0.1, "estimator": "k3"},
    },
    "grpo-with-generation": {"stage": "grpo", "engine": "hf", "steps": 2, "tokens": 90},
    "sft-with-validation": {"stage": "sft", "validate": True, "steps": 2},
    "sft-with-recomputation": {"stage": "sft", "recompute": True, "steps": 2},
}
SURE = {"stage": "grpo", "engine": "hf", "temperature": 0.03, "steps": 6}
"""At this temperature some drafts are right."""
CASES = [case["name"] for case in rank_cases.on_strategies([{"name": stage} for stage in STAGES])]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(omni.build(tmp_path_factory.mktemp("ranks") / "omni"))


@pytest.fixture(scope="module")
def two_ranks(checkpoint, tmp_path_factory):
    """All cases on two ranks, which are started once."""
    cases = rank_cases.on_strategies(
        [{"name": name, "checkpoint": checkpoint, **case} for name, case in STAGES.items()]
    )
    cases += rank_cases.on_strategies([{"name": "drafts", "checkpoint": checkpoint, "drafts": True, **SURE}])
    return ranks.launch(cases, tmp_path_factory.mktemp("two"), timeout_s=400)


@pytest.fixture(scope="module")
def one_process(checkpoint, tmp_path_factory):
    """A case in this process, run once however many tests ask."""
    known = {}

    def run(name):
        if name not in known:
            case = {"name": name, "checkpoint": checkpoint, **STAGES[name]}
            known[name] = rank_cases.run_stage(case, tmp_path_factory.mktemp("one"))
        return known[name]

    return run


def agree(found, expected, tolerance):
    """Equal keys, and values within a relative tolerance."""
    assert {name: error for name, error in rank_cases.errors(found, expected).items() if error > tolerance} == {}


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_train_as_one_process(two_ranks, one_process, name):
    stage, _, _ = name.rpartition("-")
    expected = one_process(stage)
    for found in two_ranks[name]:
        assert len(found["steps"]) == len(expected["steps"])
        for step, reference in zip(found["steps"], expected["steps"], strict=True):
            assert step == pytest.approx(reference, rel=1e-9, abs=1e-12)
        agree(found["gradients"], expected["gradients"], 1e-9)
        agree(found["weights"], expected["weights"], 1e-9)


COMPARED = [name for name, case in STAGES.items() if "kl" in case]


@pytest.mark.parametrize("name", COMPARED)
def test_the_policy_leaves_its_reference(one_process, name):
    """Otherwise equality would say nothing of the reference."""
    _, *later = (step["train/reference_kl"] for step in one_process(name)["steps"])
    assert len(later) == 2
    assert all(abs(divergence) > 1e-4 for divergence in later)


@pytest.mark.parametrize("name", COMPARED[:2])
def test_a_reference_that_moves_with_the_policy_would_show(checkpoint, two_ranks, tmp_path, name):
    """The negative control, in the loss and in the reward."""
    case = {"name": name, "checkpoint": checkpoint, "mistake": "moving reference", **STAGES[name]}
    moved = rank_cases.run_stage(case, tmp_path)["weights"]
    found = two_ranks[f"{name}-fsdp2"][0]["weights"]
    assert 1e-6 < max(rank_cases.errors(found, moved).values()) < math.inf


def test_the_validation_of_the_cases_says_something(one_process):
    seen = [step["validation/war"] for step in one_process("sft-with-validation")["steps"] if "validation/war" in step]
    assert len(seen) == 2
    assert 0 < seen[0] < 1


@pytest.mark.parametrize("strategy", rank_cases.STRATEGIES)
def test_two_ranks_sample_what_one_process_samples(two_ranks, one_process, strategy):
    """Tokens and log-probabilities, at weights that the first iteration has changed as well."""
    expected = one_process("grpo-with-generation")["rollouts"]
    parts = [found["rollouts"] for found in two_ranks[f"grpo-with-generation-{strategy}"]]
    assert len({len(row) for rollout in expected for row in rollout["ids"]}) > 1, "all rows end at once"
    for step, reference in enumerate(expected):
        assert [row for part in parts for row in part[step]["ids"]] == reference["ids"]
        rows = [row for part in parts for row in part[step]["logprobs"]]
        for row, wanted in zip(rows, reference["logprobs"], strict=True):
            assert row == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("strategy", rank_cases.STRATEGIES)
def test_two_ranks_with_drafts_of_their_own_sample_what_one_process_samples_without(
    checkpoint, two_ranks, tmp_path, strategy
):
    """A rank guesses from its own completions, and needs another number of passes; weights agree after all updates."""
    expected = rank_cases.run_stage({"name": "plain", "checkpoint": checkpoint, **SURE}, tmp_path)
    found = two_ranks[f"drafts-{strategy}"]
    for step, reference in enumerate(expected["rollouts"]):
        assert [row for rank in found for row in rank["rollouts"][step]["ids"]] == reference["ids"]
        rows = [row for rank in found for row in rank["rollouts"][step]["logprobs"]]
        for row, wanted in zip(rows, reference["logprobs"], strict=True):
            assert row == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    counts = [[rollout["decoding"] for rollout in rank["rollouts"] if rollout["decoding"]] for rank in found]
    assert all(any(each["passes"] < each["longest"] for each in rank) for rank in counts)
    assert [each["passes"] for each in counts[0]] != [each["passes"] for each in counts[1]]
    for rank in found:
        agree(rank["weights"], expected["weights"], 1e-9)


def test_the_cases_reach_ranks_without_signal_and_with_more_passes(one_process):
    """Otherwise equality would say little: a quiet rank, clipped gradients, several microbatches."""
    steps = one_process("grpo")["steps"]
    assert [step["rollout/groups_with_signal"] for step in steps] == [1.0, 0.5, 1.0]
    assert all(step["train/grad_norm"] > 0.5 for step in steps)


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_denominator_of_each_rank_would_show(checkpoint, one_process, tmp_path, stage):
    case = {"name": stage, "checkpoint": checkpoint, "strategy": "ddp", "mistake": "own counts", **STAGES[stage]}
    found, _ = ranks.launch([case], tmp_path, timeout_s=200)[stage]
    expected = one_process(stage)["gradients"]
    assert 1e-3 < max(rank_cases.errors(found["gradients"], expected).values()) < math.inf
