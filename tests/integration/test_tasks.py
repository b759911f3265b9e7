"""One run with two tasks: tables, files and card follow the task of each set, and a stage chooses its sets."""

import json

import pytest

from lightning_mmrl.cli.main import main

SMALL = (
    "experiment=task_arithmetic_free_form",
    "model=tiny_qwen2",
    "tracking=none",
    "trainer.num_threads=1",
    "data.validation_limit=6",
    "+data.build.scale=0.05",
    "evaluation.limit=6",
    "evaluation.max_new_tokens=4",
    "evaluation.num_resamples=50",
    "stages.cold_start.num_steps=2",
    "stages.cold_start.validate_every=1",
    "stages.cold_start.stop_when=null",
    "stages.reason.num_steps=1",
    "stages.reason.validate_every=1",
    "stages.reason.data.batch_size=2",
    "stages.reason.algorithm.group_size=2",
    "stages.reason.sampling.max_new_tokens=4",
)
DIGITS = "+evaluation.sets.digits={manifest: test.jsonl}"


@pytest.mark.slow
def test_a_run_with_two_tasks(tmp_path, capsys):
    own = (DIGITS, "+task@evaluation.sets.digits.task=closed_labels", "stages.cold_start.evaluation_sets=[test]")
    places = (f"output_dir={tmp_path}/runs", f"data.root={tmp_path}/sums", "run_name=two")
    assert main(["train", *SMALL, *own, *places]) == 0
    printed = capsys.readouterr().out
    for title in ("Mathematics by stage", "Accuracy gained over", "Recognition by stage"):
        assert title in printed
    assert "UAR gained over" not in printed, "no stage before has answers for the set of digits"
    run = tmp_path / "runs" / "two"
    found = {path.parts[-3]: json.loads(path.read_text()) for path in run.glob("stages/*/evaluation/evaluation.json")}
    assert {name: sorted(sets) for name, sets in found.items()} == {
        "00-cold_start": ["test"],
        "01-reason": ["digits", "test"],
    }
    mathematics, digits = found["01-reason"]["test"], found["01-reason"]["digits"]
    assert mathematics["task"]["type"] == "mathematics"
    assert mathematics["metrics"]["accuracy"] == digits["metrics"]["war"], "digits are judged alike"
    assert "task" not in digits
    metrics = json.loads((run / "manifest.json").read_text())["stages"]["reason"]["result"]["metrics"]
    assert {"reason/validation/accuracy", "reason/test/accuracy", "reason/digits/uar"} <= metrics.keys()
    gains = json.loads((run / "comparison.json").read_text())["gains"]
    assert [(gain["stage"], gain["over"], gain["name"], gain["task"]["headline"]) for gain in gains] == [
        ("cold_start", "base", "test", "accuracy"),
        ("reason", "cold_start", "test", "accuracy"),
    ]

    assert main(["train", *SMALL, *own, *places]) == 0
    assert "stage 2 of 2 reason: already finished" in capsys.readouterr().err
    changed = (*own[:2], "stages.cold_start.evaluation_sets=[]")
    assert main(["train", *SMALL, *changed, *places]) == 0
    assert "cold_start: trained already, evaluating its handoff" in capsys.readouterr().err
    assert json.loads((run / "stages" / "00-cold_start" / "evaluation" / "evaluation.json").read_text()) == {}


@pytest.mark.slow
def test_a_run_without_labels_says_nothing_of_them(tmp_path, capsys):
    places = (f"output_dir={tmp_path}/runs", f"data.root={tmp_path}/sums", "run_name=sums")
    assert main(["train", *SMALL, *places]) == 0
    assert main(["export", str(tmp_path / "runs/sums/stages/01-reason/handoff"), str(tmp_path / "card")]) == 0
    texts = (capsys.readouterr().out, (tmp_path / "card" / "README.md").read_text())
    assert "Mathematics by stage" in texts[0]
    for text in texts:
        assert not [word for word in ("UAR", "WAR", "emotion", "Labels:", "ecognition") if word in text]
