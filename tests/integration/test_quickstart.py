"""The quickstart in miniature: real clips, model, stages and MLflow; then the same command again, and after a kill."""

import json
import os
import signal
from pathlib import Path

import mlflow
import mlflow_client
import pytest
from mlflow.tracking import MlflowClient
from small_runs import SMALL

from lightning_mmrl.app import run as run_module
from lightning_mmrl.app.stages import StageBuilder
from lightning_mmrl.config.compose import compose
from lightning_mmrl.curriculum.handoff import check_handoff
from lightning_mmrl.rollout.hf import HFEngine
from lightning_mmrl.stages.evaluate import EvaluationModule
from lightning_mmrl.training.console import ConsoleProgress
from lightning_mmrl.training.group import RankGroup
from lightning_mmrl.training.interruption import Interrupted, Interruption

pytestmark = pytest.mark.slow

QUICKSTART = (
    *SMALL,
    "experiment=quickstart",
    "data.validation_limit=4",
    "stages.pretrain.num_steps=2",
    "stages.pretrain.data.batch_size=4",
    "stages.cold_start.num_steps=2",
    "stages.cold_start.data.batch_size=4",
    "stages.reason.num_steps=2",
    "stages.reason.validate_every=1",
    "stages.reason.data.batch_size=2",
    "stages.reason.algorithm.group_size=2",
    "stages.reason.sampling.max_new_tokens=16",
    "evaluation.limit=12",
    "evaluation.max_new_tokens=16",
    "stages.reason.rollout_table_every=1",
)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return tmp_path_factory.mktemp("workplace")


def run(workplace: Path, *more: str, interruption: Interruption | None = None):
    config = compose([*QUICKSTART, f"output_dir={workplace}/runs", f"data.root={workplace}/clips", *more])
    return run_module.run_curriculum(config, ConsoleProgress(), None, RankGroup(interruption))


def runs_by_name(workplace: Path):
    client = MlflowClient(f"sqlite:///{workplace}/runs/mlflow.db")
    [experiment] = [e for e in client.search_experiments() if e.name == "lightning_mmrl"]
    return client, {each.info.run_name: each for each in client.search_runs([experiment.experiment_id])}


@pytest.fixture(scope="module")
def outcome(workplace):
    return run(workplace)


@pytest.mark.main_path
def test_every_stage_hands_over_and_is_evaluated(outcome):
    assert [result.name for result in outcome.results] == ["pretrain", "cold_start", "reason"]
    for earlier, later in zip(outcome.results, outcome.results[1:], strict=False):
        assert later.inputs["weights"] == earlier.handoff.digest
    for result in outcome.results:
        facts = check_handoff(outcome.directory / result.handoff.path)
        assert facts["digest"] == result.handoff.digest
    rows = {(row.stage, row.name): row for row in outcome.comparison.results}
    assert {name for stage, name in rows if stage == "pretrain"} == {"test", "ood"}
    assert {name for stage, name in rows if stage == "reason"} == {
        f"{name}{variant}" for name in ("test", "ood") for variant in ("", "-silent", "-blank")
    }
    assert [gain.over for gain in outcome.comparison.gains] == ["base"] * 2 + ["pretrain"] * 2 + ["cold_start"] * 2
    evaluation = outcome.directory / "stages" / "02-reason" / "evaluation"
    assert (evaluation / "test.png").read_bytes().startswith(b"\x89PNG")
    assert len((evaluation / "test.jsonl").read_text().splitlines()) == rows["reason", "test"].num_samples


@pytest.mark.main_path
def test_mlflow_shows_a_parent_with_a_child_per_stage(outcome, workplace):
    client, runs = runs_by_name(workplace)
    assert set(runs) == {"quickstart", "00-pretrain", "01-cold_start", "02-reason"}
    parent = runs["quickstart"]
    assert {each.info.status for each in runs.values()} == {"FINISHED"}
    children = [each for name, each in runs.items() if name != "quickstart"]
    assert {each.data.tags["mlflow.parentRunId"] for each in children} == {parent.info.run_id}
    reason = runs["02-reason"]
    history = client.get_metric_history(reason.info.run_id, "reason/rollout/reward_mean")
    assert [point.step for point in history] == [1, 2]
    assert client.get_metric_history(reason.info.run_id, "reason/validation/uar")
    assert reason.data.tags["mmrl.output_digest"] == outcome.results[-1].handoff.digest
    assert reason.data.tags["mmrl.input_digest"] == outcome.results[1].handoff.digest
    assert {each.dataset.name for each in parent.inputs.dataset_inputs} >= {"base.jsonl", "train.jsonl", "test.jsonl"}
    assert "config/config.yaml" in [item.path for item in client.list_artifacts(parent.info.run_id, "config")]
    found = {item.path for item in client.list_artifacts(reason.info.run_id, "evaluation/evaluation")}
    assert "evaluation/evaluation/test.png" in found
    assert client.list_artifacts(reason.info.run_id, "rollouts")


