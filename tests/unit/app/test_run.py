import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from run_folders import whole_run

from lightning_mmrl.app import run as app_run
from lightning_mmrl.app.run import _lead, check_all_targets, describe_run, manifests
from lightning_mmrl.app.run_folder import writable
from lightning_mmrl.app.trackers import open_tracker
from lightning_mmrl.config.compose import compose
from lightning_mmrl.config.specs import stage_specs
from lightning_mmrl.curriculum.compare import Comparison
from lightning_mmrl.curriculum.selection import Selection
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.report.page import write_report
from lightning_mmrl.tracking.null import NullTracker
from lightning_mmrl.tracking.store import absolute_sqlite

LINE = json.dumps({"messages": [{"role": "user", "content": "Which?"}]}) + "\n"


@pytest.fixture
def root(tmp_path):
    for name in ("train", "cold_start", "validation", "test", "ood"):
        (tmp_path / f"{name}.jsonl").write_text(LINE * 2 + "\n")
    return tmp_path


def config(root, *overrides):
    return compose([f"data.root={root}", *overrides])


def test_a_folder_is_made_and_left_empty(tmp_path):
    assert writable(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize("place", ["/dev/null/x", "/proc/x"])
def test_a_folder_that_cannot_be_written_is_refused(place):
    with pytest.raises(ConfigError, match=f"output_dir {place} cannot be written .*; choose another output_dir"):
        writable(Path(place))


def test_every_manifest_of_the_run_is_known(root):
    found = manifests(config(root, "~evaluation.sets.ood", "data.validation=null"))
    names = {"cold_start": "cold_start.jsonl", "reason": "train.jsonl", "test": "test.jsonl"}
    assert found == {use: (root, name, None) for use, name in names.items()}
    assert "reason" not in manifests(config(root, "order=[cold_start]"))


def test_the_sources_of_a_stage_may_lie_in_other_folders(root, tmp_path):
    other = f"{{manifest: more.jsonl, root: {tmp_path}/b, weight: 3}}"
    sources = f"{{mine: {{manifest: train.jsonl, weight: 1}}, other: {other}}}"
    stage = "stages.cold_start.data"
    found = manifests(config(root, f"{stage}.manifest=null", f"+{stage}.sources={sources}"))
    assert found["cold_start/mine"] == (root, "train.jsonl", None)
    assert found["cold_start/other"] == (tmp_path / "b", "more.jsonl", None)


def test_the_targets_of_the_stages_that_run_are_checked(root):
    check_all_targets(config(root))
    bad = "+stages.reason.schedule.warmup=1"
    with pytest.raises(ConfigError, match=r"stages\.reason\.schedule\.warmup: .*did you mean 'warmup_steps'"):
        check_all_targets(config(root, bad))
    check_all_targets(config(root, bad, "order=[cold_start]"))
    for key in ("+model.build.x=1", "+model.family.encoder.x=1", "+data.build.settings.x=1"):
        with pytest.raises(ConfigError, match=rf"{key[1:-2]}: .* has no such parameter"):
            check_all_targets(config(root, key))


class Recorder:
    """A tracked run that remembers."""

    def __init__(self):
        self.artifacts, self.datasets = [], {}

    def log_artifact(self, path, folder=None):
        self.artifacts.append((path.read_text(), folder))

    def log_dataset(self, name, digest, source, context, profile):
        self.datasets[context] = (name, digest, source, profile)


def test_a_run_is_described_by_its_resolved_configuration_and_its_data(root, tmp_path):
    run = Recorder()
    describe_run(config(root, "output_dir=/x"), run, tmp_path / "run" / "config.yaml")
    [(text, folder)] = run.artifacts
    assert "cache_dir: /x/cache" in text
    assert folder == "config"
    assert set(run.datasets) == {"cold_start", "reason", "validation", "test", "ood"}
    name, digest, source, profile = run.datasets["reason"]
    assert (name, source, profile) == ("train.jsonl", str(root / "train.jsonl"), {"num_samples": 2})
    assert len(digest) == 64


def test_no_address_is_no_tracking(root):
    assert isinstance(open_tracker(config(root, "tracking.uri=null")), NullTracker)


def test_a_database_has_an_absolute_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_sqlite("sqlite:///runs/mlflow.db") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert absolute_sqlite("sqlite:////abs/mlflow.db") == "sqlite:////abs/mlflow.db"
    assert absolute_sqlite("http://host:5000") == "http://host:5000"


def fail(*_):
    raise RuntimeError("no evaluation here")


def lead(root, directory, selection=None, evaluate=fail):
    """Runs a curriculum up to the evaluation of its base model, or to its first stage, which fails."""
    settings = config(root, "tracking=none", f"data.media.cache_dir={root}/kept")
    (root / "model").mkdir(exist_ok=True)
    (root / "model" / "weights").write_text("base")
    parts = SimpleNamespace(
        config=settings, starting_point=lambda spec: root / "model", console=SimpleNamespace(say=lambda line: None)
    )
    _lead(parts, stage_specs(settings), directory, SimpleNamespace(build_stage=fail, evaluate=evaluate), selection)


def test_a_refused_command_leaves_page_and_comparison_as_they_are(root, tmp_path):
    run = whole_run(tmp_path / "runs" / "known")
    write_report([run.folder])
    kept = [run.folder / "comparison.json", run.folder / "report.html"]
    before = [path.read_bytes() for path in kept]
    with pytest.raises(ConfigError, match="with another configuration"):
        lead(root, run.folder)
    assert [path.read_bytes() for path in kept] == before
    with pytest.raises(ConfigError, match="nothing"):
        lead(root, tmp_path / "runs" / "new", Selection(from_stage="nothing"))
    assert [path.name for path in (tmp_path / "runs" / "new").iterdir() if path.name != ".lock"] == []


def test_a_run_that_fails_after_it_began_has_a_page(root, tmp_path):
    with pytest.raises(RuntimeError, match="no evaluation here"):
        lead(root, tmp_path / "runs" / "new")
    assert "No stage was evaluated" in (tmp_path / "runs" / "new" / "report.html").read_text()


def test_stages_are_compared_once_for_each_evaluation(root, tmp_path, monkeypatch):
    compared = []

    def counted(*arguments):
        compared.append(arguments[-1])
        return Comparison(results=[], gains=[])

    monkeypatch.setattr(app_run, "_compare", counted)
    with pytest.raises(RuntimeError, match="no evaluation here"):
        lead(root, tmp_path / "runs" / "new", evaluate=lambda *_: {})
    assert len(compared) == 1, "after the evaluation of the base, and not again when the run ends"
    assert (tmp_path / "runs" / "new" / "comparison.json").is_file()
