"""Checks the facts in a handoff's seal: plain values under known keys, and no code.

A handoff may come from anywhere. Its facts choose a data type, fill a prompt and the code of a model card, and limit
decoders. Only the family names something to call, and the reader looks that name up (`registry/families.py`).
"""

from collections.abc import Callable, Mapping
from typing import Any

from lightning_mmrl.errors import ConfigError, StageError
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.settings.data import FRAME_RULES, PromptSettings
from lightning_mmrl.settings.model import AUDIO_IN_VIDEO, DTYPES, POSITION_RULES

SEALED = ("version", "digest", "files", "placeless", "seal")
"""Keys of the seal itself."""

_Problem = str | None
_Rule = Callable[[Any], _Problem]
"""Returns the words that follow "it must be" in the error about a wrong value; None for a right value."""


def check_facts(content: Mapping[str, Any], where: object) -> None:
    """Checks every fact of a seal.

    Args:
        content: The seal, as `curriculum.handoff.check_handoff` returns it.
        where: The handoff, for the message.

    Raises:
        StageError: A fact is missing or unknown, or has a value that no run writes.
    """
    facts = {key: value for key, value in content.items() if key not in SEALED}
    for key in _FACTS:
        if key not in facts:
            raise StageError(f"{where} does not say {key!r}; write it again with the run that trained it")
    rules = {**_FACTS, **_OPTIONAL}
    for key, value in facts.items():
        if key not in rules:
            raise StageError(f"{where} has the unknown key {key!r}; a handoff holds data alone, remove the key")
        problem = rules[key](value)
        if problem is not None:
            text = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:80]}..."
            raise StageError(f"{where} has {key} {text}; it must be {problem}")
    try:
        PromptTemplate(PromptSettings(**facts["prompt"]))
    except ConfigError as error:
        raise StageError(f"{where}: {error}") from error


def _rule(expected: str, fits: Callable[[Any], bool]) -> _Rule:
    return lambda value: None if fits(value) else expected


def _whole(least: int, most: int) -> _Rule:
    return _rule(
        f"a whole number from {least} to {most}",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most,
    )


def _one_of(*choices: str) -> _Rule:
    return _rule(f"one of {', '.join(choices)}", lambda value: isinstance(value, str) and value in choices)


def _family(value: Any) -> _Problem:
    """Accepts a name, or two functions' names, which seals of version 1 write as nodes with nothing but `_target_`."""
    if isinstance(value, str):
        return None
    if isinstance(value, Mapping) and set(value) == {"backbone", "encoder"}:
        bare = {key: part for key, part in value.items() if isinstance(part, Mapping) and set(part) == {"_target_"}}
        if all(isinstance(bare[key]["_target_"] if key in bare else part, str) for key, part in value.items()):
            return None
    return "the name of a family, or the names of its backbone and encoder without any option"


def _mapping(required: Mapping[str, _Rule], optional: Mapping[str, _Rule] | None = None) -> _Rule:
    known = {**required, **(optional or {})}

    def rule(value: Any) -> _Problem:
        if not isinstance(value, Mapping):
            return f"a mapping of {', '.join(required)}"
        if missing := [key for key in required if key not in value]:
            return f"a mapping with {missing[0]}"
        for key, each in value.items():
            if key not in known:
                return f"a mapping of {', '.join(known)} alone, without {key!r}"
            if (problem := known[key](each)) is not None:
                return f"a mapping with a {key} that is {problem}"
        return None

    return rule


_TEXT = _rule("text", lambda value: isinstance(value, str))
_TEXT_OR_NULL = _rule("text or null", lambda value: value is None or isinstance(value, str))
_SECONDS = _rule(
    "a number of seconds above 0",
    # The comparison is false for NaN.
    lambda value: isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1e9,
)
_RATE = _rule(
    "a number of frames per second above 0",
    lambda value: isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1e6,
)
_LABELS = _rule(
    "a list of different texts",
    lambda value: (
        isinstance(value, list)
        and all(isinstance(label, str) and label.strip() for label in value)
        and len(set(value)) == len(value)
    ),
)
_PLAIN_VALUES = _rule(
    "a mapping of texts, numbers, true, false or null",
    lambda value: (
        isinstance(value, Mapping)
        and all(each is None or isinstance(each, str | bool | int | float) for each in value.values())
    ),
)
"""The lineage holds texts, numbers and truth values; they are shown and never used."""

_FACTS: Mapping[str, _Rule] = {
    "prompt": _mapping(
        {"system": _TEXT_OR_NULL, "suffix": _TEXT, "prefill": _TEXT},
        {"raw": _TEXT_OR_NULL, "prefix": _TEXT},  # older handoffs lack them
    ),
    "media": _mapping(
        {
            "num_frames": _whole(2, 100_000),
            "sample_rate_hz": _whole(1, 1_000_000),
            "max_duration_s": _SECONDS,
            "max_pixels": _whole(1, 2**40),
            "max_bytes": _whole(1, 2**50),
        },
        {  # handoffs have the keys that are set
            "frame_rule": _one_of(*FRAME_RULES),
            "fps": _RATE,
            "min_frames": _whole(2, 100_000),
            "max_frames": _whole(2, 100_000),
            **dict.fromkeys(
                ("min_frame_pixels", "max_frame_pixels", "total_pixels", "min_image_pixels", "max_image_pixels"),
                _whole(1, 2**40),
            ),
        },
    ),
    "labels": _LABELS,
    "family": _family,
    "dtype": _one_of(*DTYPES),
    "max_new_tokens": _whole(1, 2**31),
}
_OPTIONAL: Mapping[str, _Rule] = {
    "position_rule": _one_of(*POSITION_RULES),
    "audio_in_video": _one_of(*AUDIO_IN_VIDEO),
    "lineage": _PLAIN_VALUES,
    "task": _mapping({"type": _TEXT, "headline": _TEXT, "scores": _LABELS}),
}
"""Facts that older handoffs lack, because they could not be configured then."""
