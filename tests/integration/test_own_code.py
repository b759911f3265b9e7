"""Every kind of part that a user's own package may hold is trained with, by `--allow-targets` on the command line."""

import json
import sys
from pathlib import Path

import pytest

from lightning_mmrl.cli.main import main
from lightning_mmrl.curriculum.manifest import Manifest

STAGE = "stages.reason"
PARTS = {
    "reward": (
        f"+{STAGE}.rewards.components.brevity={{_target_: own_code.rewards.Brevity, scale: 2.0}}",
        f"+{STAGE}.rewards.weights.brevity=1.0",
    ),
    "loss": (f"{STAGE}.algorithm.loss={{_target_: own_code.losses.Unclipped}}",),
    "advantage": (f"{STAGE}.algorithm.advantage={{_target_: own_code.algorithms.Centered, baseline: 0.25}}",),
    "aggregation": (f"{STAGE}.algorithm.aggregation={{_target_: own_code.algorithms.TokenSum}}",),
    "correction": (f"{STAGE}.algorithm.correction={{_target_: own_code.algorithms.NoCorrection}}",),
    "selection": (f"{STAGE}.algorithm.select={{_target_: own_code.algorithms.KeepAll}}",),
    "resampling": (f"{STAGE}.algorithm.resample={{_target_: own_code.algorithms.DrawOnce}}",),
    "schedule": (
        f"{STAGE}.schedule._target_=own_code.algorithms.Halving",
        f"~{STAGE}.schedule.warmup_steps",
        f"~{STAGE}.schedule.final_fraction",
    ),
    "optimizer": (
        f"{STAGE}.optimizer._target_=own_code.algorithms.Signed",
        f"~{STAGE}.optimizer.weight_decay",
        f"~{STAGE}.optimizer.betas",
    ),
    "task": (
        "+evaluation.sets.own.task={_target_: own_code.tasks.Brevity, most: 100000}",
        "+evaluation.sets.own.manifest=test.jsonl",
        f"{STAGE}.gate={{metric: own/short, at_least: 1.0}}",
    ),
    "tracker": ("tracking.tracker={_target_: own_code.trackers.Lines, project: sums}",),
}
"""For each kind, the keys that put a part of it into the run. A kind that is called in another process, or that leaves
its traces elsewhere, counts no calls."""
ELSEWHERE = ("reward", "task", "tracker")
FAMILY = (
    "model.family.backbone._target_=own_code.families.Mistral.from_checkpoint",
    "model.family.encoder._target_=own_code.families.MistralEncoder.from_checkpoint",
    "model.build._target_=own_code.families.build_tiny_mistral",
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
    "stages.reason.num_steps=2",
    "stages.reason.schedule.warmup_steps=0",
    "stages.reason.validate_every=null",
    "stages.reason.data.batch_size=2",
    "stages.reason.algorithm.group_size=2",
    "stages.reason.sampling.max_new_tokens=4",
    "stages.reason.rewards.num_workers=1",
    "stages.reason.rollout_table_every=1",
)
OPEN = ("--allow-targets", "own_code")


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Where the run goes; the package lies in the folder in which the command is called."""
    monkeypatch.chdir(Path(__file__).parents[1] / "helpers")
    monkeypatch.setattr(sys, "path", [each for each in sys.path if Path(each).name != "helpers"])
    return f"output_dir={tmp_path}/runs", f"data.root={tmp_path}/sums", "run_name=own"


def refused(capsys, *arguments):
    """The one sentence with which a command refuses its arguments."""
    capsys.readouterr()
    assert main(list(arguments)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said


@pytest.mark.parametrize("kind", PARTS)
def test_without_the_flag_a_part_is_refused_by_key_and_target(kind, places, tmp_path, capsys):
    said = refused(capsys, "train", *SMALL, *PARTS[kind], *places)
    key = PARTS[kind][0].lstrip("+").partition("=")[0].removesuffix("._target_")
    assert f"{key}._target_ is 'own_code." in said
    assert f"which is no {kind}" in said
    assert said.endswith("if it is code of your own that you trust, add --allow-targets own_code\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_parts_of_every_kind_train(places, tmp_path, capsys):
    keys = [key for part in PARTS.values() for key in part]
    assert main(["train", *OPEN, *SMALL, *keys, *places]) == 0
    calls = sys.modules["own_code.calls"].CALLS
    assert {kind for kind in PARTS if calls[kind] == 0} == set(ELSEWHERE)
    run = tmp_path / "runs" / "own"
    metrics = {}
    for line in (run / "stages" / "00-reason" / "metrics.jsonl").read_text().splitlines():
        metrics |= json.loads(line)["metrics"]
    assert any("brevity" in key and value > 0 for key, value in metrics.items()), sorted(metrics)
    finished = Manifest.read(run).stages["reason"]
    assert finished.result.metrics["reason/own/short"] == 1.0
    assert "Brevity by stage, in %" in capsys.readouterr().out
    content = finished.content
    assert content["stage.algorithm.loss._target_"] == "own_code.losses.Unclipped"

    noted = [json.loads(line) for line in (tmp_path / "runs" / "tracking" / "lines.jsonl").read_text().splitlines()]
    assert [each["run"] for each in noted if each["what"] == "open"] == ["sums/own", "sums/00-reason"]
    assert {each["what"] for each in noted} == {"open", "metrics", "params", "tags", "artifact", "dataset", "finish"}
    assert {each["status"] for each in noted if each["what"] == "finish"} == {"FINISHED"}
    assert not (tmp_path / "runs" / "mlflow.db").exists()

    saved = (run / "config.yaml").read_text()
    assert saved.startswith("# run with --allow-targets own_code\n")
    assert "allow_targets" not in saved
    table = str(run / "stages" / "00-reason" / "rollouts")
    assert "add --allow-targets own_code" in refused(capsys, "reward-test", table), "the last run opens nothing today"
    modules = ("rewards", "losses", "algorithms", "tasks", "trackers")
    opened = ",".join(f"own_code.{module}" for module in modules)
    assert main(["reward-test", table, "--allow-targets", opened]) == 0


@pytest.mark.slow
def test_a_family_trains_and_its_checkpoint_is_used_with_the_flag_alone(places, tmp_path, capsys):
    said = refused(capsys, "train", *SMALL, *FAMILY, *places)
    assert "model.family.backbone._target_ is 'own_code.families.Mistral.from_checkpoint'" in said
    assert said.endswith("add --allow-targets own_code\n")
    assert main(["train", *OPEN, *SMALL, *FAMILY, *places]) == 0
    run = tmp_path / "runs" / "own"
    handoff = str(run / "stages" / "00-reason" / "handoff")
    facts = json.loads((Path(handoff) / "mmrl.json").read_text())
    target = "own_code.families.Mistral"
    assert facts["family"] == {"backbone": f"{target}.from_checkpoint", "encoder": f"{target}Encoder.from_checkpoint"}

    capsys.readouterr()
    assert main(["plan", *OPEN, *SMALL, *FAMILY, *places]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "mistral is no family of this package; it is taken to have Llama's layers" in shown
    assert "memory per rank about" in shown

    question = ("--question", "What is 1 + 1?", "--max-new-tokens", "4")
    assert "'own_code.families.Mistral.from_checkpoint'" in refused(capsys, "predict", handoff, *question)
    assert "add --allow-targets own_code" in refused(capsys, "predict", handoff, *question)
    assert main(["predict", *OPEN, handoff, *question]) == 0
    assert "add --allow-targets own_code" in refused(capsys, "evaluate", handoff, *SMALL, *FAMILY, *places)
    assert main(["evaluate", *OPEN, handoff, *SMALL, *FAMILY, *places]) == 0

    # A copy runs nothing of its own: it needs no flag.
    assert main(["export", handoff, str(tmp_path / "shared")]) == 0
    card = (tmp_path / "shared" / "README.md").read_text()
    assert "MistralForCausalLM.from_pretrained(PATH" in card
    assert "own_code" not in (tmp_path / "shared" / "config.json").read_text()


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        (
            ("tracking.tracker={_target_: own_code.trackers.Lines, project: sums}", "tracking.uri=http://127.0.0.1:1"),
            "tracking.uri is http://127.0.0.1:1; it must be null beside tracking.tracker, which takes MLflow's place",
        ),
        (("tracking.tracker={_target_: own_code.trackers.Lines}",), "tracking.tracker._target_ is own_code.trackers"),
        (("tracking.tracker={_target_: own_code.rewards.Brevity}",), "which does not fit there"),
        (("tracking.tracker={_target_: lightning_mmrl.tracking.null.NullTracker}",), "which is no tracker"),
        (("tracking.tracker=wandb",), "tracking.tracker is wandb; it must be null or a node with a _target_"),
        (("tracking.tracker={_target_: own_code.trackers.NoTracker}",), "which lacks open_run or close; add it"),
    ],
)
@pytest.mark.slow
def test_a_tracker_that_cannot_serve_is_refused_in_one_sentence(keys, sentence, places, capsys):
    assert sentence in refused(capsys, "train", *OPEN, *SMALL, *keys, *places)


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
