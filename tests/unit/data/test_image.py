import io

import numpy as np
import pytest
from PIL import Image

from lightning_mmrl.data.media import image as module
from lightning_mmrl.data.media.guard import DecodeTask, GuardedDecoder, decode
from lightning_mmrl.data.media.image import decode_image
from lightning_mmrl.errors import MediaError
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.media import DecodedImage
from lightning_mmrl.types.records import MediaRef

RED, GREEN, BLUE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0)
UPRIGHT = [RED, GREEN, BLUE, BLACK]


def look(path, **settings):
    return decode_image(path, MediaRef(kind="image", path=path.name), MediaSettings(**settings)).pixels


def quarters(width=48, height=32):
    """Red, green, blue and black quarters, row by row."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[: height // 2, : width // 2], pixels[: height // 2, width // 2 :] = RED, GREEN
    pixels[height // 2 :, : width // 2] = BLUE
    return pixels


def corners(pixels):
    """The nearest pure color of each corner, row by row."""
    found = (pixels[y, x].astype(int) for y, x in ((3, 3), (3, -4), (-4, 3), (-4, -4)))
    return [tuple(int(255 * (channel > 127)) for channel in color) for color in found]


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "tiff", "webp", "jpg"])
def test_every_format_gives_the_same_picture(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(quarters()).save(path)
    pixels = look(path)
    assert (pixels.shape, pixels.dtype) == ((32, 48, 3), np.uint8)
    assert corners(pixels) == UPRIGHT
    if suffix in ("png", "bmp", "gif", "tiff"):
        np.testing.assert_array_equal(pixels, quarters())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_exif_orientation_is_undone(orientation, suffix, tmp_path):
    # What a camera stores so that the viewer's transposition gives the upright picture again (EXIF 2.3, tag 0x0112).
    stored = {
        1: quarters(),
        2: quarters()[:, ::-1],
        3: quarters()[::-1, ::-1],
        4: quarters()[::-1],
        5: quarters().transpose(1, 0, 2),
        6: np.rot90(quarters()),
        7: np.rot90(quarters().transpose(1, 0, 2), 2),
        8: np.rot90(quarters(), -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    pixels = look(path)
    assert pixels.shape == (32, 48, 3)
    assert corners(pixels) == UPRIGHT


def test_transparency_lies_over_white(tmp_path):
    pixels = np.dstack([np.zeros((4, 4, 3), np.uint8), np.repeat([[0, 85, 170, 255]], 4, axis=0).astype(np.uint8)])
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert look(tmp_path / "a.png")[0, :, 0].tolist() == [255, 170, 85, 0]
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([9, 9, 9, *BLUE])
    palette.putpixel((0, 0), 1)
    palette.save(tmp_path / "p.png", transparency=0)
    assert look(tmp_path / "p.png")[0, :2].tolist() == [list(BLUE), [255, 255, 255]]


@pytest.mark.parametrize(
    ("picture", "suffix", "expected"),
    [
        (Image.new("L", (4, 4), 77), "png", (77, 77, 77)),
        (Image.new("1", (4, 4), 1), "png", (255, 255, 255)),
        (Image.new("LA", (4, 4), (0, 0)), "png", (255, 255, 255)),
        (Image.new("CMYK", (4, 4), (0, 0, 0, 255)), "tiff", (0, 0, 0)),
        (Image.fromarray(np.full((4, 4), 0x8000, dtype=np.uint16)), "png", (128, 128, 128)),
    ],
    ids=["grey", "bits", "grey-alpha", "cmyk", "16-bit"],
)
def test_other_modes_become_rgb(picture, suffix, expected, tmp_path):
    picture.save(tmp_path / f"a.{suffix}")
    assert tuple(look(tmp_path / f"a.{suffix}")[0, 0]) == expected


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "mpo"])
def test_of_a_moving_picture_the_first_frame_is_seen(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    first, second = Image.new("RGB", (8, 8), GREEN), Image.new("RGB", (8, 8), RED)
    first.save(path, save_all=True, append_images=[second], duration=100)
    with Image.open(path) as stored:
        assert stored.n_frames == 2
    assert corners(look(path))[0] == GREEN


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    path = tmp_path / "big.png"
    Image.new("RGB", (40, 30)).save(path)
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    with pytest.raises(MediaError, match=r"big\.png: 1200 pixels exceed media.max_pixels 1199; scale the image down"):
        look(path, max_pixels=1199)


def png_of(width, height):
    """A PNG file whose header claims a size that its few bytes do not hold."""
    buffer = io.BytesIO()
    Image.new("1", (8, 8)).save(buffer, "png")
    content = bytearray(buffer.getvalue())
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    content[29:33] = module.zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize(("size", "reason"), [(10_000, "100000000 pixels exceed"), (60_000, "decompression bomb")])
def test_a_decompression_bomb_is_refused(size, reason, tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of(size, size))
    with pytest.raises(MediaError, match=rf"bomb\.png: .*{reason}.*; scale the image down"):
        look(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "tiff", "bmp"])
def test_a_truncated_file_is_refused(suffix, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    whole = tmp_path / f"whole.{suffix}"
    Image.fromarray(noise).save(whole)
    content = whole.read_bytes()
    for share in (0.1, 0.5, 0.9):
        path = tmp_path / f"cut.{suffix}"
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(MediaError, match=rf"cut\.{suffix}: image cannot be decoded .*; save it anew or remove"):
            look(path)


@pytest.mark.parametrize(
    "content", [b"", b"no image at all\n" * 50, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_what_is_no_picture_is_refused(content, tmp_path):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(MediaError, match=r"a\.png: image cannot be decoded .*cannot identify image file"):
        look(tmp_path / "a.png")


def test_an_avif_picture_with_damaged_content_is_refused_in_a_sentence(tmp_path):
    """Pillow raises a RuntimeError for it, and for no other format."""
    path = tmp_path / "damaged.avif"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    head, mark, data = path.read_bytes().partition(b"mdat")
    path.write_bytes(head + mark + b"\xff" * len(data))
    with Image.open(path) as picture, pytest.raises(RuntimeError):
        picture.load()
    with pytest.raises(MediaError, match=r"damaged\.avif: image cannot be decoded \(.*\); save it anew or remove"):
        look(path)


def test_floating_point_pixels_are_refused(tmp_path):
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(MediaError, match=r"a\.tiff: image cannot be decoded \(pixels are floating-point numbers\)"):
        look(tmp_path / "a.tiff")


@pytest.mark.parametrize("span", [{"start_s": 0.0}, {"end_s": 1.0}])
def test_an_image_has_no_span(span, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(MediaError, match=r"a\.png: span .* s, but an image has no time; remove start/end"):
        decode_image(tmp_path / "a.png", MediaRef(kind="image", path="a.png", **span), MediaSettings())


def test_too_many_bytes_are_refused_before_the_file_is_opened(tmp_path):
    Image.fromarray(quarters()).save(tmp_path / "a.png")
    task = DecodeTask(
        path=tmp_path / "a.png", ref=MediaRef(kind="image", path="a.png"), settings=MediaSettings(max_bytes=10)
    )
    with pytest.raises(MediaError, match=r"a\.png: \d+ bytes exceed media.max_bytes 10; cut the file"):
        decode(task)


def test_workers_decode_pictures_and_survive_a_bomb(tmp_path):
    Image.fromarray(quarters()).save(tmp_path / "a.png")
    (tmp_path / "bomb.png").write_bytes(png_of(60_000, 60_000))
    tasks = [
        DecodeTask(path=tmp_path / name, ref=MediaRef(kind="image", path=name), settings=MediaSettings())
        for name in ("bomb.png", "a.png")
    ]
    outcomes = {}
    GuardedDecoder(workers=1, deadline_s=60.0).decode_all(tasks, outcomes.__setitem__)
    assert "decompression bomb" in outcomes[0].error
    assert isinstance(outcomes[1].value, DecodedImage)
    np.testing.assert_array_equal(outcomes[1].value.pixels, quarters())
