from pathlib import Path

from run_folders import whole_run

from lightning_mmrl.app.run_page import RunPage


def test_the_page_follows_each_evaluation(tmp_path):
    run, happened = whole_run(tmp_path / "run"), []
    page = RunPage(directory=run.folder, compare=lambda: happened.append("compared"), say=happened.append)

    def evaluate(checkpoint, directory, stage, tracked):
        happened.append(f"evaluated {stage}")
        return {"test/uar": 0.5}

    assert page.after(evaluate)(Path("handoff"), Path("evaluation"), "reason", None) == {"test/uar": 0.5}
    assert happened == ["evaluated reason", "compared"]
    assert "all 2 stages finished" in (run.folder / "report.html").read_text()


def test_a_page_that_fails_is_said_and_the_metrics_are_kept(tmp_path):
    def fail():
        raise ZeroDivisionError("a fault of the page")

    for compare, expected in ((fail, "ZeroDivisionError: a fault of the page"), (lambda: None, "is no run folder")):
        said = []
        page = RunPage(directory=tmp_path, compare=compare, say=said.append)
        assert page.after(lambda *_: {"test/uar": 0.5})(Path("handoff"), Path("evaluation"), "s", None)
        (line,) = said
        assert expected in line
        assert f"`mmrl report {tmp_path}` writes it again" in line