@pytest.mark.main_path
def test_by_mlflows_client_alone_a_run_is_found_its_tables_load_and_its_model_answers(outcome, workplace, monkeypatch):
    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", None)  # put back after the test
    mlflow.set_tracking_uri(f"sqlite:///{workplace}/runs/mlflow.db")
    client = MlflowClient()
    _, runs = runs_by_name(workplace)
    parent = runs["quickstart"]
    headline = {(row.stage, row.name): row.metrics["uar"] for row in outcome.comparison.results}
    commit = parent.data.tags["mlflow.source.git.commit"]
    for where, found in {
        "params.seed = '0'": True,
        "params.`stages.reason.algorithm.group_size` = '2'": True,
        "params.`stages.reason.module` = 'GRPOModule'": True,
        "params.`stages.reason.module` = 'PPOModule'": False,
        f"tags.mlflow.source.git.commit = '{commit}'": True,
        f"metrics.`headline/test` >= {headline['reason', 'test'] - 1e-9}": True,
        f"metrics.`headline/test` > {headline['reason', 'test'] + 1e-9}": False,
    }.items():
        names = [each.info.run_name for each in mlflow_client.find(client, "lightning_mmrl", where)]
        assert names == ["quickstart"] * found, where
    for stage in ("base", "pretrain", "cold_start", "reason"):
        assert parent.data.metrics[f"headline/test/{stage}"] == pytest.approx(headline[stage, "test"])
    points = client.get_metric_history(parent.info.run_id, "headline/test")
    assert [(point.step, point.value) for point in points] == [
        (step, pytest.approx(headline[stage, "test"]))
        for step, stage in enumerate(("base", "pretrain", "cold_start", "reason"))
    ]
    tables = mlflow_client.tables(client, parent)
    assert len(tables["tables/scores.json"]) == len(outcome.comparison.results)
    matrix = tables["tables/confusion-reason-test.json"]
    answers = (outcome.directory / "stages" / "02-reason" / "evaluation" / "test.jsonl").read_text().splitlines()
    assert matrix.drop(columns="truth").to_numpy().sum() == len(answers)
    assert len(tables["tables/rollouts-reason.json"]) == 2 * 2 * 2, "iterations, prompts, answers of a prompt"
    page = client.download_artifacts(parent.info.run_id, "report.html", str(workplace))
    assert "all 3 stages finished" in Path(page).read_text()
    models = mlflow_client.models(client, parent)
    assert list(models) == ["pretrain", "cold_start", "reason"]
    clip = next((workplace / "clips" / "clips" / "test").iterdir())
    assert set(mlflow_client.ask(models["reason"], str(clip))) == {"answer", "reasoning", "text"}


