"""Handoffs as logged models and registered versions in a real SQLite database: each once, whatever happens."""

import json
import shutil
from pathlib import Path

import handoffs
import pytest
from flaky_client import FlakyClient, Outage

from lightning_mmrl.app.predict import answer_question
from lightning_mmrl.cli.main import main
from lightning_mmrl.curriculum.lineage import checked_handoff
from lightning_mmrl.errors import ConfigError, StageError
from lightning_mmrl.prompts.template import DEFAULT_QUESTION
from lightning_mmrl.protocols.plain import DescribedRun
from lightning_mmrl.settings.run import TrackingSettings
from lightning_mmrl.tracking import connection as connection_module
from lightning_mmrl.tracking.connection import KIND, KIND_TAG, connect
from lightning_mmrl.tracking.logged_models import Asked
from lightning_mmrl.tracking.mlflow import NOTE_TAG, MlflowTracker
from lightning_mmrl.tracking.registry import register

DIGEST = "d" * 64


@pytest.fixture
def uri(empty_database, tmp_path):
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def client(uri):
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri)


@pytest.fixture
def outage(monkeypatch):
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    outage = Outage()
    real = connection_module._open_client
    monkeypatch.setattr(connection_module, "_open_client", lambda uri: FlakyClient(real(uri), outage))
    return outage


@pytest.fixture
def open_tracker(uri, tmp_path, outage):
    opened = []

    def start(**settings):
        settings = TrackingSettings(**{"uri": uri, "experiment": "curricula", "system_every_s": None, **settings})
        opened.append(MlflowTracker(settings, tmp_path / "spool" / "store", {"mlflow.user": "me"}))
        return opened[-1]

    yield start
    outage.release.set()
    for tracker in opened:
        tracker.close()


@pytest.fixture
def chosen(uri, monkeypatch):
    """Makes the database the store of MLflow's own functions, until the test ends."""
    import mlflow

    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)


def models(client):
    experiment = client.get_experiment_by_name("curricula")
    return list(client.search_logged_models([experiment.experiment_id]))


def outputs(client, run_id):
    found = client.get_run(run_id).outputs
    return [each.model_id for each in found.model_outputs] if found else []


def test_a_model_belongs_to_its_stage_and_its_parent_and_holds_code_but_no_pickle(open_tracker, client, tmp_path):
    tracker = open_tracker()
    parent = tracker.open_run("lab")
    stage = tracker.open_run("00-reason", parent_id=parent.id)
    assert isinstance(parent, DescribedRun)
    parent.log_model(stage.id, "reason", tmp_path / "run" / "handoff", DIGEST)
    tracker.close()
    (model,) = models(client)
    assert (model.name, model.source_run_id, str(model.status)) == ("reason", stage.id, "READY")
    assert model.tags["mmrl.output_digest"] == DIGEST
    assert outputs(client, stage.id) == outputs(client, parent.id) == [model.model_id]
    names = {item.path for item in client.list_logged_model_artifacts(model.model_id)}
    assert names == {"MLmodel", "ask.py", "requirements.txt", "python_env.yaml"}
    files = Path(model.artifact_location.removeprefix("file://"))
    (described,) = [path.read_text() for path in files.iterdir() if path.name == "MLmodel"]
    assert f"handoff: {tmp_path}/run/handoff" in described
    assert "python_model:" not in described, "the flavor's key for a pickled model"
    assert model.model_id in described


@pytest.mark.parametrize("lose_answers", [False, True])
def test_an_outage_delays_a_model_and_never_doubles_it(open_tracker, client, outage, tmp_path, lose_answers):
    tracker = open_tracker()
    stage = tracker.open_run("00-reason")
    outage.up, outage.lose_answers = False, lose_answers
    for _ in range(3):
        stage.log_model(stage.id, "reason", tmp_path / "handoff", DIGEST)
    outage.wait_for_failure()
    outage.up = True
    tracker.close()
    again = open_tracker()
    again.open_run("00-reason", run_id=stage.id).log_model(stage.id, "reason", tmp_path / "handoff", DIGEST)
    again.close()
    (model,) = models(client)
    assert str(model.status) == "READY"
    assert outputs(client, stage.id) == [model.model_id]
    assert not list((tmp_path / "spool" / "store").glob("*.jsonl"))


