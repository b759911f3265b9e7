"""RAVDESS from its file names: counts, calm, folds, copies, and names that are not those of recordings."""

import json
from collections import Counter

import numpy as np
import pytest
from clips import write_wav
from emotion_trees import SaidKinds, counts_of, groups_of, prepare, write_ravdess

from lightning_mmrl.data.media.examine import Guard
from lightning_mmrl.data.prepare.card import read_card
from lightning_mmrl.data.schema import read_manifest
from lightning_mmrl.data.synthetic.emotion_layouts import ravdess_names
from lightning_mmrl.data.synthetic.video_file import write_clip, write_silent_clip
from lightning_mmrl.errors import DataError
from lightning_mmrl.settings.data import MediaSettings

KEEP, MERGE, DROP = ({"calm": policy} for policy in ("keep", "merge_neutral", "drop"))
NONE = {"speech": None}
"""No published count: for trees with few actors."""


def lines(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_ravdess(tmp_path_factory.mktemp("ravdess"))


@pytest.fixture
def few(tmp_path):
    return write_ravdess(tmp_path / "few", actors=(1, 2, 3))


def test_the_whole_set_has_the_published_counts(tree, tmp_path):
    made = prepare("ravdess", tree, tmp_path / "out", options=KEEP)
    assert (made.met, made.written, made.problems) == (True, True, [])
    assert counts_of(made)["speech"] == 1440
    assert not any(each.differs for each in made.counts)
    assert {str(each) for each in made.counts} >= {"speech: 1,440, as published", "speech neutral: 96, as published"}
    splits = {name: lines(tmp_path / "out", name) for name in ("train", "validation", "test")}
    assert sum(map(len, splits.values())) == 1440
    speakers = [{row["speaker"] for row in rows} for rows in splits.values()]
    assert all(speakers)
    assert sum(map(len, speakers)) == len(set.union(*speakers)) == 24
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["published_protocol_met"] is True


def test_a_name_says_everything_about_a_clip(few, tmp_path):
    prepare("ravdess", few, tmp_path / "out", options={**KEEP, "protocol": "test_only"}, counts=NONE)
    [row] = [row for row in lines(tmp_path / "out", "test") if row["id"] == "01-06-02-02-01-03"]
    path = "Actor_03/01-01-06-02-02-01-03.mp4"
    assert row == {
        "id": "01-06-02-02-01-03",
        "messages": [{"role": "user", "content": "<video><audio>Which emotion?"}],
        "videos": [path],
        "audios": [path],
        "solution": "fear",
        "speaker": "actor_03",
        "split": "test",
        "channel": "speech",
        "intensity": "strong",
        "repetition": 1,
        "subtitle": "Dogs are sitting by the door",
    }


# Of 180 clips 24 are calm and 12 neutral.
@pytest.mark.parametrize(
    ("policy", "size", "neutral", "labels"), [(KEEP, 180, 12, 8), (MERGE, 180, 36, 7), (DROP, 156, 12, 7)]
)
def test_calm_is_kept_merged_or_dropped_and_counted_in_any_case(few, tmp_path, policy, size, neutral, labels):
    counts = {"speech": 180, "speech calm": 24}
    made = prepare("ravdess", few, tmp_path / "out", options={**policy, "protocol": "test_only"}, counts=counts)
    found = Counter(row["solution"] for row in lines(tmp_path / "out", "test"))
    assert (found.total(), found["neutral"], found["calm"]) == (size, neutral, 24 if policy is KEEP else 0)
    assert len(json.loads((tmp_path / "out" / "labels.json").read_text())["labels"]) == labels
    assert made.met
    assert counts_of(made)["speech calm"] == 24


def test_five_folds_test_the_published_actors(tree, tmp_path):
    prepare("ravdess", tree, tmp_path / "out", options={**KEEP, "protocol": "five_fold"})
    tested = []
    for fold in range(5):
        test, train = (lines(tmp_path / "out" / f"fold_{fold}", name) for name in ("test", "train"))
        actors = {row["speaker"] for row in test}
        assert not actors & {row["speaker"] for row in train}
        assert len(test) + len(train) == 1440
        tested.append(sorted(int(actor[-2:]) for actor in actors))
    # Luna-Jimenez et al. 2021, section 3.1.
    assert tested == [[2, 5, 14, 15, 16], [3, 6, 7, 13, 18], [10, 11, 12, 19, 20], [8, 17, 21, 23, 24], [1, 4, 9, 22]]


def test_speech_and_song_are_counted_apart_and_split_together(few, tmp_path):
    write_ravdess(few, channel="song", actors=(1, 2, 3))
    counts = {"speech": 180, "song": 3 * 44, "song actors": 3}
    made = prepare("ravdess", few, tmp_path / "out", options=KEEP, subsets=["speech", "song"], counts=counts)
    assert made.met
    splits = [lines(tmp_path / "out", name) for name in ("train", "validation", "test")]
    homes = {(row["speaker"], number) for number, rows in enumerate(splits) for row in rows}
    assert (len(homes), sum(map(len, splits))) == (3, 312)


@pytest.mark.parametrize("channel", ["speech", "song"])
def test_the_counts_of_the_card_are_the_design_of_the_set(channel):
    card = read_card("ravdess").subsets[channel]
    fields = [name.split("-") for name in ravdess_names(channel)]
    found = Counter(f"{channel} {card.labels[emotion]}" for _, emotion, *_ in fields)
    actors = len({actor for *_, actor in fields})
    assert card.counts == {**found, channel: len(fields), f"{channel} actors": actors}


def test_songs_lack_actor_18_and_two_emotions(tmp_path):
    root = write_ravdess(tmp_path / "songs", channel="song", actors=range(16, 20))
    made = prepare("ravdess", root, tmp_path / "out", options=KEEP, subsets=["song"], counts={"song": 3 * 44})
    assert made.met
    assert counts_of(made)["song actors"] == 3
    assert "disgust" not in json.loads((tmp_path / "out" / "labels.json").read_text())["labels"]


def test_a_missing_recording_ends_the_command_unless_it_is_accepted(few, tmp_path):
    # 60 trials of each of 3 actors, 8 of which are happy.
    counts = {"speech": 180, "speech happy": 24}
    assert prepare("ravdess", few, tmp_path / "all", options=KEEP, counts=counts).met
    (few / "Actor_02" / "01-01-03-01-01-02-02.mp4").unlink()
    made = prepare("ravdess", few, tmp_path / "out", options=KEEP, counts=counts)
    assert (made.met, made.written) == (False, False)
    assert not (tmp_path / "out").exists()
    assert "speech happy: 23, published 24 (1 fewer)" in map(str, made.counts)
    made = prepare("ravdess", few, tmp_path / "out", options=KEEP, counts=counts, allow_missing=True)
    assert (made.met, made.written) == (False, True)
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["published_protocol_met"] is False


@pytest.mark.parametrize(
    "name",
    [
        "Actor_01/01-01-06-01-02-01-01 (1).mp4",
        "Actor_01/01-01-09-01-02-01-01.mp4",
        "Actor_01/01-01-01-02-02-01-01.mp4",
        "Actor_01/01-02-07-01-02-01-01.mp4",
        "Actor_01/01-01-06-01-02-01-25.mp4",
        "Actor_01/01-01-06-01-02-01-02.mp4",
        "Actor_01/1-1-6-1-2-1-1.mp4",
        "intro.mp4",
    ],
    ids=["copy", "emotion 9", "strong neutral", "sung disgust", "actor 25", "another's folder", "no zeros", "stray"],
)
def test_a_name_of_no_recording_is_named_and_harmless(few, tmp_path, name):
    (few / name).write_bytes(b"x")
    made = prepare("ravdess", few, tmp_path / "out", options=KEEP, counts={"speech": 180})
    assert [(problem.file, problem.group) for problem in made.problems] == [(name, "file name")]
    assert "modality, channel, emotion" in str(made.problems[0])
    assert made.met


def test_what_macos_adds_to_archives_is_no_clip(few, tmp_path):
    (few / "__MACOSX" / "Actor_01").mkdir(parents=True)
    (few / "__MACOSX" / "Actor_01" / "01-01-01-01-01-01-01.mp4").write_bytes(b"\x00\x05")
    (few / "Actor_01" / "._01-01-01-01-01-01-01.mp4").write_bytes(b"\x00\x05")
    assert prepare("ravdess", few, tmp_path / "out", options=KEEP, counts=NONE).problems == []


@pytest.mark.parametrize("same", [True, False])
def test_a_recording_in_two_folders_is_used_only_if_both_are_equal(few, tmp_path, same):
    twin = few / "audio_speech_actors_01-24" / "Actor_01" / "01-01-01-01-01-01-01.mp4"
    twin.parent.mkdir(parents=True)
    twin.write_bytes(b"" if same else b"other")
    made = prepare("ravdess", few, tmp_path / "out", options=KEEP, counts=NONE)
    assert groups_of(made) == ["repeated file" if same else "ambiguous file"]
    assert made.met is same
    assert counts_of(made)["speech"] == 180 - (not same)


def test_files_of_sound_alone_make_the_copy_of_sound(tmp_path):
    root = write_ravdess(tmp_path / "wavs", modality="03", suffix=".wav", actors=(1, 2, 3))
    with pytest.raises(DataError, match=r"none of 180 clips has a file with picture and sound.*--audio-only"):
        prepare("ravdess", root, tmp_path / "out", options=KEEP)
    made = prepare("ravdess", root, tmp_path / "out", options=KEEP, copies=["audio_only"], counts={"speech": 180})
    assert made.met
    assert {name.rpartition("/")[0] for name in made.sizes} == {"audio_only"}
    assert any("only audio_only is written" in note for note in made.notes)
    row = lines(tmp_path / "out" / "audio_only", "train")[0]
    assert row["audios"][0].endswith(".wav")
    assert "videos" not in row


def test_a_picture_without_its_sound_does_not_stand_for_the_recording(few, tmp_path):
    name = next(ravdess_names(actors=(1,)))
    (few / "Actor_01" / f"01-{name}.mp4").rename(few / "Actor_01" / f"02-{name}.mp4")
    made = prepare(
        "ravdess", few, tmp_path / "out", options=KEEP, counts=NONE, copies=["video_only"], guard=SaidKinds()
    )
    assert groups_of(made) == ["missing file"]
    assert not made.met


def test_copies_are_the_same_clips_of_real_files(tmp_path, decoding_here):
    root = write_ravdess(tmp_path / "tree", actors=(1, 2, 3))
    frames = np.zeros((4, 32, 32, 3), dtype=np.uint8)
    clip = tmp_path / "clip.mp4"
    write_clip(clip, frames, 5, np.zeros(8000, dtype=np.float32), 8000)
    for path in root.rglob("*.mp4"):
        path.write_bytes(clip.read_bytes())
    mute, broken = (root / "Actor_01" / f"01-01-0{emotion}-01-01-01-01.mp4" for emotion in (2, 3))
    write_silent_clip(mute, frames, 5)
    broken.write_bytes(b"\x00" * 3000)
    write_wav(root / "Actor_02" / "03-01-02-01-01-01-02.wav", np.zeros(8000, dtype=np.float32), 8000)
    made = prepare(
        "ravdess",
        root,
        tmp_path / "out",
        options={**KEEP, "protocol": "test_only"},
        counts=NONE,
        copies=["audio_only", "video_only"],
        guard=Guard(settings=MediaSettings(), num_workers=1),
        allow_missing=True,
    )
    assert [(problem.file, problem.group) for problem in made.problems] == [
        (broken.relative_to(root).as_posix(), "cannot be decoded")
    ]
    assert made.sizes == {"test": 179, "audio_only/test": 178, "video_only/test": 179}
    assert "clips without sound: 1 (01-02-01-01-01-01)" in made.notes
    both, heard, seen = (
        read_manifest(tmp_path / "out" / folder / "test.jsonl", root) for folder in (".", "audio_only", "video_only")
    )
    assert [sample.id for sample in both] == [sample.id for sample in seen]
    assert {sample.id for sample in both} - {sample.id for sample in heard} == {"01-02-01-01-01-01"}
    assert {tuple(ref.kind for ref in sample.media) for sample in heard} == {("audio",)}
    assert {tuple(ref.kind for ref in sample.media) for sample in seen} == {("video",)}
    paths = {sample.id: sample.media[0].path for sample in both}
    assert all(paths[sample.id] == sample.media[0].path for sample in heard)


def test_the_same_seed_draws_the_same_actors_and_another_seed_others(tmp_path):
    root = write_ravdess(tmp_path / "tree", actors=range(1, 9))

    def actors(name, seed):
        prepare("ravdess", root, tmp_path / name, options=KEEP, counts=NONE, seed=seed)
        return {row["speaker"] for row in lines(tmp_path / name, "test")}

    first = actors("one", 0)
    assert first == actors("two", 0)
    assert any(actors(f"seed{seed}", seed) != first for seed in (1, 2, 3))


def test_too_few_actors_for_three_splits_are_refused(tmp_path):
    root = write_ravdess(tmp_path / "tree", actors=(4,))
    with pytest.raises(DataError, match=r"recordings of actor_04 alone.*--protocol test_only"):
        prepare("ravdess", root, tmp_path / "out", options=KEEP, counts=NONE)


def test_a_folder_without_recordings_is_refused_with_its_first_problem(tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a.mp4").write_bytes(b"")
    with pytest.raises(DataError, match=r"holds no clip of speech; see --help.*a\.mp4: is no name of a recording"):
        prepare("ravdess", tmp_path / "tree", tmp_path / "out", options=KEEP)
    with pytest.raises(DataError, match="is no folder; name the folder of the originals"):
        prepare("ravdess", tmp_path / "nowhere", tmp_path / "out", options=KEEP)
