"""Every file that the page reads, missing or damaged in every way: one sentence says so, and the rest is shown."""

import json
import shutil

import pytest
from parsed_page import Parsed, missing, parsed
from run_folders import RunFolder, rollout, some_costs, whole_run

from lightning_mmrl.report.page import page
from lightning_mmrl.report.run_files import read_run
from lightning_mmrl.types.records import HANDOFF, WEIGHTS

PLAIN = {
    "manifest.json": {"curriculum", "costs", "routing"},
    "config.yaml": {"modalities"},
    "starts.jsonl": set(),
    "comparison.json": set(),
    "base/evaluation/evaluation.json": set(),
    "base/evaluation/test.jsonl": set(),
    "stages/01-cold_start/evaluation/evaluation.json": set(),
    "stages/02-reason/evaluation/evaluation.json": {"modalities"},
    "stages/02-reason/evaluation/test.jsonl": set(),
    "stages/02-reason/evaluation/test-silent.jsonl": set(),
    "stages/02-reason/metrics.jsonl": set(),
    "stages/02-reason/rollouts/iteration_000001.jsonl": {"answers"},
    "stages/00-route/artifacts/own/mmrl.json": {"routing"},
}
"""Files of a run, and the sections that a page may lack without each."""


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def another_type(path):
    path.unlink()
    path.mkdir()


HARMS = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut off": cut,
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 40),
    "of another version": lambda path: path.write_text(json.dumps({"version": 99, "stages": {}, "test": {}}) + "\n"),
    "a list": lambda path: path.write_text("[]\n"),
    "a number": lambda path: path.write_text("7\n"),
    "nested deeply": lambda path: path.write_text("[" * 100_000),
    "a folder": another_type,
}
SILENT = {
    ("starts.jsonl", "missing"),  # runs of earlier versions have none
    ("starts.jsonl", "empty"),
    ("stages/02-reason/metrics.jsonl", "missing"),
    ("stages/02-reason/metrics.jsonl", "empty"),
    ("stages/02-reason/rollouts/iteration_000001.jsonl", "missing"),
    ("stages/02-reason/rollouts/iteration_000001.jsonl", "a folder"),
    ("base/evaluation/evaluation.json", "missing"),
    ("base/evaluation/evaluation.json", "a folder"),
}
"""Nothing shows that these files were ever there."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run = RunFolder(folder, order=("route", "cold_start", "reason"), ablations=("silent",))
    made = run.finish("route", kind="route", made={"own": {"kept": 5, "wrong": 1}}, routing={"prompts": {"solved": 5}})
    run.evaluate("base", [("happy", None), ("sad", None)])
    weights = run.finish("cold_start", reads={WEIGHTS: "0" * 64, "data.sources.own": made["own"]})[HANDOFF]
    run.evaluate("cold_start", [("happy", "happy"), ("sad", "happy")])
    run.finish("reason", kind="rl", reads={WEIGHTS: weights}, costs=some_costs(), start="cold_start")
    for name in ("test", "test-silent"):
        run.evaluate("reason", [("happy", "happy"), ("sad", "sad")], name=name)
    run.compare("reason", "cold_start", 0.1, 0.9)
    run.log("reason", "rollout/reward_mean", [0.25, 0.5, 0.75])
    run.roll("reason", [rollout(number) for number in range(3)])
    return folder


def sections(found):
    return [
        attributes["id"]
        for tag, attributes in found.elements
        if tag == "section" and "id" in attributes and attributes["id"] != "missing"
    ]


@pytest.fixture(scope="module")
def shown(whole):
    return set(sections(parsed(whole)))


def test_the_whole_run_misses_nothing_and_the_table_names_every_file(whole):
    assert missing(whole) == []
    read = {str(path.relative_to(whole)) for path in whole.rglob("*") if path.suffix in (".json", ".jsonl", ".yaml")}
    assert read - PLAIN.keys() == {
        "stages/01-cold_start/evaluation/test.jsonl",
        *(f"stages/{stage}/handoff/mmrl.json" for stage in ("01-cold_start", "02-reason")),
    }


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", PLAIN)
def test_a_damaged_file_costs_its_own_part_of_the_page(whole, shown, tmp_path, name, harm):
    folder = tmp_path / "whole"
    shutil.copytree(whole, folder)
    HARMS[harm](folder / name)
    run = read_run(folder)
    lost, notes = shown - set(sections(Parsed(page([run])))), run.missing
    assert lost <= PLAIN[name]
    if (name, harm) not in SILENT:
        file, stage = name.rpartition("/")[2], "-".join(name.split("/")[1:2]).partition("-")[2]
        assert [note for note in notes if file in note or (stage and f"Stage {stage} is" in note)], notes
        assert notes == list(dict.fromkeys(notes))
    assert not [note for note in notes if "cannot be shown" in note], notes


def test_two_files_that_are_damaged_are_both_said(tmp_path):
    run = whole_run(tmp_path / "run")
    (run.folder / "manifest.json").write_text("{")
    (run.folder / "config.yaml").unlink()
    text = " ".join(parsed(run.folder).text)
    assert "manifest.json is damaged" in text
    assert "config.yaml is missing" in text
    assert "unknown" in text
    assert "reason" in text
