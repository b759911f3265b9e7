"""Where a run is tracked, beside `mlflow run` and without it."""

import subprocess
import sys

import pytest

from lightning_mmrl.config import tracking
from lightning_mmrl.config.compose import compose
from lightning_mmrl.config.tracking import settle_tracking
from lightning_mmrl.errors import ConfigError


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI"):
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
    code = "import sys, lightning_mmrl.config.tracking; print({'torch', 'mlflow', 'tensorboard'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
