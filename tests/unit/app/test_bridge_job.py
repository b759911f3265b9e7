"""The two steps of a bridge, without a model: counts add up, and a trace that rewording spoils is not taught."""

import json
from types import SimpleNamespace

import pytest

from lightning_mmrl.app.kinds.bridge import BridgeJob
from lightning_mmrl.data.rollout_table import RolloutRow, write_table
from lightning_mmrl.data.schema import read_manifest
from lightning_mmrl.errors import DataError
from lightning_mmrl.settings.algorithm import RewardSettings
from lightning_mmrl.settings.bridge import BridgeSettings
from lightning_mmrl.training.group import RankGroup
from lightning_mmrl.types.records import Completion, MediaRef, Message, Sample, Score, StageSpec

REWARDS = RewardSettings(
    components={"label": {"_target_": "lightning_mmrl.rewards.label_answer.LabelAnswer", "labels": ["2", "3", "4"]}},
    weights={"label": 1.0},
)
RIGHT = "the description has <answer>3</answer>"


def row(number, *answers, truncated=False):
    """A row of answers, each with whether it is right."""
    turn = Message(role="user", content=f"<image>How many, {number}?")
    prompt = Sample(id=f"d{number}", messages=(turn,), media=(MediaRef(kind="image", path="1.png"),), solution="3")
    return RolloutRow(
        sample=prompt,
        completions=tuple(Completion(text=text, num_tokens=2, truncated=truncated) for text, _ in answers),
        scores=tuple(Score(total=0.0, components={"label": float(right)}) for _, right in answers),
        policy_version=0,
    )


@pytest.fixture
def step(tmp_path):
    """Runs a step on tables of rows, and returns the samples, the reasons and the counts."""
    (tmp_path / "1.png").write_bytes(b"picture")

    def run(described, answered=None, **changes):
        files = {"described": described, "answered": answered}
        for name, rows in files.items():
            if rows:
                write_table(tmp_path / f"{name}.jsonl", rows)
        paths = {name: [tmp_path / f"{name}.jsonl"] if rows else rows for name, rows in files.items()}
        settings = BridgeSettings(kind="bridge", rewards=REWARDS, **changes)
        spec = StageSpec(name="teach", index=0, settings=settings, reads_weights=False)
        parts = SimpleNamespace(group=RankGroup())
        log = SimpleNamespace(log_metrics=lambda metrics, step: None)
        job = BridgeJob(spec=spec, media_folder=str(tmp_path), run_log=log, parts=parts, **paths)
        job.run()
        facts = job.export("made", tmp_path)
        lines = [json.loads(line) for line in (tmp_path / "dropped.jsonl").read_text().splitlines()]
        path = tmp_path / "made.jsonl"
        samples = read_manifest(path, tmp_path) if path.read_text() else []
        return samples, {line["id"]: line["reason"] for line in lines}, facts["counts"]

    return run


def test_empty_tables_make_empty_artifacts(step):
    assert step([]) == ([], {}, {"kept": 0})
    assert step([], []) == ([], {}, {"kept": 0})
    described = [row(number, ("seen", False)) for number in range(2)]
    assert step(described, []) == ([], {"d0": "not_answered", "d1": "not_answered"}, {"kept": 0, "not_answered": 2})


def test_descriptions_become_questions(step):
    samples, dropped, counts = step([row(1, ("Three dots.", False)), row(2, (" ", False))])
    assert [sample.messages[0].content for sample in samples] == ["Three dots.\n\nHow many, 1?"]
    assert samples[0].media == ()
    assert dropped == {"d2": "no_description"}
    assert counts == {"kept": 1, "no_description": 1}


def test_right_answers_become_traces_and_every_other_prompt_has_a_reason(step):
    described = [row(number, ("seen", False)) for number in range(7)]
    answered = [
        row(0, ("wrong", False), (RIGHT, True)),
        row(1, ("wrong", False)),
        row(2, (RIGHT + " as I was told", True)),
        row(3, ("three is <answer>3</answer>", True)),
        row(4, (RIGHT, True), truncated=True),
        row(5, ("three is <answer>3</answer>", True), (RIGHT, True)),
    ]
    reword = {"the description": "the image", "3": "4", "three": "x"}
    samples, dropped, counts = step(described, answered, forbid=["I was told"], reword={"the description": "the image"})
    assert [sample.id for sample in samples] == ["d0#bridge", "d3#bridge", "d5#bridge"]
    assert samples[0].messages[-1].content == "the image has <answer>3</answer>"
    assert samples[0].media
    reasons = {"d1": "no_right_answer", "d2": "forbidden", "d4": "no_right_answer", "d6": "not_answered"}
    assert dropped == reasons
    assert sum(counts.values()) == 7
    samples, dropped, _ = step(described, answered, reword=reword)
    assert samples == []
    assert dropped["d0"] == "wrong_once_reworded"


def test_answers_to_other_questions_are_refused(step):
    with pytest.raises(DataError, match="prompt 'd9' is not that of the descriptions"):
        step([row(1, ("seen", False))], [row(9, (RIGHT, True))])


def test_a_debug_run_has_traces_of_wrong_answers(step):
    samples, _, _ = step([row(1, ("seen", False))], [row(1, ("wrong", False))], debugging=True)
    assert [sample.messages[-1].content for sample in samples] == ["wrong"]
