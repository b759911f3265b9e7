"""The form of a value: a plain value, a list or a group of keys, as the annotation of its key says."""

from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import MISSING

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.settings.rules import require
from lightning_mmrl.suggestions import WORDS, dataclass_of


def entries(tree: Mapping[Any, Any], schema: Any, prefix: str) -> Iterator[tuple[str, Any, Any]]:
    """Yields key, annotation and value of every entry of the tree; the annotation of an unknown key is None."""
    types = get_type_hints(schema)
    for name, value in tree.items():
        annotation = types.get(name)
        yield f"{prefix}{name}", annotation, value
        if not isinstance(value, Mapping):
            continue
        inner = dataclass_of(annotation)
        if get_origin(annotation) is not dict:
            yield from entries(value, inner, f"{prefix}{name}.") if inner is not None else ()
            continue
        for each, entry in value.items():
            yield f"{prefix}{name}.{each}", get_args(annotation)[1], entry
            if inner is not None and isinstance(entry, Mapping):
                yield from entries(entry, inner, f"{prefix}{name}.{each}.")


def check_form(value: Any, annotation: Any, key: str) -> None:
    """Refuses a plain value where keys or a list belong, and keys or a list where a plain value belongs."""
    if annotation is Any or value == MISSING:
        return
    if value is None:
        if type(None) not in get_args(annotation):
            raise ConfigError(f"{key} is null; it must be {in_words(annotation, key)}")
    elif dataclass_of(annotation) is not None or get_origin(annotation) is dict:
        require(isinstance(value, Mapping), key, value, in_words(annotation, key))
    elif get_origin(_without_null(annotation)) is list:
        fits = isinstance(value, list) and not any(isinstance(each, Mapping | list) for each in value)
        require(fits, key, value, in_words(annotation, key))
    else:
        require(not isinstance(value, Mapping | list), key, value, in_words(annotation, key))


def in_words(annotation: Any, key: str) -> str:
    """Says in words which values a key with this annotation takes."""
    if get_origin(_without_null(annotation)) is list:
        return f"a list of plain values, such as {key}=[...]" + ("" if get_origin(annotation) is list else ", or null")
    if dataclass_of(annotation) is not None or get_origin(annotation) is dict:
        return f"a group of keys, such as {key}.NAME=..."
    kinds = [kind for kind in (get_args(annotation) or (annotation,)) if kind is not type(None)]
    null = " or null" if type(None) in get_args(annotation) else ""
    return " or ".join(WORDS.get(kind, "a value") for kind in kinds) + null


def _without_null(annotation: Any) -> Any:
    """Returns X for the annotation `X | None`, and any other annotation as it is."""
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    return kinds[0] if type(None) in get_args(annotation) and len(kinds) == 1 else annotation
