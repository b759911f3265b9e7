"""A model learns sums from answers, and then from pairs of a right and a wrong answer, by one command."""

import json

import pytest

from lightning_mmrl.cli.main import main
from lightning_mmrl.curriculum.artifacts import check_artifact
from lightning_mmrl.curriculum.manifest import Manifest
from lightning_mmrl.data.schema import read_manifest
from lightning_mmrl.data.synthetic.tasks import TASKS

pytestmark = pytest.mark.slow

STEPS = 16
PREFERENCES = (
    "experiment=task_arithmetic",
    "model=tiny_qwen2",
    "order=[cold_start,prefer]",
    "tracking=none",
    "data.build=null",
    "trainer=cpu",
    "trainer.num_threads=1",
    "evaluation.limit=4",
    "evaluation.max_new_tokens=4",
    "evaluation.num_resamples=20",
    "stages.cold_start.num_steps=20",
    "stages.cold_start.data.batch_size=8",
    "stages.cold_start.stop_when=null",
    "stages.cold_start.validate_every=null",
    "stages.cold_start.target='<think>{operation}</think><answer>{solution}</answer>'",
    "+stage@stages.prefer=mpo",
    f"stages.prefer.num_steps={STEPS}",
    "stages.prefer.data.batch_size=8",
    "stages.prefer.optimizer.lr=1e-3",
    "stages.prefer.preference.quality_weight=0.5",
)


def pair(sample):
    """The prompt of a sum with its result, and with another digit that was guessed."""
    wrong = str((int(sample.solution) + 3) % 10)
    return {
        "id": sample.id,
        "messages": [{"role": turn.role, "content": turn.content} for turn in sample.messages],
        "solution": sample.solution,
        "chosen": f"<think>sum</think><answer>{sample.solution}</answer>",
        "rejected": [{"role": "assistant", "content": f"<think>guess</think><answer>{wrong}</answer>"}],
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Sums, with a column for the thought of a target, and pairs."""
    found = TASKS["arithmetic"](tmp_path_factory.mktemp("preferences") / "sums", scale=0.1, workers=1)
    samples = read_manifest(found / "train.jsonl", found)
    (found / "pairs.jsonl").write_text("".join(json.dumps(pair(each)) + "\n" for each in samples))
    lines = [json.loads(line) for line in (found / "cold_start.jsonl").read_text().splitlines()]
    (found / "cold_start.jsonl").write_text("".join(json.dumps({**row, "operation": "sum"}) + "\n" for row in lines))
    return found


def arguments(root, command):
    return [command, *PREFERENCES, f"output_dir={root.parent}/runs", f"data.root={root}", "run_name=preferences"]


@pytest.fixture(scope="module")
def run(root):
    """The folder of the finished run."""
    assert main(arguments(root, "train")) == 0
    return root.parent / "runs" / "preferences"


def test_rewards_of_right_and_wrong_answers_part(run):
    stages = {name: stage.result for name, stage in Manifest.read(run).stages.items()}
    assert stages["prefer"].changed
    assert stages["prefer"].inputs["weights"] == stages["cold_start"].handoff.digest
    check_artifact(run / stages["prefer"].handoff.path)
    lines = [json.loads(line) for line in next(run.glob("stages/*prefer/metrics.jsonl")).read_text().splitlines()]
    steps = [each["metrics"] for each in lines if "prefer/train/reward_margin" in each["metrics"]]
    margins = [each["prefer/train/reward_margin"] for each in steps]
    assert len(steps) == STEPS
    assert margins[0] == pytest.approx(0, abs=1e-4)
    assert sum(margins[-4:]) / 4 > sum(margins[:4]) / 4 + 0.05
    assert steps[-1]["prefer/train/drift_chosen"] > steps[-1]["prefer/train/drift_rejected"]
    assert steps[-1]["prefer/train/pair_accuracy"] == 1
    assert steps[-1]["prefer/train/generation_loss"] < steps[0]["prefer/train/generation_loss"]
    assert {"preference_loss", "quality_loss", "reward_shift", "logprob_chosen", "logprob_rejected"} <= {
        key.removeprefix("prefer/train/") for key in steps[0]
    }


def test_the_plan_counts_pairs_and_their_reference(run, root, capsys):
    assert main(arguments(root, "plan")) == 0
    told = capsys.readouterr().out
    assert "8 pairs" in " ".join(told.split())
    assert "prefer" in told
