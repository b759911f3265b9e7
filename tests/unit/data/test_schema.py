import hashlib
import json

import pytest

from lightning_mmrl.data import row_scan
from lightning_mmrl.data.media_files import resolve_media
from lightning_mmrl.data.schema import (
    Entry,
    Problem,
    load_manifest,
    read_manifest,
    scan_manifest,
)
from lightning_mmrl.errors import DataError
from lightning_mmrl.types.records import MediaRef, Message

USER = [{"role": "user", "content": "Which emotion?"}]


def clip_turn(tags="<video>"):
    return [{"role": "user", "content": f"{tags}Which emotion?"}]


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "set"
    (folder / "clips").mkdir(parents=True)
    for name in ("a.mp4", "b.mp4", "a~1.mp4"):
        (folder / "clips" / name).write_bytes(b"x")
    return folder


@pytest.fixture
def read(root):
    def read(*rows):
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        (root / "train.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
        return read_manifest(root / "train.jsonl", root)

    return read


def test_a_full_line_becomes_a_sample(read):
    row = {
        "id": "clip-1",
        "messages": [{"role": "system", "content": "Be brief."}, *clip_turn("<video><audio>")],
        "videos": [{"path": "clips/a.mp4", "start": 0.5, "end": 2}],
        "audios": "clips/b.mp4",
        "solution": "angry",
        "speaker": 7,
        "split": "train",
        "valence": 0.25,
        "cues": ["brow"],
    }
    [sample] = read(row)
    assert sample.id == "clip-1"
    assert sample.messages[1] == Message(role="user", content="<video><audio>Which emotion?")
    assert sample.media == (
        MediaRef(kind="video", path="clips/a.mp4", start_s=0.5, end_s=2.0),
        MediaRef(kind="audio", path="clips/b.mp4"),
    )
    assert (sample.solution, sample.speaker, sample.split) == ("angry", "7", "train")
    assert sample.extras == {"valence": 0.25, "cues": ["brow"]}


def test_media_stand_in_the_order_of_their_tags(read):
    turns = [*clip_turn("<audio><video>"), {"role": "assistant", "content": "sad"}, *clip_turn("<video>")]
    [sample] = read({"messages": turns, "videos": ["clips/b.mp4", "clips/a.mp4"], "audios": ["clips/a.mp4"]})
    order = [(ref.kind, ref.path) for ref in sample.media]
    assert order == [("audio", "clips/a.mp4"), ("video", "clips/b.mp4"), ("video", "clips/a.mp4")]


def test_ids_default_to_the_line_number(read):
    samples = read({"messages": USER}, b"   ", {"messages": USER, "id": None}, {"messages": USER, "id": 12})
    assert [sample.id for sample in samples] == ["train-000001", "train-000003", "12"]


def test_a_byte_order_mark_is_no_part_of_the_text(read):
    assert read(b"\xef\xbb\xbf" + json.dumps({"id": "a", "messages": USER}).encode())[0].id == "a"


@pytest.mark.parametrize(
    ("row", "found", "fix"),
    [
        (b"{", "not valid JSON", "fix or remove the line"),
        (b"[" * 200_000, "not valid JSON", "fix or remove the line"),
        (b'{"id": "\xff"}', "not UTF-8 text", "save the manifest as UTF-8"),
        ([1], "found a list", "must be one JSON object"),
        ({}, "'messages' is missing .found nothing.", "give a list of"),
        ({"messages": []}, r"'messages' is \[\]", "non-empty list"),
        ({"messages": ["hi"]}, "message 'hi'", "needs a role of system, user, assistant"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "'robot'", "needs a role of system, user, assistant"),
        ({"messages": [{"role": ["user"], "content": "hi"}]}, r"\['user'\]", "needs a role of"),
        ({"messages": [{"role": "user", "content": 3}]}, "'content': 3", "a string content"),
        ({"messages": clip_turn()}, "1 <video> tags .* but 0 entries in 'videos'", "one entry per tag"),
        ({"messages": USER, "audios": ["clips/a.mp4"]}, "0 <audio> tags .* but 1 entries", "one entry per tag"),
        ({"messages": clip_turn(), "videos": 5}, "'videos' is 5", "must be a list of paths"),
        ({"messages": clip_turn(), "videos": [5]}, "'videos' entry 5", "must be a path or {path, start, end}"),
        ({"messages": USER, "solution": ["angry"]}, r"'solution' is \['angry'\]", "must be a string"),
        ({"messages": USER, "speaker": True}, "'speaker' is True", "must be a string"),
        ({"messages": USER, "id": {"a": 1}}, "'id' is {'a': 1}", "must be a string"),
    ],
)
def test_a_bad_line_is_named_with_its_value_and_the_fix(read, root, row, found, fix):
    with pytest.raises(DataError, match=f"(?s)train.jsonl:2: .*{found}.*{fix}"):
        read({"messages": USER}, row)


def test_a_span_of_the_line_holds_for_media_without_one_of_their_own(read):
    row = {
        "messages": clip_turn("<image><video><audio>"),
        "images": "clips/a.mp4",
        "videos": ["clips/a.mp4"],
        "audios": [{"path": "clips/b.mp4", "end": 9, "start": None}],
        "start": 1,
        "end": 2.5,
    }
    [sample] = read(row)
    assert [(ref.kind, ref.start_s, ref.end_s) for ref in sample.media] == [
        ("image", None, None),
        ("video", 1.0, 2.5),
        ("audio", None, 9.0),
    ]
    assert sample.extras == {}


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"messages": USER, "start": 1}, "stand on a line without video or audio"),
        ({"messages": clip_turn("<image>"), "images": [{"path": "clips/a.mp4", "end": 1}]}, "gives an image a time"),
        ({"messages": clip_turn(), "videos": ["clips/a.mp4"], "start": 2, "end": 1}, "the line ends before it starts"),
        ({"messages": clip_turn(), "videos": [{"path": "clips/a.mp4", "fps": 2}]}, "must be a path or {path, start"),
        ({"messages": clip_turn(), "videos": [{"path": "clips/a.mp4", "bytes": "AAA"}]}, "an entry with inline bytes"),
        ({"messages": clip_turn(), "videos": ["clips/a.mp4"], "video": "clips/b.mp4"}, "both 'videos' and 'video'"),
        ({"messages": USER, "labels": "angry"}, "'labels' is 'angry'; it must be a list of strings"),
        ({"messages": USER, "labels": []}, "must be a list of strings"),
        ({"messages": USER, "labels": ["a", "A"]}, "reads like a word of 'a'"),
        ({"messages": USER, "labels": ["angry", "sad"], "solution": "glad"}, "'glad' is none of 'labels'"),
        (b'{"id": "a", "id": "b"}', "key 'id' appears twice"),
        (b'{"messages": [], "x": 1e999}', "number 1e999 is too large"),
        (b'{"x": ' + b"9" * 5000 + b"}", "a number with too many digits"),
        (b'{"id": "\\ud83d"}', r"the lone surrogate .ud83d"),
        (b'{"id": "a"}' + b" " * 2**24, "longer than 16777216 bytes"),
    ],
)
def test_what_is_ambiguous_is_refused(read, row, found):
    with pytest.raises(DataError, match=f"train.jsonl:2: .*{found}"):
        read({"messages": USER}, row)


