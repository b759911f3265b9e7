"""From `mlflow run -P overrides=...` to the arguments of `mmrl`, through MLflow's own quoting and a real shell."""

import os
import shlex
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lightning_mmrl.cli import mlproject
from lightning_mmrl.cli.mlproject import PARAMETERS, mmrl_arguments, split_overrides
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.training.interruption import Interruption

ROOT = Path(__file__).parents[3]
PROGRAM = "exec python -m lightning_mmrl.cli.mlproject "

NASTY = [
    "seed=1",
    "order=[pretrain, reason]",
    "run_name=a b",
    'prompt.system=it\'s "quoted"',
    "prompt.suffix=$HOME ${seed} $(touch X) `touch X`",
    "~evaluation.sets.ood",
    "+data.build.settings={scale: 0.5, seed: 3}",
    "prompt.prefill=<think>\n",
    "a=; touch X",
    "b=x && touch X | cat > X #",
    "back\\slash=1\\2",
    "glob=*",
    "percent=%d {braces} !history",
    "",
]


def command(entry_point, **values):
    """The command line that `mlflow run` gives to bash."""
    from mlflow.projects import load_project

    return load_project(str(ROOT)).get_entry_point(entry_point).compute_command(values, None)


def received(shell_command, folder):
    """The arguments that our module gets from bash."""
    assert shell_command.startswith(PROGRAM)
    spy = "printf '%s\\0' " + shell_command.removeprefix(PROGRAM)
    result = subprocess.run(["bash", "-c", spy], capture_output=True, text=True, check=True, cwd=folder)
    return result.stdout.split("\0")[:-1]


def test_the_parameters_are_those_of_the_project_file():
    project = yaml.safe_load((ROOT / "MLproject").read_text())
    assert {name: tuple(entry["parameters"]) for name, entry in project["entry_points"].items()} == PARAMETERS
    for name, entry in project["entry_points"].items():
        assert entry["command"] == PROGRAM + " ".join([name, *(f"{{{each}}}" for each in PARAMETERS[name])])


@pytest.mark.parametrize("entry_point", ["train", "quickstart"])
def test_an_empty_default_is_no_override(entry_point, tmp_path):
    expected = {"train": ["train"], "quickstart": ["train", "experiment=quickstart"]}
    assert mmrl_arguments(received(command(entry_point), tmp_path)) == expected[entry_point]


@pytest.mark.parametrize("value", NASTY)
def test_a_nasty_value_arrives_as_written_and_runs_nothing(value, tmp_path):
    arguments = received(command("train", overrides=shlex.join(["seed=1", value])), tmp_path)
    assert mmrl_arguments(arguments) == ["train", "seed=1", value]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text", ["; touch X", "$(touch X)", "`touch X`", "' ; touch X ; '", "a=1\ntouch X", "&& touch X"]
)
def test_text_that_is_no_override_runs_nothing_either(text, tmp_path):
    arguments = received(command("train", overrides=text), tmp_path)
    assert arguments == ["train", text]
    assert mmrl_arguments(arguments) == ["train", *shlex.split(text)]
    assert list(tmp_path.iterdir()) == []


NO_FLAG = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0")).filter(
    lambda text: not text.startswith("-")
)


@given(st.lists(NO_FLAG))
def test_any_list_of_overrides_survives_the_quoting(values):
    text = shlex.join(values)
    [quoted] = shlex.split(command("train", overrides=text).removeprefix(PROGRAM + "train"))
    assert mmrl_arguments(["train", quoted]) == ["train", *values]


@pytest.mark.parametrize("flag", ["--from-stage=b", "--from-stage b", "--only-stage b", "--allow-changes"])
def test_a_project_takes_the_flags_that_say_which_stages_run(flag):
    assert mmrl_arguments(["train", f"seed=1 {flag}"]) == ["train", "seed=1", *flag.split()]


