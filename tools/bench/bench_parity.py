"""The gate before every time: variants see the same prompt and compute the same log-probabilities and gradients."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benching import BenchError
from safetensors.numpy import load_file

GRADIENT = "gradient."


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """Largest differences that pass.

    Attributes:
        logprob: Of one token, in nats.
        loss: Of the loss.
        gradient: Of any parameter's gradient, as the norm of the difference over the norm.
    """

    logprob: float
    loss: float
    gradient: float


FLOAT32 = Tolerance(logprob=1e-4, loss=1e-5, gradient=1e-3)
# bfloat16 keeps 8 bits: a logit of 8 is rounded by up to 0.03, and layers add up.
BFLOAT16 = Tolerance(logprob=0.3, loss=0.3, gradient=0.3)


def compare(reference: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The largest differences between two variants' evidence.

    Raises:
        BenchError: They were given different prompts, or different parameters of theirs have gradients.
    """
    if not np.array_equal(reference["prompt_ids"], other["prompt_ids"]):
        raise BenchError("the variants were given different prompts")
    names = {name for name in reference if name.startswith(GRADIENT)}
    if names != {name for name in other if name.startswith(GRADIENT)}:
        raise BenchError("the variants have gradients for different parameters")
    return {
        "logprob": float(np.abs(reference["logprobs"] - other["logprobs"]).max()),
        "loss": float(np.abs(reference["loss"] - other["loss"])),
        "gradient": max((_relative(reference[name], other[name]) for name in names), default=0.0),
    }


def _relative(reference: np.ndarray, other: np.ndarray) -> float:
    norm = float(np.linalg.norm(reference))
    difference = float(np.linalg.norm(reference - other))
    return difference / norm if norm else difference


def check(differences: Mapping[str, float], tolerance: Tolerance, name: str) -> None:
    """Refuses differences beyond the tolerance; NaN is beyond it.

    Raises:
        BenchError: Something differs too much.
    """
    for key, value in differences.items():
        bound = getattr(tolerance, key)
        if not value <= bound:
            raise BenchError(f"parity of {name} failed: {key} differs by {value:.2g}, at most {bound:.2g} is let pass")


def evidence_gate(workers: Mapping[str, Any], names: list[str], folder: Path, tolerance: Tolerance) -> dict[str, Any]:
    """Compares all the named workers with the first of them; files of evidence are removed again."""
    files = {name: folder / f"evidence-{name}.safetensors" for name in names}
    try:
        for name, path in files.items():
            workers[name].ask(do="evidence", path=str(path))
        first, *others = names
        reference = load_file(files[first])
        found: dict[str, Any] = {"reference": first}
        for name in others:
            differences = compare(reference, load_file(files[name]))
            check(differences, tolerance, f"{name} with {first}")
            found |= {f"{name}_{key}": value for key, value in differences.items()}
        return found
    finally:
        for path in files.values():
            path.unlink(missing_ok=True)
