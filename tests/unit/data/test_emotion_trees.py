"""The stand-ins of R1-Omni's files: labels and cues of their clips, and layouts that the preparation reads."""

from collections import Counter

import pytest
from emotion_trees import counts_of, prepare

from lightning_mmrl.data.synthetic.emotion_layouts import ravdess_names
from lightning_mmrl.data.synthetic.emotion_trees import CUES, PARTS, plan_trees, synthesize_emotion_trees
from lightning_mmrl.errors import DataError
from lightning_mmrl.prompts.labels import DFEW7, MAFW11, RAVDESS8

LABELS = {"BASE": MAFW11, "EMER": MAFW11, "DFEW": DFEW7, "MAFW": MAFW11, "RAVDESS": RAVDESS8}


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """The names and lists at the size of a test, with files that hold nothing."""
    root = tmp_path_factory.mktemp("trees")
    clips, lists = plan_trees(0.1)
    for path, text in {**{f"{clip.part}/{clip.path}": clip.path for clip in clips}, **lists}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root, clips


def test_each_label_looks_and_sounds_like_no_other():
    assert len(set(CUES.values())) == len(CUES) == 12


@pytest.mark.parametrize(("part", "labels"), [("DFEW", DFEW7), ("MAFW", MAFW11)])
def test_one_medium_alone_allows_four_classes_at_most(part, labels):
    """The ceiling of UAR that docs/recipes/r1_omni.md states: the number of groups over the number of labels."""
    for medium in (0, 1):
        assert len({CUES[label][medium] for label in labels}) == 4
    assert {clip.label for clip in plan_trees(0.1)[0] if clip.part == part} == set(labels)


def test_each_part_has_its_labels_and_all_labels_are_balanced_but_the_neutral_of_ravdess():
    clips, _ = plan_trees()
    for part in PARTS:
        counts = Counter(clip.label for clip in clips if clip.part == part)
        assert set(counts) == set(LABELS[part])
        neutral = counts.pop("neutral")
        assert max(counts.values()) - min(counts.values()) <= 1
        assert neutral == counts["happy"] / 2 if part == "RAVDESS" else abs(neutral - counts["happy"]) <= 1


@pytest.mark.parametrize(
    ("name", "options"), [("dfew", {}), ("mafw", {}), ("ravdess", {"calm": "keep", "protocol": "test_only"})]
)
def test_the_preparation_finds_the_label_of_every_clip(trees, tmp_path, name, options):
    root, clips = trees
    made = prepare(name, root / name.upper(), tmp_path / "out", options=options, allow_missing=True)
    assert made.problems == []
    expected = Counter(clip.label for clip in clips if clip.part == name.upper())
    subset = "speech" if name == "ravdess" else "single"
    found = {label: counts_of(made)[f"{subset} {label}"] for label in expected}
    assert set(made.labels) == set(expected)
    assert found == expected
    folds = {key: size for key, size in made.sizes.items() if key.endswith("/test")}
    assert sum(folds.values()) == (sum(expected.values()) if folds else 0)


def test_the_published_design_of_ravdess_has_1440_spoken_and_1012_sung_trials():
    assert len(set(ravdess_names())) == 1440
    assert len(set(ravdess_names("song"))) == 1012


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"seed": -1}, "seed is -1"), ({"scale": 0.0}, "scale is 0.0"), ({"workers": 0}, "workers is 0")],
)
def test_a_number_out_of_range_is_refused(tmp_path, wrong, message):
    with pytest.raises(DataError, match=f"emotion trees: {message}; it must be"):
        synthesize_emotion_trees(tmp_path / "trees", **wrong)
