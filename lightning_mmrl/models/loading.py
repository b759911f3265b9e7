"""Loads the parts of a checkpoint that every family has, and says in one sentence why one cannot be loaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from transformers import AutoConfig, PreTrainedConfig

from lightning_mmrl.errors import MmrlError, StageError
from lightning_mmrl.models.folder import NO_CODE, check_settings

Config = TypeVar("Config", bound=PreTrainedConfig)


@contextmanager
def loading(checkpoint: str | Path, what: str) -> Iterator[None]:
    """Turns whatever transformers raises for a missing or broken checkpoint into one sentence.

    Every exception is caught, because transformers parses the files of a checkpoint here, and they may hold anything.

    Raises:
        StageError: The checkpoint cannot be loaded.
    """
    try:
        yield
    except (MmrlError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        missing = Path(checkpoint).is_absolute() and not Path(checkpoint).exists()
        reason = "there is no such folder" if missing else str(error).strip().partition("\n")[0]
        raise StageError(
            f"{what} of {str(checkpoint)!r} cannot be loaded ({reason}); "
            "model.checkpoint, or the checkpoint of a stage, must be a Hugging Face folder or a hub id that is "
            "reachable or cached"
        ) from error


def load_config(checkpoint: str | Path) -> PreTrainedConfig:
    """The configuration of a folder or hub id, whatever its family."""
    with loading(checkpoint, "model configuration"):
        check_settings(checkpoint)
        return AutoConfig.from_pretrained(checkpoint, **NO_CODE)


def require_family(config: PreTrainedConfig, wanted: type[Config], checkpoint: str | Path, family: str) -> Config:
    """Returns the configuration if it is of the wanted family.

    Raises:
        StageError: The configuration is of another family.
    """
    if not isinstance(config, wanted):
        raise StageError(
            f"model checkpoint {str(checkpoint)!r} holds a {config.model_type} model, not {family}; "
            "choose the model preset of its family"
        )
    return config
