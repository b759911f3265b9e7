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
KIND = (
    "order=[cold_start,cut,reason]",
    "stages.cold_start.num_steps=1",
    "stages.cold_start.schedule.warmup_steps=0",
    "stages.cold_start.data.batch_size=2",
    "stages.cold_start.validate_every=null",
    "stages.cold_start.stop_when=null",
    "+stages.cut.kind=own_code.kinds",
    "+stages.cut.data.manifest=train.jsonl",
    "stages.reason.start_from=previous",
    "stages.reason.data.manifest=null",
    "+stages.reason.data.sources.short={stage: cut, artifact: kept}",
)
"""A stage of a kind of the package's own, between two that train: the second one reads the data that it makes."""
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


def lines(path):
    """The values in a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


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
def test_parts_of_every_kind_train_in_one_command(places, tmp_path, capsys):
    keys = [key for part in (*PARTS.values(), FAMILY, KIND) for key in part]
    assert main(["train", *OPEN, *SMALL, *keys, *places]) == 0
    calls = sys.modules["own_code.calls"].CALLS
    assert {kind for kind in PARTS if calls[kind] == 0} == set(ELSEWHERE)
    assert calls["kind"] == 1
    run = tmp_path / "runs" / "own"
    facts = json.loads((run / "stages" / "02-reason" / "handoff" / "mmrl.json").read_text())
    assert facts["family"]["backbone"] == "own_code.families.Mistral.from_checkpoint"
    metrics = {}
    for line in (run / "stages" / "02-reason" / "metrics.jsonl").read_text().splitlines():
        metrics |= json.loads(line)["metrics"]
    assert any("brevity" in key and value > 0 for key, value in metrics.items()), sorted(metrics)
    finished = Manifest.read(run).stages["reason"]
    assert finished.result.metrics["reason/own/short"] == 1.0
    assert "Brevity by stage, in %" in capsys.readouterr().out
    content = finished.content
    assert content["stage.algorithm.loss._target_"] == "own_code.losses.Unclipped"

    noted = [json.loads(line) for line in (tmp_path / "runs" / "tracking" / "lines.jsonl").read_text().splitlines()]
    names = ["own", "00-cold_start", "01-cut", "02-reason"]
    assert [each["run"] for each in noted if each["what"] == "open"] == [f"sums/{name}" for name in names]
    assert {each["what"] for each in noted} == {"open", "metrics", "params", "tags", "artifact", "dataset", "finish"}
    assert {each["status"] for each in noted if each["what"] == "finish"} == {"FINISHED"}
    assert not (tmp_path / "runs" / "mlflow.db").exists()

    saved = (run / "config.yaml").read_text()
    assert saved.startswith("# run with --allow-targets own_code\n")
    assert "allow_targets" not in saved
    table = str(run / "stages" / "02-reason" / "rollouts")
    assert "add --allow-targets own_code" in refused(capsys, "reward-test", table), "the last run opens nothing today"
    modules = ("rewards", "losses", "algorithms", "tasks", "trackers", "families", "kinds")
    opened = ",".join(f"own_code.{module}" for module in modules)
    assert main(["reward-test", table, "--allow-targets", opened]) == 0


@pytest.mark.slow
def test_a_stage_of_an_own_kind_makes_data_for_the_next_one(places, tmp_path, capsys):
    keys = (*SMALL, *KIND, "+stages.cut.share=0.25", *places)
    assert main(["train", *OPEN, *keys]) == 0
    run = tmp_path / "runs" / "own"
    before = {line["id"]: line for line in lines(tmp_path / "sums" / "train.jsonl")}
    folder = run / "stages" / "01-cut" / "artifacts" / "kept"
    kept, dropped = lines(folder / "kept.jsonl"), lines(folder / "dropped.jsonl")
    assert len(kept) == round(0.25 * len(before))
    assert all(line == before[line["id"]] for line in kept)
    assert [*before] == sorted([line["id"] for line in (*kept, *dropped)], key=[*before].index)
    length = {name: sum(len(turn["content"]) for turn in line["messages"]) for name, line in before.items()}
    longest = max(length[line["id"]] for line in kept)
    assert {(length[line["id"]] > longest, line["reason"]) for line in dropped} <= {
        (True, "longer"),
        (False, "as_long"),
    }
    assert all(length[line["id"]] >= longest for line in dropped)
    facts = json.loads((folder / "mmrl.json").read_text())
    assert sum(facts["counts"].values()) == len(before)
    assert "input_digest" not in facts["lineage"], "it reads no weights"
    results = {name: each.result for name, each in Manifest.read(run).stages.items()}
    assert results["cut"].inputs == {}
    assert results["reason"].inputs["data.sources.short"] == facts["digest"]
    assert results["reason"].inputs["weights"] == results["cold_start"].handoff.digest
    prompts = {line["id"] for path in (run / "stages" / "02-reason" / "rollouts").iterdir() for line in lines(path)}
    assert prompts <= {line["id"] for line in kept}

    capsys.readouterr()
    assert main(["train", *OPEN, *keys]) == 0
    assert "stage 2 of 3 cut: already finished" in capsys.readouterr().err
    assert main(["plan", *OPEN, *keys]) == 0
    shown = capsys.readouterr().out
    assert "makes kept; trains nothing" in shown
    assert main(["train", *OPEN, *keys, "stages.cut.share=0.5"]) == 2
    said = capsys.readouterr().err
    assert "\n    stages.cut.share: 0.25 -> 0.5\n" in said
    assert said.count(" -> ") == 1


@pytest.mark.parametrize(
    ("flags", "key", "sentence"),
    [
        (
            (),
            "+stages.cut.share=0.5",
            "stages.cut.kind is 'own_code.kinds', which runs code that is not opened; if it is code of your own that "
            "you trust, add --allow-targets own_code\n",
        ),
        (OPEN, "+stages.cut.shar=0.5", "stages.cut.shar: unknown key; did you mean 'share'?"),
        (OPEN, "+stages.cut.share=2", "stages.cut.share is 2.0; it must be "),
        (OPEN, "stages.cut.kind=own_code.rewards", "stages.cut.kind is 'own_code.rewards', which is no module with"),
        (OPEN, "stages.cut.kind=own_code.broken", "'own_code.broken' cannot be loaded: RuntimeError: no license"),
        (OPEN, "stages.cut.kind=own_code.kind", "stages.cut.kind: 'own_code.kind' cannot be imported"),
        (OPEN, "+stages.cut.checkpoint=a/b", "stages.cut.checkpoint is 'a/b', and stages of kind own_code.kinds read"),
        (
            OPEN,
            "+stages.cut.data.modality_dropout.silent=0.5",
            "stages.cut.data.modality_dropout.silent is 0.5; it must be 0",
        ),
        (OPEN, "+stages.cut.data.balance=label", "stages.cut.data.balance is label; it must be null: each sample is"),
        (OPEN, "+stages.cut.prompt.system=Hello", "stages.cut.prompt is set; it must be null: no prompt is built"),
        (OPEN, "stages.reason.data.sources.short.artifact=keep", "did you mean 'kept'?"),
    ],
)
def test_a_stage_of_an_own_kind_is_refused_in_one_sentence(flags, key, sentence, places, tmp_path, capsys):
    for command in ("plan", "train"):
        assert sentence in refused(capsys, command, *flags, *SMALL, *KIND, key, *places)
    assert list(tmp_path.iterdir()) == []


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
