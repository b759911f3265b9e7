"""`mmrl profile` on the tiny model, and the costs that `mmrl train` shows, keeps and logs."""

import json
import re

import pytest
from small_runs import SMALL_RL

from lightning_mmrl.app.profiling import WORK, profiled_stages, short_run
from lightning_mmrl.cli.main import main
from lightning_mmrl.config.compose import compose
from lightning_mmrl.curriculum.manifest import Manifest
from lightning_mmrl.errors import ConfigError

STAGES = (
    "+stage@stages.draw=sample",
    "order=[draw,reason]",
    "stages.draw.data.manifest=train.jsonl",
    "stages.draw.data.batch_size=2",
    "stages.draw.num_completions=2",
    "stages.draw.sampling.max_new_tokens=4",
)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    return work, (
        *SMALL_RL,
        f"output_dir={work}/runs",
        f"data.root={work}/clips",
        "run_name=mine",
        "trainer.gpu_teraflops=0.01",
    )


def ranges(path):
    """The phases of a trace, and the number of its events."""
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    named = {event["name"] for event in events if event.get("cat") == "user_annotation" and event["ph"] == "X"}
    return {name.removeprefix("mmrl/") for name in named if name.startswith("mmrl/")}, len(events)


@pytest.mark.slow
def test_a_profile_has_a_trace_for_each_stage_and_leaves_no_run(places, capsys):
    work, overrides = places
    tracking = f"tracking.uri=sqlite:///{work}/mlflow.db"
    assert main(["profile", *overrides, *STAGES, tracking, "--steps", "1", "--out", f"{work}/profile"]) == 0
    shown, page = capsys.readouterr().out, (work / "profile" / "profile.md").read_text(encoding="utf-8")
    assert page in shown
    assert {path.name for path in (work / "profile").iterdir()} == {
        "profile.md", "draw.trace.json", "reason.trace.json",
    }  # fmt: skip
    phases, num_events = ranges(work / "profile" / "reason.trace.json")
    assert {"data", "encode", "generate", "score", "push", "state"} <= phases
    assert num_events > 1000
    assert {"data", "generate", "score", "state"} <= ranges(work / "profile" / "draw.trace.json")[0]
    assert "## draw (sample):" in page
    assert "## reason (rl):" in page
    assert "over 1 steps" in page
    assert re.search(r"- MFU: \d+\.\d%\n", page)
    assert not (work / "runs" / "mine").exists()
    assert not (work / "runs" / "profiles").exists()
    assert not (work / "mlflow.db").exists()


@pytest.mark.slow
def test_a_run_shows_keeps_and_logs_the_costs_of_its_stages(places, capsys):
    work, overrides = places
    steps = ("trainer.max_steps=2", f"tracking.uri=sqlite:///{work}/tracked.db")
    assert main(["train", *overrides, *STAGES, *steps]) == 0
    shown = capsys.readouterr().out
    assert "Cost by stage" in shown
    assert main(["profile", *overrides, *STAGES, *steps, "--out", f"{work}/runs/mine"]) == 2
    assert "is the folder of a run; give a profile a folder of its own" in capsys.readouterr().err
    for folder, stage in (("00-draw", "draw"), ("01-reason", "reason")):
        place = work / "runs" / "mine" / "stages" / folder
        lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        costs = Manifest.read(work / "runs" / "mine").stages[stage].result.costs
        assert costs.num_steps == 2
        assert json.loads((place / "costs.json").read_text(encoding="utf-8"))["num_steps"] == 2
        assert "| all |" in (place / "costs.md").read_text(encoding="utf-8")
        for kind in ("prompt", "completion", "generated"):
            by_step = [line["metrics"].get(f"{stage}/tokens/{kind}", 0) for line in lines]
            assert sum(by_step) == costs.tokens[kind]
        assert costs.tokens["generated"] > 0
        by_step = [line["metrics"].get(f"{stage}/time/step_s", 0) for line in lines]
        assert 0 < sum(by_step) <= costs.total_s
        assert costs.mfu() is not None
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{work}/tracked.db")
    run = client.get_run(Manifest.read(work / "runs" / "mine").stages["reason"].result.tracking_id)
    assert run.data.metrics["reason/cost/seconds/all"] == pytest.approx(costs.total_s)
    assert {each.path for each in client.list_artifacts(run.info.run_id)} >= {"costs.json", "costs.md"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--steps", "0"], "--steps is '0'; it must be a whole number of steps, at least 1"),
        (["--steps=-1"], "--steps is '-1'; it must be a whole number of steps, at least 1"),
        (["--steps", "few"], "--steps is 'few'; it must be a whole number of steps, at least 1"),
        (["--stage", "nope"], "--stage nope: the run has no such stage; the stages that train or sample are"),
        (["--out"], "--out has no value"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(capsys, arguments, said):
    assert main(["profile", "experiment=quickstart", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_help_says_what_it_does_and_where_it_writes(capsys):
    assert main(["profile", "--help"]) == 0
    shown = capsys.readouterr().out
    for words in ("usage: mmrl profile", "--steps N", "--out DIR", "--stage NAME", "profile.md", "ui.perfetto.dev"):
        assert words in shown


def test_only_stages_that_make_steps_are_profiled(tmp_path):
    routed = compose(["experiment=metis_rise"])
    making = profiled_stages(routed, None)
    without = [name for name in routed.order if name not in making]
    assert making
    assert without
    with pytest.raises(
        ConfigError, match=f"--stage {without[0]}: a stage of kind {routed.stages[without[0]].kind} makes"
    ):
        profiled_stages(routed, without[0])
    routed.order = without
    with pytest.raises(ConfigError, match=r"has nothing to profile: no stage trains or samples among"):
        profiled_stages(routed, None)


def test_the_short_run_has_a_folder_of_its_own_and_asks_nobody(tmp_path):
    config = compose(["experiment=quickstart", "stages.reason.gate={metric: validation/uar, at_least: 0.5}"])
    short = short_run(config, tmp_path, ["cold_start"], 3)
    assert (short.run_name, short.output_dir) == (WORK, str(tmp_path))
    assert short.order == ["pretrain", "cold_start"]
    assert [short.stages[name].num_steps for name in config.order] == [5, 5, 5]
    assert short.stages["reason"].gate is None
    assert short.stages["reason"].evaluation_sets == []
    assert (short.tracking.uri, short.evaluation.base) == (None, False)
    assert config.stages["reason"].gate is not None
    routed = compose(["experiment=metis_rise"])
    for name in routed.order:
        stage = short_run(routed, tmp_path, routed.order, 1).stages[name]
        assert getattr(stage, "endpoint", None) is None
