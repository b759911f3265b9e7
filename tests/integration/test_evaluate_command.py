"""`mmrl evaluate` and the evaluations of `mmrl train` continue after a kill, and give what an unkilled one gives."""

import json
import os
import signal
import subprocess
import sys

import pytest

from lightning_mmrl.cli.main import main
from lightning_mmrl.stages.answers import AnswerEvaluator
from lightning_mmrl.stages.judged import PROGRESS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SETTINGS = (
    "experiment=task_arithmetic",
    "+data.build.scale=0.05",
    "order=[cold_start]",
    "data.validation=null",
    "stages.cold_start.num_steps=2",
    "stages.cold_start.start_from=base",
    "stages.cold_start.stop_when=null",
    "stages.cold_start.validate_every=null",
    "stages.cold_start.adapter={r: 4, alpha: 8}",
    "evaluation.limit=10",
    "evaluation.batch_size=4",
    "evaluation.max_new_tokens=6",
    "evaluation.num_resamples=50",
    "trainer.num_threads=1",
    "tracking=none",
)
BATCHES = 3
"""Of 4, 4 and 2 samples."""
KILLING = """
import os, signal, sys
from lightning_mmrl.cli.main import main
from lightning_mmrl.stages.judged import JudgedBatches
keep, kept = JudgedBatches.keep, []
def killing(self, name, batch):
    keep(self, name, batch)
    kept.append(name)
    if len(kept) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
JudgedBatches.keep = killing
if __name__ == "__main__":
    sys.exit(main(sys.argv[2:]))
"""
OTHER_SETS = ("~evaluation.sets.test", "+evaluation.sets.other=test.jsonl")
RESULTS = ("evaluated.json", "evaluation.json", "test.jsonl")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return tmp_path_factory.mktemp("workplace")


