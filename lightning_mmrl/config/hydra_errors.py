"""Turns an error of Hydra into one clear sentence with the key, the value and the fix.

The class of Hydra's error gives the kind of fault; composing again with fewer overrides finds the override that causes
it. The text of Hydra's message is read only for errors in config files (see `IN_FILE`), since nothing else names the
file.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import MarkedYAMLError

from lightning_mmrl.config.folders import groups, options
from lightning_mmrl.config.stage_schemas import key_type, run_schema
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.registry.own_code import KEYS, NO_KEY
from lightning_mmrl.settings.renamed import key_hint
from lightning_mmrl.suggestions import (
    dataclass_of,
    did_you_mean,
    first_line,
    known_are,
    nearest,
    offered,
    shown,
)

IN_FILE = "In '"
"""How Hydra begins a message about a file..."""
NO_MATCH = "Could not override '"
"""...and how it continues if the file overrides a key that does not exist."""

Compose = Callable[[list[str]], DictConfig]
"""Composes overrides into a tree that still has the `hydra` node."""


def explained(error: Exception, overrides: Sequence[str], compose: Compose, own: Path | None = None) -> ConfigError:
    """Turns an error of Hydra into a ConfigError of one sentence.

    Args:
        error: Raised while the overrides were composed.
        overrides: The user's overrides.
        compose: Composes other overrides in the same way, to find out which one is at fault.
        own: The user's own folder of configs.
    """
    if isinstance(error, ConfigError):
        return error
    cause = error.__cause__
    keyless = [each for each in overrides if each.lstrip("+~").startswith("=")]
    if keyless:
        return ConfigError(f"{shown(repr(keyless[0]))} has no key; write KEY=VALUE")
    if isinstance(error, OverrideParseException):
        return ConfigError(_unreadable(str(error.override)))
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark
        place = f"{mark.name}:{mark.line + 1}" if mark is not None else "a config file"
        return ConfigError(f"{place}: not valid YAML ({error.problem or first_line(error)}); correct this line")
    if isinstance(error, MissingConfigException):
        return ConfigError(_missing_option(error, own))
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        return ConfigError(_unknown(cause, own))
    if str(error).startswith(IN_FILE):
        return ConfigError(_in_file(str(error), compose, own))
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    faults = _faults(parsed, compose, own, cause)
    otherwise = f"{shown(first_line(error))}; check the overrides {shown(' '.join(overrides))}"
    return ConfigError(next(faults, otherwise))


def _faults(
    overrides: Sequence[Override], compose: Compose, own: Path | None, cause: BaseException | None
) -> Iterator[str]:
    """Yields messages about overrides that cannot be applied.

    The form of all overrides is checked first, then the chosen options (which Hydra applies before values), then the
    values.
    """
    known = groups(own)
    chosen = [each for each in overrides if each.key_or_group in known and not isinstance(each.value(), dict)]
    values = [each for each in overrides if each not in chosen]
    for each in overrides:
        yield from _bad_form(each, chosen, own)
    texts = [str(each.input_line) for each in chosen]
    if _composed(compose, texts) is None:
        # If one option is at fault, the others compose without it. If several are, all are compared with the tree
        # of the experiment and the curriculum, or with the default tree.
        rest = [texts[:index] + texts[index + 1 :] for index in range(len(texts))]
        experiments = [text for text in texts if text.partition("=")[0] in ("experiment", "curriculum")]
        tree = next(filter(None, (_composed(compose, each) for each in (*rest, experiments, []))), None)
        if tree is not None:
            for each in chosen:
                yield from _bad_choice(each, tree, own)
        return
    lines = [str(each.input_line) for each in values]
    numbers = range(1, len(values) + 1)
    count = bisect_left(numbers, True, key=lambda number: _composed(compose, [*texts, *lines[:number]]) is None)
    if count < len(values):
        before = _composed(compose, [*texts, *lines[:count]])
        assert before is not None
        yield _bad_value(values[count], before, cause, own)


def _composed(compose: Compose, overrides: list[str]) -> DictConfig | None:
    try:
        return compose(overrides)
    except (HydraException, OmegaConfBaseException, ConfigError, OSError, ValueError, MarkedYAMLError):
        return None  # tells the caller that the overrides do not compose


def _bad_form(override: Override, chosen: Sequence[Override], own: Path | None) -> Iterator[str]:
    """Yields the faults of an override that can be found without composing."""
    line, key = shown(override.input_line), str(override.key_or_group)
    if override.is_sweep_override():
        name, _, value = str(override.input_line).partition("=")
        texts = shown(f"""'{name}="{value}"'""")
        yield (
            f"{line}: is ambiguous; write {shown(f'{name}=[{value}]')} for a list, {texts} for one text, or add"
            " --multirun to run each"
        )
    if override.package is not None and key not in groups(own):
        yield f"{line}: there is no group {key!r}{did_you_mean(key, groups(own))}"
    if override not in chosen or override.is_delete():
        return
    if override.is_force_add():
        yield f"{line}: an option cannot be forced; write {line.lstrip('+')}"
    if not isinstance(override.value(), str | list):
        yield f"{line}: {key} needs the name of an option{known_are(options(key, own))}"
    same = [shown(each.input_line) for each in chosen if _place(each) == _place(override)]
    if len(same) > 1 and override.is_add():
        yield f"{_place(override)}: an option is chosen more than once ({', '.join(same)}); keep one"


def _place(override: Override) -> str:
    """The group, followed by `@package` if the override names a package."""
    return override.get_key_element().lstrip("+~")


def _bad_choice(override: Override, tree: DictConfig, own: Path | None) -> Iterator[str]:
    """Yields the fault of an option, given a composition without it."""
    place, choices = _place(override), dict(tree.hydra.runtime.choices)
    if override.is_delete():
        if place not in choices or override.value() not in (None, "", choices[place]):
            yield f"~{place}: is not chosen in this composition, so it cannot be removed; leave it out"
    elif override.is_add():
        if place in choices:
            yield f"{place}: takes one option, without a plus; write {place}=NAME"
    elif place not in choices:
        known, value = options(place.partition("@")[0], own), str(override.value())
        if value not in known:
            yield f"{place}={shown(value)}: no such option{did_you_mean(value, known)}"
        yield _no_place(place, place, tree, in_file=False)


def _no_place(shown_as: str, place: str, tree: DictConfig, *, in_file: bool) -> str:
    """Returns the message about an option for a group that has no entry in the defaults list."""
    group, _, package = place.partition("@")
    places = [str(each) for each in tree.hydra.runtime.choices if str(each).partition("@")[0] == group]
    close = nearest(place, places)
    if close:
        return f"{shown_as}: there is nothing to override{offered(close)}"
    if in_file or places:
        return (
            f"{shown_as}: this composition has {' and '.join(map(repr, places)) or 'none'} to override, not {place!r}"
        )
    stages = list(_plain(tree).get("stages", {}))
    stage = package.partition(".")[2]
    if package.startswith("stages.") and stage not in stages:
        return f"{place}: there is no stage {stage!r} to override{did_you_mean(stage, stages)}"
    return f"{place}: this composition has no {place} to override; add one by +{place}=NAME"


def _bad_value(override: Override, tree: DictConfig, cause: BaseException | None, own: Path | None) -> str:
    """Returns the message about a value, given the composition of all overrides before it."""
    key, value = str(override.key_or_group), override.value()
    there = OmegaConf.select(tree, key, default=None)
    if override.is_add() and there is not None:
        return f"{key}: is there already; change it without the plus: {key}=..."
    if override.is_delete() and there is None:
        plain = _plain(tree)
        hint = key_hint(key, plain, run_schema(plain), groups(own))
        return f"~{key}: unknown key, so it cannot be removed{hint}"
    if override.is_delete():
        return f"~{key}: its value is {shown(there)} and not {shown(value)}; write ~{key} to remove it"
    text, kind = shown(str(override.input_line).partition("=")[2]), key_type(key, _plain(tree))
    if get_origin(kind) is list:
        return f"{key} is {text}; it must be a list, such as {key}=[...]"
    if dataclass_of(kind) is not None or get_origin(kind) is dict:
        return f"{key} is {text}; it must be a group of keys, such as {key}.NAME=..."
    why = "" if cause is None else f" ({first_line(cause)})"
    return f"{key} is {text}, which does not fit there{why}; write a value of the same form"


def _unknown(cause: ConfigKeyError | ConfigAttributeError, own: Path | None) -> str:
    key = str(cause.full_key)
    beside = cause.parent_node
    names = [str(name) for name in beside] if isinstance(beside, DictConfig) else []
    if key.rpartition(".")[2] in KEYS:
        return f"{key}: {NO_KEY}"
    tree = _plain(beside._get_root() if isinstance(beside, DictConfig) else None)
    parent = key_type(key.rpartition(".")[0], tree) if "." in key else None
    if get_origin(parent) is dict:
        # The names in a mapping are the user's own.
        close, place = nearest(key.rpartition(".")[2], names), key.rpartition(".")[0]
        add = f"+stage@{key}=sft or =rl" if place == "stages" else f"+{key}=..."
        offer = f"{offered(close)}," if close else f"{known_are(names)};"
        return f"{key}: unknown name{offer} or add one by {add}"
    if key_type(key, tree) is not None:
        return f"{key}: is not set in this composition; add it by +{key}=..."
    addition = f", or add a parameter of the _target_ by +{key}=..." if "_target_" in names else ""
    extra = [] if "." in key else groups(own)
    return f"{key}: unknown key{key_hint(key, tree, run_schema(tree), extra)}{addition}"


def _missing_option(error: MissingConfigException, own: Path | None) -> str:
    wanted = str(error.missing_cfg_file or "")
    group, slash, name = wanted.partition("/")
    if not slash:
        return f"--config-name {wanted}: no such config; leave it out, and choose an experiment by experiment=NAME"
    known = options(group, own)
    if not known:
        return f"{wanted}: no such group{did_you_mean(group, groups(own))}"
    return f"{group}={name}: no such option{did_you_mean(name, known)}"


def _unreadable(override: str) -> str:
    """Returns the message about a part of the command line that Hydra's grammar refuses."""
    key, equals, value = override.partition("=")
    if not equals:
        return f"{shown(repr(override))} is not an override; write KEY=VALUE"
    if re.fullmatch(r"[+~]{0,2}[\w.@/$-]+", key) is None:
        return f"{shown(repr(override))} is not an override: {shown(repr(key))} cannot be a key; write KEY=VALUE"
    quoted = shown(f"""'{key}="{value}"'""") if not {'"', "'"} & set(value) else """'KEY="VALUE"'"""
    return (
        f"{shown(repr(override))} is not an override; write KEY=VALUE, close every bracket and quote, and quote a value"
        f" with special characters twice, for the shell and for Hydra: {quoted}"
    )


def _in_file(message: str, compose: Compose, own: Path | None) -> str:
    """Returns the message about a fault in a config file that the overrides choose."""
    file, _, rest = message.removeprefix(IN_FILE).partition("': ")
    place = rest.removeprefix(NO_MATCH).partition("'")[0]
    tree = _composed(compose, [])
    if not rest.startswith(NO_MATCH) or tree is None:
        return f"config {file}: {rest.splitlines()[0]}; correct this file"
    group, said = place.partition("@")[0], f"{file.replace('/', '=', 1)} overrides {place}"
    if group not in groups(own):
        return f"{shown(said)}: there is no group {group!r}{did_you_mean(group, groups(own))}"
    return _no_place(said, place, tree, in_file=True)


def _plain(tree: Any) -> Mapping[str, Any]:
    content = OmegaConf.to_container(tree, resolve=False) if isinstance(tree, DictConfig) else {}
    return {str(key): value for key, value in content.items() if key != "hydra"} if isinstance(content, dict) else {}
