"""Two ranks that are interrupted, or go on as one process and back, end where the undisturbed stage ends."""

import shutil

import exact_cases
import omni
import pytest
import ranks
import torch

from lightning_mmrl.training.interruption import Interruption
from lightning_mmrl.training.shards import read_whole

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STRATEGIES = ("ddp", "fsdp2")
STAGES = {
    "grpo-token": ("grpo", {"rank": 1, "place": "token", "at": 9}),
    "grpo-validation": ("grpo", {"rank": 0, "place": "validation", "at": 3}),
    "sft-report": ("sft", {"rank": 1, "place": "report", "at": 4}),
    "routed-reward": ("routed", {"rank": 1, "place": "reward", "at": 3}),
    "dpo-scoring": ("dpo", {"rank": 1, "place": "scoring", "at": 4}),
}
"""Only one of the ranks is sent the signal."""

HALVES = ("sft", "dpo", "rloo")
"""Stages that go on with other ranks; their rewards draw no numbers, which differ between ranks."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(omni.build(tmp_path_factory.mktemp("model") / "omni"))


KL = {"coefficient": 0.3, "estimator": "k3"}
"""Of the stages that are GRPO, which so have a reference policy."""

COMPARED = "grpo-validation-fsdp2"


def case(name, kind, strategy, checkpoint, folder, **more):
    common = {"run": "exact", "kind": kind, "strategy": strategy, "checkpoint": checkpoint, "folder": str(folder)}
    return {"name": name, **common, **more}


def of_halves(kind, strategy, checkpoint, folder, name, **more):
    plain = {"reward": "plain", "dtype": "float64", "options": {"every": 2}}
    return case(name, kind, strategy, checkpoint, folder / f"{kind}-{strategy}", **plain, **more)


def options_of(kind):
    """Saved on the way out alone."""
    return {"every": exact_cases.STEPS + 1, **({"kl": KL} if kind == "grpo" else {})}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(scope="module")
def found(checkpoint, folder):
    """All cases, on two ranks that are started twice: the second time goes on with what the first one left."""
    plans = [[], []]
    for strategy in STRATEGIES:
        for kind in ("sft", "dpo", "grpo", "routed"):
            name = f"{kind}-{strategy}-undisturbed"
            plans[0].append(case(name, kind, strategy, checkpoint, folder / name, options=options_of(kind)))
        for stage, (kind, kill) in STAGES.items():
            name, options = f"{stage}-{strategy}", options_of(kind)
            plans[0].append(case(name, kind, strategy, checkpoint, folder / name, kill=kill, options=options))
            plans[1].append(case(f"{name}-again", kind, strategy, checkpoint, folder / name, options=options))
        for kind in HALVES:
            kill = {"rank": 0, "place": "report", "at": 3}
            plans[0].append(of_halves(kind, strategy, checkpoint, folder, f"{kind}-{strategy}-first", kill=kill))
            plans[1].append(of_halves(kind, strategy, checkpoint, folder, f"{kind}-{strategy}-third"))
    results = ranks.launch(plans[0], folder / "1", timeout_s=300)
    spoiled = f"{COMPARED}-spoiled"
    shutil.copytree(folder / COMPARED, folder / spoiled)
    more = {"options": options_of("grpo"), "mistake": "late reference"}
    plans[1].append(case(spoiled, "grpo", "fsdp2", checkpoint, folder / spoiled, **more))
    for strategy in STRATEGIES:
        for kind in HALVES:
            results[f"{kind}-{strategy}-second"] = alone(kind, checkpoint, folder / f"{kind}-{strategy}", stop=True)
    return results | ranks.launch(plans[1], folder / "2", timeout_s=300)


def alone(kind, checkpoint, folder, *, stop):
    """One process, which goes on from the states that are there and perhaps stops after the fourth step."""
    with Interruption() as interruption:
        stage = exact_cases.Stage(
            kind, checkpoint, folder, interruption, every=2, reward=exact_cases.plain, dtype=torch.float64
        )
        if not stop:
            return stage.outcome()
        exact_cases.kill_in(stage, "report", 2)
        with pytest.raises(KeyboardInterrupt):
            stage.job.run()
    return stage.said


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("stage", STAGES)
def test_all_ranks_agree_on_an_interruption_and_go_on_exactly(found, folder, stage, strategy):
    kind, _ = STAGES[stage]
    for first in found[f"{stage}-{strategy}"]:
        assert first["interrupted"] == "SIGTERM"
        assert "the same command continues after step" in first["said"][-1]
    for again, expected in zip(
        found[f"{stage}-{strategy}-again"], found[f"{kind}-{strategy}-undisturbed"], strict=True
    ):
        assert again["said"][0].startswith("continuing after step")
        exact_cases.assert_equal((again["metrics"], again["weights"]), (expected["metrics"], expected["weights"]))
    logged = [exact_cases.logged(folder / name) for name in (f"{stage}-{strategy}", f"{kind}-{strategy}-undisturbed")]
    assert logged[0] == logged[1]


def test_no_state_has_the_reference_policy_that_a_stage_goes_on_with(found, folder):
    """The negative control: compared with the weights of the state, the stage ends elsewhere."""
    spoiled, expected = (found[name][0] for name in (f"{COMPARED}-spoiled", "grpo-fsdp2-undisturbed"))
    assert expected["metrics"]["train/reference_kl"] > 0
    assert spoiled["said"][0].startswith("continuing after step")
    with pytest.raises(AssertionError):
        exact_cases.assert_equal((spoiled["metrics"], spoiled["weights"]), (expected["metrics"], expected["weights"]))
    states = list((folder / COMPARED / "state").glob("step-*/checkpoint"))
    assert states
    for state in states:
        assert read_whole(state)["state_dict"].keys() == expected["weights"].keys()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", HALVES)
def test_a_stage_goes_on_as_one_process_and_on_two_ranks_again(found, folder, checkpoint, tmp_path, kind, strategy):
    """Two steps each; the sum over two ranks is rounded differently, so equal to nine digits."""
    expected = alone(kind, checkpoint, tmp_path, stop=False)
    steps = [found[f"{kind}-{strategy}-{part}"] for part in ("second", "third")]
    assert steps[0][0].startswith("continuing after step")
    for rank in steps[1]:
        assert rank["said"][0].startswith("continuing after step")
        for name, value in expected[1].items():
            torch.testing.assert_close(rank["weights"][name], value, rtol=1e-9, atol=1e-11, msg=name)
    values, wanted = exact_cases.logged(folder / f"{kind}-{strategy}"), exact_cases.logged(tmp_path)
    assert values == pytest.approx(wanted, rel=1e-7, abs=1e-9)
