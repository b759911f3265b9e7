"""A text task in plain prose: one-step stories, such as "Mia had 7 books and lost 3.", and how many there are then.

Two numbers x and y make a family of facts: x + y, y + x, (x + y) - x and (x + y) - y. A family belongs to one split for
every seed, so nobody can answer a held-out story from a fact that was trained. It is the sample's `speaker`, over which
intervals are taken: stories of one family are not independent.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from lightning_mmrl.data.synthetic.folder import RECORD, Progress, Recipe, make_folder, write_rows
from lightning_mmrl.data.synthetic.plan import LICENSE
from lightning_mmrl.data.synthetic.task import random_stream
from lightning_mmrl.errors import DataError
from lightning_mmrl.files import file_digest, write_json

NAME = "stories"
SPLIT_SIZES: Mapping[str, int] = {"cold_start": 960, "train": 1280, "validation": 200, "test": 1000}
"""Stories in each split at scale 1; only the cold start has answers to imitate."""
SHARES: Mapping[str, float] = {"validation": 0.1, "test": 0.4}
"""Shares of the families; cold start and train have the others together."""
SMALLEST, LARGEST_TOTAL = 2, 30
LARGEST_SCALE = 20
"""A bound on the number of stories, so that a split never runs out of different ones."""
PEOPLE = ("Anna", "Ben", "Clara", "David", "Emma", "Jack", "Lily", "Mia", "Noah", "Sam", "Sara", "Tom")
THINGS = ("apples", "balls", "books", "cards", "coins", "cups", "eggs", "keys", "pens", "shells", "stamps", "stones")
GAINS = ("found", "bought", "got")
LOSSES = ("lost", "sold", "gave away")
GENERATOR_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """One story: who has which things, how many at first, and by how many that changes (negative: fewer)."""

    person: str
    things: str
    verb: str
    start: int
    change: int

    @property
    def result(self) -> int:
        """How many there are in the end."""
        return self.start + self.change

    @property
    def question(self) -> str:
        """The story and its question."""
        begin, amount = f"{self.person} had {self.start} {self.things} and {self.verb}", abs(self.change)
        if self.change > 0:
            return f"{begin} {amount} more. How many {self.things} does {self.person} have now?"
        return f"{begin} {amount}. How many {self.things} are left?"

    @property
    def answer(self) -> str:
        """A sentence with the calculation and the result."""
        sign, when = ("+", "now") if self.change > 0 else ("-", "left")
        return f"{self.person} has {self.start} {sign} {abs(self.change)} = {self.result} {self.things} {when}."

    @property
    def family(self) -> str:
        """The two numbers whose sum the story's fact is about, the smaller first."""
        parts = (self.start, self.change) if self.change > 0 else (self.result, -self.change)
        return "-".join(map(str, sorted(parts)))


def synthesize_stories(
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
        seed: Seed of the stories; which facts a split has does not depend on it.
        scale: Factor of the number of stories.
        workers: Not used, since texts take no time.
        overwrite: Replace a set of other settings.
        on_progress: Called with the number of finished splits.

    Raises:
        DataError: A number is out of range, or the directory holds other files or cannot be written.
    """
    for key, valid, value, rule in (
        ("seed", seed >= 0, seed, "0 or more"),
        ("scale", 0 < scale <= LARGEST_SCALE, scale, f"more than 0 and at most {LARGEST_SCALE}"),
    ):
        if not valid:
            raise DataError(f"generated task {NAME}: {key} is {value}; it must be {rule}")
    recipe = Recipe(name=NAME, settings={"seed": seed, "scale": scale}, generator_version=GENERATOR_VERSION)
    write = partial(_write, recipe=recipe, on_progress=on_progress or (lambda done, total: None))
    return make_folder(directory, recipe, write, overwrite=overwrite)


def stories(split: str, *, seed: int = 0, scale: float = 1.0) -> list[Story]:
    """Draw the different stories of a split."""
    random = random_stream(NAME, seed, list(SPLIT_SIZES).index(split))
    families, wanted = families_of(split), max(1, round(SPLIT_SIZES[split] * scale))
    found: dict[Story, None] = {}  # a set that keeps its order
    while len(found) < wanted:
        found.setdefault(_draw(random, families[len(found) % len(families)]))
    return list(found)


def families_of(split: str) -> tuple[tuple[int, int], ...]:
    """Return the families (x, y) of a split with x <= y and a sum of at most `LARGEST_TOTAL`, in a fixed order.

    >>> len(families_of("test")), set(families_of("test")) & set(families_of("train"))
    (78, set())
    """
    everything, begin = _all_families(), 0
    for name, share in SHARES.items():
        end = begin + round(share * len(everything))
        if name == split:
            return everything[begin:end]
        begin = end
    return everything[begin:]


@lru_cache
def _all_families() -> tuple[tuple[int, int], ...]:
    pairs = [(x, y) for x in range(SMALLEST, LARGEST_TOTAL) for y in range(x, LARGEST_TOTAL - x + 1)]
    return tuple(pairs[index] for index in random_stream("story families", 0).permutation(len(pairs)))


def _draw(random: np.random.Generator, family: tuple[int, int]) -> Story:
    first, second = random.permutation(family).tolist()
    gains = bool(random.integers(2))
    person, things, verb = (str(random.choice(words)) for words in (PEOPLE, THINGS, GAINS if gains else LOSSES))
    start, change = (first, second) if gains else (first + second, -second)
    return Story(person=person, things=things, verb=verb, start=start, change=change)


def _write(root: Path, *, recipe: Recipe, on_progress: Progress) -> None:
    """Write the manifests and, last, dataset.json."""
    sizes = {}
    for done, split in enumerate(SPLIT_SIZES, start=1):
        drawn = stories(split, **recipe.settings)
        write_rows(root / f"{split}.jsonl", [_row(story, split, index) for index, story in enumerate(drawn)])
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


def _row(story: Story, split: str, index: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": story.question}]
    if split == "cold_start":
        messages.append({"role": "assistant", "content": story.answer})
    facts = {"solution": str(story.result), "speaker": story.family, "split": split, "license": LICENSE}
    return {"id": f"{split}-{index:05d}", "messages": messages, **facts}
