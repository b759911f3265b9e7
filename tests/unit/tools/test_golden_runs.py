"""Sources of the golden trajectories: the table of runs, weights, and the file of a trajectory."""

import json
from pathlib import Path

import golden_reading
import golden_runs
import pytest
import torch

ROOT = Path(__file__).parents[3]
TABLE = """
everywhere: ["output_dir={work}"]
shapes: {small: ["run_name={name}", steps=2]}
runs:
  base: {like: [small]}
  apart: {overrides: [steps=3]}
  later: {like: [small], after: base, ranks: 2, overrides: [steps=4]}
"""


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "runs.yaml"
    path.write_text(TABLE)
    return path


def test_a_run_has_the_overrides_of_all_then_its_shapes_then_its_own_then_the_extra(table):
    runs = golden_runs.read_table(table, Path("/work"), ["seed=1"])
    assert runs["later"].overrides == ("output_dir=/work", "run_name=later", "steps=2", "steps=4", "seed=1")
    assert (runs["later"].after, runs["later"].ranks, runs["base"].ranks) == ("base", 2, 1)


def test_runs_bring_those_they_start_from(table):
    runs = golden_runs.read_table(table, Path("/work"))
    assert [run.name for run in golden_runs.with_sources(runs, ["later"])] == ["base", "later"]
    assert [run.name for run in golden_runs.with_sources(runs, [])] == ["base", "apart", "later"]
    with pytest.raises(SystemExit, match="no run is called laetr; the table has base, apart, later"):
        golden_runs.with_sources(runs, ["laetr"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("  wrong: {rnaks: 2}", "run wrong: .*rnaks"),
        ("  wrong: {after: nobody}", "run wrong comes after 'nobody', which is not above it"),
        ("  wrong: {like: [large]}", "run wrong: there is no shape 'large'"),
    ],
)
def test_a_table_that_is_wrong_is_refused(table, line, message):
    table.write_text(f"{TABLE}{line}\n")
    with pytest.raises(SystemExit, match=message):
        golden_runs.read_table(table, Path("/work"))


def test_a_summary_of_weights_depends_on_every_bit_and_on_no_name_and_order():
    one, two = torch.arange(6.0).reshape(2, 3), torch.ones(4, dtype=torch.float64)
    summary = golden_reading.weight_summary([one, two])
    assert summary["norm"] == pytest.approx((55 + 4) ** 0.5)
    swapped = golden_reading.weight_summary([two, one])
    assert swapped["digest"] == summary["digest"]
    assert swapped["wave"] == pytest.approx(summary["wave"])
    moved = one.clone()
    moved[1, 2] = torch.nextafter(moved[1, 2], torch.tensor(9.0))
    assert golden_reading.weight_summary([moved, two])["digest"] != summary["digest"]
    assert golden_reading.weight_summary([one.T.contiguous(), two])["digest"] != summary["digest"]
    assert golden_reading.weight_summary([one.flip(1), two])["wave"] != pytest.approx(summary["wave"])


def test_a_trajectory_is_written_with_every_digit_and_steps_in_their_order(tmp_path):
    content = {"b": {"x": {"2": 0.1 + 0.2, "10": 1e-17, "1": 1.0}}, "a": {"y": [1, 2]}}
    golden_reading.write_trajectory(tmp_path / "run.json", content)
    text = (tmp_path / "run.json").read_text()
    assert json.loads(text) == content
    assert '"x": {"1": 1.0, "2": 0.30000000000000004, "10": 1e-17}' in text
    assert text.index('"a"') < text.index('"b"')
