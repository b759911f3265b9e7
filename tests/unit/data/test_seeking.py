"""Frames from parts of a clip are, bit for bit, those of the whole; damage is noticed in the other parts as well."""

import random
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import truth_clips
from truth_recipes import RECIPES

from lightning_mmrl.data.media import seeking, video
from lightning_mmrl.data.media.entry_points import packet_reading
from lightning_mmrl.data.media.opened import open_media
from lightning_mmrl.errors import MediaError
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.records import MediaRef

SECONDS = 4.2
SPANS = ((None, None), (1.1, None), (0.5, 1.4))

IN_PARTS = (
    "mp4:libx264+aac bf=2 g=25",
    "mp4:libx264+aac vfr bf=2 g=25",
    "mp4:libx264+aac turned bf=2 g=25",
    "mp4:libx264+aac late_picture bf=2 g=25",
    "mp4:libx264+aac bf=0 g=25 x264-params=intra-refresh=1",
    "mp4:libx264+aac bf=0 g=25 tune=zerolatency x264-params=slices=4",
    "mp4:libx264+aac bf=3 g=25 flags=+ildct+ilme",
    "mp4:libx264+aac bf=3 g=12 x264-params=b-pyramid=strict",
    "mp4:libx264+aac bf=2 g=25 movflags=frag_keyframe+empty_moov",
    "mp4:libx264+aac bf=2 g=25 use_editlist=0",
    "mp4:libx265+aac g=25 x265-params=log-level=0",
    "mov:libx264+aac late_sound bf=2 g=25",
    "mkv:libx264+aac vfr bf=2 g=25",
    "mkv:libx264+aac cut bf=2 g=25",
    "mkv:libx265+libopus g=25 x265-params=log-level=0",
    "flv:libx264+aac bf=2 g=25",
)
WHOLE = (
    "mp4:libx264+aac cut bf=2 g=25",
    "mp4:mpeg4+aac bf=2 g=25",
    "webm:libvpx+libopus g=25 cpu-used=8",
    "avi:libx264+libmp3lame bf=2 g=25",
    "ts:libx264+aac offset bf=2 g=25",
)


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    """Writes the clip of a recipe once."""
    recipes = {recipe.name: recipe for recipe in RECIPES}
    folder, written = tmp_path_factory.mktemp("seeking"), {}

    def clip(name):
        if name not in written:
            path = folder / f"{len(written)}.{recipes[name].suffix}"
            written[name] = truth_clips.write_clip(path, recipes[name], SECONDS).path
        return written[name]

    return clip


def both(path, num_frames, span=(None, None)):
    """A clip from its parts and whole, and how many frames were decoded for each."""
    ref, settings = (
        MediaRef(kind="video", path="x", start_s=span[0], end_s=span[1]),
        MediaSettings(num_frames=num_frames),
    )
    found = []
    with open_media(path) as file:
        outline = video.outline_of(file, settings)
        for each in (outline, replace(outline, index=None)):
            with pytest.MonkeyPatch.context() as patch:
                offered = []
                patch.setattr(video, "ChosenFrames", counting(offered))
                found.append((video._by_pyav(file, each, ref, settings, None), offered))
    return found


def counting(offered):
    class Counting(video.ChosenFrames):
        def offer(self, index, frame):
            offered.append(index)
            super().offer(index, frame)

    return Counting


def same(ours, whole):
    return np.array_equal(ours.frames, whole.frames) and replace(ours, frames=whole.frames) == whole


@pytest.mark.parametrize("name", IN_PARTS)
def test_frames_from_parts_are_those_of_the_whole(name, write):
    fewer = 0
    for num_frames in (1, 2):
        for span in SPANS:
            (ours, ours_decoded), (whole, all_decoded) = both(write(name), num_frames, span)
            assert same(ours, whole)
            fewer += len(ours_decoded) < len(all_decoded)
            assert len(ours_decoded) <= len(all_decoded)
    assert fewer >= 4


@pytest.mark.parametrize("name", WHOLE)
def test_a_clip_that_its_packets_do_not_describe_is_decoded_whole(name, write):
    with open_media(write(name)) as file:
        assert video.outline_of(file, MediaSettings()).index is None


def test_many_frames_of_a_short_clip_are_decoded_whole(write):
    (ours, ours_decoded), (whole, all_decoded) = both(write("mp4:libx264+aac bf=2 g=25"), 40)
    assert ours_decoded == all_decoded
    assert same(ours, whole)


def shifted(monkeypatch, shift):
    """Numbers frames by wrong times, as if decoding had landed on another frame."""
    index = seeking.FrameIndexer.index
    monkeypatch.setattr(
        seeking.FrameIndexer,
        "index",
        lambda self, zero_s: replace(index(self, zero_s), shown=np.roll(index(self, zero_s).shown, shift)),
    )
    monkeypatch.setattr(video, "plan_runs", lambda index, wanted, _: [seeking.Run(packet=0, first=0, last=max(wanted))])


