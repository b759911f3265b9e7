import json
import tracemalloc
from itertools import pairwise

import pyarrow
import pytest
from pyarrow import ipc, parquet

from lightning_mmrl.data.formats import json_rows
from lightning_mmrl.data.formats.json_rows import array_rows, line_rows
from lightning_mmrl.data.formats.storage import num_file_rows, parts_of, storage_of
from lightning_mmrl.data.formats.table_rows import arrow_rows, parquet_rows
from lightning_mmrl.data.schema import LineError
from lightning_mmrl.errors import DataError

ROWS = [
    {"a": 1, "text": 'quotes " and \\ and ] and }', "deep": {"list": [1, [2, {"x": "]"}]]}},
    {"a": 2, "text": "\u00e9\u4e2d\n", "deep": {}},
    {"a": 3, "text": "x" * 5000},
]


@pytest.mark.parametrize("chunk", [2, 3, 7, 64, 2**20])
@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_gives_its_elements_whatever_the_size_of_a_read(tmp_path, monkeypatch, chunk, indent):
    monkeypatch.setattr(json_rows, "_CHUNK", chunk)
    path = tmp_path / "a.json"
    path.write_text(" " + json.dumps(ROWS, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
    found = list(array_rows(path))
    assert [row for _, row in found] == ROWS
    assert [place.row for place, _ in found] == [1, 2, 3]
    if indent:
        lines = path.read_text().splitlines()
        assert all(lines[place.line - 1].strip() == "{" for place, _ in found)
        assert all(first.line < second.line for (first, _), (second, _) in pairwise(found))


def test_an_empty_array_has_no_rows(tmp_path):
    (tmp_path / "a.json").write_text("[ ]\n")
    assert list(array_rows(tmp_path / "a.json")) == []


def test_a_bad_element_does_not_hide_the_next(tmp_path):
    (tmp_path / "a.json").write_text('[{"a": 1}, {"a": nul}, 7, {"a": 2},]')
    found = [row if isinstance(row, dict) else row.reason for _, row in array_rows(tmp_path / "a.json")]
    assert found[0] == {"a": 1}
    assert found[3] == {"a": 2}
    assert found[1].startswith("not valid JSON")
    assert found[2] == "found a int; each line must be one JSON object"
    assert found[4].startswith("not valid JSON")


def test_an_element_that_never_ends_is_not_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(json_rows, "MAX_LINE_BYTES", 100_000)
    monkeypatch.setattr(json_rows, "_CHUNK", 1000)
    (tmp_path / "a.json").write_text('[{"a": 1}, "' + "x" * 3_000_000)
    tracemalloc.start()
    found = list(array_rows(tmp_path / "a.json"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(found[1][1], LineError)
    assert "longer than 100000 bytes" in found[1][1].reason
    assert peak < 2_000_000


def test_a_long_array_is_read_in_constant_memory(tmp_path):
    with (tmp_path / "a.json").open("w") as file:
        file.write("[" + ",\n".join(json.dumps({"n": n, "text": "x" * 1000}) for n in range(20_000)) + "]")
    tracemalloc.start()
    numbers = sum(row["n"] for _, row in array_rows(tmp_path / "a.json") if isinstance(row, dict))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert numbers == 20_000 * 19_999 // 2
    assert peak < 8_000_000


def test_blank_lines_count_but_are_no_rows(tmp_path):
    (tmp_path / "a.jsonl").write_text('\n{"a": 1}\n\n[]\n')
    found = list(line_rows(tmp_path / "a.jsonl"))
    assert [place.line for place, _ in found] == [2, 4]
    assert found[0][1] == {"a": 1}
    assert isinstance(found[1][1], LineError)
    assert num_file_rows(tmp_path / "a.jsonl", "lines") == 2


@pytest.mark.parametrize("group", [1, 2, 3, 1000])
def test_tables_give_rows_without_missing_values(tmp_path, group):
    rows = [{"a": n, "b": None if n % 2 else {"x": 1.5, "y": None}, "c": [None, b"\x00"]} for n in range(70)]
    expected = [{"a": n, **({} if n % 2 else {"b": {"x": 1.5}}), "c": [None, b"\x00"]} for n in range(70)]
    table = pyarrow.Table.from_pylist(rows)
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=group)
    with ipc.new_file(tmp_path / "f.arrow", table.schema) as file:
        file.write_table(table, max_chunksize=group)
    with ipc.new_stream(tmp_path / "s.arrow", table.schema) as stream:
        stream.write_table(table, max_chunksize=group)
    for read, name in ((parquet_rows, "t.parquet"), (arrow_rows, "f.arrow"), (arrow_rows, "s.arrow")):
        found = list(read(tmp_path / name))
        assert [row for _, row in found] == expected
        assert [place.where for place, _ in found][:2] == ["row 1", "row 2"]
        assert num_file_rows(tmp_path / name, storage_of(tmp_path / name)) == 70


def test_a_parquet_of_one_row_group_is_not_loaded(tmp_path):
    rows = [{"image": bytes([n % 256]) * 100_000} for n in range(640)]
    path = tmp_path / "big.parquet"
    table = pyarrow.Table.from_pylist(rows)
    parquet.write_table(table, path, use_dictionary=False, compression="none", write_batch_size=16)
    del table
    assert parquet.read_metadata(path).num_row_groups == 1
    most = 0
    for place, row in parquet_rows(path):
        assert row["image"][:1] == bytes([(place.row - 1) % 256])
        most = max(most, pyarrow.total_allocated_bytes())
    assert most < path.stat().st_size / 3


def test_what_a_file_is_follows_its_content(tmp_path):
    table = pyarrow.Table.from_pylist([{"a": 1}])
    parquet.write_table(table, tmp_path / "x.json")
    (tmp_path / "a.txt").write_text("\ufeff \n[{}]", encoding="utf-8")
    (tmp_path / "l.json").write_text('{"a": 1}\n')
    (tmp_path / "dataset_info.json").write_text("{}")
    kinds = {path.name: storage_of(path) for path in tmp_path.iterdir()}
    assert kinds == {"x.json": "parquet", "a.txt": "array", "l.json": "lines", "dataset_info.json": "info"}


def test_a_folder_of_shards_is_a_source_and_its_parts_are_named(tmp_path):
    names = [*(f"train-{n:05d}-of-00003.parquet" for n in range(3)), "test-00000-of-00001.parquet", "note.md"]
    for name in names:
        (tmp_path / name).write_bytes(b"PAR1")
    assert [path.name for path in parts_of(tmp_path / "#train").files] == names[:3]
    assert [path.name for path in parts_of(tmp_path.with_name(f"{tmp_path.name}#test")).files] == names[3:4]
    with pytest.raises(DataError, match=r"has the parts test, train; choose one, as .*#test"):
        parts_of(tmp_path)
    with pytest.raises(DataError, match="has no part 'dev'; known are test, train"):
        parts_of(tmp_path / "#dev")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty has no .parquet, .arrow, .jsonl files"):
        parts_of(tmp_path / "empty")
    (tmp_path / "a#b.jsonl").write_text("{}")
    assert parts_of(tmp_path / "a#b.jsonl").files == (tmp_path / "a#b.jsonl",)
