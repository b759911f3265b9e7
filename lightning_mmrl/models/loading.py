"""Loads the parts of a checkpoint that every family has, and says in one sentence why one cannot be loaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import GENERATION_CONFIG_NAME

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


def load_eos_ids(checkpoint: str | Path, vocab_size: int, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Returns the ids that end a completion.

    They are in `generation_config.json`. Where it is missing or names none, as in folders of omni models, `config.json`
    has them, first in the part of its text model. The tokenizer's own end is the last resort.

    Args:
        checkpoint: A Hugging Face folder or hub id.
        vocab_size: Number of tokens that the model knows.
        tokenizer: The tokenizer of the checkpoint.

    Raises:
        StageError: No file names an id, or an id that one names is beyond the vocabulary.
    """
    named = {
        "generation_config.json": _generation_ends(checkpoint),
        "config.json": _configured_ends(checkpoint),
        "the tokenizer": tokenizer.eos_token_id,
    }
    for place, found in named.items():
        ids = tuple(found) if isinstance(found, list) else (found,)
        if ids in ((), (None,)):
            continue
        for value in ids:
            if not (isinstance(value, int) and 0 <= value < vocab_size):
                raise StageError(
                    f"eos_token_id of model checkpoint {str(checkpoint)!r} is {value!r} in {place}; "
                    f"it must be a token of its vocabulary of {vocab_size}"
                )
        return ids
    raise StageError(
        f"model checkpoint {str(checkpoint)!r} has no end-of-sequence token: {', '.join(named)} name none; "
        "add eos_token_id to its generation_config.json"
    )


def _generation_ends(checkpoint: str | Path) -> Any:
    """The ends in `generation_config.json`; None where a folder has no such file."""
    if Path(checkpoint).is_dir() and not (Path(checkpoint) / GENERATION_CONFIG_NAME).exists():
        return None
    with loading(checkpoint, "generation config"):
        return GenerationConfig.from_pretrained(checkpoint).eos_token_id


def _configured_ends(checkpoint: str | Path) -> Any:
    """The ends that `config.json` names itself: its class has defaults, which may be the ends of another model."""
    with loading(checkpoint, "model configuration"):
        whole, _ = PreTrainedConfig.get_config_dict(checkpoint)
    thinker = whole.get("thinker_config") or {}
    parts = (thinker.get("text_config"), thinker, whole.get("text_config"), whole)
    return next((part["eos_token_id"] for part in parts if part and part.get("eos_token_id") is not None), None)
