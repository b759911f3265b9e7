import io
import json

import pyarrow
import pytest
import words
from PIL import Image
from published_files import CANONICAL, GEOMETRY3K, LLAVA, VERL
from published_layout import write_array
from pyarrow import parquet

from lightning_mmrl.cli.main import main
from lightning_mmrl.data.schema import read_manifest


@pytest.fixture
def run(capsys):
    def run(*arguments):
        code = main(["data", *map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


def test_convert_writes_a_manifest_and_says_how_it_read(run, tmp_path):
    path = VERL.put(tmp_path)
    code, said = run("convert", path, "--media-root", tmp_path, "--out", tmp_path / "out.jsonl")
    assert code == 0
    assert f"{path}: read as verl" in said
    assert "2 samples of the format verl" in said
    assert read_manifest(tmp_path / "out.jsonl", tmp_path) == list(VERL.samples)


def test_convert_counts_what_it_changed(run, tmp_path):
    path = GEOMETRY3K.put(tmp_path)
    said = run("convert", path, "--media-root", tmp_path, "--out", tmp_path / "out.jsonl")[1]
    assert "'images' had no <image> tags: put at the start of the first user turn (1 time)" in said
    assert "<answer> tags around 'answer' are left out (1 time)" in said


def test_convert_writes_nothing_while_a_row_is_bad(run, tmp_path):
    path = LLAVA.put(tmp_path, [*LLAVA.rows, {"conversations": []}])
    out = tmp_path / "out.jsonl"
    code, said = run("convert", path, "--media-root", tmp_path, "--out", out)
    assert code == 2
    assert "r1_omni.json: row 3 (line " in said
    assert "1 bad row, so nothing is written" in said
    assert not out.exists()
    code, said = run("convert", path, "--media-root", tmp_path, "--out", out, "--skip-bad")
    assert code == 1
    assert "2 samples of the format llava, 1 left out" in said
    assert read_manifest(out, tmp_path) == list(LLAVA.samples)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--format", "verll"], "--format verll: no such format; did you mean 'verl'?"),
        (["--media-root", "nowhere"], "--media-root nowhere is no folder"),
        (["--out", "."], "--out . is a folder; name a file in it"),
    ],
)
def test_bad_arguments_are_named(run, tmp_path, arguments, complaint):
    path = CANONICAL.put(tmp_path)
    code, said = run("convert", path, "--media-root", tmp_path, "--out", tmp_path / "o.jsonl", *arguments)
    assert code == 2
    assert complaint in said


def test_convert_never_replaces_a_file_unasked(run, tmp_path):
    path = LLAVA.put(tmp_path)
    (tmp_path / "out.jsonl").write_text("precious")
    common = ("convert", path, "--media-root", tmp_path, "--out")
    assert run(*common, tmp_path / "out.jsonl")[0] == 2
    assert (tmp_path / "out.jsonl").read_text() == "precious"
    assert "is the source itself" in run(*common, path, "--overwrite")[1]
    assert run(*common, tmp_path / "out.jsonl", "--overwrite")[0] == 0


def test_validate_decodes_a_published_file(run, tmp_path):
    root = words.write_media(tmp_path / "set")
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (9, 9, 9)).save(content, "PNG")
    rows = [
        {"problem": "<image>Which?", "answer": "sad", "images": [{"bytes": each, "path": None}]}
        for each in (content.getvalue(), b"nothing")
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), root / "train.parquet")
    code, said = run("validate", root / "train.parquet", "--media-root", root, "--workers", 1)
    assert code == 1
    assert "train.parquet: row 2: " in said
    assert "train.parquet: read as geometry3k" in said
    assert "1 sample usable, 1 bad line" in said
    assert run("stats", root / "train.parquet", "--media-root", root)[0] == 0


def test_show_writes_a_page_that_loads_nothing(run, tmp_path):
    root = words.write_media(tmp_path / "set")
    rows = [
        {"video": "one.mp4", "conversations": [{"from": "human", "value": "<video>A <b>bold</b> question?"}]},
        {"audio": "one.wav", "conversations": [{"from": "human", "value": "<audio>Which?"}], "solution": "sad & low"},
        {"image": "broken.png", "conversations": [{"from": "human", "value": "<image>Which?"}]},
        {"image": "none.png", "conversations": [{"from": "human", "value": "<image>Which?"}]},
    ]
    write_array(root / "train.json", rows)
    out = tmp_path / "sheet.html"
    code, said = run("show", root / "train.json", "--media-root", root, "--out", out, "--workers", 1)
    page = out.read_text()
    assert code == 0, said
    assert page.count('<img alt="" src="data:image/jpeg;base64,') == 4
    assert page.count("<svg") == 1
    assert "A &lt;b&gt;bold&lt;/b&gt; question?" in page
    assert "solution: sad &amp; low" in page
    assert "broken.png" in page
    assert "row 4 (line " in page
    assert "&#x27;none.png&#x27; does not exist" in page
    assert "http" not in page.replace("http-equiv", "")
    assert run("show", root / "train.json", "--media-root", root, "--out", out)[0] == 2
    code, said = run("show", root / "train.json", "--media-root", root, "--out", out, "--overwrite", "--first", 9)
    assert code == 2
    assert "has no row 9" in said


def test_show_starts_at_the_row_asked_for(run, tmp_path):
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(words.row(name)) + "\n" for name in "abcde"))
    run("show", tmp_path / "t.jsonl", "--media-root", tmp_path, "--out", tmp_path / "s.html", "--first", 2, "--num", 2)
    page = (tmp_path / "s.html").read_text()
    assert [name for name in "abcde" if f"&middot; {name}<" in page] == ["b", "c"]
