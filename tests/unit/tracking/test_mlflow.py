"""Calls that a run queues, addresses that are taken, and imports that stay light; no MLflow is opened."""

import math
import subprocess
import sys

import pytest

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.tracking import connection
from lightning_mmrl.tracking.connection import connect
from lightning_mmrl.tracking.mlflow import MlflowRun, clean_key
from lightning_mmrl.tracking.null import NullTracker
from lightning_mmrl.types.redaction import redact


class FakeSpool:
    """Keeps what is submitted."""

    def __init__(self):
        self.entries = []

    def submit(self, entry):
        self.entries.append(entry)


@pytest.fixture
def spool():
    return FakeSpool()


@pytest.fixture
def run(spool):
    return MlflowRun("4f2a", spool)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("reason/rollout/reward_mean", "reason/rollout/reward_mean"),
        ("time/generate s: 1-2.0", "time/generate s: 1-2.0"),
        ("acc@1 (%)", "acc_1 ___"),
        ("/a//b/./../c/", "a/b/c"),
        ("..", "_"),
        ("", "_"),
        ("x" * 300, "x" * 250),
        ("x" * 249 + "/y", "x" * 249),
    ],
)
def test_keys_are_cleaned(key, expected):
    assert clean_key(key) == expected


def test_what_is_not_a_finite_number_is_left_out_and_counted(run, spool):
    run.log_metrics({"a": 1, "b": math.nan, "c": math.inf, "d": "text", "e": None}, step=2)
    points = {key: (value, step) for key, value, _, step in spool.entries[0].payload["points"]}
    assert points == {"a": (1.0, 2), "tracking/non_finite": (4.0, 2)}


def test_no_count_without_a_loss_and_no_call_without_a_value(run, spool):
    run.log_metrics({"a": 0.0}, step=0)
    run.log_metrics({}, step=1)
    assert [[point[0] for point in entry.payload["points"]] for entry in spool.entries] == [["a"]]


def test_long_values_are_cut_to_what_mlflow_keeps(run, spool):
    run.log_params({"p": "x" * 7000})
    run.set_tags({"t": "x" * 9000})
    run.log_dataset("d" * 600, "f" * 64, "file", "train", {"rows": 3, ("a", "b"): 1})
    params, tags, dataset = (entry.payload for entry in spool.entries)
    assert (len(params["p"]), len(tags["t"]), len(dataset["name"]), len(dataset["digest"])) == (6000, 8000, 500, 36)
    assert dataset["profile"] == '{"rows": 3}'


@pytest.mark.parametrize(
    "uri",
    ["file:./mlruns", "./mlruns", "", "sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///a.db?x=1", "http://"],
)
def test_other_addresses_are_refused_with_the_fix(uri, monkeypatch):
    for name in ("MAX_RETRIES", "TIMEOUT"):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", "1")
    monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    with pytest.raises(ConfigError, match="sqlite:///") as error:
        connect(uri, "curricula")
    assert repr(uri) in str(error.value)


def test_a_folder_that_takes_no_lock_file_is_refused_at_once(monkeypatch):
    """A lock in /proc fails with ENOENT, for which FileLock would wait as for another process."""
    monkeypatch.setattr(connection, "FileLock", None)  # it is not even asked
    with pytest.raises(ConfigError, match="no lock file can be made in /proc") as error:
        connect("sqlite:////proc/mlflow.db", "curricula")
    assert "another process" not in str(error.value)


def test_passwords_are_not_shown():
    assert redact("https://me:p@ss@host:5000/x") == "https://host:5000/x"
    assert redact("sqlite:////a/b@c.db") == "sqlite:////a/b@c.db"
    with pytest.raises(ConfigError) as error:
        connect("postgresql://me:secret@host/db", "curricula")
    assert "secret" not in str(error.value)


def test_no_tracking_takes_every_call(tmp_path):
    tracker = NullTracker()
    run = tracker.open_run("reason", parent_id="p", tags={"a": "b"})
    run.log_metrics({"a": 1.0}, 0)
    run.log_params({"a": 1})
    run.set_tags({"a": "b"})
    run.log_artifact(tmp_path)
    run.log_dataset("d", "0", "file", "train", {})
    run.finish("FINISHED")
    tracker.close()
    assert (run.id, tracker.open_run("all").id) == ("untracked-stage", "untracked")
    assert tracker.open_run("reason", run_id="4f2a").id == "4f2a"


def test_importing_the_tracker_loads_neither_mlflow_nor_torch():
    code = (
        "import sys, lightning_mmrl.tracking.mlflow, lightning_mmrl.tracking.null; "
        "print({'mlflow', 'torch', 'lightning', 'sqlalchemy'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
