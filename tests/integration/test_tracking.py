"""A curriculum's runs in a real SQLite database, read back with a client of its own."""

import json
import math
import multiprocessing
import shutil
import sqlite3

import pytest

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.tracking.connection import connect
from lightning_mmrl.tracking.mlflow import MlflowTracker, clean_key
from lightning_mmrl.tracking.null import NullTracker


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture
def uri(empty_database, tmp_path):
    path = tmp_path / "tracking" / "mlflow.db"
    path.parent.mkdir()
    shutil.copy(empty_database, path)
    return f"sqlite:///{path}"


@pytest.fixture
def client(uri):
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri)


@pytest.fixture
def open_tracker(uri, tmp_path):
    opened = []

    def start(store=uri):
        opened.append(MlflowTracker(store, "curricula", tmp_path / "spool"))
        return opened[-1]

    yield start
    for tracker in opened:
        tracker.close()


def history(client, run_id, key):
    return [(point.step, point.value) for point in client.get_metric_history(run_id, key)]


def test_a_curriculum_is_a_parent_with_a_child_for_each_stage(open_tracker, client):
    tracker = open_tracker()
    parent = tracker.open_run("rl-first", tags={"curriculum": "rl_first"})
    children = [tracker.open_run(name, parent_id=parent.id) for name in ("00-rl", "01-sft", "02-rl")]
    for child, status in zip(children, ("FINISHED", "FAILED", "KILLED"), strict=True):
        child.finish(status)
    tracker.close()
    experiment = client.get_experiment_by_name("curricula")
    found = client.search_runs([experiment.experiment_id], filter_string=f"tags.mlflow.parentRunId = '{parent.id}'")
    rows = {run.info.run_name: (run.info.run_id, run.info.status) for run in found}
    assert rows == {
        "00-rl": (children[0].id, "FINISHED"),
        "01-sft": (children[1].id, "FAILED"),
        "02-rl": (children[2].id, "KILLED"),
    }
    run = client.get_run(parent.id)
    assert (run.info.run_name, run.info.status, run.info.end_time) == ("rl-first", "RUNNING", None)
    assert run.data.tags["curriculum"] == "rl_first"
    assert "mlflow.parentRunId" not in run.data.tags


def test_metrics_params_and_tags_come_back(open_tracker, client):
    tracker = open_tracker()
    run = tracker.open_run("reason")
    run.log_params({"lr": 1e-6, "data/media root": "clips", "flag": True, "odd@key": None})
    run.set_tags({"git_sha": "abc", "stage": "00"})
    run.set_tags({"stage": "01"})
    for step in range(3):
        run.log_metrics({"reason/rollout/reward_mean": step / 4, "reason/loss": -1.5}, step=step)
    run.log_metrics({"reason/loss": math.nan, "reason/kl": math.inf, "reason/rollout/reward_mean": 1}, step=3)
    tracker.close()
    data = client.get_run(run.id).data
    assert data.params == {"lr": "1e-06", "data/media root": "clips", "flag": "True", "odd_key": "None"}
    assert (data.tags["git_sha"], data.tags["stage"]) == ("abc", "01")
    assert history(client, run.id, "reason/rollout/reward_mean") == [(0, 0.0), (1, 0.25), (2, 0.5), (3, 1.0)]
    assert history(client, run.id, "reason/loss") == [(0, -1.5), (1, -1.5), (2, -1.5)]
    assert history(client, run.id, "tracking/non_finite") == [(3, 2.0)]
    assert "reason/kl" not in data.metrics


def test_more_points_and_params_than_one_request_takes(open_tracker, client):
    tracker = open_tracker()
    run = tracker.open_run("reason")
    run.log_metrics({f"m{index}": index for index in range(1500)}, step=0)
    run.log_params({f"p{index}": index for index in range(250)})
    tracker.close()
    data = client.get_run(run.id).data
    assert data.metrics == {f"m{index}": index for index in range(1500)}
    assert data.params == {f"p{index}": str(index) for index in range(250)}


def passes_mlflows_own_check(key):
    from mlflow.exceptions import MlflowException
    from mlflow.utils.validation import _validate_metric

    try:
        _validate_metric(key, 1.0, 0, 0)
    except MlflowException:
        return False
    return True


