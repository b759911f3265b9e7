from run_folders import whole_run

from lightning_mmrl.app.run_page import RunPage


def test_the_page_is_written_after_the_comparison_or_with_the_one_that_is_there(tmp_path):
    run, happened = whole_run(tmp_path / "run"), []
    page, written = RunPage(directory=run.folder, compare=lambda: happened.append("compared"), say=happened.append), []
    for write in (page.refresh, page.write):
        write()
        written.append((run.folder / "report.html").read_text())
        (run.folder / "report.html").unlink()
    assert happened == ["compared"]
    assert "all 2 stages finished" in written[0]
    assert written[0] == written[1]


def test_a_parent_run_gets_the_page_after_it_is_written(tmp_path):
    run, sent = whole_run(tmp_path / "run"), []
    page = RunPage(
        directory=run.folder,
        compare=lambda: None,
        say=sent.append,
        publish=lambda parent: sent.append((parent, (run.folder / "report.html").is_file())),
    )
    for write in (page.refresh, page.write):
        write("parent")
        (run.folder / "report.html").unlink()
    assert sent == [("parent", True)] * 2


def test_a_page_that_fails_is_said_and_ends_nothing(tmp_path):
    def fail():
        raise ZeroDivisionError("a fault of the page")

    for compare, expected in ((fail, "ZeroDivisionError: a fault of the page"), (lambda: None, "is no run folder")):
        said = []
        RunPage(directory=tmp_path, compare=compare, say=said.append).refresh()
        (line,) = said
        assert expected in line
        assert f"`mmrl report {tmp_path}` writes it again" in line
