"""The processes of a comparison, with a script in the place of `mmrl`: exit codes, damage, and names."""

import json
import stat
from dataclasses import replace
from types import SimpleNamespace

import pytest
from run_folders import RunFolder

from lightning_mmrl.app import compare, processes
from lightning_mmrl.app.arms import planned
from lightning_mmrl.app.compare import Comparison, refuse_changes, run_comparison
from lightning_mmrl.app.shared_stages import BEGUN, segments
from lightning_mmrl.config.comparisons import comparison_of
from lightning_mmrl.config.compose import compose
from lightning_mmrl.curriculum.artifacts import write_artifact
from lightning_mmrl.errors import ConfigError, DataError
from lightning_mmrl.report.comparison import read_plan
from lightning_mmrl.tracking.null import NullTracker
from lightning_mmrl.types.records import HANDOFF, WEIGHTS

EXPERIMENT = ["experiment=emotions_sft_only", "+stage@stages.reason=tiny/reason", "tracking=none"]
SFT, RL, BOTH = "order=[pretrain,cold_start]", "order=[pretrain,reason]", "order=[pretrain,cold_start,reason]"


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """Runs comparisons whose processes end at once; `script` may use $1, the subcommand, and $run, its run_name."""

    def plan_of(arms, **keys):
        settings = comparison_of({"overrides": EXPERIMENT, "arms": arms, **keys})
        runs = planned(settings, [f"output_dir={tmp_path}"], "mine", {None: []}, lambda each: compose(list(each)))
        return Comparison(settings=settings, runs=runs, shared=segments(runs))

    def run(arms, script="exit 0"):
        shell = tmp_path / "python"
        find = 'for each in "$@"; do case "$each" in run_name=*) run="${each#run_name=}";; esac; done'
        note = f'echo "$1 $run" >> {tmp_path}/calls'
        shell.write_text(f"#!/bin/sh\nshift 2\n{find}\n{note}\n{script}\n")
        shell.chmod(shell.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(processes, "sys", SimpleNamespace(executable=str(shell)))
        said = []
        state = run_comparison(plan_of(arms), 1, said.append)
        plan = json.loads((tmp_path / "mine" / "compare.json").read_text())
        calls = (tmp_path / "calls").read_text().splitlines()
        return SimpleNamespace(state=state, said=said, calls=calls, runs={each["arm"]: each for each in plan["runs"]})

    return SimpleNamespace(run=run, planned=plan_of, folder=tmp_path / "mine")


def put_best(folder):
    def write(place):
        (place / "weights").write_text("x")
        return {}

    write_artifact(folder / "best", write, {})


def test_best_weights_that_cannot_be_evaluated_leave_the_run_as_it_is(lab):
    put_best(lab.folder / "runs" / "sft-seed0" / "stages" / "01-cold_start")
    found = lab.run({"sft": [SFT], "rl": [RL]}, "[ $1 = train ] || { echo no room; exit 4; }")
    assert "evaluate mine/best/sft-seed0" in found.calls
    run = found.runs["sft"]
    assert (run["exit_code"], run["best_exit_code"], run["best"]) == (0, 4, None)
    assert (found.runs["rl"]["exit_code"], found.runs["rl"]["best_exit_code"]) == (0, None)
    assert found.state.failed == ["sft-seed0"]
    assert any("evaluation of its best weights failed with exit code 4: no room" in line for line in found.said)


def test_best_weights_are_evaluated_again_only_if_that_is_another_evaluation(lab):
    put_best(lab.folder / "runs" / "sft-seed0" / "stages" / "01-cold_start")
    summary = lab.folder / "best" / "sft-seed0" / "evaluations" / "best" / "evaluation.json"
    script = f"[ $1 = train ] || {{ mkdir -p {summary.parent}; echo {{}} > {summary}; }}"
    arms = {"sft": [SFT], "rl": [RL]}
    found = lab.run(arms, script)
    assert (found.runs["sft"]["best"], found.runs["sft"]["best_exit_code"]) == ("best/sft-seed0/evaluations/best", 0)
    found = lab.run(arms, script)
    assert found.calls.count("evaluate mine/best/sft-seed0") == 1
    found = lab.run({arm: [*own, "evaluation.limit=3"] for arm, own in arms.items()}, script)
    assert found.calls.count("evaluate mine/best/sft-seed0") == 2


def test_a_new_arm_that_leaves_less_in_common_is_refused_with_the_reason(lab):
    arms = {"sft": [SFT], "both": [BOTH]}
    found = lab.planned(arms, budget={"steps": 400})
    [run, _] = found.runs
    folder = RunFolder(run.directory, order=run.config.order)
    reads = {}
    for spec in run.specs():
        reads = {WEIGHTS: folder.finish(spec.name, reads=reads)[HANDOFF]}
    stages = folder.manifest.stages
    finished = {
        spec.name: replace(stages[spec.name], digest=spec.digest, content=spec.content, evaluation=spec.evaluation)
        for spec in run.specs()
    }
    replace(folder.manifest, stages=finished).write(run.directory)
    refuse_changes(found)
    with pytest.raises(ConfigError) as error:
        refuse_changes(lab.planned({**arms, "alone": ["order=[reason]"]}, budget={"steps": 400}))
    assert "arm sft began with another configuration" in str(error.value)
    assert "the arms share other stages at their beginning than before, and these do not count" in str(error.value)
    with pytest.raises(ConfigError) as error:
        refuse_changes(lab.planned(arms, budget={"steps": 500}))
    assert "at their beginning" not in str(error.value)


@pytest.mark.parametrize("under", [True, False])
def test_under_mlflow_run_all_runs_go_to_its_store(lab, monkeypatch, under):
    """The runs lie below the run of the comparison, and thus in its store."""
    opened = []

    class Tracker(NullTracker):
        def __init__(self, config, made_by=None):
            opened.append(config.tracking.uri)

    monkeypatch.setattr(compare, "open_tracker", Tracker)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////theirs.db")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    if under:
        monkeypatch.setenv("MLFLOW_RUN_ID", "4f2a")
    note = f'echo "$MMRL_TRACKING_URI/$MLFLOW_RUN_ID" >> {lab.folder}/stores'
    lab.run({"sft": [SFT, "tracking=mlflow"], "rl": [RL, "tracking=mlflow"]}, note)
    own = f"sqlite:///{lab.folder.parent}/mlflow.db"
    assert opened == ["sqlite:////theirs.db" if under else own]
    expected = "sqlite:////theirs.db/" if under else "/"
    assert set((lab.folder / "stores").read_text().splitlines()) == {expected}


def test_the_plan_says_which_stages_of_an_arm_train(lab):
    lab.run({"drawn": ["order=[pretrain,draw]", "+stage@stages.draw=sample"], "rl": [RL]})
    arms = read_plan(lab.folder).arms
    assert (arms["drawn"].order, arms["drawn"].trained) == (("pretrain", "draw"), ("pretrain",))
    assert arms["rl"].trained == arms["rl"].order


def test_a_damaged_plan_is_refused_and_the_way_out_works(lab):
    arms = {"sft": [SFT], "rl": [RL]}
    lab.run(arms)
    file = lab.folder / "compare.json"
    file.write_text("{")
    with pytest.raises(DataError, match="remove it and run the same `mmrl compare` again"):
        lab.run(arms)
    file.unlink()
    assert lab.run(arms).state.failed == []


@pytest.mark.parametrize("file", ["manifest.json", BEGUN])
def test_a_damaged_folder_stops_no_other_run(lab, file):
    (lab.folder / "runs" / "sft-seed0").mkdir(parents=True)
    (lab.folder / "runs" / "sft-seed0" / file).write_text("{")
    found = lab.run({"sft": [SFT], "rl": [RL]}, "case $run in *runs/sft*) echo damaged; exit 2;; esac")
    assert {arm: run["exit_code"] for arm, run in found.runs.items()} == {"sft": 2, "rl": 0}
    assert "train mine/runs/rl-seed0" in found.calls
    assert any(line.startswith("sft-seed0: failed with exit code 2: damaged") for line in found.said)


def test_an_arm_may_have_the_name_of_a_shared_stage(lab):
    """Pretrain is shared, and its run is called as that of the arm `pretrain-sft`."""
    found = lab.run({"sft": [SFT], "pretrain-sft": [RL]}, "case $run in *runs/pretrain-*) exit 3;; esac")
    assert found.calls[0] == "train mine/shared/pretrain-sft-seed0"
    assert {arm: run["exit_code"] for arm, run in found.runs.items()} == {"sft": 0, "pretrain-sft": 3}
    logs = {path.relative_to(lab.folder / "logs").as_posix() for path in lab.folder.glob("logs/**/*.log")}
    assert logs == {"sft-seed0.log", "pretrain-sft-seed0.log", "shared/pretrain-sft-seed0.log"}