@pytest.mark.parametrize(
    ("key", "as_it_is"),
    [
        ("a/b", True),
        ("a/ /b", True),
        ("a\n", True),
        ("acc@1 (%)", False),
        ("/a//b/./../c/", False),
        ("..", False),
        ("", False),
        ("x" * 249 + "/y", False),
    ],
)
def test_clean_keys_pass_mlflows_own_check(key, as_it_is):
    assert passes_mlflows_own_check(key) is as_it_is
    assert passes_mlflows_own_check(clean_key(key))


def test_datasets_are_inputs_of_the_run(open_tracker, client):
    tracker = open_tracker()
    run = tracker.open_run("reason")
    run.log_dataset("emotions", "f" * 64, "data/train.jsonl", "train", {"num_samples": 12, "skipped": 0})
    run.log_dataset("emotions", "e" * 64, "data/test.jsonl", "test", {})
    tracker.close()
    inputs = client.get_run(run.id).inputs.dataset_inputs
    found = {item.tags[0].value: item.dataset for item in inputs}
    assert {item.tags[0].key for item in inputs} == {"mlflow.data.context"}
    assert (found["train"].name, found["train"].digest) == ("emotions", "f" * 36)
    assert json.loads(found["train"].source) == {"uri": "data/train.jsonl"}
    assert json.loads(found["train"].profile) == {"num_samples": 12, "skipped": 0}
    assert found["test"].digest == "e" * 36


def test_artifacts_lie_beside_the_database(open_tracker, client, tmp_path):
    (tmp_path / "handoff" / "deep").mkdir(parents=True)
    (tmp_path / "handoff" / "deep" / "weights.bin").write_bytes(b"w")
    (tmp_path / "resolved.yaml").write_text("seed: 1\n")
    tracker = open_tracker()
    run = tracker.open_run("reason")
    run.log_artifact(tmp_path / "resolved.yaml", "config")
    run.log_artifact(tmp_path / "handoff")
    run.log_artifact(tmp_path / "gone.txt")
    run.finish("FINISHED")
    tracker.close()
    root = tmp_path / "tracking" / "mlartifacts" / run.id / "artifacts"
    assert (root / "config" / "resolved.yaml").read_text() == "seed: 1\n"
    assert (root / "handoff" / "deep" / "weights.bin").read_bytes() == b"w"
    assert {item.path for item in client.list_artifacts(run.id)} == {"config", "handoff"}
    assert client.get_run(run.id).info.status == "FINISHED"  # the missing file held nothing up
    assert "gone.txt" in (tmp_path / "spool" / f"{run.id}.rejected").read_text()


def test_continuing_a_run_adds_to_it(open_tracker, client):
    tracker = open_tracker()
    first = tracker.open_run("reason")
    first.log_metrics({"loss": 2.0}, step=0)
    first.log_params({"lr": 0.1, "seed": 1})
    first.finish("KILLED")
    tracker.close()
    tracker = open_tracker()
    second = tracker.open_run("reason", run_id=first.id, tags={"resume_count": "1"})
    second.log_params({"lr": 0.2, "seed": 1, "late": 3})
    second.log_metrics({"loss": 1.0}, step=1)
    tracker.close()
    run = client.get_run(first.id)
    assert second.id == first.id
    assert run.info.status == "RUNNING"
    assert history(client, first.id, "loss") == [(0, 2.0), (1, 1.0)]
    assert run.data.params == {"lr": "0.1", "seed": "1", "late": "3"}
    assert run.data.tags["changed.lr"] == "0.2"
    assert "changed.seed" not in run.data.tags
    assert run.data.tags["resume_count"] == "1"
    tracker = open_tracker()
    third = tracker.open_run("reason", run_id=first.id)
    third.log_params({"lr": 0.1})
    third.finish("FINISHED")
    tracker.close()
    run = client.get_run(first.id)
    assert (run.info.status, run.data.tags["changed.lr"]) == ("FINISHED", "0.1")


def test_a_run_that_does_not_exist_cannot_be_continued(open_tracker, client):
    tracker = open_tracker()
    with pytest.raises(ConfigError, match="has no run 'feed'"):
        tracker.open_run("reason", run_id="feed")
    deleted = tracker.open_run("reason")
    client.delete_run(deleted.id)
    with pytest.raises(ConfigError, match="mlflow runs restore"):
        tracker.open_run("reason", run_id=deleted.id)


