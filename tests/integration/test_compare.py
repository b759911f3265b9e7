"""A small comparison from the command line: shared stages, equality with a run alone, an arm that fails, MLflow."""

import json
import os
import shutil
from types import SimpleNamespace

import pytest
from small_runs import SMALL

from lightning_mmrl.cli.main import main
from lightning_mmrl.curriculum.manifest import Manifest
from lightning_mmrl.report.comparison import FILE
from lightning_mmrl.types.records import HANDOFF

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # the fixture starts five processes one after another

STEPS = {"cold_start": 3, "reason": 2}
GIVEN = (
    *SMALL,
    "trainer=cpu",
    "trainer.num_threads=1",
    "data.validation=null",
    "evaluation.limit=4",
    "evaluation.max_new_tokens=4",
    "stages.reason.data.batch_size=2",
    "stages.reason.algorithm.group_size=2",
    "stages.reason.sampling.max_new_tokens=4",
    *(f"stages.{name}.num_steps={steps}" for name, steps in STEPS.items()),
    *(f"stages.{name}.validate_every=null" for name in STEPS),
)
ORDER = "order=[cold_start,reason]"
GATE = "+stages.cold_start.gate={metric:test/uar,at_least:2}"
ARMS = {"sft": "order=[cold_start]", "both": ORDER, "gated": f"order=[cold_start] {GATE}"}


@pytest.fixture(scope="module")
def compared(tmp_path_factory, empty_database):
    """Three arms that share a stage; the last ends after it by a gate that nothing meets. Then the command again."""
    folder = tmp_path_factory.mktemp("compared")
    given = [*GIVEN, f"data.root={folder}/data"]
    shutil.copy(empty_database, folder / "mlflow.db")
    arms = [f"--arm={name}={overrides}" for name, overrides in ARMS.items()]
    command = ["compare", *given, *arms, "--name", "small", f"--output-dir={folder}", "tracking.system_every_s=null"]
    codes, plans = [], []
    for _ in range(2):
        codes.append(main(command))
        plans.append(json.loads((folder / "small" / FILE).read_text()))
    return SimpleNamespace(folder=folder / "small", given=given, command=command, codes=codes, plans=plans)


def test_an_arm_that_fails_does_not_stop_the_others_and_is_tried_again(compared):
    assert compared.codes == [1, 1]
    for plan in compared.plans:
        assert {run["arm"]: run["exit_code"] for run in plan["runs"]} == {"sft": 0, "both": 0, "gated": 2}
    logs = {name: (compared.folder / "logs" / f"{name}-seed0.log").read_text() for name in ARMS}
    assert [logs[name].count("already finished") for name in ARMS] == [1, 1, 2], "only the one that failed ran again"


def test_a_shared_stage_is_trained_once_and_lies_complete_in_each_run(compared):
    assert [path.name for path in (compared.folder / "shared").iterdir()] == ["cold_start-sft-seed0"]
    assert [run["shared"] for run in compared.plans[-1]["runs"]] == [["cold_start"]] * 3
    weights = "stages/00-cold_start/handoff/model.safetensors"
    places = [compared.folder / "shared" / "cold_start-sft-seed0", *(compared.folder / "runs").iterdir()]
    assert len({os.stat(place / weights).st_ino for place in places}) == 1


def test_an_arm_equals_the_same_run_alone_bit_for_bit(compared, tmp_path):
    own = [f"output_dir={compared.folder.parent}", "run_name=alone", "tracking=none", ORDER]
    assert main(["train", *compared.given, *own]) == 0
    found = [
        Manifest.read(folder) for folder in (compared.folder / "runs" / "both-seed0", compared.folder.parent / "alone")
    ]
    assert list(found[0].stages) == list(found[1].stages) == ["cold_start", "reason"]
    assert found[0].base == found[1].base
    for one, two in zip(*(each.stages.values() for each in found), strict=True):
        assert (one.digest, one.evaluation) == (two.digest, two.evaluation)
        assert one.result.artifacts[HANDOFF].digest == two.result.artifacts[HANDOFF].digest
        measured = [{k: v for k, v in each.result.metrics.items() if "/time/" not in k} for each in (one, two)]
        assert measured[0] == measured[1]
        assert one.result.costs.operations == two.result.costs.operations


def test_another_configuration_of_an_arm_is_refused_in_one_sentence(compared, capsys):
    changed = [
        each.replace("order=[cold_start]", "order=[cold_start] stages.cold_start.num_steps=5")
        for each in compared.command
    ]
    assert main(changed) == 2
    said = capsys.readouterr().err
    assert "arm sft began with another configuration in" in said
    assert "stages.cold_start.num_steps: 3 -> 5" in said
    assert said.count("\n") == 1


def test_one_run_of_mlflow_holds_those_of_the_arms(compared):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{compared.folder.parent}/mlflow.db")
    [experiment] = [each for each in client.search_experiments() if each.name == "lightning_mmrl"]
    runs = client.search_runs([experiment.experiment_id])
    [parent] = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert (parent.info.run_name, parent.info.status) == ("small", "FAILED")
    assert parent.data.params["arms.both"] == ORDER
    assert parent.info.run_id == compared.plans[-1]["tracking_id"]
    below = {
        run.info.run_name: run.info.status
        for run in runs
        if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
    }
    assert below == {
        "small/shared/cold_start-sft-seed0": "FINISHED",
        "small/runs/sft-seed0": "FINISHED",
        "small/runs/both-seed0": "FINISHED",
        "small/runs/gated-seed0": "FAILED",
    }
