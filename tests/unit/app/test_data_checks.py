"""A sample that lacks something for its use is named before anything trains, wherever in the run it would be needed."""

import json
import re

import pyarrow
import pytest
from pyarrow import parquet

from lightning_mmrl.app.data_checks import check_data, check_made
from lightning_mmrl.config.compose import compose
from lightning_mmrl.config.specs import stage_specs
from lightning_mmrl.curriculum.artifacts import write_artifact
from lightning_mmrl.data import manifest, row_scan, schema
from lightning_mmrl.errors import DataError, StageError

TARGET = {"role": "assistant", "content": "<think>a smile</think><answer>happy</answer>"}
NAMES = ("train", "cold_start", "validation", "test", "ood")


def row(name="good", *more, content="Which?", **columns):
    return {"id": name, "messages": [{"role": "user", "content": content}, *more], "solution": "happy", **columns}


@pytest.fixture
def write(tmp_path):
    def write(manifest, *rows):
        (tmp_path / f"{manifest}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))

    for name in NAMES:
        write(name, row("good", *([TARGET] if name == "cold_start" else [])))
    (tmp_path / "one.png").write_bytes(b"never opened")
    return write


@pytest.fixture
def check(tmp_path, write):
    fixed = [f"data.root={tmp_path}", "data.cue_lexicon=null"]
    return lambda *overrides: check_data(compose([*fixed, *overrides]))


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_or_wrong_manifest_is_named(name, check, tmp_path):
    check()
    path = tmp_path / f"{name}.jsonl"
    path.write_text(path.read_text() + "{\n")
    with pytest.raises(DataError, match=f"{name}.jsonl:2: not valid JSON"):
        check()
    path.unlink()
    with pytest.raises(DataError, match=f"{name}.jsonl does not exist"):
        check()


@pytest.mark.parametrize("name", ["train", "validation", "test", "ood"])
@pytest.mark.parametrize("solution", [None, "bored"])
def test_a_solution_that_someone_reads_must_be_a_label(name, solution, write, check):
    write(name, row(), row("bad", solution=solution))
    with pytest.raises(
        DataError, match=rf"^{name}.jsonl: sample 'bad' has the solution {solution!r}, which names none"
    ):
        check()


def test_a_solution_that_nobody_reads_may_be_anything(write, check):
    write("cold_start", row("bad", TARGET, solution=None))
    check()
    write("validation", row("bad", solution=None))
    check("stages.reason.validate_every=null")
    write("train", row("bad", solution="seven"))
    label, rewards = "stages.reason.rewards.components.label", "lightning_mmrl.rewards"
    with pytest.raises(DataError, match="'seven'"):
        check("stages.reason.validate_every=null")
    math = f"+{label}={{_target_: {rewards}.math_answer.MathAnswer}}"
    with pytest.raises(DataError, match=rf"^train.jsonl: .*'seven', which math-verify cannot read; .*; {label} is"):
        check("stages.reason.validate_every=null", f"~{label}", math)
    check("stages.reason.validate_every=null", f"~{label}", f"+{label}={{_target_: {rewards}.text_answer.TextAnswer}}")
    write("train", row("bad", solution=None))
    length = f"+{label}={{_target_: {rewards}.token_length.TokenLength}}"
    check("stages.reason.validate_every=null", f"~{label}", length)


def test_only_the_samples_that_are_used_are_held_to_it(write, check):
    for name in ("train", "test", "validation"):
        write(name, row(), row("bad", solution=None))
    limits = ["evaluation.limit=1", "stages.reason.data.limit=1", "data.validation_limit=1"]
    check(*limits)
    for missing in range(3):
        with pytest.raises(DataError, match="sample 'bad'"):
            check(*limits[:missing], *limits[missing + 1 :])


def test_a_sample_without_a_target_cannot_be_imitated(write, check):
    write("cold_start", row("good", TARGET), row("bad"))
    with pytest.raises(DataError, match=r"^cold_start.jsonl: sample bad has no assistant turn to learn from; add one"):
        check()


def test_targets_begin_with_the_prefill(write, check):
    check("prompt.prefill='<think>'")
    write("cold_start", row("good", TARGET), row("bad", {"role": "assistant", "content": "happy"}))
    check()
    with pytest.raises(DataError, match=r"^cold_start.jsonl: sample bad: the assistant turn 'happy' does not start"):
        check("prompt.prefill='<think>'")


def test_an_evaluation_set_needs_prompts(write, check):
    write("ood", {**row("bad"), "messages": [{"role": "system", "content": "x"}]})
    with pytest.raises(DataError, match=r"^ood.jsonl: sample bad: a prompt has no user turn"):
        check()


def test_media_are_those_of_each_stages_own_module(write, check):
    write("train", row("bad", content="<image>Which?", images=["one.png"]))
    check()
    module = "{_target_: lightning_mmrl.data.datamodules.VideoDataModule}"
    check(f"stages.cold_start.data.module={module}")
    with pytest.raises(DataError, match=r"^train.jsonl: sample bad has <image> media, which VideoDataModule does not"):
        check(f"stages.reason.data.module={module}")
    write("train", row())
    write("validation", row("bad", content="<image>Which?", images=["one.png"]))
    with pytest.raises(DataError, match=r"^validation.jsonl: sample bad has <image> media"):
        check(f"stages.reason.data.module={module}")


def test_a_balance_needs_solutions(write, check):
    write("cold_start", row("good", TARGET), row("bad", TARGET, solution=None))
    with pytest.raises(DataError, match=r"^cold_start.jsonl: sample bad has no solution, and balance: label draws by"):
        check("stages.cold_start.data.balance=label")


def test_every_source_of_a_stage_is_looked_at_up_to_its_limit(write, check):
    write("more", row("good", TARGET), row("bad"))
    key = "stages.cold_start.data"
    sources = [
        f"{key}.manifest=null",
        f"+{key}.sources={{a: {{manifest: cold_start.jsonl}}, b: {{manifest: more.jsonl}}}}",
    ]
    with pytest.raises(DataError, match=r"^more.jsonl: sample bad"):
        check(*sources)
    check(*sources, f"{key}.limit=1")


def test_media_of_a_stage_lie_in_the_folder_of_media(write, check, tmp_path):
    write("train", row(content="<image>Which?", images=["two.png"]))
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "two.png").write_bytes(b"never opened")
    with pytest.raises(DataError, match=r"two\.png"):
        check()
    check(f"++data.media_root={tmp_path}/media")


