"""Algorithms by the names of their parts and keys alike."""

from dataclasses import replace
from typing import Any

from lightning_mmrl.settings.algorithm import AlgorithmSettings
from lightning_mmrl.stages.algorithm import Algorithm

KEYS = ("group_size", "mask_truncated", "phases", "max_samplings", "select_after", "critic", "router", "update")


def algorithm_of(**given: Any) -> Algorithm:
    """An algorithm of parts, such as a loss, and of keys of its settings, such as a group size."""
    keys = {name: given.pop(name) for name in KEYS if name in given}
    return Algorithm(**given, settings=AlgorithmSettings(**keys))


def changed(algorithm: Algorithm, **keys: Any) -> Algorithm:
    """The algorithm with other values of keys of its settings."""
    return replace(algorithm, settings=replace(algorithm.settings, **keys))
