"""Stages whose data turned out to be empty: sources are left out, stages have nothing to do, and each is said."""

import json

import pytest

from lightning_mmrl.cli.main import main
from lightning_mmrl.curriculum.artifacts import sealed
from lightning_mmrl.curriculum.manifest import Manifest

pytestmark = pytest.mark.slow

NONE_RIGHT = (
    "experiment=task_arithmetic",
    "model=tiny_qwen2",
    "trainer=cpu",
    "trainer.num_threads=1",
    "+data.build.scale=0.1",
    "evaluation.limit=2",
    "evaluation.max_new_tokens=2",
    "evaluation.num_resamples=20",
    "stages.cold_start.num_steps=1",
    "stages.cold_start.data.batch_size=2",
    "stages.cold_start.stop_when=null",
    "stages.cold_start.validate_every=null",
    "+stage@stages.draw=sample",
    "stages.draw.num_completions=2",
    "stages.draw.data.limit=2",
    "stages.draw.sampling.max_new_tokens=2",
    "+stage@stages.sort=route",
    "stages.sort.table={stage: draw}",
    "+stage@stages.ask=sample",
    "stages.ask.num_completions=2",
    "stages.ask.data.manifest=null",
    "+stages.ask.data.sources.solved={stage: sort, artifact: solved}",
    "+stage@stages.hard=filter",
    "stages.hard.table={stage: ask}",
    "stages.hard.even.by=speaker",
    "+stage@stages.again=tiny/task_cold_start",
    "stages.again.data.manifest=null",
    "+stages.again.data.sources={own: {stage: sort, artifact: own}, asked: {stage: ask, artifact: own}}",
    "stages.again.data.batch_size=2",
    "stages.again.num_steps=null",
    "stages.again.num_epochs=1",
    "stages.again.stop_when=null",
    "stages.again.validate_every=null",
    "order=[cold_start,draw,sort,ask,hard,again]",
)
NO_OWN = "artifact own of stage sort has no sample (0 kept, 0 prompts, 2 never_solved)"
NO_SOLVED = "artifact solved of stage sort has no sample (0 kept, 0 prompts, 2 never_solved)"
NO_ASKED = f"artifact own of stage ask has no sample (0 kept), since {NO_SOLVED}"


class Workplace:
    """A folder with a data set, a base model and runs."""

    def __init__(self, folder):
        self.folder = folder

    def train(self, name, *more, tracking=("tracking=none",)):
        places = (f"output_dir={self.folder}/runs", f"data.root={self.folder}/sums", f"run_name={name}")
        return main(["train", *NONE_RIGHT, *places, *tracking, *more])

    def run(self, name):
        return self.folder / "runs" / name

    def results(self, name):
        return {name: stage.result for name, stage in Manifest.read(self.run(name)).stages.items()}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return Workplace(tmp_path_factory.mktemp("workplace"))


def test_a_stage_with_nothing_to_learn_from_ends_the_run_with_one_sentence_each_time(workplace, capsys):
    sentences = []
    for _ in range(2):
        assert workplace.train("ends") == 2
        sentences.append(capsys.readouterr().err.strip().splitlines()[-1])
    assert sentences[0] == sentences[1]
    assert (
        f"stages.again has nothing to learn from: {NO_OWN}; {NO_ASKED}; change stages.sort and run it again with "
        "--from-stage sort, or set stages.again.when_empty=skip to hand on the weights as they are"
    ) in sentences[0]
    results = workplace.results("ends")
    # The stages before it had nothing to do either, and made artifacts that say so.
    assert {name: result.idle for name, result in results.items()} == {
        "cold_start": False,
        "draw": False,
        "sort": False,
        "ask": True,
    }
    assert results["ask"].empty_inputs == {"data.sources.solved": NO_SOLVED}
    rollouts = workplace.run("ends") / results["ask"].artifacts["rollouts"].path
    assert sealed(rollouts)["counts"] == {"kept": 0, "completions": 0}


def test_with_skip_its_weights_are_handed_on_and_everything_says_so(workplace, capsys):
    tracking = "tracking=mlflow", f"tracking.uri=sqlite:///{workplace.folder}/mlflow.db"
    assert workplace.train("skips", "stages.again.when_empty=skip", tracking=tracking) == 0
    shown = capsys.readouterr()
    assert f"stage 4 of 6 ask: nothing to do: {NO_SOLVED}; it makes empty artifacts" in shown.err
    assert "stage 5 of 6 hard: nothing to do: artifact rollouts of stage ask has no sample" in shown.err
    assert f"again: nothing to do: {NO_OWN}; {NO_ASKED}; its weights are handed on as they are" in shown.err
    assert "again: nothing to do, train" in shown.out
    assert f"without data.sources.own: {NO_OWN}" in " ".join(shown.out.split())
    run, results = workplace.run("skips"), workplace.results("skips")
    again, first = (run / results[name].artifacts["handoff"].path for name in ("again", "cold_start"))
    assert weights(again) == weights(first)
    assert (results["again"].num_steps, results["again"].changed, results["again"].idle) == (0, False, True)
    assert {key.partition("/")[2]: value for key, value in results["again"].metrics.items()} == {
        key.partition("/")[2]: value for key, value in results["cold_start"].metrics.items() if "/test/" in key
    }
    assert main(["lineage", str(again)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"  without        data.sources.asked: {NO_ASKED}" in lines
    assert "  nothing to do" in lines
    assert sealed(again)["lineage"]["empty.data.sources.own"] == NO_OWN
    assert tags_of(workplace, results["again"].tracking_id) == {
        "mmrl.idle": "true",
        "mmrl.empty.data.sources.own": NO_OWN,
        "mmrl.empty.data.sources.asked": NO_ASKED,
    }
    assert workplace.train("skips", "stages.again.when_empty=skip", tracking=tracking) == 0
    assert capsys.readouterr().err.count("already finished") == 6


def weights(handoff):
    return {path.name: path.read_bytes() for path in handoff.glob("*.safetensors")}


def tags_of(workplace, run_id):
    from mlflow import MlflowClient

    tags = MlflowClient(f"sqlite:///{workplace.folder}/mlflow.db").get_run(run_id).data.tags
    return {key: value for key, value in tags.items() if key.startswith(("mmrl.idle", "mmrl.empty"))}


def test_an_empty_source_beside_another_one_is_left_out(workplace, capsys):
    more = "+stages.again.data.sources.taught={manifest: cold_start.jsonl, limit: 6}"
    assert workplace.train("rest", more) == 0
    shown = capsys.readouterr()
    assert f"stage 6 of 6 again: data.sources.own is left out: {NO_OWN}" in shown.err
    assert f"stage 6 of 6 again: data.sources.asked is left out: {NO_ASKED}" in shown.err
    again = workplace.results("rest")["again"]
    assert again.empty_inputs == {"data.sources.own": NO_OWN, "data.sources.asked": NO_ASKED}
    assert (again.idle, again.num_steps, again.changed) == (False, 3, True)  # an epoch of what is left
    assert (
        json.loads((workplace.run("rest") / "manifest.json").read_text())["stages"]["again"]["result"]["idle"] is False
    )
