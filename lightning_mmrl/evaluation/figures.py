"""Pictures of an evaluation."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray


def save_confusion_figure(confusion: ArrayLike, labels: Sequence[str], path: Path | str, title: str) -> None:
    """Writes a confusion matrix [K, K + 1] as PNG: counts as numbers, shares of the true class as colors.

    The last column, unparsed answers, is drawn only if it holds any.
    """
    # Loaded here: importing matplotlib takes about a second. A bare Figure draws with Agg and needs no closing.
    from matplotlib.figure import Figure

    counts, columns = _drawn(np.asarray(confusion), labels)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(2 + 0.7 * len(columns), 1.6 + 0.6 * len(labels)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        color = "white" if share > 0.5 else "black"
        axes.text(column, row, str(int(counts[row, column])), ha="center", va="center", color=color)
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", parse_math=False)
    axes.set_yticks(range(len(labels)), labels, parse_math=False)
    axes.set(xlabel="predicted", ylabel="truth")
    axes.set_title(title, parse_math=False)
    figure.colorbar(image, label="share of the true class")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=120)


def _drawn(counts: NDArray[np.int64], labels: Sequence[str]) -> tuple[NDArray[np.int64], list[str]]:
    """The columns to draw and their names."""
    if counts[:, -1].any():
        return counts, [*labels, "unparsed"]
    return counts[:, :-1], list(labels)