def test_the_first_parent_adopts_the_run_of_mlflow_run(open_tracker, client, monkeypatch):
    project = client.create_run(client.create_experiment("project"))
    monkeypatch.setenv("MLFLOW_RUN_ID", project.info.run_id)
    tracker = open_tracker()
    orphan = tracker.open_run("00-sft", parent_id=project.info.run_id)
    parent = tracker.open_run("rl-first")
    child = tracker.open_run("00-rl", parent_id=parent.id)
    other = tracker.open_run("another")
    tracker.close()
    assert parent.id == project.info.run_id
    assert len({parent.id, orphan.id, child.id, other.id}) == 4
    assert client.get_run(parent.id).info.run_name == "rl-first"
    assert client.get_run(child.id).info.experiment_id == project.info.experiment_id
    assert client.get_experiment_by_name("curricula") is None  # nothing would ever be in it
    monkeypatch.setenv("MLFLOW_RUN_ID", "feed")
    with pytest.raises(ConfigError, match="unset MLFLOW_RUN_ID"):
        open_tracker()


@pytest.fixture
def project_run(client, monkeypatch):
    """Makes a run as `mlflow run` does, and sets the variable by which a process finds it."""
    experiment = client.create_experiment("project")

    def make(name=None):
        run = client.create_run(experiment, run_name=name)
        monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
        return run.info.run_id

    return make


def tree(client, run_id):
    """Name, status and parent of every run of an experiment."""
    runs = client.search_runs([client.get_run(run_id).info.experiment_id])
    names = {run.info.run_id: run.info.run_name for run in runs}
    return {run.info.run_name: (run.info.status, names.get(run.data.tags.get("mlflow.parentRunId"))) for run in runs}


@pytest.mark.parametrize(("given", "kept"), [(None, "quickstart"), ("bold-fox-12", "quickstart"), ("mine", "mine")])
def test_an_adopted_run_keeps_the_name_that_the_user_gave_it(open_tracker, client, project_run, given, kept):
    run_id = project_run(given)
    tracker = open_tracker()
    tracker.open_run("quickstart", tags={"mmrl.curriculum": "quickstart"}).finish("KILLED")
    tracker.close()
    run = client.get_run(run_id)
    assert (run.info.run_name, run.info.status, run.data.tags["mmrl.curriculum"]) == (kept, "KILLED", "quickstart")


def test_a_second_mlflow_run_takes_over_the_stages_of_the_first(open_tracker, client, project_run):
    first_id = project_run("first")
    tracker = open_tracker()
    first = tracker.open_run("first")
    tracker.open_run("00-warm", parent_id=first.id).finish("FINISHED")
    killed = tracker.open_run("01-reason", parent_id=first.id)
    tracker.close()  # killed without a last word: both stay RUNNING
    second_id = project_run("second")
    tracker = open_tracker()
    second = tracker.open_run("second", run_id=first.id)
    tracker.open_run("01-reason", run_id=killed.id).finish("KILLED")
    tracker.open_run("01-reason-again", parent_id=second.id).finish("FINISHED")
    second.finish("FINISHED")
    tracker.close()
    assert (first.id, second.id) == (first_id, second_id)
    assert tree(client, second_id) == {
        "second": ("FINISHED", None),
        "first": ("KILLED", "second"),
        "00-warm": ("FINISHED", "second"),
        "01-reason": ("KILLED", "second"),
        "01-reason-again": ("FINISHED", "second"),
    }
    assert client.get_run(second_id).data.tags["mmrl.continues"] == first_id
    assert client.get_run(first_id).data.tags["mmrl.continued_by"] == second_id


def test_a_curriculum_begun_in_another_store_goes_on_in_that_of_mlflow_run(
    empty_database, open_tracker, client, project_run, tmp_path
):
    elsewhere = tmp_path / "elsewhere.db"
    shutil.copy(empty_database, elsewhere)
    tracker = open_tracker(f"sqlite:///{elsewhere}")
    first = tracker.open_run("first")
    killed = tracker.open_run("00-warm", parent_id=first.id)
    tracker.close()
    second_id = project_run("second")
    tracker = open_tracker()
    second = tracker.open_run("second", run_id=first.id)
    tracker.open_run("00-warm", run_id=killed.id).finish("KILLED")
    tracker.open_run("00-warm-again", parent_id=second.id).finish("FINISHED")
    second.finish("FINISHED")
    tracker.close()
    assert tree(client, second_id) == {"second": ("FINISHED", None), "00-warm-again": ("FINISHED", "second")}
    assert client.get_run(second_id).data.tags["mmrl.continues"] == first.id
    assert list((tmp_path / "spool").glob("*.rejected")) == []


