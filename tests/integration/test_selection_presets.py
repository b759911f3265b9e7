"""The presets that select run for 20 iterations from the command line, on real clips and the tiny model."""

import json

import pytest
from small_runs import SMALL_RL

from lightning_mmrl.cli.main import main

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 20
OVERRIDES = (
    *SMALL_RL,
    "evaluation.limit=2",
    "tracking=none",
    f"stages.reason.num_steps={STEPS}",
    "stages.reason.algorithm.group_size=4",
    "stages.reason.rollout_table_every=10",
    "stages.reason.optimizer.lr=1e-3",
    "+stages.reason.rewards.weights.coin=1.0",
    "stages.reason.rewards.pass_part=coin",
)
COIN = """
def coin(sample, completion):
    return float(sum(completion.text.encode()) % 2)
"""
"""A reward that differs between the answers of a model that knows nothing yet."""

REFILLED = ("dapo", "mm_eureka_v2")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "coin.py").write_text(COIN)
    return folder


@pytest.mark.parametrize("name", ["dapo", "mm_eureka_v2", "revisual_mm", "revisual_text"])
def test_a_preset_runs_from_the_command_line(workplace, name):
    places = (f"output_dir={workplace}/runs", f"data.root={workplace}/clips", f"run_name={name}")
    part = f"{{_target_: lightning_mmrl.rewards.user_function.UserFunction, function: '{workplace}/coin.py:coin'}}"
    settings = [f"algorithm@stages.reason={name}", f"+stages.reason.rewards.parts.coin={part}"]
    settings += ["stages.reason.algorithm.max_samplings=3"] if name in REFILLED else []
    assert main(["train", "--allow-targets", f"{workplace}/coin.py", *OVERRIDES, *places, *settings]) == 0
    log = workplace / "runs" / name / "stages" / "00-reason" / "metrics.jsonl"
    steps = {}
    for line in log.read_text().splitlines():
        record = json.loads(line)
        steps.setdefault(record["step"], {}).update(record["metrics"])
    assert sorted(steps) == list(range(1, STEPS + 1))
    if name in REFILLED:
        assert max(values["reason/rollout/samplings"] for values in steps.values()) > 1
        assert all(values["reason/rollout/samplings"] <= 3 for values in steps.values())
    else:
        assert all(values["reason/rollout/completions_drawn"] <= 0.5 for values in steps.values())
