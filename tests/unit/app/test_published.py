"""What the parent run says: origin, parameters under their names, commands that reproduce it, headlines once."""

from run_folders import whole_run

from lightning_mmrl.app import trackers
from lightning_mmrl.app.published import describe, description, key_parameters, publish
from lightning_mmrl.app.trackers import origin
from lightning_mmrl.config.compose import compose
from lightning_mmrl.tracking.null import NullRun


class Noted:
    """A run of a tracker of the user's own, without a description, tables and models."""

    def __init__(self):
        self.id = "noted"
        self.points, self.files, self.params = [], [], {}

    def log_metrics(self, metrics, step, time_s=None):
        self.points += [(name, value, step, time_s) for name, value in metrics.items()]

    def log_artifact(self, path, folder=None):
        self.files.append((path.name, folder))

    def log_params(self, params):
        self.params |= params

    def set_tags(self, tags):
        pass

    def log_dataset(self, name, digest, source, context, profile):
        pass

    def finish(self, status):
        pass


class Described(Noted):
    """A run with a description and tables."""

    text = ""

    def describe(self, text):
        self.text = text

    def log_table(self, path, folder):
        self.files.append((f"table {path.name}", folder))

    def log_model(self, run_id, stage, handoff, digest):
        pass


def quickstart(*overrides):
    return compose(["experiment=quickstart", *overrides])


def test_the_origin_names_user_command_and_commit(monkeypatch):
    monkeypatch.setattr(trackers, "commit_of", lambda folder: "abc+changes")
    monkeypatch.setattr(trackers, "branch_of", lambda folder: None)
    monkeypatch.setenv("LOGNAME", "ada")
    assert origin(["train", "seed=1"]) == {
        "mlflow.user": "ada",
        "mlflow.source.name": "mmrl train",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": "abc",
        "mlflow.source.git.dirty": "true",
    }
    monkeypatch.setattr(trackers, "commit_of", lambda folder: None)
    assert "mlflow.source.git.commit" not in origin([]), "an installed package has no commit"


def test_key_parameters_have_the_names_of_the_command_line():
    found = key_parameters(quickstart("seed=3", "stages.reason.optimizer.lr=1e-6"))
    assert (found["seed"], found["order"]) == (3, "pretrain,cold_start,reason")
    assert found["model"] == "OmniThinker"
    assert found["stages.reason.optimizer.lr"] == 1e-6
    assert found["stages.reason.module"] == "GRPOModule"
    assert found["stages.reason.algorithm.group_size"] == 8
    assert found["stages.pretrain.module"] == "SFTModule"
    assert not any("_target_" in name for name in found)


def test_the_description_has_the_commands_to_reproduce_show_and_evaluate(tmp_path):
    command = [
        "train",
        "experiment=quickstart",
        "run_name=a b",
        "--from-stage",
        "reason",
        "--only-stage=reason",
        "seed=1",
    ]
    text = description(quickstart(), tmp_path / "a b", command)
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    handoff = f"'{tmp_path}/a b/stages/02-reason/handoff'"
    assert lines[:4] == [
        "mmrl train experiment=quickstart 'run_name=a b' --from-stage reason --only-stage=reason seed=1",
        f"mmrl report '{tmp_path}/a b'",
        f"mmrl evaluate {handoff} experiment=quickstart 'run_name=a b' seed=1",
        f"mmrl lineage {handoff}",
    ]
    without = description(quickstart(), tmp_path, [])
    assert "mmrl train" not in without
    assert "mmrl evaluate" not in without
    assert f"mmrl report {tmp_path}" in without


def test_a_run_is_described_with_versions_machine_and_packages(tmp_path):
    run = Described()
    describe(quickstart(), run, tmp_path, ["train"])
    assert run.params["version.torch"]
    assert run.params["machine.num_processors"] >= 1
    assert run.files == [("packages.txt", "config")]
    assert "\nmlflow==" in (tmp_path / "packages.txt").read_text()
    assert "mmrl train" in run.text


def test_headlines_are_the_same_points_each_time_and_the_last_stage_comes_last(tmp_path):
    folder = whole_run(tmp_path / "run").folder
    (folder / "report.html").write_text("<p>")
    config, once, twice = quickstart("order=[cold_start,reason]"), Described(), Described()
    publish(config, folder, once)
    for _ in range(2):
        publish(config, folder, twice)
    assert set(once.points) == set(twice.points), "a point of MLflow is its key, value, step and time"
    names = {name for name, *_ in once.points}
    assert {"headline/test", "headline/test/base", "headline/test/cold_start", "headline/test/reason"} <= names
    by_step = {step: value for name, value, step, _ in once.points if name == "headline/test"}
    last = next(value for name, value, *_ in once.points if name == "headline/test/reason")
    assert sorted(by_step) == [0, 1, 2]
    assert by_step[2] == last
    assert ("report.html", None) in once.files
    assert ("table scores.json", "tables") in once.files


def test_a_tracker_without_tables_gets_them_as_files_and_no_tracker_gets_nothing(tmp_path):
    folder, run = whole_run(tmp_path / "run").folder, Noted()
    publish(quickstart("order=[cold_start,reason]"), folder, run)
    assert ("scores.json", "tables") in run.files
    for path in (folder / "tables").iterdir():
        path.unlink()
    publish(quickstart("order=[cold_start,reason]"), folder, NullRun("untracked"))
    assert not list((folder / "tables").iterdir())