def test_a_second_mlflow_run_that_only_reports_lies_below_the_first(open_tracker, client, project_run):
    first_id = project_run("first")
    tracker = open_tracker()
    first = tracker.open_run("first")
    tracker.open_run("00-warm", parent_id=first.id).finish("FINISHED")
    first.finish("FINISHED")
    tracker.close()
    second_id = project_run("second")
    tracker = open_tracker()
    tracker.note_report(first_id)
    tracker.close()
    assert tree(client, second_id) == {
        "first": ("FINISHED", None),
        "00-warm": ("FINISHED", "first"),
        "second": ("RUNNING", "first"),  # `mlflow run` itself ends it
    }
    assert client.get_run(second_id).data.tags["mmrl.reports"] == first_id


def test_a_curriculum_that_began_untracked_can_be_tracked_from_there_on(open_tracker, client):
    silent = NullTracker()
    parent_id = silent.open_run("first").id
    stage_id = silent.open_run("00-warm", parent_id=parent_id).id
    tracker = open_tracker()
    parent = tracker.open_run("first", run_id=parent_id)
    tracker.open_run("00-warm", run_id=stage_id).finish("KILLED")
    parent.finish("FINISHED")
    tracker.close()
    assert tree(client, parent.id) == {"first": ("FINISHED", None)}


def test_the_database_of_mlflow_run_is_not_made_anew(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_RUN_ID", "4f2a")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="Call mlflow run in the project's folder"):
        MlflowTracker("sqlite:///mlflow.db", "curricula", tmp_path / "spool")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("empty_database")  # MLflow is imported, so that the processes meet at the database
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_four_processes_open_one_fresh_database(tmp_path):
    context = multiprocessing.get_context("fork")
    uri = f"sqlite:///{tmp_path}/new/folder/mlflow.db"
    workers = [context.Process(target=connect, args=(uri, "curricula")) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    rows = sqlite3.connect(tmp_path / "new" / "folder" / "mlflow.db").execute("SELECT name FROM experiments").fetchall()
    assert sorted(rows) == [("Default",), ("curricula",)]


@pytest.mark.slow
def test_a_database_whose_creation_was_killed_is_created_anew(tmp_path, monkeypatch):
    """MLflow cannot begin a half-done migration again ("table secrets already exists")."""
    from mlflow.store.db import utils

    uri, upgrade = f"sqlite:///{tmp_path / 'mlflow.db'}", utils._upgrade_db

    def killed(engine):
        upgrade(engine)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(utils, "_upgrade_db", killed)
        with pytest.raises(KeyboardInterrupt):
            connect(uri, "emotions")
    assert (tmp_path / "mlflow.db").stat().st_size == 0
    assert connect(uri, "emotions").client.get_experiment_by_name("emotions") is not None
    assert not (tmp_path / "mlflow.db.partial").exists()


def test_an_older_database_is_copied_and_upgraded(tmp_path):
    from alembic import command
    from mlflow.store.db import utils as database
    from mlflow.store.tracking.dbmodels.initial_models import Base

    path = tmp_path / "mlflow.db"
    engine = database.create_sqlalchemy_engine(f"sqlite:///{path}")
    Base.metadata.create_all(engine)
    config = database._get_alembic_config("")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "451aebb31d03")
    engine.dispose()
    connection = connect(f"sqlite:///{path}", "curricula")
    assert connection.client.get_experiment(connection.experiment_id).name == "curricula"
    rows = sqlite3.connect(tmp_path / "mlflow.db.before-upgrade").execute("SELECT * FROM alembic_version").fetchall()
    assert rows == [("451aebb31d03",)]


def test_a_file_that_is_no_database_is_refused_at_once(tmp_path):
    (tmp_path / "mlflow.db").write_text("this is a text file, long enough to be taken for a header" * 10)
    with pytest.raises(ConfigError, match="not a database"):
        MlflowTracker(f"sqlite:///{tmp_path}/mlflow.db", "curricula", tmp_path / "spool")


def test_a_deleted_experiment_is_refused(open_tracker, client):
    client.delete_experiment(client.create_experiment("curricula"))
    with pytest.raises(ConfigError, match="was deleted"):
        open_tracker()
