"""Clips, sounds and pictures without a model, for the tests of datasets."""

from shutil import copytree

import pytest
import words


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    return words.write_media(tmp_path_factory.mktemp("media") / "set")


@pytest.fixture
def root(media, tmp_path):
    return copytree(media, tmp_path / "set")


@pytest.fixture
def pipeline(tmp_path):
    return words.pipeline(tmp_path)
