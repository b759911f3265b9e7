"""Every format's sample file gives the samples that stand beside it, by hand, and survives conversion."""

from dataclasses import replace

import pytest
from published_files import PUBLISHED

from lightning_mmrl.data.formats.readers.registry import READERS
from lightning_mmrl.data.manifest_lines import write_manifest
from lightning_mmrl.data.schema import Entry, read_manifest
from lightning_mmrl.data.sources import Source, num_rows, read_source

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
    assert {each.format for each in PUBLISHED} == READERS.keys()
