"""Stages that arms share: which they are, and how a run begins with finished ones."""

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from run_folders import RunFolder

from lightning_mmrl.app import shared_stages
from lightning_mmrl.app.shared_stages import BEGUN, begin, begun_with, segment_of, segments
from lightning_mmrl.curriculum.artifacts import check_artifact
from lightning_mmrl.curriculum.manifest import EvaluatedBase, Manifest, tracked_runs
from lightning_mmrl.tracking.null import UNTRACKED_STAGE
from lightning_mmrl.types.records import HANDOFF

ANSWERS = [("happy", "happy"), ("sad", "sad")]


class Run(SimpleNamespace):
    """A run of an arm, whose digests are given: `p c` are stages p and c; a digest may follow, as in `c=2`.

    `conditions` are those of its last stage.
    """

    def __init__(self, arm, stages, *, seed=0, fold=None, base="b", conditions=""):
        path = [each.partition("=") for each in stages.split()]
        specs = [SimpleNamespace(name=name, digest=digest or "d") for name, _, digest in path]
        config = SimpleNamespace(order=[spec.name for spec in specs])
        super().__init__(arm=arm, seed=seed, fold=fold, config=config, name=f"{arm}-seed{seed}", comparison=Path("x"))
        self.specs, self.base_evaluation = (lambda: specs), (lambda: base)
        self.conditions = lambda stage=None: conditions if stage == specs[-1].name else ""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


def shared(*runs):
    """What each segment is called, which stages it adds, and which arms share it."""
    return {each.until: (each.own, [run.arm for run in each.runs]) for each in segments(runs)}


def test_the_longest_common_beginnings_are_shared():
    runs = [Run("a", "p c"), Run("b", "p c r"), Run("d", "p r c"), Run("e", "p r c=2")]
    assert shared(*runs) == {
        "p": (["p"], ["a", "b", "d", "e"]),
        "c": (["c"], ["a", "b"]),
        "r": (["r"], ["d", "e"]),
    }
    found = segments(runs)
    assert [None if each.above is None else each.above.until for each in found] == [None, "p", "p"]
    assert [segment_of(run, found).until for run in runs] == ["c", "c", "r", "r"]


def test_stages_with_another_digest_or_after_another_stage_are_not_shared():
    assert shared(Run("a", "p=1 c"), Run("b", "p=2 c")) == {"base": ([], ["a", "b"])}
    assert shared(Run("a", "c r"), Run("b", "r c")) == {"base": ([], ["a", "b"])}


def test_a_base_is_shared_by_itself_if_nothing_follows_and_not_at_all_if_it_is_not_evaluated():
    assert shared(Run("a", "c", base=""), Run("b", "r", base="")) == {}
    assert shared(Run("a", "c", base="1"), Run("b", "r", base="2")) == {}
    assert shared(Run("a", "p c", base=""), Run("b", "p r", base="")) == {"p": (["p"], ["a", "b"])}


@pytest.mark.parametrize("base", ["", "b"])
def test_a_segment_follows_one_that_there_is(base):
    """Arms that begin apart have in common a base model at most, and without an evaluation of it nothing."""
    runs = [Run("a", "c", base=base), *(Run(arm, stages, base=base) for arm, stages in (("b", "r c"), ("d", "r x")))]
    found = segments(runs)
    assert [each.until for each in found] == (["base", "r"] if base else ["r"])
    assert all(each.above is None or each.above in found for each in found)
    assert found[-1].own == ["r"]


def test_a_stage_that_is_run_under_other_conditions_is_not_shared():
    runs = [Run("hf", "p c", conditions="1"), Run("vllm", "p c", conditions="2"), Run("again", "p c", conditions="1")]
    assert shared(*runs) == {"p": (["p"], ["hf", "vllm", "again"]), "c": (["c"], ["hf", "again"])}


def test_a_stage_that_was_run_under_other_conditions_is_not_taken(first, tmp_path):
    run, owner = Run("a", "p c", conditions="1"), Run("b", "p c", conditions="2")
    begin(tmp_path / "own", run, [(first.folder, owner)])
    assert begun_with(tmp_path / "own") == ["p"]


def test_seeds_and_folds_share_nothing():
    runs = [
        Run(arm, "p c" if arm == "a" else "p r", seed=seed, fold=fold)
        for seed in (0, 1)
        for fold in "xy"
        for arm in "ab"
    ]
    found = segments(runs)
    assert [each.until for each in found] == ["p"] * 4
    assert all(len({(run.seed, run.fold) for run in each.runs}) == 1 for each in found)


