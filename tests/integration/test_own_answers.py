"""SFT, answers of the model to other questions, and SFT on the right ones; killed anywhere, and on two ranks."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass

import pytest

from lightning_mmrl.cli.main import main
from lightning_mmrl.curriculum import artifacts, orchestrator
from lightning_mmrl.curriculum.artifacts import check_artifact
from lightning_mmrl.curriculum.manifest import Manifest
from lightning_mmrl.data.rollout_table import read_table
from lightning_mmrl.data.schema import read_manifest
from lightning_mmrl.stages import sample
from lightning_mmrl.stages.module import StageModule

pytestmark = pytest.mark.slow

OWN_ANSWERS = (
    "experiment=task_arithmetic",
    "model=tiny_qwen2",
    "order=[cold_start,draw,again]",
    "tracking=none",
    "trainer=cpu",
    "trainer.num_threads=1",
    "state.every_n_steps=2",
    "+data.build.scale=0.1",
    "evaluation.limit=4",
    "evaluation.max_new_tokens=4",
    "evaluation.num_resamples=20",
    "stages.cold_start.num_steps=30",
    "stages.cold_start.data.batch_size=8",
    "stages.cold_start.stop_when=null",
    "stages.cold_start.validate_every=null",
    "+stage@stages.draw=sample",
    "stages.draw.data.limit=14",
    "stages.draw.data.batch_size=4",
    "stages.draw.sampling.max_new_tokens=16",
    "stages.draw.keep.max_per_prompt=2",
    "+stage@stages.again=tiny/task_cold_start",
    "stages.again.data.manifest=null",
    "+stages.again.data.sources.own={stage: draw, artifact: own}",
    "stages.again.data.batch_size=2",
    "stages.again.num_steps=4",
    "stages.again.stop_when=null",
    "stages.again.validate_every=null",
)


@dataclass(frozen=True)
class Workplace:
    """A folder with a data set, a base model and runs."""

    folder: object

    def arguments(self, name, *more):
        places = (f"output_dir={self.folder}/runs", f"data.root={self.folder}/sums", f"run_name={name}")
        return ["train", *OWN_ANSWERS, *places, *more]

    def train(self, name, *more):
        return main(self.arguments(name, *more))

    def run(self, name):
        return self.folder / "runs" / name

    def files(self, name):
        """What later stages and users read: weights, tables, and seals, all but what names the run's own folder."""
        root = self.run(name) / "stages"
        sealed = [path.parent for path in sorted(root.rglob("mmrl.json"))]
        found = {path.relative_to(root): path.read_bytes() for each in sealed for path in each.iterdir()}
        return {str(path): content for path, content in found.items() if path.suffix != ".json"}

    def digests(self, name):
        results = [stage.result for stage in Manifest.read(self.run(name)).stages.values()]
        return {result.name: {key: made.digest for key, made in result.artifacts.items()} for result in results}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return Workplace(tmp_path_factory.mktemp("workplace"))


@pytest.fixture(scope="module")
def alone(workplace):
    """The name of the run that is left alone."""
    assert workplace.train("alone") == 0
    return "alone"


@pytest.mark.main_path
def test_a_model_learns_from_its_own_right_answers(alone, workplace):
    run = workplace.run(alone)
    stages = {name: stage.result for name, stage in Manifest.read(run).stages.items()}
    rollouts, own = (run / stages["draw"].artifacts[name].path for name in ("rollouts", "own"))
    facts = [check_artifact(folder) for folder in (rollouts, own)]
    rows = [row for path in sorted(rollouts.glob("part-*.jsonl")) for row in read_table(path)]
    prompts = read_manifest(workplace.folder / "sums" / "train.jsonl", workplace.folder / "sums")[:14]
    assert [row.sample for row in rows] == prompts
    assert {len(row.completions) for row in rows} == {8}
    right = [(row, place) for row in rows for place, each in enumerate(row.right) if each]
    assert 0 < len(right) < 8 * 14
    for row, place in right:
        assert f"<answer>{row.sample.solution}</answer>" in row.completions[place].text
    assert stages["draw"].metrics["draw/rollout/pass_rate"] == pytest.approx(len(right) / (8 * 14))
    learned = read_manifest(own / "own.jsonl", workplace.folder / "sums")
    assert facts[1]["counts"]["kept"] == len(learned) > 0
    texts = {f"{row.sample.id}#{place}": row.completions[place].text for row, place in right}
    assert {each.id: each.messages[-1].content for each in learned}.items() <= texts.items()
    assert facts[1]["media_root"] == str(workplace.folder / "sums")
    assert stages["again"].inputs == {
        "weights": stages["cold_start"].handoff.digest,
        "data.sources.own": stages["draw"].artifacts["own"].digest,
    }
    assert stages["again"].changed


