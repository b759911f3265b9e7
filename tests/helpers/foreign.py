"""Handoffs of strangers: folders as a stage seals them, with facts that no run writes."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_mmrl.curriculum.artifacts import SEAL, write_artifact
from lightning_mmrl.curriculum.handoff import REQUIRED

WEIGHTS = "model.safetensors"
MODULES = "lightning_mmrl.models.families"
FACTS: Mapping[str, Any] = {
    "prompt": {"system": None, "suffix": "", "prefill": "<think>"},
    "media": {
        "num_frames": 4,
        "sample_rate_hz": 16_000,
        "max_duration_s": 600.0,
        "max_pixels": 4096**2,
        "max_bytes": 2**28,
    },
    "labels": ["angry", "sad"],
    "family": "qwen2",
    "dtype": "float32",
    "position_rule": "previous_maximum",
    "audio_in_video": "separate",
    "max_new_tokens": 24,
}


def export(directory: Path, config: Mapping[str, Any] | None = None) -> None:
    """Files with the names of a checkpoint's; no library can load them."""
    for name in {*REQUIRED, WEIGHTS}:
        (directory / name).write_text(name)
    (directory / "config.json").write_text(json.dumps(config or {}))


def write(directory: Path, facts: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> Path:
    """A sealed folder with these facts in place of the usual ones."""
    write_artifact(directory, lambda folder: export(folder, config), {**FACTS, **facts})
    return directory


def edit_seal(directory: Path, **changes: Any) -> None:
    """Changes a seal and leaves its digests as they are; None takes a key away."""
    content = json.loads((directory / SEAL).read_text()) | changes
    kept = {key: value for key, value in content.items() if value is not None}
    (directory / SEAL).write_text(json.dumps(kept))


def combined(content: Mapping[str, Any]) -> str:
    """The digest that a stranger can make as well as a stage."""
    return hashlib.sha256(json.dumps(dict(content), sort_keys=True).encode()).hexdigest()