def test_a_solution_may_be_a_usual_word_for_a_label(read):
    [sample] = read({"messages": USER, "labels": ["angry", "sad"], "solution": "Anger"})
    assert (sample.solution, sample.extras) == ("Anger", {"labels": ["angry", "sad"]})


def test_the_name_of_a_single_medium_may_stand_for_the_list(read):
    [sample] = read({"messages": clip_turn(), "video": "clips/a.mp4"})
    assert [ref.path for ref in sample.media] == ["clips/a.mp4"]


def test_messages_stay_short_whatever_the_value(read):
    for row in ({"messages": USER, "speaker": ["x" * 10**6]}, {"messages": [{"role": "x" * 10**6}]}, {"x" * 10**6: 1}):
        with pytest.raises(DataError) as caught:
            read(row)
        assert len(str(caught.value)) < 1000


def test_a_scan_goes_on_after_a_bad_line(read, root):
    with pytest.raises(DataError):
        read(
            {"id": "a", "messages": USER},
            b"{",
            b"",
            b"x" * (2**24 + 5),
            {"id": "a", "messages": USER},
            {"id": "b", "messages": USER},
        )
    items = list(scan_manifest(root / "train.jsonl", root))
    assert [item.line for item in items] == [1, 2, 4, 5, 6]
    problems = [item for item in items if isinstance(item, Problem)]
    assert [problem.group for problem in problems] == ["not JSON", "not JSON", "repeated id"]
    assert str(problems[0]).startswith(f"{root}/train.jsonl:2: not valid JSON")


