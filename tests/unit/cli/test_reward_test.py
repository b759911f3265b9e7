"""`mmrl reward-test`: scores saved rollouts with the rewards of their run, in processes and without torch."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from lightning_mmrl.cli.main import main
from lightning_mmrl.config.compose import compose
from lightning_mmrl.data.rollout_table import RolloutRow, read_table, write_table
from lightning_mmrl.types.records import Completion, Message, Sample, Score

HERE = Path(__file__).parent

RIGHT = "<think>a frown</think><answer>angry</answer>"
WRONG = "<think>a smile</think><answer>happy</answer>"
BARE = "angry"

LABELS = {RIGHT: 1.0, WRONG: 0.0, BARE: 0.0}
FORMATS = {RIGHT: 1.0, WRONG: 1.0, BARE: 0.0}


def scored(text):
    return Score(
        total=LABELS[text] + FORMATS[text], components={"format": FORMATS[text], "label": LABELS[text]}, reason=None
    )


def row(name, *texts, scores=None):
    return RolloutRow(
        sample=Sample(id=name, messages=(Message(role="user", content="Which emotion?"),), solution="angry"),
        completions=tuple(Completion(text=text, num_tokens=9, truncated=False) for text in texts),
        scores=tuple(scores or map(scored, texts)),
        policy_version=0,
    )


@pytest.fixture(scope="module")
def saved():
    config = compose(["experiment=quickstart", "tracking=none"])
    return OmegaConf.to_yaml(OmegaConf.structured(config))


@pytest.fixture
def folder(tmp_path, saved):
    """The rollouts of a run with one table and the rewards of the quickstart."""
    rollouts = tmp_path / "runs" / "quick" / "stages" / "02-reason" / "rollouts"
    rollouts.mkdir(parents=True)
    (tmp_path / "runs" / "quick" / "config.yaml").write_text(saved)
    write_table(rollouts / "iteration_000001.jsonl", [row("p0", RIGHT, WRONG), row("p1", BARE, RIGHT)])
    return rollouts


def reward_test(capsys, *arguments):
    code = main(["reward-test", *map(str, arguments)])
    captured = capsys.readouterr()
    return SimpleNamespace(code=code, out=captured.out, err=captured.err)


def cells(out, name):
    """The row of a printed table that starts with a name."""
    [line] = [line for line in out.splitlines() if name in line and line.startswith("\u2502")]
    return [cell.strip() for cell in line.strip("\u2502").split("\u2502")][1:]


def test_nothing_changes_with_the_runs_own_rewards(folder, capsys):
    before = sorted(folder.parents[2].rglob("*"))
    done = reward_test(capsys, folder, "--fail-on-change")
    assert done.code == 0
    assert "2 prompts, 4 responses, rewards of stage reason" in done.out
    assert "0 of 4 totals changed" in done.out
    assert cells(done.out, "format") == ["0.750", "0.750", "0", "0", "1.000"]
    assert cells(done.out, "label") == ["0.500", "0.500", "0", "0", "1.000"]
    assert "scoring prompts: 2/2" in done.err
    assert sorted(folder.parents[2].rglob("*")) == before


def test_an_override_shows_what_it_would_change(folder, capsys):
    done = reward_test(capsys, folder, "stages.reason.rewards.weights.format=0.5", "--show", "1")
    assert done.code == 0
    assert "3 of 4 totals changed (75.0%)" in done.out
    assert "2 more changed; --show 3 shows all" in done.out
    assert done.out.count("before  ") == 1
    assert "p0, response 0, solution 'angry'" in done.out
    assert "before  2 (format 1, label 1)" in done.out
    assert "now     1.5 (format 1, label 1)" in done.out
    assert f"  {RIGHT!r}" in done.out


def test_another_reward_shows_flips_groups_and_failures(folder, capsys):
    table = folder / "iteration_000001.jsonl"
    stricter = "stages.reason.rewards.components.label.labels=[happy,angry,sad]"
    assert reward_test(capsys, table, stricter, "--fail-on-change").code == 0
    # The table has right and wrong interchanged.
    swapped = [Score(total=1.0, components={"format": 1.0, "label": 0.0}), scored(RIGHT)]
    failed = Score(total=0.0, components={}, valid=False, reason="label: deadline of 8 s exceeded")
    write_table(table, [row("p0", RIGHT, WRONG, scores=swapped), row("p1", RIGHT, RIGHT, scores=[failed, failed])])
    done = reward_test(capsys, table, "--fail-on-change")
    assert done.code == 1
    assert "4 of 4 totals changed" in done.out
    assert cells(done.out, "label") == ["0.500", "0.750", "1", "1", "-1.000"]
    assert cells(done.out, "groups without variance") == ["50.0%", "50.0%"]
    assert cells(done.out, "mean pass rate") == ["0.500", "0.750"]
    assert cells(done.out, "invalid responses") == ["2", "0"]
    assert "invalid before: 2 x label: deadline of 8 s exceeded" in done.out
    assert done.out.index("p1, response 0") < done.out.index("p0, response 0")


def test_a_label_that_is_not_in_the_set_is_invalid_now(folder, capsys):
    done = reward_test(capsys, folder, "stages.reason.rewards.components.label.labels=[happy,sad]")
    assert cells(done.out, "invalid responses") == ["0", "4"]
    assert "invalid now: 2 x label: sample 'p0' has the solution 'angry'" in done.out
    assert cells(done.out, "mean pass rate") == ["0.500", "-"]


def test_a_reward_that_hangs_is_killed(folder, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(HERE.parent / "rewards"))
    hostile = importlib.import_module("hostile_rewards")
    monkeypatch.setattr("lightning_mmrl.app.rewards.build_reward", lambda *_: hostile.Obedient())
    write_table(folder / "iteration_000001.jsonl", [row("p0", "spin", "give 1", scores=[scored(WRONG)] * 2)])
    done = reward_test(capsys, folder, "stages.reason.rewards.deadline_s=0.5")
    assert done.code == 0
    assert "invalid now: 1 x deadline of 0.5 s exceeded (rewards.deadline_s)" in done.out
    assert "1 of 2 totals changed" in done.out


def test_out_holds_the_new_scores_and_never_replaces_a_file(folder, tmp_path, capsys):
    out = tmp_path / "new.jsonl"
    done = reward_test(capsys, folder, "stages.reason.rewards.weights.format=0.5", "--out", out)
    assert f"new scores in {out}" in done.out
    old = read_table(folder / "iteration_000001.jsonl")
    new = read_table(out)
    assert [each.sample for each in new] == [each.sample for each in old]
    assert [score.total for each in new for score in each.scores] == [1.5, 0.5, 0.0, 1.5]
    again = reward_test(capsys, folder, "--out", out)
    assert (again.code, again.out) == (2, "")
    assert f"--out {out} exists; name a new file" in again.err
    assert "is no folder; make it first" in reward_test(capsys, folder, "--out", tmp_path / "no" / "x.jsonl").err


def test_a_table_elsewhere_needs_the_run(folder, tmp_path, capsys):
    table = tmp_path / "copied.jsonl"
    write_table(table, [row("p0", RIGHT, WRONG)])
    assert "does not lie in a run's folder; name the run by --run DIR" in reward_test(capsys, table).err
    done = reward_test(capsys, table, "--run", tmp_path / "runs" / "quick")
    assert "0 of 2 totals changed" in done.out
    assert "config.yaml does not exist; name the folder of a run" in reward_test(capsys, table, "--run", tmp_path).err


def test_codes_that_a_model_sampled_do_not_reach_the_terminal(folder, capsys):
    text = "\x1b[2J[bold]angry[/bold]"
    write_table(folder / "iteration_000001.jsonl", [row("\x1b[31mp0", text, text, scores=[scored(RIGHT)] * 2)])
    done = reward_test(capsys, folder)
    assert "\x1b" not in done.out
    assert "\\x1b[31mp0, response 0" in done.out
    assert "[bold]angry[/bold]" in done.out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["stages.reason.rewards.weight.format=0.5"],
            "stages.reason.rewards.weight: unknown key; did you mean 'weights'?",
        ),
        (["model=null"], "model"),
        (
            ["stages.reason.rewards.weights.format=abc"],
            "stages.reason.rewards.weights.format is abc; it must be a number",
        ),
        (["stages.reason.rewards.components.label.lables=[a]"], "lables: unknown key; did you mean 'labels'?"),
        (["stages.reason.rewards.components.label._target_=os.system"], "components.label._target_ is 'os.system'"),
        (
            ["+stages.reason.rewards.weights.lable=1"],
            "stages.reason.rewards.weights.lable: weighs no component; did you mean 'label'?",
        ),
        (["--stage", "raeson"], "--stage raeson is no stage with rewards in"),
        (["--stage", "cold_start"], "--stage cold_start is no stage with rewards in"),
        (["--show", "-1"], "--show is -1; it must be at least 0"),
    ],
)
def test_bad_requests_are_one_sentence(arguments, sentence, folder, capsys):
    done = reward_test(capsys, folder, *arguments)
    assert (done.code, done.out) == (2, "")
    assert sentence in done.err
    assert done.err.startswith("mmrl reward-test: ")
    assert done.err.count("\n") == 1


def test_a_damaged_table_is_named_with_its_line(folder, capsys):
    table = folder / "iteration_000001.jsonl"
    table.write_bytes(table.read_bytes()[:-5])
    done = reward_test(capsys, folder)
    assert (done.code, done.out) == (2, "")
    assert f"{table} line 2: not valid JSON" in done.err


def test_no_table_and_unknown_flags_are_refused(capsys):
    for arguments in ([], ["x.jsonl", "--shwo", "3"]):
        with pytest.raises(SystemExit) as caught:
            main(["reward-test", *arguments])
        assert caught.value.code == 2
    assert "x.jsonl does not exist" in reward_test(capsys, "x.jsonl").err


def test_the_help_shows_examples(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["reward-test", "--help"])
    assert caught.value.code == 0
    assert "mmrl reward-test runs/quickstart/stages/02-reason/rollouts" in capsys.readouterr().out


SCRIPT = """
import json, sys
from lightning_mmrl.cli.main import main
if __name__ == "__main__":
    code = main(["reward-test", sys.argv[1]])
    print(json.dumps([code, sorted({"torch", "lightning", "transformers", "mlflow"} & set(sys.modules))]))
"""


def test_torch_stays_unloaded(folder, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []]
