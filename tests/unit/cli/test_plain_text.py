"""Labels, ids, answers, file names and errors are printed as plain text, without markup or terminal codes."""

import io
import json
from dataclasses import replace

import pytest
from clips import tone, write_wav
from rich.console import Console

from lightning_mmrl.cli.data_tables import print_report
from lightning_mmrl.cli.main import main
from lightning_mmrl.cli.tables import gains_table, results_table
from lightning_mmrl.curriculum.compare import Gain, SetResult
from lightning_mmrl.data.inspection import take_inventory
from lightning_mmrl.data.report import Finding, summarize
from lightning_mmrl.data.schema import Problem
from lightning_mmrl.evaluation.intervals import Interval
from lightning_mmrl.evaluation.tasks.closed_labels import ClosedLabels
from lightning_mmrl.training.console import ConsoleProgress, PlainConsole, report_console
from lightning_mmrl.types.text import printable

HOSTILE = {
    "markup": ("[bold]x[/]", "[bold]x[/]"),
    "closing tag": ("[/]", "[/]"),
    "link": ("[link=http:a]x", "[link=http:a]x"),
    "style that is none": ("[@click=f]x", "[@click=f]x"),
    "escaped bracket": ("\\[b]", "\\[b]"),
    "emoji code": (":smile:", ":smile:"),
    "clear screen": ("\x1b[2J", "\\x1b[2J"),
    "one-byte escape": ("\x9b31m", "\\x9b31m"),
    "title of the window": ("\x1b]0;x\x07", "\\x1b]0;x\\x07"),
    "carriage return": ("sad\rx", "sad\\rx"),
    "backspace": ("sad\x08x", "sad\\x08x"),
    "line separator": ("a\u2028b", "a\\u2028b"),
    "other direction": ("a\u202eb", "a\\u202eb"),
    "half a character": ("a\udce9b", "a\\udce9b"),
}
"""Texts as they are given, and as they must be printed."""

INTERVAL = Interval(estimate=0.5, low=0.4, high=0.6, level=0.95, num_resamples=10, unit="sample")
TASK = ClosedLabels(labels=("angry", "sad"))


@pytest.fixture(params=HOSTILE.values(), ids=HOSTILE.keys())
def hostile(request):
    return request.param


def terminal():
    """A wide terminal with 256 colors that records its input."""
    return PlainConsole(file=io.StringIO(), width=300, force_terminal=True, legacy_windows=False)


def sent(console):
    return console.file.getvalue()


def test_lines_and_cells_of_tables_are_text(hostile):
    given, read = hostile
    console = terminal()
    console.print(given, soft_wrap=True)
    assert sent(console) == read + "\n"
    intervals = {"war": INTERVAL, "uar": INTERVAL}
    row = SetResult(stage=given, name=given, num_samples=1, metrics={}, intervals=intervals, task=TASK)
    gain = Gain(stage=given, over=given, name=given, difference=INTERVAL, task=TASK)
    console.print(results_table([row]))
    console.print(gains_table(TASK, [gain]))
    assert sent(console).count(read) == 1 + 2 + 3


def test_the_tables_of_datasets_are_text(hostile, tmp_path, capsys):
    given, read = hostile
    (tmp_path / "train.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "?"}]}))
    report = summarize(take_inventory([tmp_path / "train.jsonl"], tmp_path))
    split = replace(report.splits[0], name=given, labels={given: 1}, num_bad=1)
    problems = (Problem(file=given, line=1, group=given, reason=given),)
    finding = Finding(what=given, num=1, example=given, severe=False)
    print_report(replace(report, splits=(split,), problems=problems, findings=(finding,)), 5)
    # In order: file and reason of the problem, its group and place, the split twice, the label, the finding.
    assert capsys.readouterr().out.count(read) == 2 + 2 + 2 + 1 + 2


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_text(hostile, is_terminal):
    given, read = hostile
    console = PlainConsole(file=io.StringIO(), width=300, force_terminal=is_terminal, legacy_windows=False)
    with ConsoleProgress(console, 0.0) as progress:
        progress.say(given)
        progress.update(given, 1, 2, given)
        progress.update(given, 2, 2, given)
    assert sent(console).count(read) >= 3
    assert is_terminal or "\x1b" not in sent(console)
    assert given == read or given not in sent(console)


def test_an_error_is_text(hostile, capsys, tmp_path):
    given, read = hostile
    assert main(["data", "from-csv", f"{tmp_path}/{given}", "--media-root", str(tmp_path), "--out", "o"]) == 2
    assert read in capsys.readouterr().err


def test_stats_of_a_manifest_show_labels_and_ids_as_they_are(tmp_path, capsys):
    write_wav(tmp_path / "a.wav", tone(200, 0.1, 8000), 8000)
    rows = [
        {"id": given, "messages": [{"role": "user", "content": "?"}], "solution": given, "speaker": given}
        for given, read in HOSTILE.values()
        if "\udce9" not in given
    ]
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code = main(
        ["data", "stats", *(f"{tmp_path}/{name}.jsonl" for name in ("train", "test")), "--media-root", str(tmp_path)]
    )
    out = capsys.readouterr().out
    assert code == 1  # the ids are in both splits
    for given, read in HOSTILE.values():
        assert read in out or "\udce9" in given
        assert given == read or given not in out


def test_text_for_people_stays_as_it_is():
    for text in (
        "angry",
        "\u8352\u8c2c",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "\u0645\u0631\u062d\u0628\u0627",
        "a\tb\nc",
        "na\u00efve",
    ):
        assert printable(text) == text


def test_the_width_without_a_terminal_is_that_of_the_report():
    assert report_console(77).width == (77 if not Console().is_terminal else Console().width)


@pytest.mark.parametrize("key", ["data.root", "model.checkpoint", "output_dir"])
def test_a_plan_shows_names_as_they_are(tmp_path, monkeypatch, capsys, key):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # the command sets it for its process
    assert main(["plan", f"{key}='[bold]x[/] :smile:'"]) == 0
    assert "[bold]x[/] :smile:" in " ".join(capsys.readouterr().out.split())
