"""HEIC as phones write it: a grid of tiles, turned by the file."""

import contextlib
import struct

import numpy as np
import pytest
from heif_files import write_grid

from lightning_mmrl.data.media.examine import held_kinds
from lightning_mmrl.data.media.guard import DecodeTask
from lightning_mmrl.data.media.image import decode_image
from lightning_mmrl.errors import MediaError
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.records import MediaRef


def picture(height=100, width=150):
    """Neither flips nor turns nor exchanged tiles leave it as it is."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([columns * 255 // width, rows * 255 // height, np.full_like(rows, 60)], axis=-1)
    image[10:30, 10:50] = 255, 255, 255
    return image.astype(np.uint8)


def look(path, **limits):
    return decode_image(path, MediaRef(kind="image", path=path.name), MediaSettings(**limits)).pixels


TURNED = [
    ([], lambda image: image),
    ([(b"irot", 1)], lambda image: np.rot90(image, 1)),
    ([(b"irot", 2)], lambda image: np.rot90(image, 2)),
    ([(b"irot", 3)], lambda image: np.rot90(image, 3)),
    ([(b"imir", 0)], lambda image: image[::-1]),
    ([(b"imir", 1)], lambda image: image[:, ::-1]),
    ([(b"irot", 3), (b"imir", 1)], lambda image: np.rot90(image, 3)[:, ::-1]),
]


@pytest.mark.parametrize(("turns", "expected"), TURNED)
def test_a_grid_is_put_together_and_turned(turns, expected, tmp_path):
    path = write_grid(tmp_path / "a.heic", picture(), turns=turns)
    task = DecodeTask(path=path, ref=MediaRef(kind="video", path="a.heic"), settings=MediaSettings())
    assert held_kinds(task) == ["image"]
    pixels, right = look(path).astype(int), expected(picture()).astype(int)
    assert pixels.shape == right.shape
    assert np.abs(pixels - right).mean() < 3  # HEVC is not exact; a tile in the wrong place makes it 40
    assert np.median(np.abs(pixels - right)) <= 2


@pytest.mark.parametrize("size", [(64, 64), (64, 65), (130, 64), (200, 260)])
def test_tiles_may_stick_out(size, tmp_path):
    image = picture(*size)
    pixels = look(write_grid(tmp_path / "a.jpg", image, grid_in_idat=False))
    assert pixels.shape == image.shape
    assert np.abs(pixels.astype(int) - image).mean() < 3  # as above


def test_too_many_pixels_are_refused(tmp_path):
    path = write_grid(tmp_path / "a.heic", picture())
    with pytest.raises(MediaError, match=r"a\.heic: 15000 pixels exceed media\.max_pixels 14999; scale the image down"):
        look(path, max_pixels=14_999)


@pytest.mark.parametrize("shared", [False, True])
def test_tiles_that_lie_outside_of_the_picture_count_too(tmp_path, shared):
    """Six tiles, or one tile six times, are decoded and put together for a picture of 100 pixels."""
    path = write_grid(tmp_path / "a.heic", picture())
    content = path.read_bytes()
    parts, same = struct.pack(">6H", *range(3, 9)), struct.pack(">6H", *[3] * 6)
    changes = [(struct.pack(">HH", 150, 100), struct.pack(">HH", 10, 10))] + shared * [(parts, same)]
    for old, new in changes:
        assert content.count(old) == 1
        content = content.replace(old, new)
    path.write_bytes(content)
    assert look(path, max_pixels=6144).shape == (10, 10, 3)
    with pytest.raises(MediaError, match=r"a\.heic: 6144 pixels exceed media\.max_pixels 6143; scale the image down"):
        look(path, max_pixels=6143)


def test_a_missing_tile_is_named(tmp_path):
    path = write_grid(tmp_path / "a.heic", picture(), drop_tile=True)
    with pytest.raises(MediaError, match=r"a\.heic: image cannot be decoded \(the grid has 5 tiles and not 2 x 3\)"):
        look(path)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.6, 0.9])
def test_a_truncated_file_is_refused(share, tmp_path):
    content = write_grid(tmp_path / "whole.heic", picture()).read_bytes()
    (tmp_path / "cut.heic").write_bytes(content[: int(share * len(content))])
    with pytest.raises(MediaError, match=r"cut\.heic: image cannot be decoded"):
        look(tmp_path / "cut.heic")


def test_damage_to_the_header_raises_nothing_else(tmp_path):
    content = bytearray(write_grid(tmp_path / "whole.heic", picture()).read_bytes())
    rng = np.random.default_rng(0)
    end = content.index(b"mdat")
    path = tmp_path / "damaged.heic"
    for _ in range(60):
        damaged = content.copy()
        damaged[rng.integers(24, end)] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        # Each is either still a picture or refused by name; nothing else may be raised.
        with contextlib.suppress(MediaError):
            look(path)
