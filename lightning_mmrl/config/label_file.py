"""The label set of a dataset's folder: `data.labels: null` takes it from labels.json in data.root."""

import copy
import json
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from lightning_mmrl.errors import ConfigError

LABEL_FILE = "labels.json"


def with_labels(composed: DictConfig) -> DictConfig:
    """Fills in each label set that is null from the folder of its dataset, and returns the composition.

    Raises:
        ConfigError: A folder has no label set.
    """
    others = composed.get("datasets")
    names = list(others) if isinstance(others, DictConfig) else []
    found = {}
    for key in ("data", *(f"datasets.{name}" for name in names)):
        data = OmegaConf.select(composed, key)
        plain = OmegaConf.to_container(data) if isinstance(data, DictConfig) else None
        if not isinstance(data, DictConfig) or not isinstance(plain, dict) or plain.get("labels", []) is not None:
            continue
        if OmegaConf.is_missing(data, "root"):
            raise ConfigError(f"{key}.root has no value; set it, for example {key}.root=/data/clips")
        if isinstance(data.get("root"), str):  # later checks refuse a value of another type
            found[key] = labels_in(Path(data.root), key)
    filled = copy.deepcopy(composed) if found else composed
    for key, labels in found.items():
        OmegaConf.update(filled, f"{key}.labels", labels)
    return filled


def labels_in(root: Path, key: str = "data") -> list[str]:
    """Returns the labels of a dataset's folder; `key` is the key of the dataset.

    Raises:
        ConfigError: The folder's labels.json cannot be read, or it holds no list of labels.
    """
    path = root / LABEL_FILE
    fix = f"point {key}.root at a folder made by `mmrl data from-csv`, or set {key}.labels=[...]"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{key}.labels is null and {path} cannot be read ({error.strerror}); {fix}") from error
    except ValueError as error:
        raise ConfigError(f"{key}.labels is null and {path} is not JSON ({error}); {fix}") from error
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise ConfigError(f"{key}.labels is null and {path} holds no list 'labels' of strings; {fix}")
    return labels
