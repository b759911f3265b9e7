import json
import subprocess

from lightning_mmrl.app.starts import PACKAGE, commit_of, note_start


def git(folder, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    return subprocess.run(
        ["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True, text=True
    ).stdout


def test_every_start_is_kept(tmp_path):
    note_start(tmp_path / "run")
    note_start(tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "starts.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert {"lightning_mmrl", "python", "torch", "transformers"} <= lines[0]["versions"].keys()


def test_a_commit_is_that_of_the_checkout_itself_and_tells_of_changes(tmp_path):
    assert commit_of(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert commit_of(tmp_path) is None, "there is no commit yet"
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.txt").write_text("1")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "first")
    head = git(tmp_path, "rev-parse", "HEAD").strip()
    assert commit_of(tmp_path) == head
    assert commit_of(tmp_path / "inner") is None, "an installed package within somebody's checkout"
    (tmp_path / "notes.py").write_text("")
    assert commit_of(tmp_path) == head, "it is not part of the package"
    module = tmp_path / PACKAGE / "rewards" / "mine.py"
    module.parent.mkdir(parents=True)
    module.write_text("")
    assert commit_of(tmp_path) == f"{head}+changes", "a new module"
    module.unlink()
    (tmp_path / "inner" / "a.txt").write_text("2")
    assert commit_of(tmp_path) == f"{head}+changes"
