"""`mlflow run` from the outside: one parent with its stages, true statuses, and no run beside them."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from small_runs import SMALL

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]

QUICKSTART = (
    *SMALL,
    "data.validation_limit=4",
    "stages.pretrain.num_steps=2",
    "stages.pretrain.data.batch_size=4",
    "stages.cold_start.num_steps=2",
    "stages.cold_start.validate_every=1",
    "stages.cold_start.data.batch_size=4",
    "stages.reason.num_steps=2",
    "stages.reason.validate_every=1",
    "stages.reason.data.batch_size=2",
    "stages.reason.algorithm.group_size=2",
    "stages.reason.sampling.max_new_tokens=8",
    "evaluation.ablations=[]",
    "evaluation.limit=4",
    "evaluation.max_new_tokens=8",
)


class Workplace:
    """A folder with a store of its own, from which `mlflow run` is called."""

    def __init__(self, folder, clips):
        self.folder, self.clips = folder, clips
        self.uri = f"sqlite:///{folder}/mlflow.db"

    def command(self, entry_point, **parameters):
        pairs = [text for name, value in parameters.items() for text in ("-P", f"{name}={value}")]
        return [sys.executable, "-m", "mlflow", "run", str(ROOT), "-e", entry_point, "--env-manager", "local", *pairs]

    @property
    def environment(self):
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**kept, **quiet, "PATH": path, "MLFLOW_TRACKING_URI": self.uri}

    def overrides(self, *more):
        return " ".join([*QUICKSTART, f"output_dir={self.folder}/runs", f"data.root={self.clips}", *more])

    def run(self, entry_point, **parameters):
        return subprocess.run(
            self.command(entry_point, **parameters),
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
        )

    def start(self, entry_point, **parameters):
        """Starts `mlflow run` in a process group of its own, as a terminal does."""
        with (self.folder / "log").open("w") as log:
            return subprocess.Popen(
                self.command(entry_point, **parameters),
                env=self.environment,
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def client(self):
        return MlflowClient(self.uri)

    def tree(self):
        """Name, status and name of the parent of every run in the store."""
        runs = self.client.search_runs([each.experiment_id for each in self.client.search_experiments()])
        names = {run.info.run_id: run.info.run_name for run in runs}
        return sorted(
            (run.info.run_name, run.info.status, names.get(run.data.tags.get("mlflow.parentRunId"))) for run in runs
        )


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return tmp_path_factory.mktemp("data") / "clips"


@pytest.fixture
def workplace(tmp_path, clips, empty_database, monkeypatch):
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)  # MLflow keeps the artifacts of a new database below the current folder
    place = Workplace(tmp_path, clips)
    assert place.tree() == []
    return place


def test_train_leaves_one_parent_with_its_stages_and_a_second_call_reports_below_it(workplace):
    overrides = workplace.overrides("experiment=quickstart", "order=[pretrain,reason]", "tracking.loggers=[csv]")
    experiments = {each.experiment_id for each in workplace.client.search_experiments()}
    first = workplace.run("train", overrides=overrides)
    assert first.returncode == 0, first.stderr
    stages = [("00-pretrain", "FINISHED", "quickstart"), ("01-reason", "FINISHED", "quickstart")]
    assert workplace.tree() == [*stages, ("quickstart", "FINISHED", None)]
    assert {each.experiment_id for each in workplace.client.search_experiments()} == experiments
    [parent] = [run for run in workplace.client.search_runs(["0"]) if run.info.run_name == "quickstart"]
    assert parent.data.tags["mlflow.project.entryPoint"] == "train"
    assert parent.data.tags["mmrl.order"] == "pretrain,reason"
    with (workplace.folder / "runs/quickstart/stages/01-reason/csv/metrics.csv").open(newline="") as file:
        assert {row["step"] for row in csv.DictReader(file)} == {"1", "2"}

    second = workplace.run("train", overrides=overrides)
    assert second.returncode == 0, second.stderr
    assert "reason: already finished" in second.stderr
    [(name, status, above)] = set(workplace.tree()) - {*stages, ("quickstart", "FINISHED", None)}
    assert (status, above) == ("FINISHED", "quickstart")
    [report] = [run for run in workplace.client.search_runs(["0"]) if run.info.run_name == name]
    assert report.data.tags["mmrl.reports"] == parent.info.run_id


def wait_for(workplace, process, stage):
    """Waits until the run of a stage, by name and status, is there."""
    deadline = time.monotonic() + 400
    while not any(run[:2] == stage for run in workplace.tree()):
        assert process.poll() is None, (workplace.folder / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.3)
    time.sleep(2)


def interrupt(workplace, number, overrides):
    """Sends a signal to `mlflow run` within its second stage, and waits until no run is open."""
    process = workplace.start("quickstart", overrides=overrides)
    try:
        wait_for(workplace, process, ("01-cold_start", "RUNNING"))
    finally:
        os.killpg(process.pid, number)
    assert process.wait(100) != 0
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and any(status == "RUNNING" for _, status, _ in workplace.tree()):
        time.sleep(0.3)  # SIGTERM ends `mlflow run` at once, and its child a little later


def test_an_interrupted_quickstart_is_killed_and_the_next_one_takes_its_stages_over(workplace):
    endless = workplace.overrides("order=[pretrain,cold_start]", "stages.cold_start.num_steps=100000")
    finished, killed = ("00-pretrain", "FINISHED", "quickstart"), ("01-cold_start", "KILLED", "quickstart")
    interrupt(workplace, signal.SIGINT, endless)
    # After Ctrl-C mlflow 3.17 writes FAILED over our KILLED: RunStatus.is_terminated takes a number and gets the text.
    assert workplace.tree() == [finished, killed, ("quickstart", "FAILED", None)]
    interrupt(workplace, signal.SIGTERM, endless)
    first = ("quickstart", "FAILED", "quickstart")
    assert workplace.tree() == [finished, killed, first, ("quickstart", "KILLED", None)]
    # Begun again: the stage may have saved a state, and it had more steps than now.
    again = workplace.overrides("order=[pretrain,cold_start]", "--from-stage=cold_start")
    third = workplace.run("quickstart", overrides=again)
    assert third.returncode == 0, third.stderr
    second = ("quickstart", "KILLED", "quickstart")
    stages = [finished, ("01-cold_start", "FINISHED", "quickstart"), killed]
    assert workplace.tree() == [*stages, first, ("quickstart", "FINISHED", None), second]


def test_without_tracking_only_mlflows_own_run_is_there_and_evaluation_and_data_have_theirs(workplace):
    overrides = workplace.overrides("order=[pretrain]", "tracking=none")
    trained = workplace.run("quickstart", overrides=overrides)
    assert trained.returncode == 0, trained.stderr
    [(_, status, above)] = workplace.tree()
    assert (status, above) == ("FINISHED", None)
    checkpoint = workplace.folder / "runs/quickstart/stages/00-pretrain/handoff"
    evaluated = workplace.run("evaluate", checkpoint=checkpoint, overrides=f"experiment=quickstart {overrides}")
    assert evaluated.returncode == 0, evaluated.stderr
    assert "predictions and figures in" in evaluated.stdout
    checked = workplace.run("validate_data", manifest=workplace.clips / "test.jsonl", media_root=workplace.clips)
    assert checked.returncode == 0, checked.stderr
    assert [(status, above) for _, status, above in workplace.tree()] == [("FINISHED", None)] * 3


@pytest.mark.parametrize(
    ("entry_point", "parameters", "message"),
    [
        ("train", {"overrides": "; touch X"}, "';' is not an override"),
        ("train", {"overrides": "experiment=quickstart tracking.uri=sqlite:///x.db"}, "tracking.uri is sqlite:///x.db"),
        ("evaluate", {"checkpoint": "no/such/folder"}, "no/such/folder"),
    ],
)
def test_what_is_refused_leaves_one_failed_run_and_no_file(workplace, entry_point, parameters, message):
    result = workplace.run(entry_point, **parameters)
    assert result.returncode == 1
    assert message in result.stderr
    [(_, status, above)] = workplace.tree()
    assert (status, above) == ("FAILED", None)
    assert not (workplace.folder / "X").exists()
    assert not (ROOT / "X").exists()
