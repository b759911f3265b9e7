"""A bridge end to end: a model describes, another reasons, a third learns the traces; a kill changes nothing."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from lightning_mmrl.cli.main import main
from lightning_mmrl.curriculum.artifacts import check_artifact
from lightning_mmrl.curriculum.manifest import Manifest
from lightning_mmrl.data.rollout_table import read_table
from lightning_mmrl.data.schema import read_manifest
from lightning_mmrl.stages import sample

pytestmark = pytest.mark.slow

NUM_PROMPTS, NUM_ANSWERS = 40, 2
SMALL = (
    "experiment=vision_r1",
    "tracking=none",
    "trainer.num_threads=1",
    "state.every_n_steps=2",
    "+data.build.scale=0.1",
    "data.validation=null",
    "evaluation.base=false",
    "evaluation.limit=4",
    "evaluation.max_new_tokens=4",
    "evaluation.num_resamples=20",
    "stages.describer.num_steps=50",
    "stages.describer.data.batch_size=16",
    "stages.reasoner.num_steps=60",
    "stages.reasoner.data.batch_size=16",
    "stages.see.start_from=previous",
    f"stages.see.data.limit={NUM_PROMPTS}",
    "stages.see.data.batch_size=16",
    "stages.think.start_from=previous",
    f"stages.think.num_completions={NUM_ANSWERS}",
    "stages.think.data.batch_size=16",
    "stages.cold_start.start_from=base",
    "stages.cold_start.num_epochs=null",
    "stages.cold_start.num_steps=4",
    "stages.cold_start.data.batch_size=2",
)


class Killed(BaseException):
    """Ends a run without a word; no handler of the package knows it."""


@dataclass(frozen=True)
class Workplace:
    """A folder with a data set, two trained models and runs."""

    folder: Path

    def train(self, name, order, *more):
        places = (f"output_dir={self.folder}/runs", f"data.root={self.folder}/dots", f"run_name={name}")
        return main(["train", *SMALL, *places, f"order=[{order}]", *more])

    def bridge(self, name, *more, order="see,ask,think,teach,cold_start"):
        """The bridge and its cold start, with the models that are trained already."""
        models = self.run("models") / "stages"
        starts = {"see": models / "00-describer/handoff", "think": models / "01-reasoner/handoff"}
        given = [f"stages.{stage}.checkpoint={folder}" for stage, folder in starts.items() if stage in order]
        return self.train(name, order, *given, *more)

    def run(self, name):
        return self.folder / "runs" / name

    def sealed(self, name):
        """The content of all that stages sealed, but for files that name the run's own folder."""
        root = self.run(name) / "stages"
        folders = [path.parent for path in sorted(root.rglob("mmrl.json"))]
        found = {path.relative_to(root): path.read_bytes() for each in folders for path in each.iterdir()}
        return {str(path): content for path, content in found.items() if path.suffix != ".json"}

    def made(self, name, stage, artifact):
        found = Manifest.read(self.run(name)).stages[stage].result.artifacts[artifact].path
        return self.run(name) / found

    def table(self, name, stage):
        parts = sorted(self.made(name, stage, "rollouts").glob("part-*.jsonl"))
        return {row.sample.id: row for path in parts for row in read_table(path)}

    def samples(self, name, stage, artifact):
        return read_manifest(self.made(name, stage, artifact) / f"{artifact}.jsonl", self.folder / "dots")

    def dropped(self, name, stage, artifact):
        lines = (self.made(name, stage, artifact) / "dropped.jsonl").read_text().splitlines()
        return {row["id"]: row["reason"] for row in map(json.loads, lines)}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    place = Workplace(tmp_path_factory.mktemp("workplace"))
    assert place.train("models", "describer,reasoner", "stages.describer.start_from=base") == 0
    return place


@pytest.fixture(scope="module")
def alone(workplace):
    """The name of the run that is left alone."""
    assert workplace.bridge("alone") == 0
    return "alone"


