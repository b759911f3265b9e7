"""Draws docs/quickstart.png from a finished quickstart: frames of clips, and the confusion matrix of every stage.

python tools/draw_quickstart.py runs/quickstart data/emotions docs/quickstart.png
"""

import argparse
import json
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_mmrl.data.media.video import decode_video
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.records import MediaRef


def main() -> None:
    """Reads the run and the dataset and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    labels = json.loads((options.data / "labels.json").read_text())["labels"]
    stages = sorted((options.run / "stages").iterdir())
    figure = Figure(figsize=(12, 7.2), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1, 2])
    _draw_frames(top, options.data, labels)
    for axes, stage in zip(bottom.subplots(1, len(stages)), stages, strict=True):
        _draw_confusion(axes, stage, labels)
    figure.savefig(options.picture, dpi=90)


def _draw_frames(figure: Figure, data: Path, labels: list[str]) -> None:
    rows = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
    for axes, label in zip(figure.subplots(1, len(labels)), labels, strict=True):
        row = next(row for row in rows if row["solution"] == label)
        ref = MediaRef(kind="video", path=row["videos"][0])
        video = decode_video(data / ref.path, ref, MediaSettings(num_frames=4))
        axes.imshow(video.frames[2])
        axes.set_title(f"{label}\n{row['face_cue']} + {row['voice_cue']}", fontsize=9)
        axes.axis("off")


def _draw_confusion(axes: Axes, stage: Path, labels: list[str]) -> None:
    rows = [json.loads(line) for line in (stage / "evaluation" / "test.jsonl").read_text().splitlines()]
    counts = np.zeros((len(labels), len(labels)))
    for row in rows:
        if row["predicted"] is not None:
            counts[labels.index(row["truth"]), labels.index(row["predicted"])] += 1
    uar = json.loads((stage / "evaluation" / "evaluation.json").read_text())["test"]["metrics"]["uar"]
    axes.imshow(counts / counts.sum(1, keepdims=True).clip(1), cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=60, fontsize=8)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if count > 0.5 * counts[row].sum() else "black"
        axes.text(column, row, int(count), ha="center", va="center", fontsize=7, color=color)
    axes.set_title(f"{stage.name.split('-', 1)[1]}: UAR {100 * uar:.1f} %", fontsize=10)
    axes.set(xlabel="predicted", ylabel="truth")


if __name__ == "__main__":
    main()