def test_labels_that_look_like_a_mistake_are_named_with_their_manifest(write, check):
    assert check() == []
    write("train", row("a"), row("b"), row("c"))
    write("validation", *[row(str(index), solution=label) for index, label in enumerate(["happy", "Happy", "sad"])])
    found = check("data.limit=1")
    assert [warning.partition(":")[0] for warning in found] == ["train.jsonl", "validation.jsonl"]
    assert "all 3 samples have the label 'happy'" in found[0]
    assert "'happy' (1 sample) and 'Happy' (1 sample) differ only in case" in found[1]


def test_free_answers_are_no_labels_and_nothing_is_said_of_them(write, check):
    answers = [row(str(index), solution=text) for index, text in enumerate(["seven", "sevens", "none"])]
    write("train", *answers)
    write("cold_start", *[{**each, "messages": [*each["messages"], TARGET]} for each in answers])
    label = "stages.reason.rewards.components.label"
    text = f"+{label}={{_target_: lightning_mmrl.rewards.text_answer.TextAnswer}}"
    assert check("stages.reason.validate_every=null", f"~{label}", text) == []
    balanced = check("stages.reason.validate_every=null", f"~{label}", text, "stages.reason.data.balance=label")
    assert [warning.partition(":")[0] for warning in balanced] == ["train.jsonl", "train.jsonl"]


SUMS = ("+evaluation.sets.sums={manifest: sums.jsonl}", "+task@evaluation.sets.sums.task=mathematics")


def test_the_solutions_of_a_set_are_those_of_its_task(write, check):
    write("sums", row("one", solution="7"), row("bad", solution="?"))
    with pytest.raises(
        DataError, match=r"^sums.jsonl: sample 'bad' has the solution '\?', which cannot be judged .*; co"
    ):
        check(*SUMS)
    write("sums", row("one", solution="7"), row("two", solution="\\frac{1}{2}"))
    check(*SUMS)
    with pytest.raises(DataError, match=r"^sums.jsonl: sample 'one' has the solution '7', which names none"):
        check(SUMS[0])


def test_a_set_has_its_own_folders(write, check, tmp_path):
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "far.jsonl").write_text(json.dumps(row(content="<image>Which?", images=["one.png"])))
    with pytest.raises(DataError, match=r"one\.png"):
        check(f"+evaluation.sets.far={{manifest: far.jsonl, root: {tmp_path}/manifests}}")
    check(f"+evaluation.sets.far={{manifest: far.jsonl, root: {tmp_path}/manifests, media_root: {tmp_path}}}")


DRAW = (
    "order=[cold_start,draw,again]",
    "+stage@stages.draw=sample",
    "+stage@stages.again=sft",
    "stages.again.data.manifest=null",
    "+stages.again.data.sources.own={stage: draw, artifact: own}",
)