@pytest.mark.parametrize(
    ("span", "found"),
    [
        ({"start": -1}, "'start' is -1; it must be a time in seconds, at least 0"),
        ({"end": -0.5}, "'end' is -0.5"),
        ({"start": "1"}, "'start' is '1'"),
        ({"start": True}, "'start' is True"),
        ({"start": float("nan")}, "NaN is no JSON number.; write null"),
        ({"end": float("inf")}, "Infinity is no JSON number"),
        ({"end": 10**400}, "'end' is 1000"),
        ({"start": 2, "end": 1}, "'end' must be after 'start'"),
        ({"end": 0}, "'end' must be after 'start'"),
    ],
)
def test_a_bad_span_is_refused(read, span, found):
    with pytest.raises(DataError, match=f"train.jsonl:1: .*{found}"):
        read({"messages": clip_turn(), "videos": [{"path": "clips/a.mp4", **span}]})


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../secret.mp4",
        "clips/../../secret.mp4",
        "http://x/a.mp4",
        "file:///a.mp4",
        "~/a.mp4",
        "..\\secret.mp4",
        "clips\\..\\..\\secret.mp4",
        "C:\\secret.mp4",
        "\\\\host\\secret.mp4",
        "file:/etc/passwd",
        "a\0b",
        "",
    ],
)
def test_a_path_that_leaves_the_root_is_refused(read, path):
    with pytest.raises(DataError, match=r"train.jsonl:1: media path .* must be relative to media_root"):
        read({"messages": clip_turn(), "videos": [path]})


@pytest.mark.parametrize(
    ("path", "found"), [("clips/none.mp4", "does not exist"), ("clips", "no regular file"), (".", "no regular file")]
)
def test_a_path_that_is_no_file_is_refused(read, path, found):
    with pytest.raises(DataError, match=f"train.jsonl:1: media file .*{found}.*; add it or drop the line"):
        read({"messages": clip_turn(), "videos": [path]})


def test_a_path_that_no_file_can_have_is_refused(read, root):
    with pytest.raises(DataError, match=r"train.jsonl:1: media .* is no file name .*rename the file"):
        read({"messages": clip_turn(), "videos": ["x" * 5000]})
    with pytest.raises(DataError, match=r"here: media path '[^ ]*ud800.mp4' is no file name"):
        resolve_media("\udc80\ud800.mp4", root, "here")


def test_links_may_stay_inside_but_not_lead_out(read, root, tmp_path):
    (tmp_path / "secret.mp4").write_bytes(b"x")
    (root / "out.mp4").symlink_to(tmp_path / "secret.mp4")
    (root / "in.mp4").symlink_to(root / "clips" / "a.mp4")
    (root / "loop.mp4").symlink_to(root / "loop.mp4")
    assert resolve_media("in.mp4", root, "here") == (root / "clips" / "a.mp4").resolve()
    with pytest.raises(DataError, match=r"'out.mp4' leads out of media_root"):
        read({"messages": clip_turn(), "videos": ["out.mp4"]})
    with pytest.raises(DataError, match=r"loop.mp4"):
        resolve_media("loop.mp4", root, "here")


