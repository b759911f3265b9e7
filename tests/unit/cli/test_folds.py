"""The commands `mmrl folds` and `mmrl data folds`: what they take, refuse and print."""

import json

import pytest
from rich.console import Console

from lightning_mmrl.app import folds as app
from lightning_mmrl.app.folds import FoldedSet
from lightning_mmrl.cli.folds import folds_table, take_folder
from lightning_mmrl.cli.main import EXIT_BAD_INPUT, main
from lightning_mmrl.evaluation.folds import over_folds
from lightning_mmrl.evaluation.tasks.closed_labels import ClosedLabels

REFUSED = {
    "launched": ([], "a launcher started mmrl folds"),
    "several": (["--multirun", "seed=1,2"], "--multirun is refused"),
    "number": (["--folds", "1"], "--folds is '1'; give a number of folds that is at least 2"),
    "unnamed": (["run_name={fold}x"], "an argument has {fold}; name the folds"),
    "twice": (["--folds", "1,1", "run_name={fold}x"], "name the folds"),
    "key": (["--folds", "2", "sede=1"], "sede"),
    "folder": (["no/such/folder"], "has no folders fold_1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_argument_gets_one_sentence_before_anything_trains(name, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(app.subprocess, "Popen", None)
    if name == "launched":
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
        monkeypatch.setenv("WORLD_SIZE", "1")
    arguments, message = REFUSED[name]
    assert main(["folds", *arguments]) == EXIT_BAD_INPUT
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_folder_is_told_from_overrides_and_flags(tmp_path):
    (tmp_path / "a=b").mkdir()
    assert take_folder(["--config-dir", "mine", str(tmp_path / "a=b"), "seed=1"]) == (
        tmp_path / "a=b",
        ["--config-dir", "mine", "seed=1"],
    )
    assert take_folder(["+x=1", "~evaluation.sets.ood", "-cd", "sets", "a.b=c"])[0] is None


def folded(metrics):
    return FoldedSet(
        stage="reason",
        name="test",
        task=ClosedLabels(labels=("happy", "sad")),
        num_samples=dict.fromkeys(metrics, 7),
        metrics=metrics,
        spread=over_folds(metrics),
        pooled=None,
    )


def shown(table):
    console = Console(width=160)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_the_table_has_every_metric_of_the_task_that_was_measured():
    metrics = {
        "fold_1": {"war": 0.5, "uar": 0.25, "macro_f1": 0.125},
        "fold_2": {"war": 0.7, "uar": 0.35, "macro_f1": 0.225},
    }
    text = shown(folds_table(folded(metrics), 2))
    assert all(title in text for title in ("WAR", "UAR", "macro F1"))
    assert "consistency" not in text
    rows = {line.split("│")[1].strip(): line.split("│")[3:6] for line in text.splitlines() if line.startswith("│")}
    assert [cell.strip() for cell in rows["fold_2"]] == ["70.0", "35.0", "22.5"]
    assert [cell.strip() for cell in rows["mean"]] == ["60.0", "30.0", "17.5"]
    assert [cell.strip() for cell in rows["deviation"]] == ["14.1", "7.1", "7.1"]
    assert "1 of 5 folds" in shown(folds_table(folded({"fold_1": {"war": 0.5}}), 5))


def test_a_dataset_is_dealt_by_the_command(tmp_path, capsys):
    rows = [{"id": f"c{number}", "solution": "sad", "speaker": f"s{number % 4}", "messages": []} for number in range(8)]
    (tmp_path / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    call = ["data", "folds", str(tmp_path), "--out", str(tmp_path / "out"), "--folds", "2", "--pool", "train.jsonl"]
    assert main(call) == 0
    said = capsys.readouterr().out
    assert "fold_1: train 4 clips of 2 speakers; test 4 clips of 2 speakers (test: sad 4)" in said
    assert main([*call, "--seed", "1"]) == EXIT_BAD_INPUT