@pytest.fixture
def made(tmp_path, write):
    """Checks an artifact `own` of these rows for the stage that reads it."""

    def made(*rows, facts=None, overrides=()):
        def export(folder):
            (folder / "own.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
            own = {"manifest": "own.jsonl", "media_root": str(tmp_path), "counts": {"kept": len(rows), "wrong": 3}}
            return own if facts is None else facts

        config = compose([f"data.root={tmp_path}", *DRAW, *overrides])
        specs = stage_specs(config)
        write_artifact(tmp_path / "artifacts" / "own", export, {})
        folders = {name: tmp_path / "artifacts" / name for name in ("own", "rollouts")}
        return check_made(config, specs, specs[1], folders)

    return made


def test_data_that_a_stage_made_are_held_to_the_use_of_their_reader(made):
    made(row("a#0", TARGET), row("b#1", TARGET))
    with pytest.raises(DataError, match=r"^own.jsonl: sample b#1 has no assistant turn to learn from"):
        made(row("a#0", TARGET), row("b#1"))
    made(row("a#0", TARGET), row("b#1"), overrides=["stages.again.data.limit=1"])
    with pytest.raises(DataError, match=r"own.jsonl:1: .*one.jpg"):
        made({**row("a#0", TARGET, content="<image>Which?"), "images": ["one.jpg"]})
    made({**row("a#0", TARGET, content="<image>Which?"), "images": ["one.png"]})


def test_pairs_that_a_stage_made_are_held_to_their_layout(made, tmp_path):
    learns = ["stage@stages.again=dpo"]
    pair = row("a#0", chosen="happy", rejected=[{"role": "assistant", "content": "sad"}], chosen_score=1.0)
    made(pair, overrides=learns)
    place = f"^{re.escape(str(tmp_path))}/artifacts/own/own.jsonl:2: sample b#0: it has no 'rejected' answer"
    with pytest.raises(DataError, match=place):
        made(pair, row("b#0", chosen="happy"), overrides=learns)


def test_data_without_a_sample_have_nothing_to_check(made, tmp_path):
    """Whether their reader can do without them is said when it is known what its other inputs hold."""
    made()
    with pytest.raises(StageError, match="own does not say 'manifest'"):
        made(facts={"media_root": str(tmp_path), "counts": {"kept": 0}})


@pytest.mark.parametrize("missing", ["manifest", "media_root", "counts"])
def test_a_seal_without_what_a_reader_needs_is_refused(made, missing, tmp_path):
    facts = {"manifest": "own.jsonl", "media_root": str(tmp_path), "counts": {"kept": 1}}
    del facts[missing]
    with pytest.raises(StageError, match=f"own does not say '{missing}'; its kind of stage, sample, must give"):
        made(row("a#0", TARGET), facts=facts)


def test_prompts_of_several_sources_of_a_table_have_different_ids(write, check):
    write("more", row("other"))
    key = "stages.draw.data"
    sources = f"+{key}.sources={{a: {{manifest: train.jsonl}}, b: {{manifest: more.jsonl}}}}"
    both = ("order=[draw]", "+stage@stages.draw=sample", f"{key}.manifest=null", sources)
    check(*both)
    write("more", row("other"), row("good"))
    with pytest.raises(DataError, match=r"^stages.draw.data: train.jsonl and more.jsonl both have the id 'good', and"):
        check(*both)
    check(*both, f"{key}.limit=1")
    key = "stages.reason.data"  # the negative control: a stage that trains may draw a sample from two sources
    sources = f"+{key}.sources={{a: {{manifest: train.jsonl}}, b: {{manifest: more.jsonl}}}}"
    check("order=[reason]", f"{key}.manifest=null", sources)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"manifest": "/etc/hostname"}, "has manifest /etc/hostname in its seal, which no stage of this run writes"),
        ({"manifest": "../../train.jsonl"}, r"has manifest ../../train.jsonl in its seal"),
        ({"manifest": 7}, "has manifest 7 in its seal"),
        ({"media_root": "/"}, "has media_root / in its seal"),
        ({"counts": {"kept": "many"}}, "has counts .* in its seal"),
    ],
)
def test_a_seal_leads_to_no_file_outside_of_the_data(wrong, sentence, made, tmp_path):
    """The facts of a run folder that came from elsewhere are as foreign as those of a handoff."""
    own = {"manifest": "own.jsonl", "media_root": str(tmp_path), "counts": {"kept": 1}}
    made(row("a#0", TARGET), facts=own)
    with pytest.raises(StageError, match=sentence):
        made(row("a#0", TARGET), facts=own | wrong)