def test_frames_that_are_one_off_are_found_by_the_comparison(write, monkeypatch):
    """The negative control."""
    shifted(monkeypatch, -1)
    (ours, decoded), (whole, all_decoded) = both(write("mp4:libx264+aac bf=2 g=25"), 2)
    assert len(decoded) < len(all_decoded)
    assert not same(ours, whole)
    assert [number - 1 for number in map(truth_clips.read, ours.frames)] == list(map(truth_clips.read, whole.frames))


def test_a_frame_at_another_time_than_its_number_sends_the_clip_to_whole_decoding(write, monkeypatch):
    shifted(monkeypatch, 1)
    (ours, decoded), (whole, all_decoded) = both(write("mp4:libx264+aac bf=2 g=25"), 2)
    assert decoded[-len(all_decoded) :] == all_decoded
    assert same(ours, whole)


def test_a_packet_that_is_no_entry_sends_the_clip_to_whole_decoding(write, monkeypatch):
    monkeypatch.setattr(seeking, "packet_reading", lambda codec: lambda packet: "entry")
    (ours, decoded), (whole, all_decoded) = both(write("mp4:libx264+aac bf=0 g=25"), 2)
    assert decoded[-len(all_decoded) :] == all_decoded
    assert same(ours, whole)


def refused(path):
    """Whether the clip is refused when its parts are read, and when it is decoded whole."""
    outcomes = []
    ref, settings = MediaRef(kind="video", path="x"), MediaSettings(num_frames=2)
    with open_media(path) as file:
        try:
            outline = video.outline_of(file, settings)
        except MediaError:
            return [True, True]
        for each in (outline, replace(outline, index=None)):
            try:
                video._by_pyav(file, each, ref, settings, None)
                outcomes.append(False)
            except MediaError:
                outcomes.append(True)
    return outcomes


@pytest.mark.parametrize("kind", ["zeros", "garbage"])
def test_damage_in_any_part_is_noticed_as_in_a_whole_decoding(kind, write, tmp_path):
    source = write("mp4:libx264+aac bf=2 g=25").read_bytes()
    first, last = source.index(b"mdat") + 4, source.rindex(b"moov") - 2004
    path, found = tmp_path / "damaged.mp4", []
    for place in np.linspace(first, last, 8, dtype=int):
        content = bytearray(source)
        content[place : place + 2000] = bytes(2000) if kind == "zeros" else random.Random(kind).randbytes(2000)
        path.write_bytes(content)
        found.append(refused(path))
    assert all(ours == whole for ours, whole in found)
    assert sum(whole for _, whole in found) >= 6


@pytest.mark.parametrize(
    "name",
    ["mp4:libx264+aac bf=2 g=25 movflags=faststart", "mkv:libx264+aac vfr bf=2 g=25", "flv:libx264+aac bf=2 g=25"],
)
def test_a_clip_that_is_cut_off_gives_the_frames_and_the_warning_of_the_whole(name, write, tmp_path):
    source = write(name)
    path = tmp_path / f"half{source.suffix}"
    for share in (0.5, 0.6, 0.7):
        path.write_bytes(source.read_bytes()[: int(share * source.stat().st_size)])
        (ours, _), (whole, _) = both(path, 2)
        assert same(ours, whole)
        assert "it may be cut off" in ours.warnings[-1]


class Codec:
    """A track's codec and its header."""

    def __init__(self, name, extradata):
        self.name, self.extradata = name, extradata


AVC, AVC_SHORT, HEVC = b"\x01d\x00\x0b\xff", b"\x01d\x00\x0b\xfd", b"\x01" + bytes(20) + b"\xff"


