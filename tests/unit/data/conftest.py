"""Clips, sounds and pictures without a model, for the tests of datasets."""

from shutil import copytree

import pytest
import words

from lightning_mmrl.data.media.examine import Guard
from lightning_mmrl.data.media.guard import DecodeTask
from lightning_mmrl.errors import MediaError
from lightning_mmrl.workers.pool import CallResult


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    return words.write_media(tmp_path_factory.mktemp("media") / "set")


@pytest.fixture
def root(media, tmp_path):
    return copytree(media, tmp_path / "set")


@pytest.fixture
def pipeline(tmp_path):
    return words.pipeline(tmp_path)


@pytest.fixture
def decoding_here(monkeypatch):
    """Decodes in this process: the workers have tests of their own."""

    def run(self, examination, media, root, on_progress):
        outcomes = []
        for path, ref in media:
            try:
                outcomes.append(
                    CallResult(value=examination(DecodeTask(path=path, ref=ref, settings=self.settings, root=root)))
                )
            except MediaError as error:
                outcomes.append(CallResult(error=str(error)))
            on_progress(len(outcomes), len(media))
        return outcomes

    monkeypatch.setattr(Guard, "run", run)
