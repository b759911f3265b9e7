"""The numbers of a run of `mmrl train`, read from its folder."""

import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

WITHOUT = ("/time/", "/tokens/", "memory", "bytes", "_per_s")
"""Parts of the names of metrics that differ from run to run, or count work, which other tests do by hand."""


def read_trajectory(folder: Path, states: str) -> dict[str, Any]:
    """The numbers of each stage of a run, step by step, and what it hands on; `states` is the folder of its states."""
    return {stage.name: _stage(stage, states) for stage in sorted((folder / "stages").iterdir())}


def _stage(folder: Path, states: str) -> dict[str, Any]:
    if not (folder / "handoff").exists():
        counts = _metrics(folder)[0] if (folder / "metrics.jsonl").exists() else {}
        return {"metrics": counts, "artifacts": _artifacts(folder / "artifacts")}
    metrics, train = _metrics(folder)
    found = {"metrics": metrics, "train": train, "rollouts": _rollouts(folder / "rollouts")}
    found |= {"states": _states(folder / states), "handoff": _handoff(folder / "handoff")}
    return found | {"evaluation": _evaluation(folder / "evaluation")}


def _metrics(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metric to step to value, without times and memory; the metrics of the group `train` stand apart."""
    found: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        for key, value in record["metrics"].items():
            if not any(part in key for part in WITHOUT):
                name = key.partition("/")[2]  # the stage's own name stands first
                values = found[name.startswith("train/")].setdefault(name, {})
                values[str(record["step"])] = value
    return found


def _rollouts(folder: Path) -> dict[str, Any]:
    """By iteration: prompts in their order, and the length, reward and text (as a digest) of their answers."""
    found: dict[str, Any] = {"prompts": {}, "num_tokens": {}, "answers": {}, "rewards": {}}
    for path in sorted(folder.glob("*.jsonl")):
        step = str(int(path.stem.rpartition("_")[2]))
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        answers = [answer for row in rows for answer in row["responses"]]
        found["prompts"][step] = [row["id"] for row in rows]
        found["num_tokens"][step] = [answer["num_tokens"] for answer in answers]
        found["answers"][step] = _digest([answer["text"] for answer in answers])
        found["rewards"][step] = [answer["reward"] for answer in answers]
    return found


def _artifacts(folder: Path) -> dict[str, Any]:
    """By file of a stage that makes data: the ids of the rows in their order, and a digest of the rows."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*.jsonl")):
        lines = path.read_text(encoding="utf-8").splitlines()
        ids = [json.loads(line)["id"] for line in lines]
        found[path.relative_to(folder).as_posix()] = {"ids": ids, "rows": _digest(lines)}
    return found


def _states(folder: Path) -> dict[str, Any]:
    """By step: digests and sums of the weights and of the optimizer's state."""
    found: dict[str, Any] = {}
    for state in sorted(folder.glob("step-*[0-9]")):
        checkpoint = _checkpoint(state / "checkpoint")
        parts = {"weights": checkpoint["state_dict"], "optimizer": checkpoint["optimizer_states"]}
        for name, part in parts.items():
            for key, value in weight_summary(list(_tensors(part))).items():
                found.setdefault(f"{name}_{key}", {})[str(int(state.name.removeprefix("step-")))] = value
    shutil.rmtree(folder, ignore_errors=True)
    return found


def _checkpoint(path: Path) -> dict[str, Any]:
    """Lightning's checkpoint, put together from shards if there are any."""
    if not path.is_dir():
        return torch.load(path, weights_only=True)
    whole = path.with_name("whole.pt")
    dcp_to_torch_save(path, whole)
    stored = torch.load(whole, weights_only=True)
    optimizers = [part for key, part in stored.items() if key.startswith("optimizer_states")]
    return {"state_dict": stored["state_dict"], "optimizer_states": optimizers}


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors of a nested structure."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)


def _handoff(folder: Path) -> dict[str, Any]:
    tensors = {}
    for path in sorted(folder.rglob("*.safetensors")):
        tensors |= {f"{path.relative_to(folder).parent}/{name}": tensor for name, tensor in load_file(path).items()}
    return weight_summary([tensors[name] for name in sorted(tensors)])


def _evaluation(folder: Path) -> dict[str, Any]:
    """The scores of all sets, and for each a digest of its answers."""
    scores = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    answers = {}
    for path in sorted(folder.glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        answers[path.stem] = _digest([part for row in rows for part in (row["sample_id"], row["text"])])
    return {"answers": answers, "scores": scores}


def weight_summary(tensors: list[Tensor]) -> dict[str, Any]:
    """A digest of all bits, their norm, and their sum with weights that differ from place to place.

    Names do not count, and neither does the order: parameters may be renamed, and tensors of a state moved.
    """
    digests, squares, waves = [], [], []
    for tensor in tensors:
        local = tensor.detach().contiguous().reshape(-1)
        about = f"{tensor.dtype} {tuple(tensor.shape)}".encode()
        digests.append(hashlib.sha256(about + local.view(torch.uint8).numpy().tobytes()).hexdigest())
        values = local.double() if tensor.ndim else local.double()[:0]  # a counter of steps says little
        squares.append(float(values.square().sum()))
        waves.append(float(values @ torch.arange(1, len(values) + 1, dtype=torch.float64).cos()))
    return {"digest": _digest(sorted(digests)), "norm": math.fsum(squares) ** 0.5, "wave": math.fsum(waves)}


def _digest(parts: list[str]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def write_trajectory(path: Path, trajectory: Mapping[str, Any]) -> None:
    """Writes a trajectory so that a person reads it: sorted, what is flat on one line, every digit of a number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(_rendered(trajectory) + "\n", encoding="utf-8")
    partial.replace(path)


def _rendered(value: Any, indent: str = "") -> str:
    if not isinstance(value, Mapping) or not any(isinstance(part, Mapping) for part in value.values()):
        pairs = dict(sorted(value.items(), key=_by_number)) if isinstance(value, Mapping) else value
        return json.dumps(pairs)
    deeper = indent + " "
    lines = [f"{deeper}{json.dumps(key)}: {_rendered(part, deeper)}" for key, part in sorted(value.items())]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def _by_number(item: tuple[str, Any]) -> tuple[int, str]:
    """Steps in the order of numbers, not of letters."""
    return (int(item[0]) if item[0].isdigit() else 0, item[0])
