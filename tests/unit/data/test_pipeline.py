"""The message about a file that cannot be encoded; and media of a key, in any process."""

import multiprocessing
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import omni
import pytest
import torch
from clips import write_grey

from lightning_mmrl.data.media.cache import MediaCache
from lightning_mmrl.data.media.guard import GuardedDecoder, decode
from lightning_mmrl.data.pipeline import MediaPipeline
from lightning_mmrl.errors import MediaError
from lightning_mmrl.models.families.qwen2_5_omni import OmniEncoder
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.media import DecodedAudio
from lightning_mmrl.types.records import MediaRef
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


REF = MediaRef(kind="video", path="a.mp4")


@pytest.fixture
def pipeline(tmp_path):
    """A pipeline of a real encoder, and a clip."""
    write_grey(tmp_path / "a.mp4", [0.2 * index for index in range(6)])
    return MediaPipeline(
        encoder=OmniEncoder.from_checkpoint(omni.build(tmp_path / "model")),
        settings=MediaSettings(num_frames=2),
        cache=MediaCache(tmp_path / "cache"),
        decoder=GuardedDecoder(workers=1),
    )


def in_a_worker(content, folder):
    """Key and tensors by a pickled pipeline, as a loader's worker makes them."""
    own = pickle.loads(content)
    key, task = own.keyed_task(folder / "a.mp4", REF, folder)
    return key, {name: tensor.numpy() for name, tensor in own.fetched(key, task, own.decoder.decode_all).items()}


def test_a_worker_that_got_the_pipeline_pickled_makes_and_finds_the_same(pipeline, tmp_path):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        key, made = pool.submit(in_a_worker, pickle.dumps(pipeline), tmp_path).result()
    own_key, task = pipeline.keyed_task(tmp_path / "a.mp4", REF, tmp_path)
    assert own_key == key
    assert key in pipeline.cache
    (tmp_path / "a.mp4").unlink()  # it can only come from the cache
    found = pipeline.fetched(key, task, pipeline.decoder.decode_all)
    assert found.keys() == made.keys()
    assert found["pixel_values_videos"].dtype == torch.uint8
    assert all(np.array_equal(found[name].numpy(), made[name]) for name in made)


def test_a_medium_that_was_evicted_is_decoded_again_and_a_bad_one_named(pipeline, tmp_path):
    key, task = pipeline.keyed_task(tmp_path / "a.mp4", REF, tmp_path)
    first = pipeline.fetched(key, task, pipeline.decoder.decode_all)
    [path] = tmp_path.rglob("*.media")
    path.unlink()
    again = pipeline.fetched(key, task, pipeline.decoder.decode_all)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert path.is_file()
    path.write_bytes(b"damaged")
    repaired = pipeline.fetched(key, task, pipeline.decoder.decode_all)
    assert all(torch.equal(first[name], repaired[name]) for name in first)
    path.unlink()
    (tmp_path / "a.mp4").write_bytes(b"no clip")
    with pytest.raises(MediaError, match=r"a\.mp4: it has changed since it was looked at"):
        pipeline.fetched(key, task, pipeline.decoder.decode_all)
    assert key not in pipeline.cache


def test_media_are_encoded_in_float32_though_another_thread_loads_a_model(pipeline, tmp_path):
    """VLLM and transformers load under the model's type, which is one for all threads."""
    _, task = pipeline.keyed_task(tmp_path / "a.mp4", REF, tmp_path)
    decoded, found = decode(task), []
    expected = pipeline.encode(decoded)
    reader = threading.Thread(target=lambda: found.append(pipeline.encode(decoded)))
    torch.set_default_dtype(torch.bfloat16)
    try:
        reader.start()
        reader.join(0.3)
        assert reader.is_alive()
    finally:
        torch.set_default_dtype(torch.float32)
    reader.join(20)
    assert {name: tensor.dtype for name, tensor in found[0].items()} == {
        name: tensor.dtype for name, tensor in expected.items()
    }
    assert all(torch.equal(found[0][name], expected[name]) for name in expected)