def test_a_model_whose_upload_was_cut_off_is_completed(open_tracker, client, tmp_path, monkeypatch):
    from lightning_mmrl.tracking.logged_models import LoggedModels

    tracker = open_tracker()
    stage = tracker.open_run("00-reason")
    with monkeypatch.context() as patch:
        patch.setattr(LoggedModels, "_upload", lambda *_: (_ for _ in ()).throw(SystemError("killed")))
        stage.log_model(stage.id, "reason", tmp_path / "handoff", DIGEST)
        tracker.close()
    (model,) = models(client)
    assert str(model.status) == "PENDING"
    again = open_tracker()
    again.close()
    (model,) = models(client)
    assert str(model.status) == "READY"


def test_the_model_of_a_run_in_another_store_is_left_out_and_holds_nothing_up(open_tracker, client, tmp_path):
    tracker = open_tracker()
    parent = tracker.open_run("lab")
    for run_id in ("untracked-stage", "f" * 32):
        parent.log_model(run_id, "reason", tmp_path / "handoff", DIGEST)
    parent.log_metrics({"loss": 1.0}, step=0)
    tracker.close()
    assert models(client) == []
    assert client.get_run(parent.id).data.metrics == {"loss": 1.0}
    assert not [*(tmp_path / "spool" / "store").glob("*.jsonl"), *(tmp_path / "spool" / "store").glob("*.rejected")]


def test_another_handoff_of_the_same_stage_is_another_model(open_tracker, client, tmp_path):
    tracker = open_tracker()
    stage = tracker.open_run("00-reason")
    for digest in (DIGEST, "e" * 64, DIGEST):
        stage.log_model(stage.id, "reason", tmp_path / "handoff", digest)
    tracker.close()
    assert {model.tags["mmrl.output_digest"] for model in models(client)} == {DIGEST, "e" * 64}
    assert len(outputs(client, stage.id)) == 2


def test_tables_are_listed_as_mlflow_lists_them_and_loaded_by_its_client(open_tracker, client, chosen, tmp_path):
    tracker = open_tracker()
    run = tracker.open_run("lab")
    for name in ("scores", "answers", "scores"):
        content = {"columns": ["stage", "value"], "data": [["reason", 0.5], ["rest", None]]}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        run.log_table(tmp_path / f"{name}.json", "tables")
    tracker.close()
    found = client.get_run(run.id)
    listed = json.loads(found.data.tags["mlflow.loggedArtifacts"])
    assert listed == [{"path": f"tables/{name}.json", "type": "table"} for name in ("scores", "answers")]
    table = client.load_table(found.info.experiment_id, "tables/scores.json", [run.id])
    assert table["stage"].tolist() == ["reason", "rest"]
    assert table["value"][0] == 0.5


def test_a_description_is_set_once_and_an_edited_one_stays(open_tracker, client):
    tracker = open_tracker()
    run = tracker.open_run("lab")
    run.describe("    mmrl train tracking.uri=http://me:secret@host")
    tracker.close()
    assert client.get_run(run.id).data.tags[NOTE_TAG] == "    mmrl train tracking.uri=http://host"
    assert client.get_run(run.id).data.tags["mlflow.user"] == "me"
    client.set_tag(run.id, NOTE_TAG, "mine")
    again = open_tracker()
    again.open_run("lab", run_id=run.id).describe("another")
    again.close()
    assert client.get_run(run.id).data.tags[NOTE_TAG] == "mine"


@pytest.mark.parametrize(
    ("had", "has"),
    [(None, KIND), ("", KIND), ("genai_development_inferred", KIND), ("genai_development", "genai_development")],
)
def test_the_experiment_is_one_of_training_unless_the_user_chose_otherwise(uri, client, had, has):
    if had is not None:
        client.create_experiment("curricula", tags={KIND_TAG: had})
    connect(uri, "curricula")
    assert client.get_experiment_by_name("curricula").tags[KIND_TAG] == has


