"""Turns what Hydra complains about into one clear sentence with the key, the value and the fix."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_origin

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import MarkedYAMLError

from lightning_mmrl.config.composing import composed
from lightning_mmrl.config.folders import groups, options
from lightning_mmrl.config.schema import RootConfig
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.registry.own_code import KEYS, NO_KEY
from lightning_mmrl.suggestions import (
    annotation_of,
    dataclass_of,
    did_you_mean,
    first_line,
    known_are,
    nearest,
    offered,
    shown,
    unknown_key,
)

DIRECTORY_FLAGS = ("--config-dir", "-cd")


def explained(error: Exception, arguments: Sequence[str] = ()) -> ConfigError:
    """What Hydra raised as one sentence.

    Args:
        error: Raised while the arguments were composed.
        arguments: Overrides and Hydra's own flags, to find a user's own folder and which override is at fault.
    """
    if isinstance(error, ConfigError):
        return error
    own = own_folder(arguments)
    cause = error.__cause__
    keyless = [argument for argument in arguments if argument.lstrip("+~").startswith("=")]
    if keyless:
        return ConfigError(f"{shown(repr(keyless[0]))} has no key; write KEY=VALUE")
    if isinstance(error, OverrideParseException):
        return ConfigError(_unreadable(str(error.override)))
    if isinstance(error, MarkedYAMLError):
        return ConfigError(_bad_yaml(error))
    if isinstance(error, MissingConfigException):
        return ConfigError(_missing_option(error, own))
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        return ConfigError(_unknown(cause, own))
    if isinstance(cause, OmegaConfBaseException):
        return ConfigError(_does_not_fit(str(error), cause))
    for pattern, sentence in SENTENCES:
        found = re.search(pattern, str(error), re.DOTALL)
        if found is not None:
            return ConfigError(sentence(found, arguments))
    return ConfigError(_odd_choice(error, arguments, own))


def own_folder(arguments: Sequence[str]) -> Path | None:
    """The folder of the user's own configs that the arguments name."""
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in DIRECTORY_FLAGS:
            return Path(value if equals else next(iter(arguments[index + 1 :]), ""))
    return None


def _unknown(cause: ConfigKeyError | ConfigAttributeError, own: Path | None) -> str:
    key = str(cause.full_key)
    beside = cause.parent_node
    names = [str(name) for name in beside] if isinstance(beside, DictConfig) else []
    if key.rpartition(".")[2] in KEYS:
        return f"{key}: {NO_KEY}"
    tree = _plain(beside._get_root() if isinstance(beside, DictConfig) else None)
    annotation = annotation_of(key, RootConfig)
    parent = annotation_of(key.rpartition(".")[0], RootConfig) if "." in key else None
    if get_origin(parent) is dict:
        return f"{key}: unknown name{_other_name(key, names)}"
    if annotation is not None:
        return f"{key}: is not set in this composition; add it by +{key}=..."
    addition = f", or add a parameter of the _target_ by +{key}=..." if "_target_" in names else ""
    extra = [] if "." in key else groups(own)
    return f"{key}: unknown key{unknown_key(key, tree, RootConfig, extra)}{addition}"


def _other_name(key: str, known: list[str]) -> str:
    """What is offered for a name in a mapping whose names are the user's own."""
    parent, _, name = key.rpartition(".")
    close = nearest(name, known)
    add = f"+stage@{key}=sft or =rl" if parent == "stages" else f"+{key}=..."
    return f"{offered(close) if close else known_are(known)}{',' if close else ';'} or add one by {add}"


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
    """A part of the command line that Hydra's grammar refuses."""
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


def _bad_yaml(error: MarkedYAMLError) -> str:
    mark = error.problem_mark
    place = f"{mark.name}:{mark.line + 1}" if mark is not None else "a config file"
    return f"{place}: not valid YAML ({error.problem or first_line(error)}); correct this line"


def _does_not_fit(message: str, cause: OmegaConfBaseException) -> str:
    """A value that cannot replace what stands there, such as a list in place of keys."""
    override = message.removeprefix("Error merging override ")
    key, _, value = override.partition("=")
    key = key.lstrip("+~")
    kind = annotation_of(key, RootConfig)
    if get_origin(kind) is list:
        return f"{key} is {shown(value)}; it must be a list, such as {key}=[...]"
    if dataclass_of(kind) is not None or get_origin(kind) is dict:
        return f"{key} is {shown(value)}; it must be a group of keys, such as {key}.NAME=..."
    return f"{key} is {shown(value)}, which does not fit there ({first_line(cause)}); write a value of the same form"


def _odd_choice(error: Exception, arguments: Sequence[str], own: Path | None) -> str:
    """An option that is no name, such as model=null; Hydra does not say which override that was."""
    for argument in arguments:
        key, equals, value = argument.partition("=")
        group = key.lstrip("+~").partition("@")[0]
        if equals and group in groups(own) and value not in options(group, own):
            return f"{shown(argument)}: {group} needs the name of an option{known_are(options(group, own))}"
    return f"{shown(first_line(error))}; check the overrides {shown(' '.join(arguments))}"


def _appended(found: re.Match[str], arguments: Sequence[str]) -> str:
    return f"{found[1]}: is there already; change it without the plus: {found[1]}=..."


def _chosen_twice(found: re.Match[str], arguments: Sequence[str]) -> str:
    given = [shown(argument) for argument in arguments if argument.lstrip("+").partition("=")[0] == found[1]]
    if len(given) > 1:
        return f"{found[1]}: an option is chosen more than once ({', '.join(given)}); keep one"
    return f"{found[1]}: takes one option, without a plus; write {found[1]}=NAME"


