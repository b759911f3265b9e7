import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from lightning_mmrl.evaluation.figures import MAX_TICK, save_confusion_figure, shortened

LABELS = ["angry", "sad"]
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:matplotlib.*", "ignore::DeprecationWarning:pyparsing.*"
)


def size(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return image.size


def test_the_unparsed_column_is_drawn_only_if_it_holds_answers(tmp_path):
    save_confusion_figure([[3, 1, 0], [0, 2, 0]], LABELS, tmp_path / "new" / "parsed.png", "after SFT")
    save_confusion_figure([[3, 1, 0], [0, 2, 5]], LABELS, tmp_path / "unparsed.png", "after SFT")
    parsed, unparsed = size(tmp_path / "new" / "parsed.png"), size(tmp_path / "unparsed.png")
    assert unparsed[0] > parsed[0]


def test_the_picture_depends_on_the_counts(tmp_path):
    for name, hits in (("a", 3), ("b", 4), ("c", 3)):
        save_confusion_figure([[hits, 1, 0], [0, 0, 0]], LABELS, tmp_path / name, "t")
    pictures = {name: np.asarray(Image.open(tmp_path / name)) for name in "abc"}
    assert np.array_equal(pictures["a"], pictures["c"])
    assert not np.array_equal(pictures["a"], pictures["b"])


def test_a_title_with_dollars_is_plain_text(tmp_path):
    save_confusion_figure(np.eye(2, 3), LABELS, tmp_path / "a.png", r"costs $\frac{1 and $2")
    assert size(tmp_path / "a.png")


def test_matplotlib_is_loaded_late_and_pyplot_never():
    program = """
import sys, tempfile
from lightning_mmrl.evaluation.figures import save_confusion_figure
assert "matplotlib" not in sys.modules
save_confusion_figure([[1, 0]], ["a"], tempfile.mkdtemp() + "/a.png", "t")
sys.exit("matplotlib.pyplot" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("label", ["$x", "$a$ and $b$", r"$\frac{1$", r"\$5", "$^"])
def test_a_label_with_dollars_is_plain_text(tmp_path, label):
    save_confusion_figure(np.eye(2, 3), [label, "sad"], tmp_path / "a.png", "t")
    assert size(tmp_path / "a.png")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("num_labels", [1, 2, 7])
@pytest.mark.parametrize("character", ["a", "W"])
@pytest.mark.parametrize("length", [12, 24, 73, 5000])
def test_long_labels_leave_room_for_the_matrix(tmp_path, num_labels, character, length):
    labels = [character * (length - 1) + str(index) for index in range(num_labels)]
    save_confusion_figure(np.eye(num_labels, num_labels + 1), labels, tmp_path / "a.png", "t")
    assert max(size(tmp_path / "a.png")) < 1500


def test_shortened_labels_stay_short_and_distinct():
    labels = ["sad", "b" * 24, "a" * 73, "a" * 74, "a" * 21 + "...", "c" * 25, *["x" * 30 + str(n) for n in range(120)]]
    short = shortened(labels)
    assert short[:2] == labels[:2]
    assert short[5] == "c" * 21 + "..."
    assert len(set(short)) == len(labels)
    assert max(map(len, short)) <= MAX_TICK
