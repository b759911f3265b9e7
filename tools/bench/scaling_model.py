"""The cost model of an iteration: seconds of each phase as sums of counted work, and how well it predicts."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import product

import numpy as np

VOCABULARY = 4096
WIDTHS = ((128, 4), (192, 2), (256, 4), (320, 3))
"""Width and layers of the measured models."""
LENGTHS, TOKENS, GROUPS, PROMPTS = (160, 420, 1000), (16, 40, 96), (2, 4, 8), (1, 2, 4)
NUM_SHAPES, NUM_FRESH = 48, 24
PER_LAYER = 12
"""Weights of a layer's linear maps over the square of its width: half as many key heads as query heads, and a
feed-forward layer three times as wide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A model and an iteration: tokens of a prompt and a completion, completions of a prompt, prompts."""

    width: int
    layers: int
    prompt: int
    completion: int
    group: int
    prompts: int

    def as_dict(self) -> dict[str, int]:
        """The fields."""
        return asdict(self)

    @property
    def weights(self) -> int:
        """Weights of the linear maps of all layers."""
        return PER_LAYER * self.width**2 * self.layers

    @property
    def head(self) -> int:
        """Weights of the head, which are those of the embedding as well."""
        return VOCABULARY * self.width


def work(shape: Shape) -> dict[str, dict[str, float]]:
    """The counted work of each phase, by what it takes.

    - `products`: operations of linear maps; two for each weight and token, in the head two for each weight and row.
    - `attention`: operations of attention; four for each layer, query value and pair of positions.
    - `elements`: values of the residual stream, tokens x width x layers; normalizations and activations pass over them.
    - `weights read`, `keys read`: values that a decoding step reads, in all steps.
    - `layer steps`: layers of all decoding steps; starting their operations takes time.
    - `calls`: 1; `pixels`: pictures; `parameters`: weights that train.
    """
    prompts, length, size, tokens = shape.prompts, shape.prompt, shape.group, shape.completion
    own, steps, rows = tokens * (tokens + 1) / 2, tokens - 1, shape.prompts * shape.group
    prefill = _pass(shape, prompts * length, prompts * length * (length + 1) / 2, prompts)
    pairs = prompts * (length * (length + 1) / 2 + size * (tokens * length + own))
    scored = _pass(shape, prompts * (length + size * tokens), pairs, rows * tokens)
    decode = {
        "products": 2 * rows * steps * (shape.weights + shape.head),
        "weights read": steps * (shape.weights + shape.head),
        "keys read": prompts * steps * length * shape.width * shape.layers,
        "layer steps": shape.layers * steps,
    }
    return {
        "encode": {"pictures": prompts * ((length - 32) // 66), "calls": 1},
        "prefill": prefill,
        "decode": decode,
        "score": scored,
        "update": scored,
        "step": {"parameters": shape.weights + shape.head, "calls": 1},
    }


def _pass(shape: Shape, tokens: float, pairs: float, rows: float) -> dict[str, float]:
    return {
        "products": 2 * shape.weights * tokens + 2 * shape.head * rows,
        "attention": 4 * shape.layers * shape.width * pairs,
        "elements": tokens * shape.width * shape.layers,
        "calls": 1,
    }


def _shapes() -> tuple[Shape, ...]:
    grid = [
        Shape(width=width, layers=layers, prompt=prompt, completion=completion, group=group, prompts=prompts)
        for (width, layers), prompt, completion, group, prompts in product(WIDTHS, LENGTHS, TOKENS, GROUPS, PROMPTS)
    ]
    chosen = random.Random(0).sample(grid, NUM_SHAPES)
    rest = [shape for shape in grid if shape not in chosen]
    return (*chosen, *random.Random(1).sample(rest, NUM_FRESH))


SHAPES = _shapes()
"""What is measured: a random part of the grid."""
HALVED, FRESH = SHAPES[:NUM_SHAPES], SHAPES[NUM_SHAPES:]
"""Shapes that are split in halves, and shapes that were measured after the terms of the model had been chosen."""
FITTED = frozenset(sorted(HALVED, key=lambda shape: sha256(repr(shape).encode()).digest())[: NUM_SHAPES // 2])
"""The half that the model is fitted on, by hashes, so that no measurement decides it; the other half is predicted."""

Seconds = Mapping[str, float]
Coefficients = Mapping[str, Mapping[str, float]]


def fitted(found: Mapping[Shape, Seconds]) -> dict[str, dict[str, float]]:
    """Seconds for each unit of work, by phase: the least squares of relative errors, and none below zero."""
    coefficients = {}
    for phase, terms in work(HALVED[0]).items():
        table = np.array([[work(shape)[phase][name] / found[shape][phase] for name in terms] for shape in found])
        coefficients[phase] = dict(zip(terms, _not_negative(table), strict=True))
    return coefficients


def _not_negative(table: np.ndarray) -> np.ndarray:
    """The weights from 0 on that bring the weighted sum of each row closest to 1; negative ones leave, worst first."""
    scaled, kept = table / table.max(0), list(range(table.shape[1]))
    while True:
        found, *_ = np.linalg.lstsq(scaled[:, kept], np.ones(len(table)), rcond=None)
        if found.min() >= 0:
            weights = np.zeros(table.shape[1])
            weights[kept] = found
            return weights / table.max(0)
        del kept[int(found.argmin())]


def predicted(coefficients: Coefficients, shape: Shape) -> dict[str, float]:
    """Seconds of each phase, and of the `iteration`: all phases once, as with a reference policy."""
    phases = {
        phase: sum(coefficients[phase][name] * amount for name, amount in terms.items())
        for phase, terms in work(shape).items()
    }
    return phases | {"iteration": sum(phases.values())}


def report(found: Mapping[Shape, Seconds]) -> str:
    """Coefficients and errors as Markdown."""
    half = {shape: found[shape] for shape in HALVED if shape in FITTED}
    coefficients = fitted(half)
    sets = {"fitted half": list(half), "other half": [each for each in HALVED if each not in FITTED]}
    sets |= {"fresh shapes": [each for each in FRESH if each in found]}
    lines = [
        "| phase | " + " | ".join(f"{name} ({len(shapes)}): median, largest" for name, shapes in sets.items()) + " |",
        "|---|" + "---|" * len(sets),
    ]
    for phase in (*work(HALVED[0]), "iteration"):
        cells = [_errors(found, coefficients, phase, shapes) for shapes in sets.values()]
        lines.append(f"| {phase} | {' | '.join(cells)} |")
    lines += ["", "| phase | seconds for each unit of work |", "|---|---|"]
    lines += [
        f"| {phase} | {', '.join(f'{name} {value:.2e}' for name, value in terms.items())} |"
        for phase, terms in coefficients.items()
    ]
    return "\n".join(lines)


def _errors(found: Mapping[Shape, Seconds], coefficients: Coefficients, phase: str, shapes: Sequence[Shape]) -> str:
    if not shapes:
        return "not measured"
    errors = []
    for shape in shapes:
        seconds = dict(found[shape]) | {"iteration": sum(found[shape].values())}
        errors.append(abs(predicted(coefficients, shape)[phase] / seconds[phase] - 1))
    return f"{np.median(errors):.1%}, {max(errors):.1%}"
