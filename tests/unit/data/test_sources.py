"""Every format's sample file gives the samples that stand beside it, by hand, and survives conversion."""

import datetime
import hashlib
import json
from dataclasses import replace

import pyarrow
import pytest
from published_files import CANONICAL, LLAMA_FACTORY, LLAVA, PUBLISHED, SAT, VERL, A, B
from pyarrow import parquet

from lightning_mmrl.data.formats import inline_media
from lightning_mmrl.data.formats.readers.registry import READERS
from lightning_mmrl.data.manifest_lines import write_manifest
from lightning_mmrl.data.schema import Entry, Problem, read_manifest
from lightning_mmrl.data.sources import Source, load_source, num_rows, read_source, source_digest
from lightning_mmrl.errors import ConfigError, DataError

each_format = pytest.mark.parametrize("published", PUBLISHED, ids=lambda each: each.file)


def scanned(path, root, format="auto"):
    source = Source(path, root, format)
    items = list(source.scan())
    assert [item for item in items if not isinstance(item, Entry)] == []
    return source, [item.sample for item in items]


@each_format
def test_a_published_file_gives_its_samples(published, tmp_path):
    source, samples = scanned(published.put(tmp_path), tmp_path)
    assert source.reader.name == published.format
    assert samples == list(published.samples)
    assert num_rows(published.put(tmp_path)) == len(samples)


@each_format
def test_naming_the_format_changes_nothing(published, tmp_path):
    path = published.put(tmp_path)
    assert scanned(path, tmp_path, published.format)[1] == read_source(path, tmp_path) == list(published.samples)


@each_format
def test_a_converted_file_gives_equal_samples(published, tmp_path):
    samples = read_source(published.put(tmp_path), tmp_path)
    write_manifest(tmp_path / "converted.jsonl", samples)
    assert read_manifest(tmp_path / "converted.jsonl", tmp_path) == samples
    changed = [replace(samples[0], solution="something else"), *samples[1:]]
    assert read_manifest(tmp_path / "converted.jsonl", tmp_path) != changed


def test_every_reader_has_a_published_file():
    assert {each.format for each in PUBLISHED} == READERS.keys() - {"sat_circular"}


def test_circular_sat_asks_each_question_once_for_every_turn_of_its_options(tmp_path):
    path = SAT.put(tmp_path)
    read = read_source(path, tmp_path, "sat_circular")
    [whole] = SAT.samples
    assert [each.extras["options"] for each in read] == [["left", "right"], ["right", "left"]]
    assert [(each.id, each.speaker) for each in read] == [
        (f"SAT_train-000001#{turned}", "SAT_train-000001") for turned in (0, 1)
    ]
    assert {each.solution for each in read} == {whole.solution}
    assert [each.media for each in read] == [whole.media] * 2
    assert "right, or left" in read[1].messages[0].content
    assert scanned(path, tmp_path)[0].reader.name == "sat"  # it must be named


def write(path, *rows):
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def test_two_formats_that_fit_are_listed_and_none_is_taken(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "Q"}], "question": "Q", "answer": "3"}]
    both = [{"prompt": "Q", "problem": "Q", "answer": "3"}]
    parquet.write_table(pyarrow.Table.from_pylist(both), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"t.parquet fits the formats hugging_face and geometry3k .*say which one by"):
        Source(tmp_path / "t.parquet", tmp_path)
    assert Source(tmp_path / "t.parquet", tmp_path, "hugging_face").reader.name == "hugging_face"
    assert Source(write(tmp_path / "t.jsonl", *rows), tmp_path).reader.name == "canonical"


def test_an_unknown_layout_lists_the_formats(tmp_path):
    parquet.write_table(pyarrow.Table.from_pylist([{"x": 1}]), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"has no known format \(found 'x'\); known are canonical .*; csv"):
        Source(tmp_path / "t.parquet", tmp_path)
    with pytest.raises(ConfigError, match="format is 'verll', which is no format; did you mean 'verl'"):
        Source(tmp_path / "t.parquet", tmp_path, "verll")


def test_lines_of_an_unknown_layout_are_named_by_the_strict_reading(tmp_path):
    [problem] = Source(write(tmp_path / "t.jsonl", {"x": 1}), tmp_path).scan()
    assert "t.jsonl:1: 'messages' is missing (found 'x')" in str(problem)


def test_a_manifest_stays_strict_beside_a_swift_file(tmp_path):
    good = {"messages": [{"role": "user", "content": "<image>Q"}], "images": ["pics/a.png"]}
    bad = {"messages": [{"role": "user", "content": "Q"}], "images": ["pics/a.png"]}
    CANONICAL.put(tmp_path)
    path = write(tmp_path / "t.jsonl", good, bad)
    first, second = Source(path, tmp_path).scan()
    assert isinstance(first, Entry)
    assert "0 <image> tags in the messages but 1 entries" in str(second)
    source = Source(path, tmp_path, "ms_swift")
    assert [item.sample.messages[0].content for item in source.scan()] == ["<image>Q", "<image>Q"]
    assert source.notes[1:] == [
        f"{path}: 'images' had no <image> tags: put at the start of the first user turn (1 time)"
    ]


def test_tags_of_several_kinds_are_put_first_in_one_order(tmp_path):
    CANONICAL.put(tmp_path)
    row = {"query": "Q", "audios": ["clips/1.wav"], "videos": ["clips/1.mp4"], "images": ["pics/a.png", "pics/b.png"]}
    [sample] = read_source(write(tmp_path / "t.jsonl", row), tmp_path, "ms_swift")
    assert sample.messages[0].content == "<image><image><video><audio>Q"
    assert [ref.path for ref in sample.media] == ["pics/a.png", "pics/b.png", "clips/1.mp4", "clips/1.wav"]


