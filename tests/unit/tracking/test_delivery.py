"""Only files of the output folder that the spool lies in are sent, whoever wrote the journal."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from lightning_mmrl.tracking.connection import Connection
from lightning_mmrl.tracking.delivery import MlflowDelivery
from lightning_mmrl.tracking.journal import Entry
from lightning_mmrl.tracking.refusals import UndeliverableError


class Client:
    """Notes what is uploaded."""

    def __init__(self):
        self.sent = []

    def log_artifact(self, run_id, path, folder):
        self.sent.append(path)

    def list_artifacts(self, run_id, folder):
        return [SimpleNamespace(path=Path(path).name) for path in self.sent]


@pytest.fixture
def client():
    return Client()


@pytest.fixture
def send(client, tmp_path):
    """Sends a file as an entry of a journal in `tmp_path/out/spool/store` does."""
    spool = tmp_path / "out" / "spool" / "store"
    spool.mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key.txt").write_text("secret")
    delivery = MlflowDelivery(Connection(client=client, experiment_id="1", uri="http://host", remote=True), spool)
    return lambda path: delivery(
        Entry(run_id="4f2a", operation="artifact", payload={"path": str(path), "folder": None})
    )


@pytest.fixture
def report(tmp_path, send):
    folder = tmp_path / "out" / "run" / "report"
    folder.mkdir(parents=True)
    (folder / "a.html").write_text("")
    return folder


def test_files_and_folders_of_the_output_folder_are_sent(send, report, client):
    (report / "b.html").symlink_to("a.html")
    for path in (report, report / "a.html"):
        send(path)
    assert client.sent == [str(report), str(report / "a.html")]


@pytest.mark.parametrize("name", ["secret/key.txt", "secret", "out/../secret/key.txt", "out/spool/../../secret", "."])
def test_a_path_outside_is_refused(send, tmp_path, client, name):
    with pytest.raises(UndeliverableError, match="lies outside of"):
        send(f"{tmp_path}/{name}")
    assert client.sent == []


@pytest.mark.parametrize("target", ["key.txt", "."])
@pytest.mark.parametrize("at", ["link", "report/link", "report/deep/link"])
def test_a_link_that_leads_out_is_refused(send, report, tmp_path, client, target, at):
    link = report.parent / at
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(tmp_path / "secret" / target)
    with pytest.raises(UndeliverableError, match=f"{link} lies outside of"):
        send(link if at == "link" else report)
    assert client.sent == []


def test_a_link_out_of_the_folder_to_one_with_such_a_link_is_refused(send, report, tmp_path, client):
    other = report.parent / "other"
    other.mkdir()
    (other / "link").symlink_to(tmp_path / "secret")
    (report / "other").symlink_to(other)
    with pytest.raises(UndeliverableError, match="lies outside of"):
        send(report)
    assert client.sent == []
