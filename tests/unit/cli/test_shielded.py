"""Child processes of a command import nothing from the current folder."""

import os
import subprocess
import sys

import pytest

from lightning_mmrl.cli import main as entry

STARTS = """
import multiprocessing, subprocess, sys
from lightning_mmrl.cli.main import main
sys.argv = ["mmrl", "--version"]
main()
subprocess.run([sys.executable, "-m", "calendar", "2026", "1"], stdout=subprocess.DEVNULL, check=True)
if __name__ == "__main__":
    worker = multiprocessing.get_context("spawn").Process(target=print)
    worker.start()
    worker.join()
"""


def test_ranks_and_workers_do_not_import_from_the_current_folder(tmp_path):
    """Python searches the current folder first for `-m` and `-c`, and so do torchrun and multiprocessing."""
    for name in ("calendar", "base64", "multiprocessing"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w').close()\n")
    program = tmp_path / "bin" / "program.py"
    program.parent.mkdir()
    program.write_text(STARTS)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    command = [sys.executable, program]
    done = subprocess.run(command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(("path", "shielded"), [(["/bin"], True), (["", "/bin"], False), ([os.getcwd()], False)])
def test_children_import_from_where_their_parent_does(path, shielded, monkeypatch):
    monkeypatch.setattr(sys, "path", path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    entry._shield_children()
    assert ("PYTHONSAFEPATH" in os.environ) == shielded
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
