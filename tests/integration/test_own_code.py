"""A user's own reward and loss train a model, by `--allow-targets` on the command line."""

import json
import sys
from pathlib import Path

import pytest

from lightning_mmrl.cli.main import main
from lightning_mmrl.curriculum.manifest import Manifest

OWN = (
    "+stages.reason.rewards.components.brevity={_target_: own_code.rewards.Brevity, scale: 2.0}",
    "+stages.reason.rewards.weights.brevity=1.0",
    "stages.reason.algorithm.loss={_target_: own_code.losses.Unclipped}",
)
SMALL = (
    "experiment=task_arithmetic",
    "model=tiny_qwen2",
    "order=[reason]",
    "tracking=none",
    "trainer=cpu",
    "trainer.num_threads=1",
    "data.validation=null",
    "+data.build.scale=0.05",
    "evaluation.limit=4",
    "evaluation.max_new_tokens=4",
    "evaluation.num_resamples=50",
    "stages.reason.start_from=base",
    "stages.reason.num_steps=1",
    "stages.reason.validate_every=null",
    "stages.reason.data.batch_size=2",
    "stages.reason.algorithm.group_size=2",
    "stages.reason.sampling.max_new_tokens=4",
    "stages.reason.rewards.num_workers=1",
    "stages.reason.rollout_table_every=1",
)


@pytest.mark.slow
def test_a_reward_and_a_loss_of_the_users_own_train(tmp_path, monkeypatch, capsys):
    # The package lies in the folder in which the command is called.
    monkeypatch.chdir(Path(__file__).parents[1] / "helpers")
    monkeypatch.setattr(sys, "path", [each for each in sys.path if Path(each).name != "helpers"])
    places = (f"output_dir={tmp_path}/runs", f"data.root={tmp_path}/sums", "run_name=own")
    assert main(["train", *SMALL, *OWN, *places]) == 2
    assert "add --allow-targets own_code" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []

    assert main(["train", "--allow-targets", "own_code", *SMALL, *OWN, *places]) == 0
    run = tmp_path / "runs" / "own"
    metrics = {}
    for line in (run / "stages" / "00-reason" / "metrics.jsonl").read_text().splitlines():
        metrics |= json.loads(line)["metrics"]
    assert any("brevity" in key and value > 0 for key, value in metrics.items()), sorted(metrics)
    content = Manifest.read(run).stages["reason"].content
    assert content["stage.algorithm.loss._target_"] == "own_code.losses.Unclipped"

    saved = (run / "config.yaml").read_text()
    assert saved.startswith("# run with --allow-targets own_code\n")
    assert "allow_targets" not in saved
    capsys.readouterr()
    table = str(run / "stages" / "00-reason" / "rollouts")
    assert main(["reward-test", table]) == 2, "the run of last time opens nothing today"
    assert "add --allow-targets own_code" in capsys.readouterr().err
    assert main(["reward-test", table, "--allow-targets", "own_code.rewards,own_code.losses"]) == 0


TAKE = (
    "order=[take,cold_start]",
    "+stages.take={kind: own_code.kinds, num: 3, data: {manifest: cold_start.jsonl, batch_size: 1}}",
    "stages.cold_start.data.manifest=null",
    "+stages.cold_start.data.sources.taken={stage: take, artifact: taken}",
    "stages.cold_start.data.batch_size=2",
    "stages.cold_start.num_steps=1",
    "stages.cold_start.validate_every=null",
    "stages.cold_start.stop_when=null",
)


@pytest.mark.slow
def test_a_kind_of_stage_of_the_users_own_makes_data_that_a_stage_learns_from(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(Path(__file__).parents[1] / "helpers")
    monkeypatch.setattr(sys, "path", [each for each in sys.path if Path(each).name != "helpers"])
    small = [each for each in SMALL if "reason" not in each]
    arguments = [*small, *TAKE, f"output_dir={tmp_path}/runs", f"data.root={tmp_path}/sums", "run_name=own"]
    assert main(["train", *arguments]) == 2
    assert "stages.take.kind is 'own_code.kinds', which runs code that is not opened" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []

    assert main(["plan", "--allow-targets", "own_code", *arguments]) == 0
    assert "take         makes taken; trains nothing" in capsys.readouterr().out
    assert main(["train", "--allow-targets", "own_code", *arguments]) == 0
    stages = {name: stage.result for name, stage in Manifest.read(tmp_path / "runs" / "own").stages.items()}
    assert stages["take"].metrics == {"take/taken": 3.0}
    assert stages["cold_start"].inputs["data.sources.taken"] == stages["take"].artifacts["taken"].digest
    assert main(["train", "--allow-targets", "own_code", *arguments]) == 0
    assert capsys.readouterr().err.count("already finished") == 2
