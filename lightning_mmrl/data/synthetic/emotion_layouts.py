"""The layouts in which the owners of DFEW, MAFW and RAVDESS publish their sets: names of clips, and lists of folds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from lightning_mmrl.data.prepare.card import read_card
from lightning_mmrl.data.prepare.lists import NUM_FOLDS, SPLITS

NUM_ACTORS = 24
_CHANNELS = {"speech": 1, "song": 2}
_SUBSET = "single"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The paths of the clips, in the order of their labels, and the texts of the lists by path."""

    clips: Sequence[str]
    lists: Mapping[str, str]


def dfew_layout(labels: Sequence[str]) -> Layout:
    r"""Clips 1.mp4, 2.mp4, ... and the lists of DFEW, which give labels as numbers; clip n is tested by `fold_of(n)`.

    >>> layout = dfew_layout(["happy"] * 5)
    >>> layout.clips[0], layout.lists["EmoLabel_DataSplit/test(single-labeled)/set_2.csv"]
    ('Clip/original/part_1/1.mp4', 'video_name,label\n1,1\n')
    """
    return _layout(
        "dfew",
        labels,
        clip="Clip/original/part_1/{clip}.mp4",
        file="EmoLabel_DataSplit/{split}(single-labeled)/set_{fold}.csv",
        header="video_name,label\n",
        row="{clip},{label}\n",
    )


def mafw_layout(labels: Sequence[str]) -> Layout:
    r"""Clips 00001.mp4, ... and the lists of MAFW, which give labels as nouns; clip n is tested by `fold_of(n)`.

    >>> layout = mafw_layout(["happy"] * 5)
    >>> layout.clips[0], layout.lists["Train & Test Set/single/no_caption/set_2/test.txt"]
    ('data/clips/00001.mp4', '00001.mp4 happiness\n')
    """
    return _layout(
        "mafw",
        labels,
        clip="data/clips/{clip:05d}.mp4",
        file="Train & Test Set/single/no_caption/set_{fold}/{split}.txt",
        row="{clip:05d}.mp4 {label}\n",
    )


def fold_of(clip: int) -> int:
    """The fold that tests a clip of DFEW or MAFW in these layouts."""
    return clip % NUM_FOLDS + 1


def ravdess_names(
    channel: str = "speech",
    actors: Sequence[int] = range(1, NUM_ACTORS + 1),
    takes: Sequence[int] = (1, 2),
) -> Iterator[str]:
    """The six fields after the modality in the name of every recording, from the design of RAVDESS.

    A neutral trial has one intensity, songs have neither disgust nor surprise, and actor 18 did not sing.

    Args:
        channel: speech or song.
        actors: Their numbers.
        takes: The statements and the repetitions that are there: all four pairs of 1 and 2 in the published set.

    >>> next(ravdess_names(actors=[3])), len(list(ravdess_names()))
    ('01-01-01-01-01-03', 1440)
    """
    emotions = range(1, 9) if channel == "speech" else range(1, 7)
    for actor, emotion, intensity, statement, repetition in product(actors, emotions, (1, 2), takes, takes):
        if (emotion == 1 and intensity == 2) or (channel == "song" and actor == 18):
            continue
        fields = (_CHANNELS[channel], emotion, intensity, statement, repetition, actor)
        yield "-".join(f"{field:02d}" for field in fields)


def _layout(name: str, labels: Sequence[str], *, clip: str, file: str, row: str, header: str = "") -> Layout:
    """The layout of a set with these patterns of a clip's path, a list's path and a list's rows."""
    spelled = {label: original for original, label in read_card(name).subsets[_SUBSET].labels.items()}
    numbers, lists = range(1, len(labels) + 1), {}
    for split, fold in product(SPLITS, range(1, NUM_FOLDS + 1)):
        own = [number for number in numbers if (fold_of(number) == fold) == (split == "test")]
        rows = [row.format(clip=number, label=spelled[labels[number - 1]]) for number in own]
        lists[file.format(split=split, fold=fold)] = "".join([header, *rows])
    return Layout(clips=[clip.format(clip=number) for number in numbers], lists=lists)
