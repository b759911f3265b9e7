"""The self-check of decoders: it passes here, and a decoder that returns something else does not."""

import numpy as np
import pytest

from lightning_mmrl.cli.doctor_probes import DECODERS as LISTED
from lightning_mmrl.data.media import selfcheck
from lightning_mmrl.data.media.selfcheck import DECODERS
from lightning_mmrl.errors import MediaError
from lightning_mmrl.types.media import DecodedAudio, DecodedImage, DecodedVideo

FRAMES = np.zeros((4, 64, 64, 3), dtype=np.uint8)
WRONG = {
    "decode_decord": DecodedVideo(frames=FRAMES, timestamps_s=(0.0, 0.1, 0.2, 0.3), duration_s=0.4),
    "decode_pyav": DecodedVideo(frames=FRAMES, timestamps_s=(0.0, 0.1, 0.2, 0.3), duration_s=0.4),
    "decode_audio": DecodedAudio(waveform=np.zeros(16_000, dtype=np.float32), sample_rate_hz=16_000),
    "decode_image": DecodedImage(pixels=np.zeros((8, 8, 3), dtype=np.uint8)),
}


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_work_here(name, tmp_path):
    assert DECODERS[name](tmp_path)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("decord", "decode_decord"),
        ("av", "decode_pyav"),
        ("av", "decode_audio"),
        ("soundfile", "decode_audio"),
        ("pillow", "decode_image"),
    ],
)
def test_a_decoder_that_returns_something_else_is_found(name, function, tmp_path, monkeypatch):
    monkeypatch.setattr(selfcheck, function, lambda *_: WRONG[function])
    with pytest.raises(MediaError, match=r"decodes (frames of grey|a tone of 0 Hz|other pixels)"):
        DECODERS[name](tmp_path)


def test_a_platform_without_decord_needs_none(tmp_path, monkeypatch):
    monkeypatch.setattr(selfcheck, "HAS_DECORD", False)
    monkeypatch.delattr(selfcheck, "decode_decord")
    assert DECODERS["decord"](tmp_path) == "not used on this platform; PyAV decodes video"


def test_doctor_asks_for_all_of_them():
    assert tuple(DECODERS) == LISTED