@pytest.fixture
def first(tmp_path):
    """A run that has finished and evaluated two stages and the base model."""
    run = RunFolder(tmp_path / "first", order=("p", "c"))
    for stage in run.order:
        run.finish(stage)
        run.evaluate(stage, ANSWERS)
        (run.place(stage) / "attempt.json").write_text('{"tracking_id": "theirs"}')
        (run.place(stage) / "metrics.jsonl").write_text("{}\n")
        (run.place(stage) / "state" / "rank-0").mkdir(parents=True)
        (run.place(stage) / "state" / "rank-0" / "step-1").write_text("x")
    run.evaluate("base", ANSWERS)
    base = EvaluatedBase(digest="m", evaluation="b", path="base/evaluation", metrics={})
    stages = {
        name: replace(each, result=replace(each.result, tracking_id="theirs"))
        for name, each in run.manifest.stages.items()
    }
    run.manifest = Manifest(stages=stages, base=base, tracking_id="theirs")
    run.save()
    (run.folder / "exclusions.jsonl").write_text("{}\n")
    return run


def by(run, *folders):
    """Folders that were made with the configuration of a run."""
    return [(folder, run) for folder in folders]


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_run_begins_with_what_is_finished_elsewhere(first, tmp_path):
    own = tmp_path / "own"
    begin(own, Run("a", "p c r"), by(Run("a", "p c r"), tmp_path / "nothing", first.folder))
    manifest = Manifest.read(own)
    assert list(manifest.stages) == begun_with(own) == ["p", "c"]
    assert manifest.base == first.manifest.base
    assert {each.result.tracking_id for each in manifest.stages.values()} == {UNTRACKED_STAGE}
    assert "theirs" not in tracked_runs(own)
    left_out = {
        f"stages/{place}/{name}" for place in ("00-p", "01-c") for name in ("attempt.json", "state/rank-0/step-1")
    }
    assert files(own) == files(first.folder) - left_out - {"config.yaml", "starts.jsonl"} | {BEGUN}
    check_artifact(own / manifest.stages["c"].result.artifacts[HANDOFF].path)


def test_sealed_files_are_links_and_all_others_are_copies(first, tmp_path):
    own = tmp_path / "own"
    begin(own, Run("a", "p c"), by(Run("a", "p c"), first.folder))
    linked = {name for name in files(own) & files(first.folder) if os.path.samefile(own / name, first.folder / name)}
    assert linked == {name for name in files(own) if "/handoff/" in name}
    assert "stages/00-p/evaluation/test.jsonl" not in linked


def test_files_are_copied_where_links_are_refused(first, tmp_path, monkeypatch):
    def refuse(path, copy):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(shared_stages.os, "link", refuse)
    begin(tmp_path / "own", Run("a", "p c"), by(Run("a", "p c"), first.folder))
    path = tmp_path / "own" / first.manifest.stages["p"].result.artifacts[HANDOFF].path
    check_artifact(path)
    assert not any(os.path.samefile(each, first.folder / each.relative_to(tmp_path / "own")) for each in path.iterdir())


def test_a_stage_with_another_digest_and_all_after_it_are_not_taken(first, tmp_path):
    begin(tmp_path / "own", Run("a", "p c=2 r"), by(Run("a", "p c=2 r"), first.folder))
    assert begun_with(tmp_path / "own") == ["p"]
    begin(tmp_path / "other", Run("a", "p=2 c", base="2"), by(Run("a", "p=2 c", base="2"), first.folder))
    assert not (tmp_path / "other").exists()


def test_an_evaluation_that_did_not_end_is_not_taken(first, tmp_path):
    stages = first.manifest.stages
    first.manifest = replace(first.manifest, stages={**stages, "c": replace(stages["c"], evaluation=None)})
    first.save()
    begin(tmp_path / "own", Run("a", "p c"), by(Run("a", "p c"), first.folder))
    assert (tmp_path / "own" / "stages" / "00-p" / "evaluation").is_dir()
    assert not (tmp_path / "own" / "stages" / "01-c" / "evaluation").exists()


def test_the_longest_beginning_is_taken_and_a_run_that_has_begun_is_left_alone(first, tmp_path):
    short = RunFolder(tmp_path / "short", order=("p",))
    short.finish("p")
    begin(tmp_path / "own", Run("a", "p c"), by(Run("a", "p c"), short.folder, first.folder))
    assert begun_with(tmp_path / "own") == ["p", "c"]
    begin(short.folder, Run("b", "p c"), by(Run("b", "p c"), first.folder))
    assert (list(Manifest.read(short.folder).stages), begun_with(short.folder)) == (["p"], [])


def test_a_folder_that_a_killed_process_left_without_a_manifest_is_replaced(first, tmp_path):
    (tmp_path / "own" / "stages").mkdir(parents=True)
    (tmp_path / ".own.mmrl-partial").mkdir()
    begin(tmp_path / "own", Run("a", "p"), by(Run("a", "p"), first.folder))
    assert begun_with(tmp_path / "own") == ["p"]
    assert not (tmp_path / ".own.mmrl-partial").exists()
