"""The arguments of the commands, and the end of a command whose reader has left."""

import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from lightning_mmrl.cli import main as entry
from lightning_mmrl.cli.evaluate import take_checkpoint
from lightning_mmrl.cli.main import EXIT_READER_LEFT, main
from lightning_mmrl.errors import ConfigError


@pytest.mark.parametrize(
    "before",
    [
        [],
        ["--config-dir", "mine"],
        ["--config-dir=mine"],
        ["--allow-targets", "mine", "--allow-targets=other"],
        ["experiment=quickstart", "-cd", "mine"],
        ["~evaluation.sets.test", "+a.b=1", "++a=1"],
        ["algorithm@stages.reason=rloo", "hydra/job_logging=none"],
    ],
)
@pytest.mark.parametrize("name", ["handoff", "hub/model", "/runs/lr=0.1/handoff", "./lr=0.1"])
def test_the_checkpoint_may_stand_anywhere(before, name):
    checkpoint, others = take_checkpoint([*before, name, "seed=1"])
    assert checkpoint.as_posix() == name.removeprefix("./")
    assert others == [*before, "seed=1"]


def test_a_folder_of_a_model_is_no_override(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["experiment=quickstart", "runs/lr=0.1/handoff"]
    with pytest.raises(ConfigError, match="CHECKPOINT is missing"):
        take_checkpoint(arguments)
    (tmp_path / arguments[1]).mkdir(parents=True)
    (tmp_path / arguments[1] / "config.json").write_text("{}")
    assert take_checkpoint(arguments)[0].as_posix() == arguments[1]
    (tmp_path / arguments[1] / "config.json").rename(tmp_path / arguments[1] / "adapter_config.json")
    assert take_checkpoint(arguments)[0].as_posix() == arguments[1]


@pytest.mark.parametrize("arguments", [[], ["--config-dir", "mine"], ["seed=1"], ["--multirun", "seed=1,2"]])
def test_a_checkpoint_that_is_missing_is_said(arguments):
    with pytest.raises(ConfigError, match=r"^CHECKPOINT is missing; name a folder or a hub id$"):
        take_checkpoint(arguments)


def test_a_reader_that_leaves_ends_the_command_quietly():
    """The reader closes the pipe of standard output before the first line."""
    command = [sys.executable, "-m", "lightning_mmrl.cli.main", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        complaint = process.stderr.read()
    assert (process.returncode, complaint) == (EXIT_READER_LEFT, "")


def test_another_pipe_that_breaks_is_no_reader_that_left(monkeypatch):
    def breaks(argv):
        raise BrokenPipeError("a worker's")

    monkeypatch.setattr(entry, "_run", breaks)
    with pytest.raises(BrokenPipeError, match="a worker's"):
        main(["train"])


def test_an_error_is_said_without_loading_what_draws_tables():
    code = (
        "import sys; from lightning_mmrl.cli.main import main; "
        "sys.exit(main(['predict', 'x']) * 10 + ('rich' in sys.modules or 'torch' in sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert ran.returncode == 20
    assert ran.stderr.startswith("mmrl predict: there is nothing to ask about")


@pytest.fixture
def failing(monkeypatch):
    """Starts the command such that its subcommand raises the given error."""
    monkeypatch.setenv("MMRL_SERVER_KEY", "hunter22")
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    for module in (sys, threading):
        monkeypatch.setattr(module, "excepthook", module.excepthook)
    monkeypatch.setattr(sys, "argv", ["mmrl", "plan"])

    def call(run):
        command = SimpleNamespace(run=run)
        monkeypatch.setattr(entry.importlib, "import_module", lambda name: command)
        return main()

    return call


def test_an_uncaught_traceback_repeats_no_credentials(failing, capsys):
    def run(arguments):
        raise RuntimeError("header hunter22 of http://me:other22@host was refused")

    with pytest.raises(RuntimeError) as caught:
        failing(run)
    sys.excepthook(caught.type, caught.value, caught.tb)
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last):")
    assert said.endswith("RuntimeError: header *** of http://host was refused\n")
    assert "hunter22" not in said


@pytest.mark.parametrize("error", [ValueError("no hunter22"), OSError(28, "no space", "/a/hunter22"), SystemExit(1)])
def test_a_thread_that_ends_repeats_no_credentials(failing, capsys, error):
    def target():
        raise error

    def run(arguments):
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()
        return 0

    assert failing(run) == 0
    said = capsys.readouterr().err
    assert "hunter22" not in said
    assert ("ends" in said) is not isinstance(error, SystemExit)


def test_what_is_missing_in_the_end_is_said_without_credentials(failing, capsys, monkeypatch):
    monkeypatch.setattr(entry, "take_missing", lambda: ["3 tables are missing in http://me:other22@host/hunter22"])
    assert failing(lambda arguments: 0) == 0
    assert capsys.readouterr().err == "mmrl plan: 3 tables are missing in http://host/***\n"
