"""How a run that was disturbed differs from the run that was left alone, and what MLflow has of it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def verdict(work: Path, name: str, log: Path, stages: Sequence[str]) -> dict[str, Any]:
    """How a run that was disturbed differs from the one that was not."""
    text = log.read_text(errors="replace")
    return {
        "equal": ", ".join(differences(work / "reference", work / name)) or "yes",
        "fell_back": text.count("is passed over"),
        "tracking": _tracked(work, name, stages),
    }


def differences(alone: Path, disturbed: Path) -> list[str]:
    """Phrases about metrics of steps, artifacts and samples left out that are not the same in two run folders."""
    found = []
    for stage in sorted((alone / "stages").glob("[0-9]*")):
        other = disturbed / "stages" / stage.name
        if _metrics(stage) != _metrics(other):
            found.append(f"metrics of {stage.name}")
        if _digests(stage) != _digests(other):
            found.append(f"artifacts of {stage.name}")
    return found + (["samples left out"] if decisions(alone) != decisions(disturbed) else [])


def decisions(run: Path) -> dict[tuple[str, str], str | None]:
    """Maps manifest and id of each sample that was decided on to why it is left out, or to None if it is used."""
    found: dict[tuple[str, str], str | None] = {}
    manifests: dict[int, str] = {}
    path = run / "exclusions.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        row = json.loads(line)
        if "manifest" in row:
            manifests[row["set"]] = row["manifest"]
        if "set" in row:
            manifest = manifests[row["set"]]
            found |= {(manifest, name): None for name in row.get("used", {})}
            found |= {(manifest, name): each["reason"] for name, each in row.get("left_out", {}).items()}
    return found


def _digests(stage: Path) -> dict[str, str]:
    """Maps the artifacts of a stage, weights or tables, to the hashes of their files."""
    seals = sorted(stage.rglob("mmrl.json"))
    return {str(seal.parent.relative_to(stage)): json.loads(seal.read_text())["digest"] for seal in seals}


def _metrics(stage: Path) -> dict[tuple[int, str], float]:
    values: dict[tuple[int, str], float] = {}
    for line in (stage / "metrics.jsonl").read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # the line that a kill cut off
            continue
        values |= {(record["step"], key): value for key, value in record["metrics"].items() if "/time/" not in key}
    return values


def _client(work: Path, name: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{(work / f'{name}.db').absolute()}")


def _runs(client: Any) -> list[Any]:
    return client.search_runs([each.experiment_id for each in client.search_experiments()])


def statuses(work: Path, name: str) -> dict[str, str]:
    return {run.info.run_name: run.info.status for run in _runs(_client(work, name))}


def _tracked(work: Path, name: str, stages: Sequence[str]) -> str:
    """Whether MLflow has one parent and one run per stage, all finished, with each local point once."""
    client = _client(work, name)
    runs = {run.info.run_name: run for run in _runs(client)}
    if len(runs) != len(_runs(client)) or len(runs) != len(stages) + 1:
        return f"{len(_runs(client))} runs"
    if {run.info.status for run in runs.values()} != {"FINISHED"}:
        return f"statuses {sorted(run.info.status for run in runs.values())}"
    for stage in (work / name / "stages").iterdir():
        points = {}
        for step, key in _metrics(stage):
            points.setdefault(key, []).append(step)
        for key, steps in points.items():
            found = [point.step for point in client.get_metric_history(runs[stage.name].info.run_id, key)]
            if sorted(found) != sorted(steps):
                return f"{key}: {len(found)} points, {len(steps)} steps"
    return "yes"


def to_repeat(folder: Path) -> int:
    """Logged steps of an unfinished stage that trains and that its newest state does not cover."""
    most = 0
    for stage in folder.glob("stages/*"):
        samples = (stage / "artifacts").exists() or any(stage.glob("state/part-*"))
        if (stage / "metrics.jsonl").exists() and not (samples or (stage / "handoff").exists()):
            states = [int(place.name[5:]) for place in stage.glob("state/step-*") if place.suffix == ""]
            steps = [step for step, key in _metrics(stage) if "validation" not in key]
            most = max(most, max(steps, default=0) - max(states, default=0))
    return most
