"""`mmrl plan` and the first lines of `mmrl train` say how far the budget lets each stage go."""

import re

import pytest

from lightning_mmrl.cli import cost_lines
from lightning_mmrl.cli.main import main
from lightning_mmrl.cli.train import described
from lightning_mmrl.config.compose import compose

EXPERIMENT = ("experiment=task_arithmetic", "tracking=none")
WHOLE = "stages.cold_start.stop_when=null"
SIZES = ("model=qwen2_5_0_5b", "trainer=gpu_24gb")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # the command sets it for its process
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cost_lines, "duration", lambda seconds: f"{seconds!r} s")


def planned(capsys, *arguments):
    """The steps of each stage in the table, and the lines below it by what they are about."""
    assert main(["plan", *EXPERIMENT, *arguments]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    cells = [[cell.strip() for cell in line.split("\u2502")] for line in lines]
    steps = {row[1]: row[6] for row in cells if len(row) > 6 and row[1]}
    return steps, {name: [line for line in lines if line.startswith(f"{name} ")] for name in (*steps, "budget")}


def times(lines):
    """The time of a stage and of a step, in seconds, and the operations of a step."""
    (found,) = [line for line in lines if " takes " in line]
    numbers = re.search(r"about (\S+) s\b.*, (\S+) s a step: (\S+) x 10\^12", found).groups()
    return found, *(float(each.replace(",", "")) for each in numbers)


def test_a_budget_of_steps_gives_steps_passes_and_time(capsys):
    steps, lines = planned(capsys, "budget={steps: 5000}", WHOLE, *SIZES)
    assert steps == {"cold_start": "400", "reason": "4600"}
    limit = (
        "reason ends by the budget, at 5000 steps of cold_start and reason together; its schedules go by the share "
        "that is spent, as over 80 steps"
    )
    assert limit in lines["reason"]
    line, whole, step, _ = times(lines["reason"])
    assert line.startswith("reason takes about")
    assert whole == pytest.approx(4600 * step, rel=0.05)  # two digits of a step's time are shown
    assert not any("by the budget" in line for line in lines["cold_start"])


def test_steps_that_an_early_end_leaves_open_are_shown_so(capsys):
    steps, lines = planned(capsys, "budget={steps: 300}", *SIZES)
    assert steps == {"cold_start": "400", "reason": "?"}
    line, whole, step, _ = times(lines["reason"])
    assert line.startswith("reason takes up to about")
    assert whole == pytest.approx(300 * step, rel=0.05)  # two digits of a step's time are shown


@pytest.mark.parametrize(("measure", "total"), [("flops", 2e18), ("seconds", 900.0)])
def test_a_budget_in_another_measure_gives_limits_and_the_time_of_a_share(capsys, measure, total):
    budget = f"budget={{{measure}: {total}, shares: {{cold_start: 0.25, reason: 0.75}}}}"
    steps, lines = planned(capsys, budget, WHOLE, *SIZES)
    assert steps == {"cold_start": "?", "reason": "?"}
    for name, part, share in (("cold_start", 0.25, 0.25), ("reason", 1.0, 0.75)):
        assert any(f"ends by the budget, at {part * total:.6g} {measure}" in line for line in lines[name])
        line, whole, step, operations = times(lines[name])
        assert "by its share of the budget" in line
        expected = share * total if measure == "seconds" else share * total / (operations * 10**12) * step
        assert whole == pytest.approx(expected, rel=0.06)  # two digits of a step's time and operations are shown


def test_models_that_do_not_count_are_named(capsys):
    judge = "{_target_: lightning_mmrl.rewards.llm_judge.LlmJudge, local_checkpoint: models/judge}"
    own = (f"+stages.reason.rewards.components.judge={judge}", "+stages.reason.rewards.weights.judge=1")
    _, lines = planned(capsys, "budget={flops: 1e15}", *own)
    assert lines["budget"] == ["budget budget.flops does not count the operations of the judges of stages.reason"]


def test_a_plan_without_a_budget_says_nothing_of_one(capsys):
    steps, lines = planned(capsys, WHOLE)
    assert steps == {"cold_start": "400", "reason": "80"}
    assert not any("budget" in line for each in lines.values() for line in each)


def test_a_run_begins_with_the_steps_that_its_stages_will_make():
    work = "32 prompts x 8 = 256 completions, 1 update"
    for budget, said in (
        ("{steps: 5000}", f"4600 x {work}"),
        ("{flops: 1e15}", f"{work}, until its budget is spent"),
        ("null", f"80 x {work}"),
    ):
        assert described(compose([*EXPERIMENT, WHOLE, f"budget={budget}"]), "reason") == said
    passes = ("stages.cold_start.num_steps=null", "stages.cold_start.num_epochs=2")
    assert described(compose([*EXPERIMENT, WHOLE, *passes]), "cold_start") == "2 epochs x 32 targets"
