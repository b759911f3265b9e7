"""Tables of a run as MLflow reads them: the page's numbers, bounded, and JSON that every reader takes."""

import json
from dataclasses import replace

from run_folders import whole_run

from lightning_mmrl.report import tables
from lightning_mmrl.report.rollouts import browser_groups, read_rollouts
from lightning_mmrl.report.run_files import read_run
from lightning_mmrl.report.scores import read_answers
from lightning_mmrl.report.tables import headlines, write_tables


def loaded(run):
    found = {path.name: json.loads(path.read_text(), parse_constant=lambda name: 1 / 0) for path in write_tables(run)}
    for name, table in found.items():
        assert all(len(row) == len(table["columns"]) for row in table["data"]), name
    return found


def test_scores_matrices_and_answers_are_those_of_the_page(tmp_path):
    run = read_run(whole_run(tmp_path / "run").folder)
    found = loaded(run)
    scores = [dict(zip(found["scores.json"]["columns"], row, strict=True)) for row in found["scores.json"]["data"]]
    assert {(row["stage"], row["set"]): row["value"] for row in scores} == dict(headlines(run))
    assert len(scores) == len(run.evaluated) > 1
    for each in run.evaluated:
        table = found[f"confusion-{each.stage}-{each.name}.json"]
        answers = read_answers(each, run)
        assert sum(number for row in table["data"] for number in row[1:]) == len(answers)
        right = {row[0]: row[table["columns"].index(row[0])] for row in table["data"]}
        for label, count in right.items():
            assert count == sum(one.truth == one.predicted == label for one in answers)
    shown = [group.values for group in browser_groups(0, read_rollouts(run))]
    sampled = {name: table for name, table in found.items() if name.startswith("rollouts-")}
    assert sum(len(table["data"]) for table in sampled.values()) == sum(len(group["responses"]) for group in shown) > 0
    (table,) = sampled.values()
    first = dict(zip(table["columns"], table["data"][0], strict=True))
    assert first["answer"] == shown[0]["responses"][0]["text"]
    assert first["reward.label"] == shown[0]["responses"][0]["components"]["label"]


def test_a_value_that_is_not_finite_is_none_and_no_headline(tmp_path):
    run = read_run(whole_run(tmp_path / "run").folder)
    first = replace(run.evaluated[0], metrics={run.evaluated[0].headline: float("nan")}, intervals={})
    (row,) = loaded(replace(run, evaluated=(first,)))["scores.json"]["data"]
    assert row[3:6] == [None, None, None]
    assert headlines(replace(run, evaluated=(first,))) == {}


def test_matrices_are_bounded_and_a_name_stays_in_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MOST_MATRICES", 1)
    run = read_run(whole_run(tmp_path / "run").folder)
    odd = replace(run, evaluated=(*run.evaluated[:-1], replace(run.evaluated[-1], stage="../../up")))
    paths = write_tables(odd)
    assert {path.parent for path in paths} == {run.folder / "tables"}
    assert sum(path.name.startswith("confusion-") for path in paths) == 1
