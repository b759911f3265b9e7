"""`mmrl lineage ARTIFACT`: the stages, data and experts that led to a checkpoint or to data; torch is not loaded."""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_mmrl.curriculum.lineage import Forebear

SHORT = 12
"""Digits of a hash that are printed."""


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="mmrl lineage",
        description="Show the stages that led to a handoff or to data that a stage made, from files alone: digests of "
        "configurations and data sets, where prompts were routed, experts, and parents in other runs.",
    )
    parser.add_argument(
        "artifact",
        type=Path,
        help="a handoff, or a folder below a stage's artifacts, such as runs/NAME/stages/02-reason/handoff",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON, with whole hashes")
    options = parser.parse_args(arguments)

    # Loaded here, so that argument errors load no libraries.
    from lightning_mmrl.curriculum.artifacts import sealed
    from lightning_mmrl.curriculum.lineage import forebears

    stages, facts = forebears(options.artifact), sealed(options.artifact)
    if options.json:
        own = {"digest": facts["digest"], "seal": facts["seal"], "lineage": facts.get("lineage", {})}
        print(json.dumps({**own, "stages": [asdict(stage) for stage in stages]}, indent=2))
        return 0
    for stage in stages:
        print("\n".join(_lines(stage)))
    if not stages:
        print(f"no run has {options.artifact} on record; its seal says:")
        print("\n".join(_pairs(facts.get("lineage", {}))))
    print(f"{options.artifact}  {facts['digest'][:SHORT]}")
    return 0


def _lines(stage: "Forebear") -> Iterator[str]:
    yield f"{stage.name} ({stage.kind}) in {stage.run}"
    yield f"  configuration  {stage.config[:SHORT]}"
    if stage.starts_from is not None:
        yield f"  starts from    {stage.starts_from}"
    sections = {"data set": stage.datasets, "input": stage.inputs, "output": stage.outputs}
    for title, values in sections.items():
        for name, value in values.items():
            maker, _, digest = value.rpartition(", ")
            yield f"  {title:<14} {name}: {f'{maker}, ' if maker else ''}{digest[:SHORT]}"
    for name, reason in stage.empty.items():
        yield f"  without        {name}: {reason}"
    if stage.idle:
        yield "  nothing to do"
    for name, counts in stage.counts.items():
        yield f"  counts         {name}: {_numbers(counts)}"
    for title, values in stage.routing.items():
        nested = any(isinstance(value, Mapping) for value in values.values())
        for name, value in values.items() if nested else [("", values)]:
            yield f"  {title.replace('_', ' '):<14} {f'{name}: ' if name else ''}{_numbers(value)}"


def _numbers(counts: Mapping[str, Any]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items()) or "none"


def _pairs(facts: Mapping[str, Any]) -> Iterator[str]:
    return (f"  {key}: {value}" for key, value in facts.items())