@pytest.mark.main_path
def test_metrics_and_rollouts_are_on_disk_too(outcome):
    stage = outcome.directory / "stages" / "02-reason"
    lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    assert {line["step"] for line in lines} == {1, 2}
    rows = [json.loads(line) for line in (stage / "rollouts" / "iteration_000002.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert all(len(row["responses"]) == 2 for row in rows)


@pytest.mark.main_path
def test_the_same_command_again_only_reports(outcome, workplace, monkeypatch):
    monkeypatch.setattr(StageBuilder, "__call__", lambda *_: pytest.fail("a finished stage was built again"))
    monkeypatch.setattr(run_module, "open_tracker", lambda _: pytest.fail("a finished run opened its tracker"))
    again = run(workplace)
    assert again.results == outcome.results
    assert again.comparison == outcome.comparison


def test_a_run_killed_between_stages_continues_with_the_next(outcome, workplace, monkeypatch):
    build = StageBuilder.__call__

    def killed(self, spec, *rest):
        if spec.name == "reason":
            raise KeyboardInterrupt
        return build(self, spec, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(StageBuilder, "__call__", killed)
        with pytest.raises(KeyboardInterrupt):
            run(workplace, "run_name=killed", "tracking.experiment=killed")
    client = MlflowClient(f"sqlite:///{workplace}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("killed").experiment_id
    statuses = {each.info.run_name: each.info.status for each in client.search_runs([experiment])}
    assert statuses == {
        "killed": "KILLED",
        "00-pretrain": "FINISHED",
        "01-cold_start": "FINISHED",
        "02-reason": "KILLED",
    }
    folder = workplace / "runs" / "killed" / "stages"
    before = (folder / "01-cold_start" / "handoff" / "model.safetensors").stat().st_mtime_ns

    finished = run(workplace, "run_name=killed", "tracking.experiment=killed")
    assert (folder / "01-cold_start" / "handoff" / "model.safetensors").stat().st_mtime_ns == before
    # Same seed, same configuration: the interrupted run ends with the very weights of the uninterrupted one.
    assert [result.handoff.digest for result in finished.results] == [
        result.handoff.digest for result in outcome.results
    ]
    parents = [each for each in client.search_runs([experiment]) if each.info.run_name == "killed"]
    assert [each.info.status for each in parents] == ["FINISHED"]
    models = {each.model_id: each for each in client.search_logged_models([experiment])}
    assert sorted(each.name for each in models.values()) == ["cold_start", "pretrain", "reason"]
    assert {str(each.status) for each in models.values()} == {"READY"}
    assert sorted(each.model_id for each in parents[0].outputs.model_outputs) == sorted(models)
    points = client.get_metric_history(parents[0].info.run_id, "headline/test")
    assert [point.step for point in points] == [0, 1, 2, 3]


def test_a_run_interrupted_within_a_stage_continues_it_with_the_same_weights_and_points(
    outcome, workplace, monkeypatch, capsys
):
    """A signal in the second iteration's rollout: the first one is saved on the way out, and not run again."""
    generate, iterations = HFEngine.generate, []

    def interrupted(self, prompts, *, group_size, **settings):
        if group_size > 1:
            iterations.append(prompts)
            if len(iterations) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
        return generate(self, prompts, group_size=group_size, **settings)

    arguments = "run_name=interrupted", "tracking.experiment=interrupted"
    with monkeypatch.context() as patch, Interruption() as interruption:
        patch.setattr(HFEngine, "generate", interrupted)
        with pytest.raises(Interrupted, match="SIGTERM"):
            run(workplace, *arguments, interruption=interruption)
    client = MlflowClient(f"sqlite:///{workplace}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("interrupted").experiment_id
    first = {each.info.run_name: each.info for each in client.search_runs([experiment])}
    assert (first["interrupted"].status, first["02-reason"].status) == ("KILLED", "KILLED")

    finished = run(workplace, *arguments)
    assert "stage 3 of 3 reason: continuing after step 1" in capsys.readouterr().err
    assert [result.handoff.digest for result in finished.results] == [
        result.handoff.digest for result in outcome.results
    ]
    runs = {each.info.run_name: each for each in client.search_runs([experiment])}
    assert {name: info.run_id for name, info in first.items()} == {
        name: each.info.run_id for name, each in runs.items()
    }
    assert {each.info.status for each in runs.values()} == {"FINISHED"}
    reason = runs["02-reason"].info.run_id
    for key in ("rollout/reward_mean", "train/learning_rate", "validation/uar"):
        assert [point.step for point in client.get_metric_history(reason, f"reason/{key}")] == [1, 2]
    assert not (workplace / "runs" / "interrupted" / "stages" / "02-reason" / "state").exists()


def test_an_interrupted_evaluation_is_killed_and_made_anew(outcome, workplace, monkeypatch):
    """The stage before stays trained; Lightning's exit on an interrupt is not taken for a failure."""
    arguments = "run_name=evaluating", "tracking.experiment=evaluating", "order=[pretrain]", "evaluation.base=false"
    step = EvaluationModule.test_step

    def interrupted(self, *settings):
        os.kill(os.getpid(), signal.SIGINT)
        return step(self, *settings)

    with monkeypatch.context() as patch, Interruption() as interruption:
        patch.setattr(EvaluationModule, "test_step", interrupted)
        with pytest.raises(Interrupted, match="SIGINT"):
            run(workplace, *arguments, interruption=interruption)
    client = MlflowClient(f"sqlite:///{workplace}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("evaluating").experiment_id
    assert {each.info.status for each in client.search_runs([experiment])} == {"KILLED"}
    monkeypatch.setattr(StageBuilder, "__call__", lambda *_: pytest.fail("a trained stage was built again"))
    finished = run(workplace, *arguments)
    assert finished.results[0].handoff.digest == outcome.results[0].handoff.digest
    assert {each.info.status for each in client.search_runs([experiment])} == {"FINISHED"}


@pytest.mark.main_path
def test_a_changed_configuration_of_a_finished_stage_is_refused(outcome, workplace):
    from lightning_mmrl.errors import ConfigError

    with pytest.raises(ConfigError, match=r"stages\.cold_start: finished in .* with another configuration"):
        run(workplace, "stages.cold_start.optimizer.lr=1e-3")
