"""The command `mmrl report`."""

import subprocess
import sys

import pytest
from arm_folders import ArmsFolder
from run_folders import whole_run

from lightning_mmrl.cli.main import EXIT_BAD_INPUT, main


def test_the_page_lies_in_the_run_folder_or_where_it_is_asked_for(tmp_path, capsys):
    run = whole_run(tmp_path / "run")
    assert main(["report", str(run.folder)]) == 0
    assert str(run.folder / "report.html") in capsys.readouterr().out
    assert main(["report", str(run.folder), str(run.folder), "--out", str(tmp_path / "two.html")]) == 0
    assert (tmp_path / "two.html").read_text().count("<h1>run (1) and run (2)</h1>") == 1


def test_the_folder_of_a_comparison_gets_its_outputs_again(tmp_path, capsys):
    arms = ArmsFolder(tmp_path / "orders", {"sft": {0: 0.5, 1: 0.6}, "rl": {0: 0.7, 1: 0.9}})
    assert main(["report", str(arms.folder)]) == 0
    assert "Differences to sft in uar on test" in capsys.readouterr().out
    assert {"report.html", "table.md", "figure.svg", "results.json"} <= {path.name for path in arms.folder.iterdir()}
    assert main(["report", str(arms.folder), "--media"]) == EXIT_BAD_INPUT
    assert "name that folder alone" in capsys.readouterr().err


def test_another_measure_of_a_comparison_is_printed_and_not_written(tmp_path, capsys):
    arms = ArmsFolder(tmp_path / "orders", {"sft": {0: 0.5, 1: 0.6}, "rl": {0: 0.7, 1: 0.9}})
    before = sorted(arms.folder.iterdir())
    assert main(["report", str(arms.folder), "--measure", "test/uar"]) == 0
    told = capsys.readouterr().out
    assert "Differences to sft in uar on test" in told
    assert "Exploratory" in told
    assert sorted(arms.folder.iterdir()) == before


@pytest.mark.parametrize(
    ("measure", "says"),
    [
        ("uar", "such as ood/uar"),
        ("/uar", "such as ood/uar"),
        ("ood/uar", "no run has a value"),
        ("test/x", "no metric x"),
    ],
)
def test_a_measure_that_no_run_has_is_refused(tmp_path, capsys, measure, says):
    arms = ArmsFolder(tmp_path / "orders", {"sft": {0: 0.5, 1: 0.6}, "rl": {0: 0.7, 1: 0.9}})
    assert main(["report", str(arms.folder), "--measure", measure]) == EXIT_BAD_INPUT
    assert says in capsys.readouterr().err


def test_a_measure_is_for_a_comparison(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["report", str(whole_run(tmp_path / "run").folder), "--measure", "test/uar"])
    assert "folder of a comparison" in capsys.readouterr().err


def test_a_folder_that_is_no_run_gets_one_sentence(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == EXIT_BAD_INPUT
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("make", [whole_run, lambda folder: ArmsFolder(folder, {"a": {0: 0.5}})])
def test_no_torch_is_loaded(tmp_path, make):
    run = make(tmp_path / "run")
    code = "import sys; from lightning_mmrl.cli.main import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, "report", str(run.folder)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"
