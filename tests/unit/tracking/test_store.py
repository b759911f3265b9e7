"""Where a run is tracked, with `mlflow run` and without it."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from lightning_mmrl.cli import plan as plan_command
from lightning_mmrl.config.compose import compose
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.tracking import flushing
from lightning_mmrl.tracking import store as tracking
from lightning_mmrl.tracking.journal import Entry, Journal
from lightning_mmrl.tracking.leftovers import note_store
from lightning_mmrl.tracking.store import STORE, deliver_leftovers, settle_tracking, spool_folder


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", STORE):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def mlflow_run(monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "4f2a")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///theirs.db")


def store(*overrides):
    return settle_tracking(compose(list(overrides))).tracking.uri


def test_alone_the_configuration_decides(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///theirs.db")
    assert store("output_dir=/x") == "sqlite:////x/mlflow.db"
    assert store("tracking.uri=http://host:5000") == "http://host:5000"


def test_under_mlflow_run_its_store_wins_over_the_default(mlflow_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert store() == "sqlite:///theirs.db"
    assert store("output_dir=/x") == "sqlite:///theirs.db"
    assert store(f"tracking.uri=sqlite:///{tmp_path}/theirs.db") == "sqlite:///theirs.db"
    assert store("tracking=none") is None


def test_a_run_of_a_comparison_goes_to_the_store_of_the_mlflow_run_above_it(monkeypatch):
    monkeypatch.setenv(STORE, "sqlite:///theirs.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///another.db")
    assert store("output_dir=/x") == "sqlite:///theirs.db"


def test_an_address_that_contradicts_mlflow_run_is_refused(mlflow_run, monkeypatch):
    with pytest.raises(ConfigError, match=r"tracking.uri is sqlite:///mine.db, .* in sqlite:///theirs.db; leave"):
        store("tracking.uri=sqlite:///mine.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@host:5000")
    with pytest.raises(ConfigError) as error:
        store("tracking.uri=http://me:secret@other:5000")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("option", "expected"), [("mlflow", []), ("none", []), ("csv", ["csv"]), ("tensorboard", ["tensorboard"])]
)
def test_the_options_of_tracking(option, expected):
    config = compose([f"tracking={option}"]).tracking
    assert (config.uri is None) is (option != "mlflow")
    assert config.loggers == expected


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        store("tracking.loggers=[csv,tensorboard]")
    assert store("tracking=csv") is None


def test_an_unknown_logger_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"tracking\.loggers.*tensorboard"):
        compose(["tracking.loggers=[tensorbord]"])


def test_it_is_settled_before_torch_and_mlflow_are_imported():
    code = "import sys, lightning_mmrl.tracking.store; print({'torch', 'mlflow', 'tensorboard'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


@pytest.fixture
def left(tmp_path):
    """A configuration whose spool has three points and a tag for its server."""
    config = compose([f"output_dir={tmp_path}", "tracking.uri=http://host:5000"])
    spool = spool_folder(config, config.tracking.uri)
    spool.mkdir(parents=True)
    points = [["loss", 1.0, step, step] for step in range(3)]
    Journal(spool / "4f2a.jsonl").append(
        [
            Entry(run_id="4f2a", operation="metrics", payload={"points": points}),
            Entry(run_id="4f2a", operation="tags", payload={"a": "b"}),
        ]
    )
    note_store(spool, "http://elsewhere:5000", "theirs")
    return config


def test_leftovers_go_to_the_address_of_the_configuration(left, monkeypatch):
    opened, lines = [], []
    monkeypatch.setattr(flushing, "flush_store", lambda *arguments: opened.append(arguments[1:]) or [])
    deliver_leftovers(left, lines.append)
    assert opened == [("http://host:5000", left.tracking.experiment)]
    assert lines == ["tracking: the server now has what earlier commands had left"]


@pytest.mark.parametrize(
    "error", [ConfigError("no"), PermissionError("no"), OSError(30, "read-only"), ValueError("no"), RuntimeError("no")]
)
def test_a_delivery_of_leftovers_that_fails_is_a_line(left, monkeypatch, error):
    def fail(*arguments):
        raise error

    lines = []
    monkeypatch.setattr(flushing, "flush_store", fail)
    deliver_leftovers(left, lines.append)
    assert lines == [f"tracking: {error}; what is undelivered is kept in {left.output_dir}/spool"]


def test_a_lock_that_cannot_be_made_is_a_line(left, monkeypatch):
    spool = spool_folder(left, left.tracking.uri)
    (spool / ".lock").mkdir()
    monkeypatch.setattr(flushing, "connect", lambda *arguments: None)
    monkeypatch.setattr(flushing, "MlflowDelivery", lambda *arguments: None)
    lines = []
    deliver_leftovers(left, lines.append)
    assert len(lines) == 1
    assert "kept in" in lines[0]


def test_a_plan_says_what_waits_and_sends_nothing(left, monkeypatch):
    opened, lines = [], []
    monkeypatch.setattr(flushing, "flush_store", lambda *arguments: opened.append(arguments))
    monkeypatch.setattr(
        plan_command, "report_console", lambda width: SimpleNamespace(print=lambda line, **_: lines.append(line))
    )
    monkeypatch.setattr(plan_command, "show_memory", lambda *arguments: None)  # takes a second
    plan_command.plan(left, plan_command.Lengths())
    told = f"tracking: 2 entries (3 points) wait for the server; mmrl tracking flush {left.output_dir} sends them"
    assert told in lines
    assert opened == []
