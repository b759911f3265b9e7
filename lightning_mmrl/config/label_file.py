"""The label set of a dataset's folder: `data.labels: null` takes it from labels.json in data.root."""

import copy
import json
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from lightning_mmrl.errors import ConfigError

LABEL_FILE = "labels.json"


def with_labels(composed: DictConfig) -> DictConfig:
    """The composition with its label set filled in from the dataset's folder, where it is null.

    Raises:
        ConfigError: The folder has no label set.
    """
    data = composed.get("data")
    plain = OmegaConf.to_container(data) if isinstance(data, DictConfig) else None
    if not isinstance(data, DictConfig) or not isinstance(plain, dict) or plain.get("labels", []) is not None:
        return composed
    if OmegaConf.is_missing(data, "root"):
        raise ConfigError("data.root has no value; set it, for example data.root=/data/clips")
    if not isinstance(data.get("root"), str):
        return composed  # refused with its type by the checks that follow
    filled = copy.deepcopy(composed)
    filled.data.labels = labels_in(Path(data.root))
    return filled


def labels_in(root: Path) -> list[str]:
    """The labels of a dataset's folder.

    Raises:
        ConfigError: The folder's labels.json cannot be read, or it holds no list of labels.
    """
    path = root / LABEL_FILE
    fix = "point data.root at a folder made by `mmrl data from-csv`, or set data.labels=[...]"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"data.labels is null and {path} cannot be read ({error.strerror}); {fix}") from error
    except ValueError as error:
        raise ConfigError(f"data.labels is null and {path} is not JSON ({error}); {fix}") from error
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise ConfigError(f"data.labels is null and {path} holds no list 'labels' of strings; {fix}")
    return labels