def test_an_absolute_path_is_read_below_the_root_by_its_longest_end(tmp_path):
    for name in ("a.png", "pics/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    rows = [{"query": "Q", "images": [path]} for path in ("/old/pics/a.png", "file:///old/a.png", "file:/x/pics/a.png")]
    source = Source(write(tmp_path / "t.jsonl", *rows), tmp_path)
    assert [item.sample.media[0].path for item in source.scan()] == ["pics/a.png", "a.png", "pics/a.png"]
    assert source.notes[1].endswith("paths below /old/ are read below media_root (2 times)")


def test_no_path_of_a_row_opens_anything_outside(tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(b"x")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    escapes = [
        "../secret.png",
        f"{tmp_path}/secret.png",
        f"file://{root}/../secret.png",
        "link.png",
        f"{root}/link.png",
    ]
    rows = [{"query": "Q", "images": [path]} for path in escapes]
    items = list(Source(write(root / "t.jsonl", *rows), root, "ms_swift").scan())
    assert [isinstance(item, Problem) for item in items] == [True] * len(escapes)


def test_media_in_a_table_are_written_once(tmp_path, monkeypatch):
    path = VERL.put(tmp_path)
    samples = read_source(path, tmp_path)
    files = [tmp_path / ref.path for sample in samples for ref in sample.media]
    assert [file.read_bytes() for file in files] == [A, B]
    monkeypatch.setattr(inline_media, "write_whole", None)
    assert [item.sample for item in Source(path, tmp_path).scan()] == samples
    files[0].write_bytes(b"damaged")
    with pytest.raises(TypeError):
        list(Source(path, tmp_path).scan())


def test_a_root_that_refuses_media_is_named(tmp_path):
    path = VERL.put(tmp_path / "set")
    root = tmp_path / "root"
    root.mkdir()
    (root / ".mmrl-inline").write_text("in the way")
    with pytest.raises(DataError, match=r"holds a medium.* below media_root .*; set media_root to a folder"):
        read_source(path, root)
    with pytest.raises(DataError, match="nowhere is no folder"):
        read_source(path, tmp_path / "nowhere")


def test_an_id_that_repeats_is_made_unique_and_counted(tmp_path):
    rows = [{"id": "a", "image": "pics/a.png", "conversations": [{"from": "human", "value": "Q"}]}] * 3
    path = LLAVA.put(tmp_path, rows)
    source = Source(path, tmp_path)
    assert [item.sample.id for item in source.scan()] == ["a", "a-row2", "a-row3"]
    assert any("an id stood in an earlier row" in note and "(2 times)" in note for note in source.notes)


def test_shards_are_one_source_and_a_bad_row_names_its_shard(tmp_path):
    for number, answer in enumerate(("3", "4")):
        rows = [{"problem": "Q", "answer": answer}, {"problem": " ", "answer": "5"}]
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"train-{number:05d}-of-00002.parquet")
    source = Source(tmp_path / "#train", tmp_path)
    items = list(source.scan())
    assert [item.sample.id for item in items if isinstance(item, Entry)] == [
        f"train-{number:05d}-of-00002-000001" for number in range(2)
    ]
    assert [item.line for item in items] == [1, 2, 3, 4]
    assert "#train: train-00001-of-00002.parquet: row 2: 'problem' is missing or blank" in str(items[3])
    assert num_rows(tmp_path / "#train") == 4
    assert num_rows(tmp_path / "none") is None


def test_a_digest_follows_every_file_of_a_source(tmp_path):
    path = LLAMA_FACTORY.put(tmp_path)
    before = source_digest(path)
    assert source_digest(path) == before
    (tmp_path / "mmo.json").write_text((tmp_path / "mmo.json").read_text() + "\n")
    after = source_digest(path)
    assert after != before
    (tmp_path / "dataset_info.json").write_text((tmp_path / "dataset_info.json").read_text() + "\n")
    assert source_digest(path) not in (before, after)
    plain = CANONICAL.put(tmp_path)
    assert source_digest(plain) == hashlib.sha256(plain.read_bytes()).hexdigest()
    assert source_digest(tmp_path / "none.parquet") is None


def test_a_source_that_has_not_changed_is_read_once(tmp_path, monkeypatch):
    path = VERL.put(tmp_path)
    loaded = load_source(path, tmp_path)
    assert load_source(path, tmp_path) is loaded
    assert loaded.notes == (f"{path}: read as verl",)
    VERL.put(tmp_path, VERL.rows[:1])
    assert len(load_source(path, tmp_path).samples) == 1


def test_a_column_whose_name_means_something_else_is_left_out_and_said(tmp_path):
    rows = [
        {
            "problem": "Q",
            "answer": "3",
            "response": "long",
            "labels": 7,
            "thumb": b"x",
            "when": datetime.date(2026, 1, 2),
        }
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    source = Source(tmp_path / "t.parquet", tmp_path)
    [entry] = source.scan()
    assert entry.sample.extras == {"when": "2026-01-02"}
    assert [note.split(": ", 1)[1] for note in source.notes[1:]] == [
        "column 'response' is not read, and its name has another meaning: left out (1 time)",
        "column 'labels' is not read, and its name has another meaning: left out (1 time)",
        "column 'thumb' holds bytes: left out (1 time)",
    ]


def test_a_name_that_no_file_can_have_is_a_problem_of_its_row(tmp_path):
    rows = [{"query": "Q", "images": [path]} for path in ("/old/" + "x" * 5000, "/old/a\0b.png", "/" + "a/" * 3000)]
    items = list(Source(write(tmp_path / "t.jsonl", *rows), tmp_path).scan())
    assert all("is an absolute path, and no end of it exists" in str(item) for item in items)
    assert [item.line for item in items] == [1, 2, 3]
