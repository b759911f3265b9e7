"""Checks a model's folder or hub id before transformers reads it, so that only data is read and no code is run.

transformers obeys the files of a folder: they may name code (`auto_map`), any of its classes, a kernel of the hub,
another model, or an adapter to put on. It also unpickles `*.bin` if there are no safetensors. None of that belongs to a
checkpoint here.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from lightning_mmrl.errors import StageError
from lightning_mmrl.files import read_json

NO_CODE: Mapping[str, Any] = {"trust_remote_code": False}
"""Arguments of every `from_pretrained`. Without them transformers asks on the terminal."""
WEIGHTS: Mapping[str, Any] = {**NO_CODE, "use_safetensors": True}
"""Arguments of every `from_pretrained` of weights."""

SETTINGS = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.json",
)
ADAPTER = "adapter_config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")

_RESTORE = "restore it"

_FOREIGN = {
    "auto_map": "names code of its own",
    "custom_pipelines": "names code of its own",
    "audio_tokenizer": "names another model to load",
    "transformers_weights": "names other weights than its own",
    "init_inputs": "gives its tokenizer arguments",
    "quantization_config": "asks for a quantization, whose kernels are fetched from the hub,",
    "compression_config": "asks for a quantization, whose kernels are fetched from the hub,",
    "use_kernels": "asks for kernels of the hub",
    "kernel_config": "asks for kernels of the hub",
}
"""Keys of settings that lead transformers elsewhere, with the effect of each."""
_KERNELS = ("attn_implementation", "experts_implementation")
"""Keys that may name a kernel of the hub, whose name has a slash; variants add underscores before, words after."""
_CLASSES = {
    "tokenizer_class": ("Tokenizer", "TokenizerFast", "TokenizersBackend"),
    "processor_class": ("Processor",),
    "image_processor_type": ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil"),
    "video_processor_type": ("VideoProcessor",),
    "feature_extractor_type": ("FeatureExtractor",),
}
"""Keys that name a class, with the endings of such names: transformers would look the name up among all its classes."""
_FILES = ("_file", "_files")
"""Endings of keys that name one or several files to read in place of the folder's own."""
_DEPTHS = ("num_hidden_layers", "depth", "encoder_layers", "num_layers")
MOST_LAYERS = 1024
"""A bound on layers, since a model is built layer by layer before its weights are looked for."""


def check_settings(checkpoint: str | Path) -> None:
    """Checks the settings of a model.

    Args:
        checkpoint: A folder, or a hub id, whose settings are fetched as transformers fetches them.

    Raises:
        StageError: The settings name code, another model, another adapter or a class of the wrong kind.
    """
    for name in SETTINGS:
        path = found_file(checkpoint, name)
        if path is not None:
            for key, value in _entries(read_json(path, _RESTORE)):
                _check_entry(key, value, path)
    if (path := found_file(checkpoint, ADAPTER)) is not None:
        raise StageError(
            f"{path} would put an adapter on the model of this folder; move it into a folder of its own, or merge it"
        )


def check_weights(checkpoint: str | Path) -> None:
    """Checks the weights of a folder; the weights of a hub id are fetched as safetensors or not at all.

    Raises:
        StageError: There are no safetensors, or their index names files that are not in the folder.
    """
    folder = Path(checkpoint)
    if not folder.is_dir() or (folder / SINGLE).is_file():
        return
    if not (folder / INDEX).is_file():
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        if pickles:
            raise StageError(
                f"{folder / pickles[0]} is a pickle, which runs code of others when it is read, and there is no "
                f"{SINGLE}; convert it where you trust it, by save_pretrained of transformers"
            )
        return  # transformers says what is missing
    index = read_json(folder / INDEX, _RESTORE)
    names = index.get("weight_map") if isinstance(index, Mapping) else None
    if not isinstance(names, Mapping):
        raise StageError(f"{folder / INDEX} has no weight_map; restore it")
    for name in names.values():
        if not _is_plain_name(name) or not name.endswith(".safetensors"):
            raise StageError(f"{folder / INDEX} names {str(name)[:80]!r}, which is no *.safetensors of this folder")


def found_file(checkpoint: str | Path, name: str) -> Path | None:
    """A file of a folder or hub id; None if it is missing, or if the hub is unreachable, which the loader reports."""
    if Path(checkpoint).is_dir():
        path = Path(checkpoint) / name
        return path if path.exists() else None
    try:
        path = cached_file(str(checkpoint), name, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError):
        return None
    return None if path is None else Path(path)


def _is_plain_name(name: Any) -> bool:
    return isinstance(name, str) and name not in ("", "..") and Path(name).name == name


def _entries(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yields all keys of a JSON tree with their values; the parser has bounded the tree's depth."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield key, value
            yield from _entries(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _entries(value)


def _check_entry(key: str, value: Any, path: Path) -> None:
    if value in (None, [], {}):
        return
    if key in _FOREIGN:
        raise StageError(
            f"{path} {_FOREIGN[key]} under {key!r}; nothing of a checkpoint is run or followed, remove the key if the "
            "model works without it"
        )
    shown = json.dumps(value)[:80]
    if key.strip("_").startswith(_KERNELS) and "/" in json.dumps(value):
        raise StageError(f"{path} asks for the kernel {shown} of the hub under {key!r}; remove the key")
    if key in _CLASSES and not (isinstance(value, str) and value.isidentifier() and value.endswith(_CLASSES[key])):
        raise StageError(f"{path} has the {key} {shown}, which is no class of that kind; name one of its kind")
    if key.endswith(_FILES) and not all(
        _is_plain_name(each) for each in (value if isinstance(value, list) else [value])
    ):
        raise StageError(f"{path} has the {key} {shown}, which is no file of its folder; remove the key")
    if key in _DEPTHS and not (isinstance(value, int) and 0 <= value <= MOST_LAYERS):
        raise StageError(f"{path} has {key} {shown}; it must be a whole number of at most {MOST_LAYERS}")