@pytest.mark.parametrize(
    "overrides",
    [
        "--from-stagex=b",
        "--from-stage b --allow-targets evil",
        "--allow-targets evil seed=1",
        "seed=1 --allow-targets=evil",
        "'--allow-targets' evil",
        "--config-dir evil experiment=mine",
        "-cd evil",
        "--cfg=job",
        "--experimental-rerun job.pickle",
        "--multirun seed=1,2",
        "--help",
        "--",
    ],
)
@pytest.mark.parametrize("entry_point", ["train", "quickstart", "evaluate"])
def test_a_project_takes_no_flags(overrides, entry_point, capsys):
    values = ["runs/a/handoff", overrides] if entry_point == "evaluate" else [overrides]
    assert mlproject.run([entry_point, *values]) == 2
    assert "is a flag, and parameters take no other than --from-stage" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "--allow-targets=evil", ""],
        ["validate_data", "--json=x", "clips"],
        ["validate_data", "a.jsonl", "--allow-targets=evil"],
    ],
)
def test_no_other_parameter_is_a_flag_either(arguments, capsys):
    assert mlproject.run(arguments) == 2
    assert "is a flag" in capsys.readouterr().err


def test_the_example_of_the_documentation():
    assert split_overrides("a=1 b=[1,2] c='x y'") == ["a=1", "b=[1,2]", "c=x y"]


@pytest.mark.parametrize("text", ["c='x y", 'c="', "a\\"])
def test_an_open_quote_is_refused_with_the_text(text, capsys):
    with pytest.raises(ConfigError, match="close the quote"):
        split_overrides(text)
    assert mlproject.run(["train", text]) == 2
    assert repr(text) in capsys.readouterr().err


def test_the_checkpoint_and_the_folders_are_single_arguments(tmp_path):
    folder = "runs/a b/$x/handoff"
    arguments = received(command("evaluate", checkpoint=folder, overrides="seed=1 x='a b'"), tmp_path)
    assert mmrl_arguments(arguments) == ["evaluate", folder, "seed=1", "x=a b"]
    assert mmrl_arguments(received(command("evaluate", checkpoint=folder), tmp_path)) == ["evaluate", folder]
    arguments = received(command("validate_data", manifest="a b.jsonl", media_root="clips;x"), tmp_path)
    assert mmrl_arguments(arguments) == ["data", "validate", "a b.jsonl", "--media-root", "clips;x"]


def test_a_parameter_that_the_project_does_not_declare_is_refused(tmp_path, capsys):
    arguments = received(command("train", **{"stages.reason.num_steps": "3"}), tmp_path)
    assert mlproject.run(arguments) == 2
    message = capsys.readouterr().err
    assert "-P stages.reason.num_steps=...: train has no such parameter, it takes overrides" in message
    assert "-P overrides='stages.reason.num_steps=... KEY=VALUE'" in message


def test_errors_of_the_command_reach_the_exit_code(capfd):
    result = subprocess.run([sys.executable, "-m", "lightning_mmrl.cli.mlproject", "train", "sede=1"], check=False)
    assert result.returncode == 2
    assert "did you mean 'seed'" in capfd.readouterr().err


def interrupted(monkeypatch, *numbers, within=None):
    """The number of interruptions by several signals; all but the first arrive while the first is handled."""
    count = 0
    contexts = iter([within] if within else [])

    def command(_):
        nonlocal count
        for number in numbers:
            try:
                with next(contexts, nullcontext()):
                    os.kill(os.getpid(), number)
            except KeyboardInterrupt:
                count += 1
        return 0

    monkeypatch.setattr(mlproject, "main", command)
    monkeypatch.setattr(Interruption, "received", False)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert mlproject.run(["train", ""]) == 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return count


def test_sigterm_interrupts_once_and_ctrl_c_always(monkeypatch):
    assert interrupted(monkeypatch, signal.SIGTERM) == 1
    assert interrupted(monkeypatch, signal.SIGINT, signal.SIGTERM) == 1
    assert interrupted(monkeypatch, signal.SIGTERM, signal.SIGTERM, signal.SIGINT) == 2


def test_the_sigterm_of_mlflow_may_come_after_the_stage_was_interrupted(monkeypatch):
    """Else the closing of the runs would be interrupted, and they would stay RUNNING."""
    assert interrupted(monkeypatch, signal.SIGINT, signal.SIGTERM, within=Interruption()) == 1
