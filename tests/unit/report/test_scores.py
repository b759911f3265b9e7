"""Intervals on the page: which of them are to be read with caution."""

import json

from run_folders import whole_run

from lightning_mmrl.report.run_files import read_run
from lightning_mmrl.report.scores import stages_section


def section(folder):
    return str(stages_section([read_run(folder)]))


def change(folder, **values):
    """Changes all intervals of the evaluations, and the one of the gain."""
    for file in folder.rglob("evaluation.json"):
        summary = json.loads(file.read_text())
        for entry in summary.values():
            entry["intervals"] = {name: {**each, **values} for name, each in entry["intervals"].items()}
        file.write_text(json.dumps(summary))
    file = folder / "comparison.json"
    content = json.loads(file.read_text())
    content["gains"] = [{**gain, "difference": {**gain["difference"], **values}} for gain in content["gains"]]
    file.write_text(json.dumps(content))


def test_intervals_of_few_speakers_are_marked_and_explained(tmp_path):
    run = whole_run(tmp_path / "run")
    change(run.folder, unit="speaker", num_units=14, reliable=False)
    text = section(run.folder)
    assert "[+10.0, +90.0] (not reliable)" in text
    assert "Some intervals: not reliable: fewer than 15 speakers." in text
    change(run.folder, num_units=15, reliable=True)
    assert "reliable" not in section(run.folder)


def test_single_samples_as_units_are_said_in_words(tmp_path):
    run = whole_run(tmp_path / "run")
    change(run.folder, reliable=True)
    assert "Some intervals: speakers are not known, so single samples were resampled." in section(run.folder)
    assert "not reliable" not in section(run.folder)


def test_intervals_of_earlier_versions_have_no_mark(tmp_path):
    run = whole_run(tmp_path / "run")
    for file in run.folder.rglob("evaluation.json"):
        summary = json.loads(file.read_text())
        for entry in summary.values():
            for each in entry["intervals"].values():
                for name in ("num_units", "effective_units", "reliable"):
                    del each[name]
        file.write_text(json.dumps(summary))
    assert "not reliable" not in section(run.folder)