def test_published_files_serve_stages_and_sets_and_are_said(write, check, tmp_path):
    rows = [{"prompt": [{"role": "user", "content": "Which?"}], "reward_model": {"ground_truth": "happy"}}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "verl.parquet")
    key = "stages.reason.data"
    sources = [f"{key}.manifest=null", f"+{key}.sources={{a: {{manifest: verl.parquet, format: verl}}}}"]
    sets = "evaluation.sets={test: {manifest: verl.parquet}}"
    said = [line for line in check(*sources, sets) if "read as" in line]
    assert said == [f"{tmp_path}/verl.parquet: read as verl"]
    with pytest.raises(DataError, match=r"verl.parquet: row 1: 'problem' is missing or blank"):
        check(*sources, "evaluation.sets={test: {manifest: verl.parquet, format: geometry3k}}")


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Every manifest has an index; gives the pieces that are read, and forgets what this process has opened."""
    monkeypatch.setattr(manifest, "KEPT_BYTES", 0)
    monkeypatch.setattr(manifest, "RACY_S", 0.0)
    read, scan = [], row_scan.Scan.__call__
    monkeypatch.setattr(row_scan.Scan, "__call__", lambda self, piece: read.append(self.path.name) or scan(self, piece))

    def kept():
        schema._opened.clear()
        found = read.copy()
        read.clear()
        return found

    return kept


def test_a_second_start_reads_no_line_until_what_a_check_depends_on_changes(check, kept, write, tmp_path):
    place = f"output_dir={tmp_path / 'runs'}"
    kept()
    said = check(place)
    assert sorted(set(kept())) == sorted(f"{name}.jsonl" for name in NAMES)
    assert check(place) == said
    assert kept() == []
    # Another suffix is another template, by which all turns are checked again; labels are not.
    check(place, "prompt.suffix=' Think.'")
    assert "train.jsonl" in kept()
    with pytest.raises(DataError, match=r"^cold_start.jsonl: .* does not start with prompt.prefill '<b>'"):
        check(place, "prompt.prefill='<b>'")
    assert "cold_start.jsonl" in kept()
    with pytest.raises(DataError, match=r"jsonl: sample 'good' has the solution 'happy', which names none of"):
        check(place, "data.labels=[angry, sad]")
    kept()
    assert check(place) == said
    assert kept() == []
    write("train", row("good"), row("bad", solution="bored"))
    with pytest.raises(DataError, match=r"^train.jsonl: sample 'bad'"):
        check(place)
    assert "train.jsonl" in kept()


PAIRED = ("+stage@stages.prefer=dpo", "order=[prefer]", "stages.prefer.validate_every=null")


def test_a_pair_that_is_none_is_named_by_file_line_and_fix(write, check, tmp_path):
    good = row("good", chosen="happy", rejected="sad")
    write("pairs", good, row("other", chosen="happy", rejected="sad"))
    check(*PAIRED)
    write("pairs", good, row("same", chosen="happy", rejected="happy"))
    place = f"^{re.escape(str(tmp_path))}/pairs.jsonl:2: sample same: "
    with pytest.raises(DataError, match=place + ".* are both 'happy'; a pair needs two answers$"):
        check(*PAIRED)
    write("pairs", good, row("half", chosen="happy"))
    with pytest.raises(DataError, match=r"pairs.jsonl:2: sample half: it has no 'rejected' answer; add 'rejected' to"):
        check(*PAIRED)
    write("pairs", row("single"))
    with pytest.raises(DataError, match=r"pairs.jsonl:1: sample single: .*; name a file of pairs$"):
        check(*PAIRED)
    write("pairs")
    with pytest.raises(DataError, match=r"pairs.jsonl holds no samples; add at least one"):
        check(*PAIRED)


def test_a_row_without_the_column_of_its_target_is_named_by_file_line_and_fix(write, check):
    write("cold_start", row("good", TARGET, rationale="a smile"), row("bare"))
    taught = ["order=[cold_start]", "stages.cold_start.validate_every=null", "stages.cold_start.gate=null"]
    check(*taught, "stages.cold_start.target='<answer>{solution}</answer>'")
    with pytest.raises(
        DataError, match=r"cold_start.jsonl:2: sample bare: it has no 'rationale', which '\{rationale\}'"
    ):
        check(*taught, "stages.cold_start.target='{rationale}'")


def test_each_source_may_have_a_target_of_its_own(write, check):
    write("cold_start", row("good", rationale="a smile"))
    write("train", row("bare", TARGET))
    mixed = [
        "order=[cold_start]",
        "stages.cold_start.data.manifest=null",
        "+stages.cold_start.data.sources.one={manifest: cold_start.jsonl, target: '{rationale}'}",
        "+stages.cold_start.data.sources.two={manifest: train.jsonl}",
    ]
    check(*mixed)
    with pytest.raises(DataError, match=r"train.jsonl:1: sample bare: it has no 'rationale'"):
        check(*mixed, "stages.cold_start.target='{rationale}'")
