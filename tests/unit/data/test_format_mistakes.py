"""The commonest mistakes in each format end in a sentence with file, row, column, value and fix."""

import copy
import json
from typing import Any

import mistakes
import pytest
from published_files import (
    ALPACA,
    ARROW,
    CANONICAL,
    CSV,
    GEOMETRY3K,
    HUGGING_FACE,
    LLAMA_FACTORY,
    LLAVA,
    LMM_R1,
    MM_EUREKA,
    MS_SWIFT,
    SAT,
    VERL,
    VISION_R1_COLD,
)

from lightning_mmrl.data.schema import Entry, Problem
from lightning_mmrl.data.sources import Source
from lightning_mmrl.errors import DataError

MISTAKES = [
    (CANONICAL, mistakes.STRICT),
    (MS_SWIFT, mistakes.SWIFT),
    (LLAMA_FACTORY, mistakes.LLAMA),
    (ALPACA, mistakes.ALPACAS),
    (LLAVA, mistakes.LLAVAS),
    (VERL, mistakes.VERLS),
    (HUGGING_FACE, mistakes.TRL),
    (MM_EUREKA, mistakes.EUREKA),
    (LMM_R1, mistakes.LMM),
    (VISION_R1_COLD, mistakes.COLD),
    (SAT, mistakes.SATS),
    (GEOMETRY3K, mistakes.GEOMETRY),
    (CSV, mistakes.TABLE),
]
CASES = [
    pytest.param(published, mistake, id=f"{published.file}-{mistake.what}")
    for published, table in MISTAKES
    for mistake in table
]


def changed(row: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    row = copy.deepcopy(dict(row))
    for path, value in changes.items():
        *parents, last = (int(part) if part.isdigit() else part for part in path.split("."))
        node: Any = row
        for part in parents:
            node = node[part]
        if value is mistakes.DROP:
            del node[last]
        else:
            node[last] = value
    return row


def scanned(published, root, rows):
    return list(Source(published.put(root, rows), root, published.format).scan())


@pytest.mark.parametrize(("published", "mistake"), CASES)
def test_a_mistake_names_place_column_value_and_fix(published, mistake, tmp_path):
    right = published.rows[mistake.row]
    [good] = scanned(published, tmp_path, [right])
    assert isinstance(good, Entry), good
    [problem] = scanned(published, tmp_path, [changed(right, mistake.changes)])
    assert isinstance(problem, Problem)
    text = str(problem)
    source = str(tmp_path / (published.source or published.file))
    place = {"lines": f"{source}:1: ", "csv": f"{source}:2: ", "array": f"{source}: row 1 (line 2): "}
    stored = "csv" if published is CSV else published.write.__name__.removeprefix("write_")
    assert text.startswith(place.get(stored, f"{source}: row 1: "))
    for phrase in mistake.says:
        assert phrase in text
    assert len(text) < 1000
    assert problem.group


@pytest.mark.parametrize(("published", "table"), MISTAKES, ids=lambda each: getattr(each, "file", ""))
def test_there_are_twenty_mistakes_of_each_format(published, table):
    assert len({mistake.what for mistake in table}) >= 20 or published in (LLAMA_FACTORY, ALPACA)


@pytest.mark.parametrize(
    ("info", "says"),
    [
        ("[]", "holds a list; it must be an object of datasets by name"),
        ("{", "cannot be read as JSON"),
        ({}, "names 0 datasets"),
        ({"a": {}, "b": {}}, "names 2 datasets (a, b); choose one, as"),
        ({"a": 7}, "a is 7; it must be an object with 'file_name'"),
        ({"a": {}}, "has 'file_name' None"),
        ({"a": {"hf_hub_url": "x/y"}}, "a is at hf_hub_url 'x/y'; download it"),
        ({"a": {"file_name": "no.json"}}, "no.json, which is no file"),
        ({"a": {"file_name": "../x.json"}}, "has 'file_name' '../x.json'; it must be a path below"),
        (
            {"a": {"file_name": "mmo.json", "formating": "sharegpt"}},
            "has the key 'formating'; did you mean 'formatting'?",
        ),
        ({"a": {"file_name": "mmo.json", "formatting": "openai"}}, "has 'formatting' 'openai'; it must be alpaca or"),
        (
            {"a": {"file_name": "mmo.json", "columns": ["messages"]}},
            "has 'columns' ['messages']; it must map names to short texts",
        ),
        ({"a": {"file_name": "mmo.json", "ranking": True}}, "has 'ranking' set: pairs of answers"),
    ],
)
def test_a_faulty_dataset_info_names_the_dataset_and_the_key(info, says, tmp_path):
    LLAMA_FACTORY.put(tmp_path)
    path = tmp_path / "dataset_info.json"
    path.write_text(info if isinstance(info, str) else json.dumps(info))
    with pytest.raises(DataError) as raised:
        list(Source(path, tmp_path, "llama_factory").scan())
    assert str(path) in str(raised.value)
    assert says in str(raised.value)


def damaged(published, root, damage):
    path = published.put(root)
    file = root / published.file
    file.write_bytes(damage(file.read_bytes()))
    try:
        return [str(item) for item in Source(path, root, published.format).scan() if isinstance(item, Problem)]
    except DataError as error:
        return [str(error)]


@pytest.mark.parametrize("published", [LLAVA, VERL, ARROW, SAT], ids=lambda each: each.file)
def test_a_file_that_breaks_off_is_named(published, tmp_path):
    [text] = damaged(published, tmp_path, lambda content: content[: len(content) // 2])
    assert str(tmp_path / published.file) in text
    assert "; " in text


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda content: content + b"[]", "row 3 (line 29): the text '[]' follows the end of the array"),
        (lambda content: content.replace(b'"sad"', b"sad"), "row 1 (line 2): not valid JSON (Expecting value"),
        (lambda content: content.replace(b'"sad"', b"NaN"), "row 1 (line 2): not valid JSON (NaN is no JSON number)"),
        (lambda content: content.replace(b'"sad"', b'"\\ud800"'), "row 1 (line 2): not valid text (the lone surrogate"),
        (lambda content: content.replace(b"sad", b"\xff"), "row 1 (line 2): not UTF-8 text"),
        (lambda content: b"[1, " + content.lstrip()[1:], "row 1 (line 1): found a int"),
        (lambda content: content.replace(b'"id"', b'"image"'), "key 'image' appears twice"),
        (lambda content: content.rstrip()[:-1], "the array breaks off, or a bracket or quote is missing"),
    ],
)
def test_a_damaged_array_names_the_row_and_its_line(damage, says, tmp_path):
    texts = damaged(LLAVA, tmp_path, damage)
    assert any(says in text for text in texts), texts
    assert all(text.startswith(str(tmp_path / "r1_omni.json")) for text in texts)