def _forced(found: re.Match[str], arguments: Sequence[str]) -> str:
    return f"{shown(found[1])}: an option cannot be forced; write {shown(found[1].lstrip('+'))}"


def _deleted(found: re.Match[str], arguments: Sequence[str]) -> str:
    key = found[1]
    if "@" in key or key in groups(own_folder(arguments)):
        return f"~{key}: is not chosen in this composition, so it cannot be removed; leave it out"
    return (
        f"~{key}: unknown key, so it cannot be removed{unknown_key(key, _reference(arguments), RootConfig, groups())}"
    )


def _other_value(found: re.Match[str], arguments: Sequence[str]) -> str:
    return f"~{found[1]}: its value is {shown(found[2])} and not {shown(found[3])}; write ~{found[1]} to remove it"


def _no_group(found: re.Match[str], arguments: Sequence[str]) -> str:
    own = own_folder(arguments)
    key = found[1].partition("=")[0]
    group = key.lstrip("+~").partition("@")[0]
    return f"{shown(found[1])}: there is no group {group!r}{did_you_mean(group, groups(own))}"


def _not_chosen(found: re.Match[str], arguments: Sequence[str]) -> str:
    """An option for a place that takes none; Hydra lists the places of the same group that do."""
    file, key, rest = found[1], found[2], found[3]
    own = own_folder(arguments)
    group, _, package = key.partition("@")
    place = f"{file.replace('/', '=', 1)} overrides {key}" if file else key
    if group not in groups(own):
        return f"{shown(place)}: there is no group {group!r}{did_you_mean(group, groups(own))}"
    listed = re.search(r"Did you mean to override (?:one of )?(.*?)\?(?:\n|$)", rest)
    places = listed[1].split(", ") if listed is not None else []
    close = nearest(key, places)
    if close:
        return f"{place}: there is nothing to override{offered(close)}"
    if file or places:
        return f"{place}: this composition has {' and '.join(map(repr, places)) or 'none'} to override, not {key!r}"
    stages = list(_reference(arguments).get("stages", {}))
    stage = package.partition(".")[2]
    if package.startswith("stages.") and stage not in stages:
        return f"{key}: there is no stage {stage!r} to override{did_you_mean(stage, stages)}"
    return f"{key}: this composition has no {key} to override; add one by +{key}=NAME"


def _ambiguous(found: re.Match[str], arguments: Sequence[str]) -> str:
    key, _, value = found[1].partition("=")
    texts = shown(f"""'{key}="{value}"'""")
    return (
        f"{shown(found[1])}: is ambiguous; write {shown(f'{key}=[{value}]')} for a list, {texts} for one text, or add"
        " --multirun to run each"
    )


def _no_folder(found: re.Match[str], arguments: Sequence[str]) -> str:
    return f"--config-dir {shown(found[1])}: is no folder; name the folder that holds your experiment/, stage/ or data/"


def _primary(found: re.Match[str], arguments: Sequence[str]) -> str:
    return f"no config {found[1]!r} there; leave out --config-name and --config-path, and use --config-dir"


def _in_file(found: re.Match[str], arguments: Sequence[str]) -> str:
    return f"config {found[1]}: {found[2].splitlines()[0]}; correct this file"


SENTENCES: tuple[tuple[str, Callable[[re.Match[str], Sequence[str]], str]], ...] = (
    (r"Could not append to config\. An item is already at '(.*?)'", _appended),
    (r"^(\S+) appears more than once in the final defaults list", _chosen_twice),
    (r"^Multiple values for (\S+?)\.(?:\s|$)", _chosen_twice),
    (r"force-add of config groups is not supported: '(.*)'", _forced),
    (r"Could not delete from config\. '(.*?)' does not exist", _deleted),
    (r"Could not delete '([^'=]*)(?:=[^']*)?'\. No match", _deleted),
    (r"Could not delete from config\. The value of '(.*?)' is (.*) and not (.*)\.$", _other_value),
    (r"Override (.*) looks like a config group override", _no_group),
    (r"^(?:In '(.*?)': )?Could not override '(.*?)'\.(.*)", _not_chosen),
    (r"Ambiguous value for argument '(.*?)'\n", _ambiguous),
    (r"Additional config directory '(.*?)' not found", _no_folder),
    (r"Cannot find primary config '(.*?)'", _primary),
    (r"Primary config (?:directory|module).*?not found.*?(?:dir|path)?:?\s*'?([^'\n]*)'?", _primary),
    (r"^In '(.*?)': (.*)", _in_file),
)


def _reference(arguments: Sequence[str]) -> dict[str, Any]:
    """A composition of the same curriculum, to take valid keys from where Hydra's error has none."""
    own = own_folder(arguments)
    choices = [each for each in arguments if each.partition("=")[0] in ("experiment", "curriculum")]
    for overrides in (choices, []):
        try:
            return _plain(composed(overrides, own=own))
        except (HydraException, ConfigError, OSError, ValueError, MarkedYAMLError):
            # The choice itself may be what is wrong; the plain composition is then the best reference.
            continue
    return {}


def _plain(tree: Any) -> dict[str, Any]:
    content = OmegaConf.to_container(tree, resolve=False) if isinstance(tree, DictConfig) else {}
    return {str(key): value for key, value in content.items() if key != "hydra"} if isinstance(content, dict) else {}