def test_the_same_command_again_only_reports(alone, workplace, capsys):
    before = workplace.files(alone)
    assert workplace.train(alone) == 0
    assert capsys.readouterr().err.count("already finished") == 3
    assert workplace.files(alone) == before


class Killed(BaseException):
    """Ends a run without a word; no handler of the package knows it."""


WHERE = {
    "within the first stage": (StageModule, "on_train_batch_end", 5),
    "before its weights are sealed": (orchestrator, "write_artifact", 1),
    "at its border": (Manifest, "write", 7),
    "before the first part": (sample, "score_rollout", 1),
    "within the second part": (sample, "write_table", 1),
    "within the last batch": (sample, "score_rollout", 3),
    "before the table is sealed": (artifacts, "sync_tree", 1),
    "between table and answers": (orchestrator, "write_artifact", 2),
    "while the answers are sealed": (artifacts, "sync_tree", 2),
    "at the border of the data": (Manifest, "write", 4),
    "within the last stage": (StageModule, "on_train_batch_end", 3),
    "while its weights are sealed": (artifacts, "sync_tree", 1),
}
"""Where one run is killed, one after the other: the function, and which of its calls in the process never returns."""


@pytest.mark.main_path
def test_a_run_that_is_killed_everywhere_ends_with_the_same_weights_and_tables(alone, workplace, monkeypatch, capsys):
    left = []
    for owner, name, number in WHERE.values():
        whole, calls = getattr(owner, name), []

        def call(*arguments, whole=whole, calls=calls, number=number, **more):
            calls.append(arguments)
            if len(calls) == number:
                raise Killed
            return whole(*arguments, **more)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, call)
            with pytest.raises(Killed):
                workplace.train("killed")
        parts = list((workplace.run("killed") / "stages").glob("*-draw/state/part-*.jsonl"))
        left.append((len(workplace.digests("killed")), len(parts)))
    capsys.readouterr()
    assert workplace.train("killed") == 0
    assert "stage 3 of 3 again: continuing after step" in capsys.readouterr().err
    # Finished stages and parts after each kill: all of them happened where they should.
    assert left == [(0, 0), (0, 0), (1, 0), (1, 0), (1, 0), (1, 2), (1, 4), (1, 4), (1, 4), (2, 4), (2, 0), (2, 0)]
    assert workplace.digests("killed") == workplace.digests(alone)
    assert workplace.files("killed") == workplace.files(alone)


def test_another_seed_is_another_table(alone, workplace):
    """The negative control."""
    assert workplace.train("seed", "seed=1", "order=[cold_start,draw]") == 0
    one, other = workplace.digests(alone)["draw"], workplace.digests("seed")["draw"]
    assert one["rollouts"] != other["rollouts"]
    assert one["own"] != other["own"]


def test_a_sampler_of_its_own_is_inserted_and_removed_without_a_trace(alone, workplace, capsys):
    shutil.copytree(workplace.run(alone), workplace.run("inserted"))
    before = workplace.files("inserted")
    more = "+stage@stages.more=sample", "stages.more.data.limit=4", "stages.more.sampling.max_new_tokens=4"
    assert workplace.train("inserted", *more, "order=[cold_start,more,draw,again]") == 0
    said = capsys.readouterr().err
    assert said.count("already finished") == 3
    assert {name: content for name, content in workplace.files("inserted").items() if "more" not in name} == before
    assert workplace.train("inserted") == 0
    assert capsys.readouterr().err.count("already finished") == 3


def test_a_changed_sampler_is_refused_by_its_name_and_runs_again_with_what_builds_on_it(alone, workplace, capsys):
    assert workplace.train("changed") == 0
    assert workplace.digests("changed") == workplace.digests(alone)
    change = "stages.draw.sampling.temperature=0.7"
    assert workplace.train("changed", change) == 2
    error = capsys.readouterr().err
    assert "stages.draw: finished in" in error
    assert "stages.draw.sampling.temperature: 1.0 -> 0.7" in error
    assert workplace.train("changed", change, "--from-stage", "draw") == 0
    said = capsys.readouterr().err
    assert "stage 1 of 3 cold_start: already finished" in said
    assert "stage draw runs again" in said
    assert "stage again runs again" in said
    found = workplace.digests("changed")
    assert found["cold_start"] == workplace.digests(alone)["cold_start"]
    assert found["again"] != workplace.digests(alone)["again"]


