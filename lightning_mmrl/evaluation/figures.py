"""Figures of an evaluation."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

MAX_TICK = 24
"""Maximum number of characters of a label that are drawn."""


def save_confusion_figure(confusion: ArrayLike, labels: Sequence[str], path: Path | str, title: str) -> None:
    """Writes a confusion matrix [K, K + 1] as PNG: counts as numbers, shares of the true class as colors.

    The last column is drawn only if there are unparsed answers. Labels of more than 24 characters are shortened.
    """
    # Imported here, since importing matplotlib takes about a second. A bare Figure draws with Agg and needs no closing.
    from matplotlib.figure import Figure

    counts, columns = np.asarray(confusion), [*labels, "unparsed"]
    if not counts[:, -1].any():
        counts, columns = counts[:, :-1], columns[:-1]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ticks = shortened(columns)
    room = 0.14 * max(0, max(map(len, ticks)) - 8)  # inches; a W is 0.14 wide, and the layout fails without room
    figure = Figure(figsize=(2 + 0.7 * len(columns) + room, 1.6 + 0.6 * len(labels) + room), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        color = "white" if share > 0.5 else "black"
        axes.text(column, row, str(int(counts[row, column])), ha="center", va="center", color=color)
    axes.set_xticks(range(len(columns)), ticks, rotation=45, ha="right", parse_math=False)
    axes.set_yticks(range(len(labels)), ticks[: len(labels)], parse_math=False)
    axes.set(xlabel="predicted", ylabel="truth")
    axes.set_title(title, parse_math=False)
    figure.colorbar(image, label="share of the true class")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=120)


def shortened(labels: Sequence[str]) -> list[str]:
    """Shortens labels to at most 24 characters; if two would look the same, the later one shows its place.

    >>> shortened(["sad", "a" * 30, "a" * 31])
    ['sad', 'aaaaaaaaaaaaaaaaaaaaa...', 'aaaaaaaaaaaaaaaaa... (3)']
    """
    found: list[str] = []
    for place, label in enumerate(labels, start=1):
        if len(label) > MAX_TICK:
            mark = "..."
            short = label[: MAX_TICK - len(mark)] + mark
            if short in found or short in labels:
                mark = f"... ({place})"
                short = label[: MAX_TICK - len(mark)] + mark
            found.append(short)
        else:
            found.append(label)
    return found
