"""The message about a file that cannot be encoded."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lightning_mmrl.data.media.cache import MediaCache
from lightning_mmrl.data.media.guard import GuardedDecoder
from lightning_mmrl.data.pipeline import MediaPipeline
from lightning_mmrl.errors import MediaError
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.media import DecodedAudio
from lightning_mmrl.workers.pool import CallResult

SOUND = DecodedAudio(waveform=np.zeros(160, dtype=np.float32), sample_rate_hz=16_000)


@pytest.fixture
def refused(tmp_path):
    """The encoder raises what it is given."""

    def refused(path, outcome, error=None):
        def encode_audio(_):
            raise error

        encoder = SimpleNamespace(encode_audio=encode_audio, own_sizes=None)
        pipeline = MediaPipeline(
            encoder=encoder, settings=MediaSettings(), cache=MediaCache(tmp_path), decoder=GuardedDecoder()
        )
        with pytest.raises((MediaError, MemoryError, RuntimeError)) as caught:
            pipeline.encode_file(Path(path), outcome)
        return caught.value

    return refused


@pytest.mark.parametrize("path", ["a.wav", "sound", "s", "clips/a.wav"])
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MediaError("sound is too short"), "sound is too short"),
        (ValueError("a ratio"), "ValueError: a ratio"),
        (StopIteration("none"), "StopIteration: none"),
        (KeyError("s"), "KeyError: 's'"),
        (RuntimeError("shapes differ"), "RuntimeError: shapes differ"),
    ],
)
def test_whatever_the_encoder_raises_names_the_file(refused, path, error, words):
    found = refused(path, CallResult(value=SOUND), error)
    assert (type(found), str(found)) == (MediaError, f"{path}: {words}")


@pytest.mark.parametrize("error", [MemoryError("full"), RuntimeError("cannot allocate memory")])
def test_a_lack_of_memory_is_raised_as_it_is(refused, error):
    assert refused("a.wav", CallResult(value=SOUND), error) is error


@pytest.mark.parametrize("path", ["a.wav", "deadline", "s"])
@pytest.mark.parametrize("reason", ["{}: cannot be decoded", "cannot be decoded"])
def test_a_file_that_was_not_decoded_is_named_once(refused, path, reason):
    found = refused(path, CallResult(error=reason.format(path)))
    assert (type(found), str(found)) == (MediaError, f"{path}: cannot be decoded")
