"""Two ranks, each with an engine of its own, whose weights come whole out of the shards of both."""

import json
import os
import subprocess
import sys
from pathlib import Path

import omni
import pytest
from small_runs import SMALL_RL

BOUND = 1e-4
STEPS = 3

REWARD = """
def letters(sample, completion):
    return float(sum(completion.text.encode()) % 7)
"""


def arguments(folder, checkpoint):
    """A small run whose every completion earns something else, so that all weights move."""
    (folder / "reward.py").write_text(REWARD)
    key = "stages.reason"
    part = f"{{_target_: lightning_mmrl.rewards.user_function.UserFunction, function: '{folder}/reward.py:letters'}}"
    return [
        f"--allow-targets={folder}/reward.py",
        *SMALL_RL,
        f"model.checkpoint={checkpoint}",
        f"output_dir={folder}/runs",
        f"data.root={folder}/clips",
        "run_name=ranks",
        "tracking=none",
        "trainer.devices=2",
        "trainer.strategy=fsdp2",
        "rollout.canary.every=1",
        f"{key}.num_steps={STEPS}",
        f"{key}.freeze=[]",
        f"{key}.optimizer.lr=1e-3",
        f"{key}.data.batch_size=4",
        f"+{key}.rewards.components.letters={part}",
        f"+{key}.rewards.weights.letters=1.0",
    ]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_engines_of_two_ranks_follow_a_sharded_policy(tmp_path):
    checkpoint = omni.build(tmp_path / "omni")
    command = [sys.executable, "-W", "ignore", "-m", "lightning_mmrl.cli.main", "train", "rollout=vllm"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [*command, *arguments(tmp_path, checkpoint)],
        capture_output=True, text=True, env=environment, timeout=540, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = (tmp_path / "runs" / "ranks" / "stages" / "00-reason" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line)["metrics"] for line in lines]
    rows = [row for row in rows if "reason/mismatch/logprob_gap_max" in row]
    assert len(rows) == STEPS
    for row in rows:
        assert row["reason/train/grad_norm"] > 0
        assert row["reason/mismatch/logprob_gap_max"] < BOUND
