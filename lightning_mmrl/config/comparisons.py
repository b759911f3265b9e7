"""Reads the file of a comparison, and refuses keys and values that it cannot have."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml.error import MarkedYAMLError, YAMLError

from lightning_mmrl.config.folders import COMPARE, configs_dir, options
from lightning_mmrl.config.forms import check_form, entries, in_words
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.settings.compare import CompareSettings
from lightning_mmrl.settings.rules import check_rules
from lightning_mmrl.suggestions import annotation_of, did_you_mean, first_line, shown, unknown_key


def read_comparison(name: str, own: Path | None = None) -> CompareSettings:
    """Returns the comparison `compare/NAME.yaml` of the user's own folder of configs, or else of the shipped ones.

    Raises:
        ConfigError: There is no such file, it is not valid YAML, or a key or value in it is refused.
    """
    known = options(COMPARE, own)
    if name not in known:
        raise ConfigError(f"compare={shown(name)}: there is no such comparison{did_you_mean(name, known)}")
    places = [root / COMPARE / f"{name}.yaml" for root in (own, configs_dir()) if root is not None]
    path = next(place for place in places if place.is_file())
    try:
        tree = OmegaConf.to_container(OmegaConf.load(path))
    except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{_place(path, error)}; correct this file") from error
    try:
        return comparison_of(tree)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def comparison_of(tree: Any) -> CompareSettings:
    """Returns the comparison that plain values describe.

    Raises:
        ConfigError: A key is unknown, or a value has the wrong type or breaks the rule of its key.
    """
    if not isinstance(tree, Mapping):
        raise ConfigError("holds no keys; a comparison has at least arms")
    whole = _with_whole_arms(tree)
    for key, annotation, value in entries(whole, CompareSettings, ""):
        if annotation is None:
            raise ConfigError(f"{key}: unknown key{unknown_key(key, whole, CompareSettings)}")
        check_form(value, annotation, key)
    try:
        found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CompareSettings), _escaped(whole)))
    except OmegaConfBaseException as error:
        key = str(error.full_key).partition("[")[0]
        wanted = annotation_of(key, CompareSettings)
        value = OmegaConf.select(OmegaConf.create(_escaped(whole)), key)
        rule = f"it must be {in_words(wanted, key)}" if wanted is not None else first_line(error)
        raise ConfigError(f"{key} is {shown(value)}; {rule}") from error
    assert isinstance(found, CompareSettings)
    check_rules(found)
    return found


def _with_whole_arms(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """The tree, with each arm that is only a list of overrides expanded to a group of keys."""
    arms = tree.get("arms")
    whole = {str(key): value for key, value in tree.items()}
    if isinstance(arms, Mapping):
        whole["arms"] = {str(name): {"overrides": arm} if isinstance(arm, list) else arm for name, arm in arms.items()}
    return whole


def _escaped(tree: Any) -> Any:
    """The tree with each `${...}` escaped: a reference in an override is to a key of the run."""
    if isinstance(tree, Mapping):
        return {key: _escaped(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_escaped(value) for value in tree]
    return tree.replace("${", "\\${") if isinstance(tree, str) else tree


def _place(path: Path, error: Exception) -> str:
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        return f"{path}:{error.problem_mark.line + 1}: not valid YAML ({error.problem})"
    return f"{path} cannot be read ({first_line(error)})"
