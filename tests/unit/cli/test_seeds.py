"""The command `mmrl seeds`."""

import json
import subprocess
import sys

import pytest
import yaml
from run_folders import whole_run
from scipy import stats

from lightning_mmrl.cli.main import EXIT_BAD_INPUT, main


def run_of(folder, seed, gain=0.5):
    """A finished run with a seed, whose gain is the middle of its interval."""
    run = whole_run(folder)
    path = run.folder / "config.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "seed": seed}))
    run.compare("reason", "cold_start", gain - 0.25, gain + 0.25)
    return run.folder


def answer(folder, stage, predicted):
    """Changes the UAR of a stage on test by its metrics."""
    file = next(folder.glob(f"stages/*-{stage}")) / "evaluation" / "evaluation.json"
    summary = json.loads(file.read_text())
    summary["test"]["metrics"]["uar"] = predicted
    file.write_text(json.dumps(summary))


@pytest.fixture
def folders(tmp_path):
    """Three runs whose RL stage has a UAR of 0.5, 0.625 and 1, and gains 0.25, 0.5 and 0.875."""
    found = []
    for seed, (value, gain) in enumerate(((0.5, 0.25), (0.625, 0.5), (1.0, 0.875))):
        folder = run_of(tmp_path / f"run{seed}", seed, gain)
        answer(folder, "reason", value)
        found.append(folder)
    return found


def test_headlines_and_gains_are_means_over_seeds(folders, capsys, tmp_path):
    assert main(["seeds", *map(str, reversed(folders)), "--json", str(tmp_path / "seeds.json")]) == 0
    content = json.loads((tmp_path / "seeds.json").read_text())
    assert content["seeds"] == [0, 1, 2]
    [headline] = [each for each in content["headlines"] if (each["stage"], each["set"]) == ("reason", "test")]
    assert headline["values"] == [0.5, 0.625, 1.0]
    [gain] = content["gains"]
    assert (gain["stage"], gain["over"], gain["set"], gain["headline"]) == ("reason", "cold_start", "test", "uar")
    expected = stats.ttest_1samp([0.25, 0.5, 0.875], 0)
    assert [gain["low"], gain["high"]] == pytest.approx(list(expected.confidence_interval()))
    assert gain["p_value"] == pytest.approx(expected.pvalue)
    shown = capsys.readouterr().out
    assert "+25.0, +50.0, +87.5" in shown
    assert f"+54.2 [{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]" in shown
    assert "over 3 seeds" in shown


def test_other_runs_are_paired_by_seed(folders, capsys, tmp_path):
    others = [run_of(tmp_path / f"other{seed}", seed) for seed in (2, 1, 0)]
    for folder, value in zip(others, (0.25, 0.5, 0.5), strict=True):
        answer(folder, "reason", value)
    arguments = ["--over", *map(str, others), "--json", str(tmp_path / "seeds.json")]
    assert main(["seeds", *map(str, folders), *arguments]) == 0
    found = json.loads((tmp_path / "seeds.json").read_text())["differences"]
    [difference] = [each for each in found if (each["stage"], each["set"]) == ("reason", "test")]
    assert difference["values"] == [0.0, 0.125, 0.75]
    assert "Difference to the other runs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seeds", "over", "sentence"),
    [
        ((0,), (), "1 seed says nothing about others"),
        ((0, 0), (), "both have seed 0"),
        ((0, 1), (0, 2), "the runs have the seeds [0, 1], those to compare with [0, 2]"),
        ((0, "x"), (), "has no seed in its config.yaml"),
    ],
)
def test_runs_that_cannot_be_combined_get_one_sentence(seeds, over, sentence, tmp_path, capsys):
    folders = [run_of(tmp_path / f"run{place}", seed) for place, seed in enumerate(seeds)]
    others = [run_of(tmp_path / f"other{place}", seed) for place, seed in enumerate(over)]
    extra = ["--over", *map(str, others)] if others else []
    assert main(["seeds", *map(str, folders), *extra]) == EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_no_torch_is_loaded(folders):
    code = "import sys; from lightning_mmrl.cli.main import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, "seeds", *map(str, folders)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"
