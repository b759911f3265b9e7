"""Generated tasks with known answers, and the code that plans and writes their datasets."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from lightning_mmrl.data.synthetic.factors import trace
from lightning_mmrl.data.synthetic.folder import (
    RECORD,
    Progress,
    Recipe,
    check_numbers,
    make_folder,
    run_in_processes,
    write_rows,
)
from lightning_mmrl.data.synthetic.plan import LICENSE
from lightning_mmrl.errors import DataError
from lightning_mmrl.files import file_digest, write_json

SPLIT_SIZES: Mapping[str, int] = {"cold_start": 360, "train": 1440, "validation": 360, "test": 360}
"""Samples in each split at scale 1; only the cold start has thoughts to imitate."""

SPLITS = tuple(SPLIT_SIZES)

KIND = "question_type"
"""Column of a manifest with the kind of question, in a task that asks several."""

WRONG_GOLDS = "wrong_golds"
"""The setting that says how many solutions are wrong."""

HELD_OUT: Mapping[str, tuple[int, ...]] = {"validation": (0,), "test": (1, 2)}
"""Problems of the held-out splits, by the remainder of their checksum divided by ten; all others are for training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Medium:
    """A kind of media file: its manifest column, its file name suffix, and the function that saves a signal."""

    column: str
    suffix: str
    save: Callable[[Path, np.ndarray], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A planned sample; `serial` is its number among the samples of its split with the same question type and label.

    `question_type` is the kind of question in a task that asks several, else "".
    """

    task: str
    seed: int
    split: str
    index: int
    label: str
    serial: int
    question_type: str = ""

    @property
    def name(self) -> str:
        """The sample's id, e.g. train-00001."""
        return f"{self.split}-{self.index:05d}"

    def generator(self) -> np.random.Generator:
        """Return the random stream of this sample, independent of every other sample's."""
        return random_stream(self.task, self.seed, SPLITS.index(self.split), self.index)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A composed sample: the question with its media tag, the thought that leads to the answer, and the signal.

    The answer is the plan's label if it is None. `facts` become manifest columns.
    """

    question: str
    thought: str
    answer: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    signal: np.ndarray | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Generates a dataset of questions with known answers; a call writes the dataset.

    Labels are balanced in every split. A label is the answer, or what else a plan decides of it: the letter of the
    right option, the number of moves. `kinds` maps each kind of question to its labels if there are several kinds; each
    has the same share of a split, and manifests of its own (`test_KIND.jsonl`) beside the joint one.

    `compose` is a pure function of the plan, so the same seed gives the same bytes. Increase `generator_version` with
    every change that gives other bytes. A task without a medium has only text, and so has a problem without a signal.
    """

    name: str
    labels: tuple[str, ...]
    compose: Callable[[Plan], Problem]
    medium: Medium | None = None
    generator_version: int = 1
    kinds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=lambda: SPLIT_SIZES)

    def __call__(
        self,
        directory: Path,
        *,
        seed: int = 0,
        scale: float = 1.0,
        wrong_golds: float = 0.0,
        workers: int = 2,
        overwrite: bool = False,
        on_progress: Progress | None = None,
    ) -> Path:
        """Write cold_start, train, validation and test into `directory`, which appears when all files are complete.

        A complete set with the same settings is kept. With more than one worker, samples are drawn in spawned
        processes, so a calling script needs the `if __name__ == "__main__"` guard. `wrong_golds` is the share of the
        samples in train whose solution is replaced by the right one of another problem; a column `gold` tells them.

        Raises:
            DataError: A number is out of range, or the directory holds other files or cannot be written.
        """
        check_numbers(f"generated task {self.name}", seed=seed, scale=scale, workers=workers)
        if not 0 <= wrong_golds <= 1:
            raise DataError(f"generated task {self.name}: wrong_golds is {wrong_golds}; it must be within 0..1")
        settings = {"seed": seed, "scale": scale} | ({WRONG_GOLDS: wrong_golds} if wrong_golds else {})
        recipe = Recipe(name=self.name, settings=settings, generator_version=self.generator_version)
        plans = {split: self.plan(split, seed=seed, scale=scale) for split in SPLITS}
        write = partial(_write_task, task=self, recipe=recipe, plans=plans, workers=workers, on_progress=on_progress)
        return make_folder(directory, recipe, write, overwrite=overwrite)

    def plan(self, split: str, *, seed: int = 0, scale: float = 1.0) -> list[Plan]:
        """Plan the samples of a split: each label of a kind occurs equally often, in random order."""
        kinds = self.kinds or {"": self.labels}
        size = self.sizes[split] * scale / len(kinds)
        wanted = [
            {"question_type": kind, "label": label, "serial": serial}
            for kind, labels in kinds.items()
            for serial in range(max(1, round(size / len(labels))))
            for label in labels
        ]
        order = random_stream(self.name, seed, SPLITS.index(split)).permutation(len(wanted))
        return [
            Plan(task=self.name, seed=seed, split=split, index=index, **wanted[place])
            for index, place in enumerate(order)
        ]