def test_every_prompt_becomes_a_trace_or_has_a_reason(alone, workplace):
    described, answered = workplace.table(alone, "see"), workplace.table(alone, "think")
    questions = {each.id: each for each in workplace.samples(alone, "ask", "questions")}
    unasked = workplace.dropped(alone, "ask", "questions")
    assert len(described) == NUM_PROMPTS
    assert questions.keys() | unasked.keys() == described.keys()
    assert not questions.keys() & unasked.keys()
    assert questions.keys() == answered.keys()
    for name, question in questions.items():
        description = described[name].completions[0].text.strip()
        assert [turn.content for turn in question.messages] == [f"{description}\n\nHow many dots?"]
        assert (question.media, question.solution) == ((), described[name].sample.solution)
    traces = {each.id.removesuffix("#bridge") for each in workplace.samples(alone, "teach", "traces")}
    reasons = workplace.dropped(alone, "teach", "traces")
    assert traces | reasons.keys() == described.keys()
    assert not traces & reasons.keys()
    counts = check_artifact(workplace.made(alone, "teach", "traces"))["counts"]
    assert counts == {"kept": len(traces), **{each: list(reasons.values()).count(each) for each in reasons.values()}}


def test_a_trace_is_a_right_answer_to_the_description_with_the_media_of_its_prompt(alone, workplace):
    described, answered = workplace.table(alone, "see"), workplace.table(alone, "think")
    traces = workplace.samples(alone, "teach", "traces")
    assert 0 < len(traces) < NUM_PROMPTS
    for trace in traces:
        name = trace.id.removesuffix("#bridge")
        prompt, target = described[name].sample, trace.messages[-1].content
        assert (trace.media, trace.messages[:-1]) == (prompt.media, prompt.messages)
        assert (workplace.folder / "dots" / trace.media[0].path).is_file()
        assert re.findall("<answer>(.*?)</answer>", target) == [prompt.solution]
        said = [each.text for each in usable(answered[name])]
        assert target == said[0].replace("the description", "the image")
        assert "description" not in target
    assert any("the image" in trace.messages[-1].content for trace in traces)


def test_reasons_are_those_of_the_answers(alone, workplace):
    answered = workplace.table(alone, "think")
    reasons = workplace.dropped(alone, "teach", "traces")
    assert "no_right_answer" in reasons.values()
    for name, reason in reasons.items():
        if name not in answered:
            assert reason == "not_answered"
            continue
        row = answered[name]
        right = [not each.truncated and is_right for each, is_right in zip(row.completions, row.right, strict=True)]
        assert usable(row) == []
        assert reason == ("forbidden" if any(right) else "no_right_answer")


def usable(row):
    """Answers that are right, whole, and do not say that their writer cannot see."""
    pairs = zip(row.completions, row.right, strict=True)
    return [each for each, right in pairs if right and not each.truncated and "cannot see" not in each.text]


def test_the_cold_start_learns_the_traces(alone, workplace):
    stages = {name: stage.result for name, stage in Manifest.read(workplace.run(alone)).stages.items()}
    assert stages["cold_start"].inputs["data.sources.bridged"] == stages["teach"].artifacts["traces"].digest
    assert stages["cold_start"].changed


def test_a_bridge_that_is_killed_while_it_thinks_ends_with_the_same_bytes(alone, workplace, monkeypatch, capsys):
    write_table, parts = sample.write_table, []

    def cut_short(path, rows):
        parts.append(path)
        if len(parts) == 5:  # three parts of descriptions, and the second one of answers
            raise Killed
        write_table(path, rows)

    with monkeypatch.context() as patch:
        patch.setattr(sample, "write_table", cut_short)
        with pytest.raises(Killed):
            workplace.bridge("killed")
    left = sorted(path.name for path in workplace.run("killed").glob("stages/*-think/state/part-*.jsonl"))
    assert left == ["part-000000.jsonl"]
    capsys.readouterr()
    assert workplace.bridge("killed") == 0
    assert "continuing after 1 of 3 batches" in capsys.readouterr().err
    assert workplace.sealed("killed") == workplace.sealed(alone)


def test_another_seed_has_other_descriptions(alone, workplace):
    """The negative control of the comparison above."""
    assert workplace.bridge("seed", "seed=1", order="see") == 0
    same = {name: content for name, content in workplace.sealed("seed").items() if "rollouts/part" in name}
    assert same
    assert all(workplace.sealed(alone)[name] != content for name, content in same.items())
