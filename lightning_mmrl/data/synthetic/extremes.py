"""A text task in plain prose: "Which number is the largest: 647, 271 or 769?", and the same for the smallest.

Three numbers belong to one split for every seed, in whatever order they are and whichever of them is asked for. So no
held-out question can be answered from what was trained.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lightning_mmrl.data.synthetic.folder import RECORD, Progress, Recipe, check_numbers, make_folder, write_rows
from lightning_mmrl.data.synthetic.plan import LICENSE
from lightning_mmrl.data.synthetic.task import random_stream
from lightning_mmrl.files import file_digest, write_json

NAME = "extremes"
SPLIT_SIZES: Mapping[str, int] = {"cold_start": 640, "train": 1280, "validation": 200, "test": 1000}
"""Questions in each split at scale 1; only the cold start has answers to imitate."""
REMAINDERS: Mapping[str, tuple[int, ...]] = {
    "cold_start": (0, 1),
    "train": (2, 3, 4, 5),
    "validation": (6,),
    "test": (7, 8, 9),
}
"""Triples of a split, by the remainder of their checksum divided by ten."""
SMALLEST, LARGEST = 10, 999
LARGEST_SCALE = 1000
"""A bound on the number of questions, so that a split never runs out of different ones."""
GENERATOR_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Extreme:
    """One question: three different numbers, in their order in the text, and which of them is asked for."""

    numbers: tuple[int, int, int]
    word: str

    @property
    def result(self) -> int:
        """The number that is asked for."""
        return max(self.numbers) if self.word == "largest" else min(self.numbers)

    @property
    def question(self) -> str:
        """The text of the user turn."""
        first, second, third = self.numbers
        return f"Which number is the {self.word}: {first}, {second} or {third}?"

    @property
    def split(self) -> str:
        """The split that the three numbers belong to."""
        checksum = zlib.crc32("-".join(map(str, sorted(self.numbers))).encode())
        return next(name for name, remainders in REMAINDERS.items() if checksum % 10 in remainders)


def synthesize_extremes(
    directory: Path,
    *,
    seed: int = 0,
    scale: float = 1.0,
    workers: int = 1,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> Path:
    """Write cold_start, train, validation and test into `directory`; the same seed and scale give the same bytes.

    Args:
        directory: The folder, which appears when all files are complete; a complete set of the same settings is kept.
        seed: Seed of the questions; which numbers a split may have does not depend on it.
        scale: Factor of the number of questions.
        workers: Not used, since texts take no time.
        overwrite: Replace a set of other settings.
        on_progress: Called with the number of finished splits.

    Raises:
        DataError: A number is out of range, or the directory holds other files or cannot be written.
    """
    check_numbers(f"generated task {NAME}", seed=seed, scale=scale, largest_scale=LARGEST_SCALE)
    recipe = Recipe(name=NAME, settings={"seed": seed, "scale": scale}, generator_version=GENERATOR_VERSION)
    write = partial(_write, recipe=recipe, on_progress=on_progress or (lambda done, total: None))
    return make_folder(directory, recipe, write, overwrite=overwrite)


def extremes(split: str, *, seed: int = 0, scale: float = 1.0) -> list[Extreme]:
    """Draw the different questions of a split, half of them for the largest number."""
    random = random_stream(NAME, seed, list(SPLIT_SIZES).index(split))
    wanted = max(1, round(SPLIT_SIZES[split] * scale))
    found: dict[Extreme, None] = {}  # a set that keeps its order
    while len(found) < wanted:
        drawn = _draw(random, "smallest" if len(found) % 2 else "largest")
        if drawn.split == split:
            found.setdefault(drawn)
    return list(found)


def _draw(random: np.random.Generator, word: str) -> Extreme:
    first, second, third = random.choice(np.arange(SMALLEST, LARGEST + 1), size=3, replace=False).tolist()
    return Extreme(numbers=(first, second, third), word=word)


def _write(root: Path, *, recipe: Recipe, on_progress: Progress) -> None:
    """Write the manifests and, last, dataset.json."""
    sizes = {}
    for done, split in enumerate(SPLIT_SIZES, start=1):
        drawn = extremes(split, **recipe.settings)
        write_rows(root / f"{split}.jsonl", [_row(each, split, index) for index, each in enumerate(drawn)])
        sizes[split] = len(drawn)
        on_progress(done, len(SPLIT_SIZES))
    write_json(
        root / RECORD,
        {
            "name": NAME,
            "generator_version": recipe.generator_version,
            "license": LICENSE,
            "sizes": sizes,
            "settings": recipe.settings,
            "manifests": {f"{split}.jsonl": file_digest(root / f"{split}.jsonl") for split in SPLIT_SIZES},
        },
    )


def _row(each: Extreme, split: str, index: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": each.question}]
    if split == "cold_start":
        messages.append({"role": "assistant", "content": f"The {each.word} number is {each.result}."})
    facts = {"solution": str(each.result), "split": split, "license": LICENSE}
    return {"id": f"{split}-{index:05d}", "messages": messages, **facts}
