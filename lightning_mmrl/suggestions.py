"""Offers the nearest valid words and keys in messages, and shortens values for them."""

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

MAX_OFFERED = 4
MAX_SHOWN = 100
WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Returns `; did you mean 'x'?` with the nearest choices, or a list of all choices if none is near.

    >>> did_you_mean("sede", ["seed", "order"])
    "; did you mean 'seed'?"
    >>> did_you_mean("ar", ["war", "uar", "valid_format"])
    "; did you mean 'uar' or 'war'?"
    """
    known = sorted(map(str, choices))
    close = nearest(word, known)
    return offered(close) if close else known_are(known)


def offered(words: Iterable[str]) -> str:
    """Returns `; did you mean 'x'?` with one or several words."""
    return f"; did you mean {' or '.join(map(repr, words))}?"


def known_are(words: Iterable[str]) -> str:
    """Returns the end of a message that lists all valid words."""
    return f"; known are {', '.join(words) or 'none'}"


def nearest(word: str, choices: Iterable[str]) -> list[str]:
    """Returns the choices one edit away from a word; if there are none, the most similar choice, if any is similar."""
    known = list(choices)
    near = [choice for choice in known if one_edit_apart(word, choice)]
    return near[:MAX_OFFERED] or difflib.get_close_matches(word, known, n=1, cutoff=0.6)


def one_edit_apart(first: str, second: str) -> bool:
    """True if one insertion, deletion, substitution or transposition leads from one word to the other.

    >>> [one_edit_apart("lr", word) for word in ("rl", "l", "lrr", "l_", "lr", "rate")]
    [True, True, True, True, False, False]
    """
    differing = (at for at, (one, two) in enumerate(zip(first, second, strict=False)) if one != two)
    start = next(differing, min(len(first), len(second)))
    rest, other = first[start:], second[start:]
    if not rest and not other:
        return False
    swapped = len(rest) > 1 and len(other) > 1 and rest[:2] == other[1::-1] and rest[2:] == other[2:]
    return swapped or rest[1:] == other[1:] or rest[1:] == other or rest == other[1:]


def unknown_key(key: str, tree: Mapping[Any, Any], schema: Any, extra: Iterable[str] = ()) -> str:
    """Returns the end of a message about an unknown key, which offers known keys.

    If the key seems misspelled, these are keys beside it; if it seems misplaced, they may be anywhere in the tree.

    Args:
        key: The unknown key with its full path.
        tree: The composed tree.
        schema: Type of the tree.
        extra: Further words that are valid at the top, such as the names of groups.
    """
    key = first_unknown(key, set(known_paths(tree, schema)))
    # The tree may hold the unknown key itself.
    paths = [path for path in known_paths(tree, schema) if not f"{path}.".startswith(f"{key}.")]
    paths += [word for word in extra if word != key]
    parent, _, leaf = key.rpartition(".")
    beside = sorted({path.rpartition(".")[2] for path in paths if path.rpartition(".")[0] == parent})
    below = [path for path in paths if path.startswith(f"{parent}.")] if parent else []
    almost = [path for path in paths if one_edit_apart(leaf, path.rpartition(".")[2])]
    typos = [name for name in beside if one_edit_apart(leaf, name)]
    found = (
        typos
        or _ending(leaf, below)
        or nearest(leaf, beside)
        or _ending(leaf, paths)
        or [path for path in below if path in almost]
        or almost
    )
    return offered(found[:MAX_OFFERED]) if found else known_are(beside)


def first_unknown(key: str, known: Collection[str]) -> str:
    """Returns the shortest unknown beginning of a dotted key; the whole key if every shorter beginning is known.

    >>> first_unknown("stages.raeson.data.limit", {"stages", "stages.reason"})
    'stages.raeson'
    """
    parts = key.split(".")
    prefixes = (".".join(parts[:depth]) for depth in range(1, len(parts)))
    return next((prefix for prefix in prefixes if prefix not in known), key)


def known_paths(tree: Mapping[Any, Any], schema: Any, prefix: str = "") -> Iterator[str]:
    """Yields every dotted key that the schema allows or the tree has."""
    types = get_type_hints(schema)
    for name in [*types, *(str(key) for key in tree if key not in types)]:
        yield f"{prefix}{name}"
        yield from _inner_paths(tree.get(name), types.get(name), f"{prefix}{name}.")


def _inner_paths(value: Any, annotation: Any, prefix: str) -> Iterator[str]:
    """Yields the keys below one key; none for a section that is null, such as the algorithm of an sft stage."""
    inner = value if isinstance(value, Mapping) else {}
    kind = dataclass_of(annotation)
    if kind is not None and get_origin(annotation) is not dict and (inner or annotation is kind):
        yield from known_paths(inner, kind, prefix)
        return
    for name, entry in inner.items():
        yield f"{prefix}{name}"
        yield from _inner_paths(entry, kind, f"{prefix}{name}.")


def dataclass_of(annotation: Any) -> Any:
    """Returns the dataclass X of an annotation `X`, `X | None` or `dict[str, X]`; None for any other annotation."""
    return next((kind for kind in (annotation, *get_args(annotation)) if is_dataclass(kind)), None)


def annotation_of(key: str, schema: Any) -> Any:
    """Returns the annotation of a dotted key; None for a key below a `_target_` or outside the schema."""
    kind = schema
    for name in key.split("."):
        inner = dataclass_of(kind)
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
        else:
            kind = get_type_hints(inner).get(name) if inner is not None else None
    return kind


def shown(value: object) -> str:
    """Returns a value as text that fits on one line of a message."""
    text = str(value)
    text = text if text.isprintable() and text else repr(text)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, without the trailing key path that OmegaConf adds."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__


def _ending(leaf: str, paths: Iterable[str]) -> list[str]:
    found = [path for path in paths if path.rpartition(".")[2] == leaf]
    depth = min((path.count(".") for path in found), default=0)
    return [path for path in found if path.count(".") == depth]
