"""The configs of a prepared set: a `data=` file for each of its folders, for --config-dir."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from lightning_mmrl.data.prepare.card import SetCard
from lightning_mmrl.data.prepare.rows import PrepareRequest


def config_texts(
    card: SetCard, request: PrepareRequest, directory: Path, sizes: Mapping[str, int], labels: Sequence[str] | None
) -> dict[str, str]:
    """The texts of further files by name: `configs/data/SET.yaml`, one for each folder, and labels.json in each folder.

    Args:
        card: The set.
        request: The originals.
        directory: The folder of the prepared set.
        sizes: Samples by manifest.
        labels: The label set; None for an open vocabulary.
    """
    folders: dict[str, set[str]] = {}
    for name in sizes:
        parent = PurePosixPath(name).parent.as_posix()
        folders.setdefault("" if parent == "." else parent, set()).add(PurePosixPath(name).name)
    texts = {}
    for folder, splits in folders.items():
        name = "_".join([card.name, *filter(None, folder.split("/"))])
        texts[f"configs/data/{name}.yaml"] = _config(card, request, directory / folder, splits, labels)
        if folder:
            content = json.dumps({"labels": list(labels or ())}, indent=2, ensure_ascii=False)
            texts[f"{folder}/labels.json"] = content + "\n"
    return texts


def _config(
    card: SetCard, request: PrepareRequest, folder: Path, splits: set[str], labels: Sequence[str] | None
) -> str:
    wheel = request.options.get("wheel")
    open_task = ["defaults:", "  - /task@task: open_vocabulary", "  - _self_", ""]
    lines = [
        f"# {card.title}: {', '.join(request.subsets)}. Written by mmrl data prepare {card.name}.",
        *(open_task if labels is None else []),
        f"root: {json.dumps(str(folder.resolve()))}",
        f"media_root: {json.dumps(str(request.root))}",
        f"validation: {'validation.jsonl' if 'validation' in splits else 'null'}",
        "validation_limit: null",
        "limit: null",
        "module:",
        "  _target_: lightning_mmrl.data.datamodules.OmniDataModule",
        *([] if labels is None else ["task: null"]),
        *([f"task: {{wheel: {json.dumps(str(Path(wheel).resolve()))}}}"] if wheel and labels is None else []),
        f"labels: {json.dumps(list(labels or ()), ensure_ascii=False)}",
        "cue_lexicon: null",
        "build: null",
        "media:",
        "  num_frames: 8",
        "  cache_dir: ${output_dir}/cache",
    ]
    return "\n".join(lines) + "\n"
