"""Every order of stages with either algorithm, chosen by overrides alone, on real clips and the tiny model."""

import json
import math

import pytest
from small_runs import SMALL

from lightning_mmrl.cli.main import main
from lightning_mmrl.curriculum.handoff import check_handoff
from lightning_mmrl.curriculum.manifest import Manifest

pytestmark = pytest.mark.slow

CURRICULUM = (
    *SMALL,
    "data.validation_limit=4",
    "evaluation.limit=8",
    "evaluation.max_new_tokens=8",
    "trainer=cpu",
    "tracking=none",
)
COLD_START = ("stages.cold_start.data.batch_size=4", "stages.cold_start.num_steps=2")
REASON = (
    "stages.reason.num_steps=2",
    "stages.reason.validate_every=2",
    "stages.reason.data.batch_size=2",
    "stages.reason.algorithm.group_size=2",
    "stages.reason.sampling.max_new_tokens=8",
    "stages.reason.optimizer.lr=1e-3",
)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return tmp_path_factory.mktemp("workplace")


def train(workplace, name, *arguments):
    places = (f"output_dir={workplace}/runs", f"data.root={workplace}/clips", f"run_name={name}")
    return main(["train", *CURRICULUM, *places, *arguments])


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
@pytest.mark.parametrize(
    ("curriculum", "stages"),
    [
        ("sft_then_rl", ["cold_start", "reason"]),
        ("rl_then_sft", ["reason", "cold_start"]),
        ("rl_only", ["reason"]),
        ("sft_only", ["cold_start"]),
    ],
)
def test_a_curriculum_runs_from_the_command_line(workplace, curriculum, stages, algorithm):
    if curriculum == "sft_only" and algorithm == "rloo":
        assert main(["plan", f"curriculum={curriculum}", f"algorithm@stages.reason={algorithm}"]) == 2
        return
    own = [*(COLD_START if "cold_start" in stages else ()), *(REASON if "reason" in stages else ())]
    chosen = [f"algorithm@stages.reason={algorithm}"] if "reason" in stages else []
    name = f"{curriculum}-{algorithm}"
    assert train(workplace, name, f"curriculum={curriculum}", *own, *chosen) == 0
    manifest = Manifest.read(workplace / "runs" / name)
    assert list(manifest.stages) == stages
    started_from = [manifest.stages[stage].result.inputs["weights"] for stage in stages]
    handed_over = [manifest.stages[stage].result.handoff.digest for stage in stages]
    assert started_from[1:] == handed_over[:-1]
    for stage in stages:
        assert check_handoff(workplace / "runs" / name / manifest.stages[stage].result.handoff.path)
    if "reason" in stages:
        target = manifest.stages["reason"].content["stage.module._target_"]
        assert target == f"lightning_mmrl.stages.{algorithm}.{algorithm.upper()}Module"


def test_ppo_runs_twenty_iterations_from_the_command_line(workplace):
    """All that is reported is a number, at every iteration; a group may be one completion."""
    own = [*(each for each in REASON if "num_steps" not in each and "group_size" not in each)]
    own += ["stages.reason.num_steps=20", "stages.reason.algorithm.group_size=1"]
    chosen = ("algorithm@stages.reason=ppo", "stages.reason.algorithm.critic.learning_rate=3e-3")
    assert train(workplace, "ppo", "curriculum=rl_only", *own, *chosen) == 0
    folder = workplace / "runs" / "ppo" / "stages" / "00-reason"
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    values = [record["metrics"]["reason/train/value_loss"] for record in records if len(record["metrics"]) > 20]
    assert len(values) == 20
    assert all(math.isfinite(value) for record in records for value in record["metrics"].values())
    assert not any("critic" in path.name for path in (folder / "handoff").iterdir())
    assert check_handoff(folder / "handoff")


def test_a_gate_ends_a_run_with_its_report_and_a_second_call_evaluates_or_goes_on(workplace, capsys):
    arguments = ("curriculum=sft_then_rl", *COLD_START, *REASON)
    gate = "stages.cold_start.gate={metric: test/uar, at_least: 1.0}"
    assert train(workplace, "gated", *arguments, gate) == 2
    captured = capsys.readouterr()
    assert "stages.cold_start.gate asks for test/uar at least 1, found" in captured.err
    assert "Recognition by stage" in captured.out
    run = workplace / "runs" / "gated"
    assert list(Manifest.read(run).stages) == ["cold_start"]
    results = json.loads((run / "comparison.json").read_text())["results"]
    assert [row["stage"] for row in results] == ["base"] * 2 + ["cold_start"] * 2
    assert "ended with 1 of 2 stages finished" in (run / "report.html").read_text()
    weights = (run / "stages" / "00-cold_start" / "handoff" / "model.safetensors").read_bytes()
    assert train(workplace, "gated", *arguments, "evaluation.limit=4") == 0
    assert (run / "stages" / "00-cold_start" / "handoff" / "model.safetensors").read_bytes() == weights
    comparison = json.loads((run / "comparison.json").read_text())
    assert {row["num_samples"] for row in comparison["results"]} == {4}
    assert "all 2 stages finished" in (run / "report.html").read_text()
    assert {(gain["stage"], gain["over"]) for gain in comparison["gains"]} == {
        ("cold_start", "base"),
        ("reason", "cold_start"),
    }


def test_a_run_folder_in_use_is_left_alone(workplace, capsys):
    from filelock import FileLock

    folder = workplace / "runs" / "busy"
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        assert train(workplace, "busy", "curriculum=sft_only", *COLD_START) == 2
    assert "is in use by another process" in capsys.readouterr().err
    assert not (folder / "stages").exists()
