"""The password of a tracking address is in no output and no file, and does not count as a changed configuration."""

import json
import sys
from types import SimpleNamespace

import pytest

from lightning_mmrl.app.run import describe_run
from lightning_mmrl.cli.main import main
from lightning_mmrl.cli.tables import print_comparison
from lightning_mmrl.config.compose import compose
from lightning_mmrl.config.specs import stage_specs
from lightning_mmrl.curriculum.compare import Comparison
from lightning_mmrl.tracking.journal import Entry, Journal
from lightning_mmrl.tracking.mlflow import MlflowRun
from lightning_mmrl.tracking.store import spool_folder
from lightning_mmrl.types import redaction
from lightning_mmrl.types.records import Artifact

SECRET = "hunter22"
URI = f"http://me:{SECRET}@127.0.0.1:9"


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    monkeypatch.setattr(redaction, "_remembered", set())
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("lightning_mmrl.cli.plan.show_memory", lambda *arguments: None)  # takes a second
    for name in ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan"],
        ["plan", "--cfg", "job"],
        ["plan", "--info", "config"],
        ["plan", "tracking.uri.x=1"],
        ["plan", "tracking.uri=me:hunter22@host"],
        ["plan", "tracking.urj=" + URI],
        ["plan", "seed=http://me:hunter22/x@h"],
        ["plan", "--multirun", "seed=1,2"],
        ["plan", "hydra.verbose=true"],
        ["tracking", "status", URI],
        ["nothing", URI],
        ["predict", URI, URI],
    ],
)
def test_no_command_prints_or_leaves_it(arguments, capsys, tmp_path):
    given = [*arguments, "experiment=quickstart", f"tracking.uri={URI}"] if arguments[0] == "plan" else arguments
    main(given)
    shown = "".join(capsys.readouterr())
    assert shown
    assert SECRET not in shown
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and SECRET in path.read_text()]


def test_a_server_that_is_not_there_is_named_without_it(capsys, tmp_path):
    spool = tmp_path / "runs" / "spool" / "0"
    Journal(spool / "run.jsonl").path.parent.mkdir(parents=True)
    Journal(spool / "run.jsonl").append([Entry(run_id="run", operation="tags", payload={"a": "b"})])
    assert main(["tracking", "flush", "runs", "--tracking-uri", URI]) == 1
    shown = "".join(capsys.readouterr())
    assert "http://127.0.0.1:9" in shown
    assert SECRET not in shown


def test_the_report_shows_the_address_without_it(capsys, tmp_path):
    outcome = SimpleNamespace(
        comparison=Comparison(results=[], gains=[]),
        results=[
            SimpleNamespace(
                name="a", handoff=Artifact(path="h", digest="d"), seconds={}, costs=None, idle=False, empty_inputs={}
            )
        ],
        directory=tmp_path,
        tracking_uri=URI,
    )
    print_comparison(outcome)
    shown = capsys.readouterr().out
    assert "http://127.0.0.1:9" in shown
    assert SECRET not in shown


class Recording:
    """A spool that keeps its entries."""

    def __init__(self):
        self.entries = []

    def submit(self, entry):
        self.entries.append(entry)


def test_the_saved_configuration_has_the_address_without_it(tmp_path, monkeypatch):
    config = compose(["experiment=quickstart", f"tracking.uri={URI}"])
    monkeypatch.setattr("lightning_mmrl.app.run.manifests", lambda config: {})
    spool = Recording()
    describe_run(config, MlflowRun("4f2a", spool), tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    assert "uri: http://127.0.0.1:9" in text
    assert SECRET not in text


def test_nothing_that_is_sent_to_mlflow_has_it():
    spool = Recording()
    run = MlflowRun("4f2a", spool)
    run.log_params({"judge": f"http://me:{SECRET}@judge"})
    run.set_tags({"source": f"https://x:{SECRET}@git/repo"})
    run.log_dataset("d", "0", f"s3://me:{SECRET}@bucket/x", "train", {"at": f"http://me:{SECRET}@h"})
    assert SECRET not in json.dumps([dict(entry.payload) for entry in spool.entries])
    assert len(spool.entries) == 3


def test_other_credentials_are_no_changed_configuration():
    first, second = (
        stage_specs(
            compose(["experiment=quickstart", f"tracking.uri=http://me:{word}@h", f"data.root=s3://me:{word}@b"])
        )
        for word in (SECRET, "another-word")
    )
    assert [spec.digest for spec in first] == [spec.digest for spec in second]
    assert SECRET not in str([dict(spec.content) for spec in first])


def test_other_credentials_find_the_same_spool(tmp_path):
    places = {
        spool_folder(compose([f"output_dir={tmp_path}"]), uri)
        for uri in (URI, "http://127.0.0.1:9", "http://you:other-word@127.0.0.1:9")
    }
    assert len(places) == 1
    assert spool_folder(compose([f"output_dir={tmp_path}"]), "http://127.0.0.1:10") not in places


def test_a_spool_that_was_named_after_the_credentials_is_found(tmp_path):
    import hashlib

    old = tmp_path / "spool" / hashlib.sha256(URI.encode()).hexdigest()[:12]
    old.mkdir(parents=True)
    (old / "run.jsonl").write_text("")
    new = spool_folder(compose([f"output_dir={tmp_path}"]), URI)
    assert (new / "run.jsonl").is_file()
    assert not old.exists()


def test_showing_what_waits_loads_neither_torch_nor_mlflow(tmp_path):
    import subprocess

    code = (
        "import sys; from lightning_mmrl.cli.main import main; main(['tracking', 'status', '.']); "
        "print({'torch', 'mlflow', 'lightning'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "set()"