@pytest.mark.parametrize(
    ("codec", "packet", "content"),
    [
        (("h264", AVC), "00000002 65 88", "entry"),
        (("h264", AVC), "00000002 41 9a", "inner"),
        (("h264", AVC), "00000002 0605 00000002 65 88", "entry"),
        (("h264", AVC_SHORT), "0002 65 88", "entry"),
        (("h264", AVC), "00000002 6764 00000002 65 88", "described"),  # a parameter set before its picture
        (("h264", AVC), "00000002 6864 00000002 41 9a", "unclear"),  # later pictures need it
        (("hevc", HEVC), "00000003 420180 00000003 2601 80", "described"),
        (("h264", AVC), "00000002 0605", "unclear"),  # no picture
        (("h264", AVC), "00000002 65 08", "unclear"),  # its first slice is not the first of the picture
        (("h264", AVC), "00000001 65", "unclear"),
        (("h264", AVC), "00000002 e5 88", "unclear"),  # the forbidden bit
        (("h264", AVC), "00000003 65 88", "unclear"),  # longer than the packet
        (("h264", AVC), "00000002 65 88 00", "unclear"),  # a byte is left
        (("h264", AVC), "00000000 00000000", "unclear"),
        (("hevc", HEVC), "00000003 2a01 80", "entry"),  # CRA
        (("hevc", HEVC), "00000003 2601 80", "entry"),  # IDR
        (("hevc", HEVC), "00000003 0201 80", "inner"),
        (("hevc", HEVC), "00000003 4601 80", "unclear"),  # a delimiter alone
    ],
)
def test_packets_are_read_as_the_standards_say(codec, packet, content):
    reading = packet_reading(Codec(*codec))
    assert reading is not None
    assert reading(memoryview(bytes.fromhex(packet))) == content


@pytest.mark.parametrize("codec", [("h264", None), ("h264", b"\x00\x00\x00\x01gd"), ("hevc", b""), ("vp9", AVC)])
def test_packets_of_other_forms_are_not_read(codec):
    assert packet_reading(Codec(*codec)) is None


def index_of(ticks, entries):
    return seeking.FrameIndex(
        ticks=np.array(ticks), entries=np.array(entries), shown=np.sort(ticks), starts_s=np.sort(ticks) / 10
    )


def test_a_run_goes_from_an_entry_to_the_last_frame_wanted_of_its_group():
    ticks = [0, 3, 1, 2, 4, 7, 5, 6, 8, 11, 9, 10, *range(12, 40)]
    index = index_of(ticks, [0, 4, 8, 12])
    assert seeking.plan_runs(index, [5, 6, 9]) == [
        seeking.Run(packet=0, first=0, last=0),
        seeking.Run(packet=4, first=4, last=6),
        seeking.Run(packet=8, first=8, last=9),
    ]
    assert seeking.plan_runs(index, [39]) is not None
    assert seeking.plan_runs(index, [3, 7, 11, 39]) is None


class Packet(bytes):
    """A packet."""

    is_discard = is_corrupt = has_new_header = False
    pts = 0

    def has_sidedata(self, kind):
        return self.has_new_header and kind == "new_extradata"


class Stream:
    """A track of H.264 in milliseconds."""

    time_base, codec_context = Fraction(1, 1000), Codec("h264", AVC)


ENTRY, INNER = "00000002 65 88", "00000002 41 9a"


def indexed(*packets):
    """The index of packets, each a time, a content and attributes."""
    indexer = seeking.FrameIndexer(Stream())
    for pts, content, more in packets:
        packet = Packet.fromhex(content)
        packet.__dict__.update({"pts": pts, **more})
        indexer.add(packet)
    return indexer.index(0.5)


GOOD = [(0, ENTRY, {}), (120, INNER, {}), (40, INNER, {}), (80, INNER, {}), (160, ENTRY, {}), (200, INNER, {})]


def test_an_index_has_the_entries_and_the_times_in_display_order():
    index = indexed(*GOOD)
    assert index.ticks.tolist() == [0, 120, 40, 80, 160, 200]
    assert index.entries.tolist() == [0, 4]
    assert index.shown.tolist() == [0, 40, 80, 120, 160, 200]
    assert index.starts_s.tolist() == pytest.approx([-0.5, -0.46, -0.42, -0.38, -0.34, -0.3])


@pytest.mark.parametrize(
    ("place", "packet"),
    [
        (0, (0, INNER, {})),  # decoding cannot start at the first packet
        (2, (None, INNER, {})),
        (2, (80, INNER, {})),  # two frames at one time
        (1, (170, INNER, {})),  # shown after the next entry
        (5, (-1500, INNER, {})),  # the clock jumps back
        (5, (2**60, INNER, {})),
        (5, (200, INNER, {"is_discard": True})),
        (5, (200, INNER, {"is_corrupt": True})),
        (5, (200, INNER, {"has_new_header": True})),
        (5, (200, "00000003 41 9a", {})),
    ],
)
def test_packets_that_do_not_say_which_frames_a_clip_has_give_no_index(place, packet):
    packets = list(GOOD)
    packets[place] = packet
    assert indexed(*packets) is None


def test_entries_bring_their_parameter_sets_or_none_does_after_the_first():
    """A set in a packet that is skipped would be missing where a later entry does not repeat it."""
    described = "00000002 6764 " + ENTRY
    assert indexed((0, described, {}), *GOOD[1:]) is not None
    assert indexed((0, described, {}), *GOOD[1:4], (160, described, {}), GOOD[5]) is not None
    assert indexed(*GOOD[:4], (160, described, {}), GOOD[5]) is None