def test_a_tilde_inside_a_name_is_no_home_folder(read, root):
    [sample] = read({"messages": clip_turn(), "videos": ["clips/a~1.mp4"]})
    assert resolve_media(sample.media[0].path, root, "here").name == "a~1.mp4"


def test_an_id_may_come_once(read):
    with pytest.raises(DataError, match=r"train.jsonl:3: id 'a' was used on line 1; make ids unique"):
        read({"id": "a", "messages": USER}, {"id": "b", "messages": USER}, {"id": "a", "messages": USER})


def test_a_manifest_must_exist_and_hold_samples(read, root):
    with pytest.raises(DataError, match=r"none.jsonl does not exist; check data.root"):
        read_manifest(root / "none.jsonl", root)
    with pytest.raises(DataError, match=r"train.jsonl holds no samples"):
        read(b"", b"  ")


def test_a_manifest_is_parsed_once_and_again_when_its_content_changes(root, read):
    read({"id": "a", "messages": USER})
    path = root / "train.jsonl"
    first = load_manifest(path, root).samples.manifest
    assert load_manifest(path, root).samples.manifest is first
    assert load_manifest(path, root.parent).samples.manifest is not first
    read_manifest(path, root).clear()
    assert [sample.id for sample in load_manifest(path, root).samples] == ["a"]
    read({"id": "b", "messages": USER})
    assert [sample.id for sample in load_manifest(path, root).samples] == ["b"]


def test_the_digest_is_that_of_the_whole_file(root, read, monkeypatch):
    read({"messages": USER}, b"", {"messages": USER, "id": "b"})
    path = root / "train.jsonl"
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(row_scan, "PIECE_BYTES", 16)
    assert load_manifest(path, root).digest == expected


ODD_NAMES = [
    "~home.wav",
    "a:\\b.wav",
    "..",
    ".",
    "",
    "missing.wav",
    "folder",
    "out.wav",
    "into.wav",
    "loop.wav",
    "a\0b",
]


@pytest.mark.parametrize("folder", ["", "sub/", "linked/"])
@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_path_beside_one_that_was_checked_is_checked_as_strictly(tmp_path, folder, name):
    """A folder is resolved once; a file that is a link, or a name that is none, still meets every check."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    for each in (root / "sub" / "folder", root / "folder", outside):
        each.mkdir(parents=True)
    (root / "linked").symlink_to(root / "sub")
    (outside / "secret.wav").write_bytes(b"secret")
    for each in (root, root / "sub"):
        (each / "good.wav").write_bytes(b"sound")
        (each / "out.wav").symlink_to(outside / "secret.wav")
        (each / "into.wav").symlink_to(each / "good.wav")
        (each / "loop.wav").symlink_to(each / "loop.wav")
    rows = [
        {"id": str(number), "messages": [{"role": "user", "content": "<audio>?"}], "audios": [path]}
        for number, path in enumerate([f"{folder}good.wav", f"{folder}good.wav", f"{folder}{name}"])
    ]
    (root / "m.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    first, second, odd = scan_manifest(root / "m.jsonl", root)
    assert isinstance(first, Entry)
    assert isinstance(second, Entry)
    (root / "alone.jsonl").write_text(json.dumps(rows[2]) + "\n")
    [alone] = scan_manifest(root / "alone.jsonl", root)
    assert isinstance(odd, Entry) == isinstance(alone, Entry) == (name == "into.wav")
    if isinstance(odd, Problem):
        assert (odd.group, odd.reason) == (alone.group, alone.reason)