def test_system_metrics_go_to_open_runs_by_the_spool(open_tracker, client, outage):
    tracker = open_tracker(system_every_s=0.02)
    run, ended = tracker.open_run("lab"), tracker.open_run("ended")
    ended.finish("FINISHED")
    outage.wait_for_call("log_batch")
    run.finish("FINISHED")
    tracker.close()
    found = client.get_run(run.id).data.metrics
    assert "system/cpu_utilization_percentage" in found
    history = client.get_metric_history(run.id, "system/cpu_utilization_percentage")
    assert [point.step for point in history] == [point.timestamp // 1000 for point in history]


def test_a_registered_version_holds_the_weights_and_is_made_once(open_tracker, client, uri, tmp_path):
    tracker = open_tracker()
    stage = tracker.open_run("00-reason")
    tracker.close()
    copied = tmp_path / "copy"
    copied.mkdir()
    (copied / "model.safetensors").write_bytes(b"weights")
    asked = Asked(name="reason", handoff=tmp_path / "handoff", digest=DIGEST, copied=copied)
    first = register(uri, "curricula", "emotions", asked, run_id=stage.id)
    assert register(uri, "curricula", "emotions", asked, run_id=stage.id) == first
    version, model_id = first
    (found,) = client.search_model_versions("name='emotions'")
    assert (str(found.version), found.tags["mmrl.model_id"], found.run_id) == (version, model_id, stage.id)
    weights = client.list_logged_model_artifacts(model_id, "artifacts/handoff")
    assert [item.path for item in weights] == ["artifacts/handoff/model.safetensors"]
    with pytest.raises(ConfigError, match="has no run 'feed'"):
        register(uri, "curricula", "emotions", asked, run_id="feed")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tracking-uri", "sqlite:///x.db"], "names the store of --register NAME"),
        (["--register", "a/b"], "a name has no slash, colon or quote"),
        (["--register", ""], "a name has no slash, colon or quote"),
        (["--register", "emotions"], "is not the handoff of a finished stage in a run folder"),
    ],
)
def test_what_cannot_be_registered_is_refused_before_anything_is_copied(tmp_path, capsys, arguments, said):
    (tmp_path / "handoff").mkdir()
    assert main(["export", str(tmp_path / "handoff"), str(tmp_path / "copy"), *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "copy").exists()


@pytest.mark.slow
@pytest.mark.main_path
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")  # transformers
def test_mlflow_alone_asks_a_logged_model_and_a_registered_one(open_tracker, client, uri, chosen, tmp_path):
    """The registered version still answers when the folder of the run is gone; the logged model says that it is."""
    import mlflow

    files = handoffs.write_files(tmp_path / "files")
    handoff = handoffs.write("qwen2_5_omni", tmp_path / "run")
    digest = checked_handoff(handoff)["digest"]
    tracker = open_tracker()
    stage = tracker.open_run("00-reason")
    stage.log_model(stage.id, "reason", handoff, digest)
    tracker.close()
    shutil.copytree(handoff, tmp_path / "copy")
    asked = Asked(name="reason", handoff=handoff, digest=digest, copied=tmp_path / "copy")
    register(uri, "curricula", "emotions", asked, run_id=stage.id)
    (logged,) = [each for each in models(client) if not each.tags["mmrl.model_key"].endswith("/weights")]
    rows = [
        {"file": str(files / "clip.mp4")},
        {"file": str(files / "picture.png"), "question": "Who?"},
        {"audio": str(files / "sound.wav")},
        {"question": "What is 1 + 1?"},
    ]
    expected = [
        answer_question(handoff, [files / "clip.mp4"], question=DEFAULT_QUESTION),
        answer_question(handoff, [files / "picture.png"], question="Who?"),
        answer_question(handoff, [], question=DEFAULT_QUESTION, sound=files / "sound.wav"),
        answer_question(handoff, [], question="What is 1 + 1?"),
    ]
    texts = [completion.text for completion, _ in expected]
    assert all(texts)
    assert len(set(texts)) > 1, "the answers depend on what is asked about"
    for address in (f"models:/{logged.model_id}", "models:/emotions/1"):
        loaded = mlflow.pyfunc.load_model(address)
        assert [loaded.predict([row])[0]["text"] for row in rows] == texts
    with pytest.raises(ConfigError, match="a row has the texts file, audio, question, at least one of them"):
        loaded.predict([{"question": ""}])
    shutil.rmtree(handoff)
    assert mlflow.pyfunc.load_model("models:/emotions/1").predict(rows[3:])[0]["text"] == texts[3]
    with pytest.raises(StageError, match=f"{handoff}"):
        mlflow.pyfunc.load_model(f"models:/{logged.model_id}")