def run(workplace, *arguments, kill_after=0):
    """The command in a process of its own, killed after some batches; returns what it wrote to standard error."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", KILLING, str(kill_after), *arguments[:1], *SETTINGS, *arguments[1:]]
    done = subprocess.run(command, cwd=workplace, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == (-signal.SIGKILL if kill_after else 0), done.stderr[-3000:]
    return done.stderr


@pytest.fixture(scope="module")
def whole(workplace):
    """A run that nobody kills."""
    run(workplace, "train", "run_name=whole")
    return workplace / "runs" / "whole"


def content(folder):
    return {name: (folder / name).read_bytes() for name in RESULTS}


def test_a_killed_run_does_not_repeat_the_batches_that_it_judged(workplace, whole):
    """Killed in the evaluation of the base, and then in that of the stage."""
    cut = workplace / "runs" / "cut"
    run(workplace, "train", "run_name=cut", kill_after=2)
    assert sorted(path.name for path in (cut / "base" / "evaluation").iterdir()) == [PROGRESS]
    again = run(workplace, "train", "run_name=cut", kill_after=BATCHES - 2 + 1)
    assert "evaluating base: goes on after 2 batches, which are judged already" in again
    stage = cut / "stages" / "00-cold_start" / "evaluation"
    assert sorted(path.name for path in stage.iterdir()) == [PROGRESS]
    again = run(workplace, "train", "run_name=cut", kill_after=0)
    assert "evaluating cold_start: goes on after 1 batches, which are judged already" in again
    assert "evaluating base" not in again
    for place in ("base/evaluation", "stages/00-cold_start/evaluation"):
        assert content(cut / place) == content(whole / place)
        assert not (cut / place / PROGRESS).exists()


def test_a_killed_evaluation_continues_on_two_ranks_to_the_results_of_one(workplace, whole):
    handoff = "runs/whole/stages/00-cold_start/handoff"
    run(workplace, "evaluate", handoff, "run_name=e", kill_after=1)
    folder = workplace / "runs" / "e" / "evaluations" / "00-cold_start"
    assert {path.name for path in folder.iterdir()} == {"exclusions.jsonl", PROGRESS}
    again = run(workplace, "evaluate", handoff, "run_name=e", "trainer.devices=2")
    assert "evaluating 00-cold_start: goes on after 1 batches, which are judged already" in again
    wanted = content(whole / "stages" / "00-cold_start" / "evaluation")
    assert content(folder) == wanted
    assert json.loads((folder / "gains.json").read_text())["gains"][0]["over"] == "base"


@pytest.fixture
def here(workplace, whole, monkeypatch):
    """The workplace as the current folder, and the numbers of prompts of all batches that are asked."""
    monkeypatch.chdir(workplace)
    asked, evaluate = [], AnswerEvaluator.evaluate

    def counting(self, prompts, *ranks):
        asked.append(len(prompts.samples))
        return evaluate(self, prompts, *ranks)

    monkeypatch.setattr(AnswerEvaluator, "evaluate", counting)
    return asked


def test_an_adapter_over_its_base_answers_as_the_handoff_with_it_merged(here, capsys, workplace, whole):
    stage = "runs/whole/stages/00-cold_start"
    settings = (*SETTINGS, "run_name=a")
    assert main(["evaluate", f"{stage}/handoff/adapter", *settings, "--baseline", "runs/whole"]) == 0
    assert here == [4, 4, 2]
    folder = workplace / "runs" / "a" / "evaluations" / "00-cold_start-adapter"
    wanted = content(whole / "stages" / "00-cold_start" / "evaluation")
    assert {name: (folder / name).read_bytes() for name in RESULTS[1:]} == {name: wanted[name] for name in RESULTS[1:]}
    assert "gained over runs/whole:cold_start" in capsys.readouterr().out
    (gain,) = json.loads((folder / "gains.json").read_text())["gains"]
    assert (gain["difference"]["estimate"], gain["unpaired"]) == (0.0, [])
    decisions = (folder / "exclusions.jsonl").read_bytes()
    # Asked again with another number of resamples, it gives the same answers without asking the model.
    assert main(["evaluate", f"{stage}/handoff/adapter", *settings, "evaluation.num_resamples=60"]) == 0
    assert here == [4, 4, 2]
    assert "the answers on test are those of an earlier evaluation" in capsys.readouterr().err
    assert (folder / "test.jsonl").read_bytes() == wanted["test.jsonl"]
    assert (folder / "exclusions.jsonl").read_bytes() == decisions
    assert json.loads((folder / "evaluation.json").read_text()) != json.loads(wanted["evaluation.json"])


def test_other_settings_start_afresh_and_say_so(here, capsys, workplace):
    handoff, settings = "runs/whole/stages/00-cold_start/handoff", (*SETTINGS, "run_name=s")
    run(workplace, "evaluate", handoff, "run_name=s", kill_after=1)
    assert main(["evaluate", handoff, *settings, "evaluation.max_new_tokens=5"]) == 0
    assert here == [4, 4, 2]
    assert "is not continued, which had common.max_new_tokens: 6 -> 5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--baseline", "runs/none"], "--baseline runs/none is no run folder and holds no evaluation; give a run"),
        (["--baseline", "runs/whole:reason"], "has no evaluation of reason: evaluated are base, cold_start"),
        (["--base", "models"], "--base is models, and checkpoint"),
        ([*OTHER_SETS, "--baseline", "runs/whole"], "was evaluated on test, and this evaluation has other; evaluate"),
        (["~evaluation.sets.test"], "evaluation.sets is {}; it must be at least one set"),
        (["evaluation.sets.test=train.jsonl", "--baseline", "runs/whole"], "was evaluated on another manifest of test"),
    ],
)
def test_a_wrong_baseline_is_refused_before_anything_is_asked(here, capsys, workplace, arguments, sentence):
    handoff = "runs/whole/stages/00-cold_start/handoff"
    assert main(["evaluate", handoff, *SETTINGS, "run_name=refused", *arguments]) == 2
    assert sentence in capsys.readouterr().err
    assert here == []
    assert not (workplace / "runs" / "refused" / "evaluations").exists()
