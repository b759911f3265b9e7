"""The command `mmrl compare`: what it takes, refuses and shows."""

import subprocess
import sys

import pytest

from lightning_mmrl.app import processes
from lightning_mmrl.cli.compare import numbers, take_arms, take_file
from lightning_mmrl.cli.main import EXIT_BAD_INPUT, main
from lightning_mmrl.errors import ConfigError

GIVEN = ("experiment=emotions_sft_only", "+stage@stages.reason=tiny/reason")
ARMS = ("--arm", "sft=order=[pretrain,cold_start]", "--arm=both=order=[pretrain,cold_start,reason]")
FILE = """\
question: Which order?
arms:
  sft: ["order=[pretrain,cold_start]"]
  both: ["order=[pretrain,cold_start,reason]"]
"""
REFUSED = {
    "launched": ([*GIVEN, *ARMS], "a launcher started mmrl compare"),
    "several": ([*GIVEN, *ARMS, "--multirun"], "--multirun is refused"),
    "nothing": ([], "the comparison has no arms"),
    "without overrides": (["--arm", "sft"], "--arm 'sft' has no overrides; write --arm NAME='KEY=VALUE ...'"),
    "twice": ([*GIVEN, *ARMS, "--arm=sft=seed=1"], "--arm sft is given twice"),
    "file": ([*GIVEN, "compare=nothing"], "compare=nothing: there is no such comparison"),
    "files": (["compare=a", "compare=b"], "compare=a, b: name one comparison"),
    "seeds": ([*GIVEN, *ARMS, "--seeds", "2-0"], "--seeds is '2-0'; write a range such as 0-7"),
    "seed twice": ([*GIVEN, *ARMS, "--seeds", "0-2,1"], "seeds has 1 twice"),
    "budget": (
        [*GIVEN, *ARMS, "--budget", "flop=3"],
        "--budget flop=3: budget.flop: unknown key; did you",
    ),
    "budget twice": (
        [*GIVEN, *ARMS, "--budget=flops=1", "--budget=flops=2"],
        "--budget is given twice, as flops=1 and",
    ),
    "parallel": ([*GIVEN, *ARMS, "--parallel", "0"], "--parallel is '0'; give a whole number"),
    "baseline": ([*GIVEN, *ARMS, "--baseline", "stf"], "baseline is 'stf', which is no choice; did you mean 'sft'?"),
    "name": ([*GIVEN, *ARMS, "--name", "a/b"], "--name is a/b; it must be letters"),
    "output": ([*GIVEN, *ARMS, "output_dir=x"], "the command line sets output_dir, which the comparison sets"),
    "folds": ([*GIVEN, *ARMS, "--folds", "1,2"], "folds are 1, 2, and no override has {fold}"),
    "key": ([*GIVEN, *ARMS, "sede=1"], "arm sft: sede: unknown key; did you mean 'seed'?"),
    "shown": ([*GIVEN, *ARMS, "--cfg", "job"], "a flag asks to show a configuration"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_argument_gets_one_sentence_before_anything_trains(name, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(processes.subprocess, "Popen", None)
    if name == "launched":
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
        monkeypatch.setenv("WORLD_SIZE", "1")
    arguments, message = REFUSED[name]
    assert main(["compare", *arguments]) == EXIT_BAD_INPUT
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def configs(tmp_path):
    folder = tmp_path / "configs" / "compare"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(FILE)
    return folder.parent


def test_the_plan_shows_arms_shared_stages_runs_and_budget_and_writes_nothing(configs, capsys, tmp_path):
    out = tmp_path / "out"
    given = [*GIVEN, "compare=mine", "--config-dir", str(configs), f"--output-dir={out}", "--seeds", "0-2"]
    assert main(["compare", *given, "--arm", "rl=order=[pretrain,reason]", "--budget=steps=400", "--plan"]) == 0
    said = capsys.readouterr().out
    assert "mine: Which order?" in said
    for line in (
        "shared by sft, both, rl: pretrain",
        "runs: 9 (3 arms x 3 seeds), and 3 of shared stages",
        "budget: 400 steps for each arm",
        "measure: headline on test after the last stage",
        "3 seeds, 2 comparisons: true differences above",
        f"folder: {out / 'mine'}",
    ):
        assert line in said
    assert not out.exists()


def test_an_arm_of_the_command_line_has_a_name_of_its_own(configs, capsys):
    given = [*GIVEN, "compare=mine", "--config-dir", str(configs), "--arm", "sft=order=[pretrain]", "--plan"]
    assert main(["compare", *given]) == EXIT_BAD_INPUT
    assert "--arm sft: compare=mine has an arm of this name" in capsys.readouterr().err


def test_the_folder_of_a_run_is_none_of_a_comparison(capsys, tmp_path):
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "quickstart" / "manifest.json").write_text("{}")
    given = [*GIVEN, *ARMS, f"--output-dir={tmp_path}", "--name=quickstart", "--plan"]
    assert main(["compare", *given]) == EXIT_BAD_INPUT
    assert "is the folder of a run; give the comparison another --name" in capsys.readouterr().err


def test_the_plan_loads_no_torch(tmp_path):
    code = "import sys; from lightning_mmrl.cli.main import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, "compare", *GIVEN, *ARMS, "--plan"], check=True, cwd=tmp_path)


def test_arms_files_and_seeds_are_told_from_the_rest():
    assert take_arms(["a=1", "--arm=x=k=1 'l=a b'", "--arm", "y=k=2"]) == (
        {"x": ["k=1", "l=a b"], "y": ["k=2"]},
        ["a=1"],
    )
    assert take_file(["a=1", "compare=mine"]) == ("mine", ["a=1"])
    assert numbers("0-2, 7") == [0, 1, 2, 7]
    with pytest.raises(ConfigError, match="--seeds is 'x'"):
        numbers("x")