def test_no_right_answer_ends_the_run_with_one_sentence_each_time(workplace, capsys):
    none = "stages.draw.keep.min_pass_rate=1.0", "stages.draw.num_completions=1", "stages.draw.data.limit=2"
    none += ("stages.cold_start.num_steps=1", "stages.draw.sampling.max_new_tokens=4")
    sentences = []
    for _ in range(2):
        assert workplace.train("none", *none) == 2
        sentences.append(capsys.readouterr().err.strip().splitlines()[-1])
    assert sentences[0] == sentences[1]
    assert "stages.again has nothing to learn from: artifact own of stage draw has no sample (0 kept" in sentences[0]
    assert list(Manifest.read(workplace.run("none")).stages) == ["cold_start", "draw"]


def test_parts_of_another_configuration_are_set_aside(workplace, monkeypatch, capsys):
    """`--allow-changes` goes on with the weights of a stage that trains; half a table of each would be neither."""
    write_table = sample.write_table

    def cut_short(path, rows):
        if path.name == "part-000002.jsonl":
            raise Killed
        write_table(path, rows)

    with monkeypatch.context() as patch:
        patch.setattr(sample, "write_table", cut_short)
        with pytest.raises(Killed):
            workplace.train("plan")
    change = "stages.draw.data.batch_size=3"
    assert workplace.train("plan", change) == 2
    assert "stages.draw: begun in" in capsys.readouterr().err
    assert workplace.train("plan", change, "--allow-changes") == 0
    said = capsys.readouterr().err
    assert "stage draw runs again; what it had left is kept in" in said
    assert "of 5 batches" not in said
    rollouts = workplace.run("plan") / "stages/01-draw/artifacts/rollouts"
    ids = [row.sample.id for path in sorted(rollouts.glob("part-*.jsonl")) for row in read_table(path)]
    assert ids == [f"train-{number:05d}" for number in range(14)]


def test_parts_of_other_prompts_are_not_gone_on_with(workplace, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(sample.SampleModule, "on_test_epoch_end", lambda self: fail())
        with pytest.raises(Killed):
            workplace.train("parts")
    (part,) = workplace.run("parts").glob("stages/01-draw/state/part-000001.jsonl")
    lines = part.read_text().splitlines(keepends=True)
    part.write_text("".join(lines[1:]))
    assert workplace.train("parts") == 2
    assert f"{part} has other prompts or numbers of completions" in capsys.readouterr().err
    part.write_text("".join(lines))
    assert workplace.train("parts") == 0


def fail():
    raise Killed


@pytest.mark.parametrize("checkpoint", ["/nowhere", "./runs", "none"])
def test_a_checkpoint_that_is_none_is_refused_before_anything_trains(workplace, checkpoint, capsys):
    assert workplace.train("nowhere", f"stages.draw.checkpoint={checkpoint}") == 2
    assert f"stages.draw.checkpoint is {checkpoint}, which is no Hugging Face folder" in capsys.readouterr().err
    assert not (workplace.run("nowhere") / "stages").exists()


def test_a_handoff_of_another_run_is_sampled_from(alone, workplace):
    handoff = workplace.run(alone) / "stages" / "00-cold_start" / "handoff"
    order = "order=[draw]", f"stages.draw.checkpoint={handoff}"
    assert workplace.train("other", *order) == 0
    # The same weights, the same seed of a stage of this name: the same table.
    assert workplace.digests("other")["draw"] == workplace.digests(alone)["draw"]
    seal = json.loads((workplace.run("other") / "stages/00-draw/artifacts/own/mmrl.json").read_text())
    assert seal["lineage"]["started_from"] == str(handoff)
    assert seal["lineage"]["input_digest"] == workplace.digests(alone)["cold_start"]["handoff"]


def test_prompts_of_two_sources_need_different_ids(workplace, capsys):
    both = "{a: {manifest: train.jsonl}, b: {manifest: train.jsonl}}"
    assert workplace.train("twice", "stages.draw.data.manifest=null", f"+stages.draw.data.sources={both}") == 2
    assert "stages.draw.data: train.jsonl and train.jsonl both have the id 'train-00000'" in capsys.readouterr().err
    assert not (workplace.run("twice") / "stages").exists()


@pytest.mark.timeout(300)
def test_two_ranks_make_the_table_of_one_process(alone, workplace):
    handoff = workplace.run(alone) / "stages" / "00-cold_start" / "handoff"
    order = "order=[draw]", f"stages.draw.checkpoint={handoff}", "trainer.devices=2"
    command = [sys.executable, "-m", "lightning_mmrl.cli.main", *workplace.arguments("ranks", *order)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert workplace.digests("ranks")["draw"] == workplace.digests(alone)["draw"]