def random_stream(task: str, seed: int, *key: int) -> np.random.Generator:
    """Return the random stream of a task for one purpose, which `key` identifies."""
    sequence = np.random.SeedSequence(seed, spawn_key=(zlib.crc32(task.encode()), *key))
    return np.random.Generator(np.random.Philox(sequence))


def belongs(problem: str, split: str) -> bool:
    """Whether a split may pose a problem, which a text identifies; the same for every seed.

    >>> [[split for split in SPLITS if belongs(problem, split)] for problem in ("7 + 1", "7 + 3")]
    [['test'], ['cold_start', 'train']]
    """
    remainder = zlib.crc32(problem.encode()) % 10
    held_out = next((name for name, remainders in HELD_OUT.items() if remainder in remainders), None)
    return split == held_out if split in HELD_OUT else held_out is None


def _write_task(
    root: Path,
    *,
    task: Task,
    recipe: Recipe,
    plans: Mapping[str, list[Plan]],
    workers: int,
    on_progress: Progress | None,
) -> None:
    """Write media, manifests and, last, dataset.json."""
    if task.medium is not None:
        for split in SPLITS:
            (root / "media" / split).mkdir(parents=True)
    everything = [plan for split in SPLITS for plan in plans[split]]
    jobs = run_in_processes(partial(_write_samples, root, task), everything, workers=workers, on_progress=on_progress)
    rows = _with_wrong_golds([row for job in jobs for row in job], task.name, recipe.settings)
    manifests = {f"{split}.jsonl": [row for row in rows if row["split"] == split] for split in SPLITS}
    for split, kind in product(SPLITS, task.kinds):
        manifests[f"{split}_{kind}.jsonl"] = [row for row in manifests[f"{split}.jsonl"] if row[KIND] == kind]
    for name, lines in manifests.items():
        write_rows(root / name, lines)
    write_json(
        root / RECORD,
        {
            "name": task.name,
            "generator_version": recipe.generator_version,
            "license": LICENSE,
            "labels": task.labels,
            "sizes": {split: len(plans[split]) for split in SPLITS},
            "settings": recipe.settings,
            "manifests": {name: file_digest(root / name) for name in manifests},
        },
    )


def _with_wrong_golds(rows: list[dict[str, Any]], task: str, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows; of those to train on, a share drawn at random has the solution of another problem of its kind."""
    if WRONG_GOLDS not in settings:
        return rows
    random = random_stream(task, settings["seed"], len(SPLITS))
    train = [row for row in rows if row["split"] == "train"]
    places = random.permutation(len(train))[: round(settings[WRONG_GOLDS] * len(train))]
    drawn = {train[place]["id"] for place in places}
    solutions: dict[str | None, set[str]] = {}
    for row in train:
        solutions.setdefault(row.get(KIND), set()).add(row["solution"])

    def golds(row: dict[str, Any]) -> dict[str, str]:
        if row["id"] not in drawn:
            return {"gold": "right"}
        others = sorted(solutions[row.get(KIND)] - {row["solution"]})
        return {"solution": str(random.choice(others)), "gold": "wrong"}

    return [row | golds(row) if row["split"] == "train" else row for row in rows]


def _write_samples(root: Path, task: Task, plans: Sequence[Plan]) -> list[dict[str, Any]]:
    """Compose the planned samples, save their signals and return their manifest rows."""
    rows = []
    for plan in plans:
        problem = task.compose(plan)
        media: dict[str, list[str]] = {}
        if task.medium is not None and problem.signal is not None:
            path = f"media/{plan.split}/{plan.name}{task.medium.suffix}"
            task.medium.save(root / path, problem.signal)
            media = {task.medium.column: [path]}
        answer = problem.answer or plan.label
        messages = [{"role": "user", "content": problem.question}]
        if plan.split == "cold_start":
            messages.append({"role": "assistant", "content": trace(problem.thought, answer)})
        row = {"id": plan.name, "messages": messages, **media, "solution": answer, "split": plan.split}
        kind = {KIND: plan.question_type} if plan.question_type else {}
        rows.append({**row, "license": LICENSE, "label_set": task.name, **kind, **problem.facts})
    return rows
