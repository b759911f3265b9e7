"""The weights of the best validation: the right ones, sealed as a handoff is, wherever the stage was killed."""

import json
import os
import signal

import omni
import pytest
import torch
from exact_cases import STEPS, Stage, kill_in
from safetensors.torch import load_file
from small_runs import SMALL

from lightning_mmrl.app.best import BEST, best_weights
from lightning_mmrl.cli.main import main
from lightning_mmrl.curriculum.artifacts import check_artifact, sealed
from lightning_mmrl.curriculum.attempt import Attempt
from lightning_mmrl.curriculum.handoff import check_handoff
from lightning_mmrl.models.export import export_policy
from lightning_mmrl.protocols.ranks import ALONE
from lightning_mmrl.settings.stage import StageSettings
from lightning_mmrl.training.interruption import Interrupted, Interruption
from lightning_mmrl.types.records import WEIGHTS, StageSpec

pytestmark = pytest.mark.slow

VALUES = {2: 0.5, 4: 0.75, 6: 0.75}
"""Of the validation after each of these steps; the second one is the best."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return omni.build(tmp_path_factory.mktemp("model") / "omni")


def stage_in(folder, checkpoint, interruption=None, values=VALUES, kill=None, **options):
    """A stage whose validations have the given values; a signal comes in the `kill`-th write of its best weights."""
    Attempt(content={}, inputs={WEIGHTS: "digest"}, tracking_id="run").write(folder)
    spec, writes = StageSpec(name="stage", index=0, settings=StageSettings(kind="sft")), [0]

    def keeper(stage):
        def export(artifact, place):
            writes[0] += 1
            export_policy(stage.policy, stage.encoder, place, started_from="base")
            if writes[0] == kill:
                os.kill(os.getpid(), signal.SIGTERM)
            return {"prompt": {"raw": None}}

        return [best_weights(spec, {WEIGHTS: checkpoint}, folder, export, ALONE)]

    stage = Stage("sft", checkpoint, folder, interruption or Interruption(), callbacks=keeper, **options)
    finish = stage.module._validation.finish

    def valued():
        step = stage.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return finish() | {"uar": values[step]}

    stage.module._validation.finish = valued
    stage.module.headline = {"validation/uar": "val UAR"}
    return stage


@pytest.fixture(scope="module")
def whole(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    stage_in(folder, checkpoint, every=STEPS + 1).job.run()
    return folder


def test_the_first_of_the_best_validations_is_kept_with_its_step_metric_and_value(checkpoint, whole, tmp_path):
    facts = check_handoff(whole / BEST)
    assert facts["best"] == {"step": 4, "metric": "validation/uar", "value": 0.75}
    lineage = {"stage": "stage", "steps": 4, "started_from": "previous", "input_digest": "digest", "input_seal": None}
    assert facts["lineage"] == lineage
    stage = Stage("sft", checkpoint, tmp_path, Interruption(), steps=4)
    stage.job.run()
    export_policy(stage.policy, stage.encoder, tmp_path / "four", started_from="base")
    found, wanted = (load_file(place / "model.safetensors") for place in (whole / BEST, tmp_path / "four"))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("every", [1, STEPS + 1])
@pytest.mark.parametrize(
    "kill",
    [1, 2, ("validation", 1), ("validation", 3), ("validation", 5), ("scoring", 4), ("scoring", 6), ("report", 7)],
)
def test_a_killed_stage_keeps_the_same_weights(checkpoint, whole, tmp_path, kill, every):
    with Interruption() as interruption:
        writes = kill if isinstance(kill, int) else None
        first = stage_in(tmp_path, checkpoint, interruption, kill=writes, every=every)
        if writes is None:
            kill_in(first, *kill)
        with pytest.raises(Interrupted):
            first.job.run()
    stage_in(tmp_path, checkpoint, every=every).job.run()
    assert check_artifact(tmp_path / BEST)["seal"] == sealed(whole / BEST)["seal"]


def test_other_validations_keep_other_weights(checkpoint, whole, tmp_path):
    """The negative control."""
    stage_in(tmp_path, checkpoint, values={2: 0.9, 4: 0.75, 6: 0.8}).job.run()
    assert sealed(tmp_path / BEST)["best"]["step"] == 2
    assert sealed(tmp_path / BEST)["digest"] != sealed(whole / BEST)["digest"]


def test_a_validation_without_a_value_is_none(checkpoint, tmp_path):
    stage_in(tmp_path, checkpoint, values={2: float("nan"), 4: 0.1, 6: float("nan")}).job.run()
    assert sealed(tmp_path / BEST)["best"]["step"] == 4


@pytest.mark.parametrize("adapter", [False, True])
def test_a_run_keeps_them_as_a_handoff_that_can_be_evaluated(tmp_path, adapter):
    own = [
        "experiment=quickstart", "order=[cold_start]", "evaluation.base=false", "evaluation.limit=4", "trainer=cpu",
        "evaluation.max_new_tokens=4", "evaluation.ablations=[]", "tracking=none", "data.validation_limit=4",
        "stages.cold_start.data.batch_size=2", "stages.cold_start.num_steps=3", "stages.cold_start.validate_every=2",
        "stages.cold_start.keep_best=true", *(["stages.cold_start.adapter={r: 2}"] if adapter else []),
    ]  # fmt: skip
    places = (f"output_dir={tmp_path}/runs", f"data.root={tmp_path}/data", "run_name=own")
    assert main(["train", *SMALL, *own, *places]) == 0
    folder = tmp_path / "runs" / "own" / "stages" / "00-cold_start"
    facts, handoff = check_handoff(folder / BEST), check_handoff(folder / "handoff")
    assert facts["files"].keys() == handoff["files"].keys()
    assert {key: facts[key] for key in ("prompt", "media", "labels", "family", "dtype")} == {
        key: handoff[key] for key in ("prompt", "media", "labels", "family", "dtype")
    }
    shared = ("stage", "started_from", "input_digest", "input_seal")
    assert {key: facts["lineage"][key] for key in shared} == {key: handoff["lineage"][key] for key in shared}
    metrics = json.loads((tmp_path / "runs" / "own" / "manifest.json").read_text())["stages"]["cold_start"]["result"]
    assert facts["best"]["metric"] == "validation/uar"
    assert f"cold_start/{facts['best']['metric']}" in metrics["metrics"]
