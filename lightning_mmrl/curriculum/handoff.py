"""The handoff: the artifact that a trained stage makes and the next one starts from, a complete Hugging Face folder."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning_mmrl.curriculum.artifacts import AGAIN, check_artifact, sealed
from lightning_mmrl.errors import StageError
from lightning_mmrl.files import read_json

CHAT_TEMPLATE = "chat_template.jinja"
"""Required unless the model was trained with a prompt that uses no chat template."""
REQUIRED = ("config.json", "generation_config.json", "tokenizer.json", CHAT_TEMPLATE)
PROCESSOR = "processor_config.json"
TOWERS = {"vision_config", "audio_config"}
"""A model whose configuration has one of these keys needs a processor."""


def check_handoff(directory: Path) -> dict[str, Any]:
    """Checks the files of a handoff against its seal, and that a model can be loaded from them.

    Raises:
        StageError: A file is missing, changed or not in the seal, or the seal is damaged.
    """
    facts = sealed(directory)
    files, prompt = facts["files"], facts.get("prompt")
    raw = isinstance(prompt, Mapping) and prompt.get("raw") is not None
    _require([name for name in REQUIRED if not (raw and name == CHAT_TEMPLATE)], files, directory)
    # Weights in a subfolder are an adapter's, not the model's.
    if not any(name.endswith(".safetensors") and "/" not in name for name in files):
        raise StageError(f"{directory} has no *.safetensors; it is not a complete Hugging Face folder, {AGAIN}")
    facts = check_artifact(directory)
    config = read_json(directory / "config.json", AGAIN)
    if not isinstance(config, dict):
        raise StageError(f"{directory / 'config.json'} is no configuration of a model; {AGAIN}")
    if TOWERS & config.keys():
        _require([PROCESSOR], files, directory)
    return facts


def _require(names: Iterable[str], files: Mapping[str, str], directory: Path) -> None:
    for name in names:
        if name not in files:
            raise StageError(f"{directory} has no {name}; it is not a complete Hugging Face folder, {AGAIN}")
