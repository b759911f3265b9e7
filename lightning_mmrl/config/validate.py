"""Refuses a configuration that cannot work, before torch is imported; every message names key, value and fix."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any, cast, get_args, get_origin, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

from lightning_mmrl.config.checks.precision import with_precision
from lightning_mmrl.config.checks.values import check_name, check_values
from lightning_mmrl.config.composing import sealed
from lightning_mmrl.config.fitting import fitted
from lightning_mmrl.config.folders import groups
from lightning_mmrl.config.label_file import with_labels
from lightning_mmrl.config.specs import cap_samples, cap_steps
from lightning_mmrl.config.stage_schemas import key_type, run_schema, stage_settings
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.registry.allowed import check_allowed
from lightning_mmrl.registry.own_code import KEYS, NO_KEY
from lightning_mmrl.settings.bridge import BridgeSettings
from lightning_mmrl.settings.data import ABLATIONS
from lightning_mmrl.settings.filter import FilterSettings
from lightning_mmrl.settings.model import BUILD
from lightning_mmrl.settings.renamed import key_hint
from lightning_mmrl.settings.route import RouteSettings
from lightning_mmrl.settings.rules import require
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.settings.sample import SampleSettings
from lightning_mmrl.settings.stage import NodeSettings, StageSettings
from lightning_mmrl.suggestions import WORDS, dataclass_of, did_you_mean, first_line, shown

RESOLVING = " raised while resolving interpolation: "
"""Text between the name of an error's class and its message, if a `${...}` raised it."""
NO_SUCH_KEY = ("Interpolation key '", "' not found")
"""Texts before and after the name of a missing key that a `${...}` refers to."""


def validated(composed: DictConfig, say: Callable[[str], object] = lambda line: None) -> RunSettings:
    """Turns the composed tree into typed objects, and checks all keys again, because `+key` bypasses Hydra's checks.

    Args:
        composed: The composition of files and overrides.
        say: Gets a sentence for each key that is fitted to few steps or left out of a debug run.

    Raises:
        ConfigError: A key is unknown or missing, a value has the wrong type, or two keys contradict each other.
    """
    with sealed():
        config = _typed(composed)
    with_precision(config.trainer, config.model)
    for stage in config.stages.values():
        with_precision(stage.trainer, config.model)
        if stage.data.limit is None and stage.data.dataset in config.datasets:
            stage.data.limit = config.datasets[stage.data.dataset].limit
    for name in config.order:
        stage = config.stages.get(name)
        if isinstance(stage, StageSettings):
            config.stages[name] = fitted(stage, f"stages.{name}", say)
    if config.model.build is not None:
        config.model.checkpoint = config.model.checkpoint.replace(BUILD, config.model.build_digest)
    is_trial = config.trial is not None
    if is_trial:
        config.run_name, config.trial = f"{config.trial}-{config.run_name}", None
        config.stages.update({name: _limited(stage, config.data.limit) for name, stage in config.stages.items()})
    check_values(config)
    # Only the final values are checked: references to other keys are resolved by now.
    check_allowed(asdict(config))
    if _names_tasks(config):
        # After `check_allowed`, since this builds tasks. Imported here, since it needs numpy, which most plans do not.
        from lightning_mmrl.config.checks.tasks import check_tasks

        check_tasks(config)
    for name, stage in config.stages.items():
        is_short = is_trial or stage.trainer.max_steps is not None
        config.stages[name] = cap_steps(stage) if isinstance(stage, StageSettings) else cap_samples(stage)
        if is_short:
            said = say if name in config.order else (lambda line: None)
            config.stages[name] = _for_debugging(config.stages[name], f"stages.{name}", said)
    _drop_budget(config, is_trial, say)
    return config


def _drop_budget(config: RunSettings, is_trial: bool, say: Callable[[str], object]) -> None:
    """Drops the budget of a debug run, whose stages are as short as it says."""
    is_short = is_trial or any(stage.trainer.max_steps is not None for stage in config.trained.values())
    if config.budget is not None and is_short:
        config.budget = None
        say("budget is dropped, since this is a debug run")


def _limited(stage: NodeSettings, most: int | None) -> NodeSettings:
    """Returns the stage, whose own limit of samples is at most that of a debug run."""
    own = stage.data.limit
    if own is None or most is None:
        return stage
    return replace(stage, data=replace(stage.data, limit=min(own, most)))


def _for_debugging(stage: NodeSettings, path: str, say: Callable[[str], object]) -> NodeSettings:
    """Returns the stage without the bounds that an untrained model would not meet."""
    if isinstance(stage, StageSettings):
        if stage.gate is not None or stage.stop_when is not None:
            say(f"{path}: gate and stop_when are dropped, since this is a debug run")
        return replace(stage, gate=None, stop_when=None, cooldown_steps=0)
    if isinstance(stage, SampleSettings):
        say(f"{path}: wrong answers are kept too, since this is a debug run")
        return replace(stage, keep=stage.keep.for_debugging())
    if isinstance(stage, BridgeSettings | FilterSettings | RouteSettings):
        say(f"{path}: pass rates and verdicts count for nothing, since this is a debug run")
        return stage.for_debugging()
    return stage


def _names_tasks(config: RunSettings) -> bool:
    """Whether the configuration has a task of its own, or bounds on metrics."""
    tasks = [
        *(data.task for data in config.all_data.values()),
        *(each.task for each in config.evaluation.sets.values()),
    ]
    bounds = [bound for stage in config.trained.values() for bound in (stage.gate, stage.stop_when)]
    return any(each is not None for each in (*tasks, *bounds))


def _typed(composed: DictConfig) -> RunSettings:
    try:
        composed = with_labels(composed)
        tree = _with_whole_sets(OmegaConf.to_container(composed, resolve=True))
    except OmegaConfBaseException as error:
        raise _broken_reference(error, composed) from error
    assert isinstance(tree, dict)
    # Stages take over values of the whole run, so errors name the keys of the run first.
    tree = dict(sorted(tree.items(), key=lambda item: item[0] == "stages"))
    check_keys(tree)
    schema = OmegaConf.structured(RunSettings)
    for name, stage in (tree.get("stages") or {}).items():
        schema.stages[name] = _stage_schema(stage, f"stages.{name}")
    try:
        config = OmegaConf.to_object(OmegaConf.merge(schema, tree))
    except InterpolationResolutionError as error:  # a text may resolve to another `${...}`
        raise _broken_reference(error, composed) from error
    except OmegaConfBaseException as error:
        raise _wrong_type(error, cast(dict[str, Any], tree)) from error
    assert isinstance(config, RunSettings)
    return config


def _stage_schema(stage: Any, path: str) -> DictConfig:
    """Returns the schema of a stage, and refuses a settings class of the user's own that is no valid schema."""
    settings = stage_settings(stage, path)
    try:
        return OmegaConf.structured(settings)
    except (OmegaConfBaseException, NameError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path}.kind is {stage['kind']!r}, whose settings class {settings.__name__} cannot hold keys "
            f"({first_line(error)}); give its fields plain types, such as int or float | None"
        ) from error


def _with_whole_sets(tree: Any) -> Any:
    """Returns the tree, with each evaluation set that is only a manifest expanded to a group of keys.

    `all` is the short form of all ablations.
    """
    evaluation = tree.get("evaluation") if isinstance(tree, dict) else None
    if not isinstance(evaluation, dict):
        return tree
    if evaluation.get("ablations") == "all":
        evaluation = {**evaluation, "ablations": list(ABLATIONS)}
    sets = evaluation.get("sets")
    if isinstance(sets, dict):
        whole = {name: each if isinstance(each, dict | list) else {"manifest": each} for name, each in sets.items()}
        evaluation = {**evaluation, "sets": whole}
    return {**tree, "evaluation": evaluation}


def check_keys(tree: Mapping[Any, Any]) -> None:
    """Refuses keys that the schema does not have, naming the nearest known key, and values of the wrong form.

    Raises:
        ConfigError: Naming the key with its full path.
    """
    _check_stage_names(tree.get("stages"))
    _check_dataset_names(tree.get("datasets"))
    schema = run_schema(tree)
    for key, annotation, value in _schema_items(tree, schema, ""):
        if annotation is None:
            if key.rpartition(".")[2] in KEYS:
                raise ConfigError(f"{key}: {NO_KEY}")
            extra = [] if "." in key else groups()
            raise ConfigError(f"{key}: unknown key{key_hint(key, tree, schema, extra)}")
        _check_form(value, annotation, key)


def _check_stage_names(stages: Any) -> None:
    """Refuses stages that no file defines: most likely their name is misspelled."""
    for name, stage in stages.items() if isinstance(stages, Mapping) else ():
        check_name("stages", name)
        parts = ("kind", "module") if isinstance(stage, Mapping) and "optimizer" in stage else ("kind",)
        for part in parts if isinstance(stage, Mapping) else ():
            if stage.get(part, MISSING) != MISSING:
                continue
            others = [str(other) for other in stages if other != name]
            raise ConfigError(
                f"stages.{name}: has no {part}{did_you_mean(str(name), others)}; a stage of your own is taken from a"
                f" file, for example +stage@stages.{name}=sft"
            )


def _check_dataset_names(datasets: Any) -> None:
    """Refuses datasets that no file defines, as `_check_stage_names` does with stages."""
    for name, data in datasets.items() if isinstance(datasets, Mapping) else ():
        if isinstance(data, Mapping) and data.get("module", MISSING) == MISSING:
            others = [str(other) for other in datasets if other != name]
            hint = did_you_mean(str(name), others) if others else ""
            raise ConfigError(
                f"datasets.{name}: has no module{hint}; a dataset of your own is taken from "
                f"a file, for example +data@datasets.{name}=emotions_jsonl"
            )


def _schema_items(tree: Mapping[Any, Any], schema: Any, prefix: str) -> Iterator[tuple[str, Any, Any]]:
    """Yields key, annotation and value of every entry of the tree; the annotation of an unknown key is None."""
    types = get_type_hints(schema)
    for name, value in tree.items():
        annotation = types.get(name)
        yield f"{prefix}{name}", annotation, value
        if not isinstance(value, Mapping):
            continue
        inner = dataclass_of(annotation)
        if get_origin(annotation) is not dict:
            yield from _schema_items(value, inner, f"{prefix}{name}.") if inner is not None else ()
            continue
        for each, entry in value.items():
            yield f"{prefix}{name}.{each}", get_args(annotation)[1], entry
            if inner is not None and isinstance(entry, Mapping):
                yield from _schema_items(entry, inner, f"{prefix}{name}.{each}.")


def _check_form(value: Any, annotation: Any, key: str) -> None:
    """Refuses a plain value where keys or a list belong, and keys or a list where a plain value belongs."""
    if annotation is Any or value == MISSING:
        return
    if value is None:
        if type(None) not in get_args(annotation):
            raise ConfigError(f"{key} is null; it must be {_words(annotation, key)}")
    elif dataclass_of(annotation) is not None or get_origin(annotation) is dict:
        require(isinstance(value, Mapping), key, value, _words(annotation, key))
    elif get_origin(_without_null(annotation)) is list:
        fits = isinstance(value, list) and not any(isinstance(each, Mapping | list) for each in value)
        require(fits, key, value, _words(annotation, key))
    else:
        require(not isinstance(value, Mapping | list), key, value, _words(annotation, key))


def _without_null(annotation: Any) -> Any:
    """Returns X for the annotation `X | None`, and any other annotation as it is."""
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    return kinds[0] if type(None) in get_args(annotation) and len(kinds) == 1 else annotation


def _words(annotation: Any, key: str) -> str:
    """Says in words which values a key with this annotation takes."""
    if get_origin(_without_null(annotation)) is list:
        return f"a list of plain values, such as {key}=[...]" + ("" if get_origin(annotation) is list else ", or null")
    if dataclass_of(annotation) is not None or get_origin(annotation) is dict:
        return f"a group of keys, such as {key}.NAME=..."
    kinds = [kind for kind in (get_args(annotation) or (annotation,)) if kind is not type(None)]
    null = " or null" if type(None) in get_args(annotation) else ""
    return " or ".join(WORDS.get(kind, "a value") for kind in kinds) + null


def _wrong_type(error: OmegaConfBaseException, tree: Mapping[str, Any]) -> ConfigError:
    """Turns OmegaConf's error about a value into one sentence."""
    key = str(error.full_key)
    value: Any = OmegaConf.select(OmegaConf.create(dict(tree)), key)
    annotation = key_type(key.partition("[")[0], tree)
    if annotation is None:
        return ConfigError(f"{key}: {shown(first_line(error))}; correct this value")
    if isinstance(error, MissingMandatoryValue):
        return ConfigError(f"{key}: has no value; set it, for example {key}=...")
    return ConfigError(f"{key} is {shown(value)}; it must be {_words(annotation, key)}")


def _broken_reference(error: OmegaConfBaseException, composed: DictConfig) -> ConfigError:
    """Returns the error about a `${...}` that cannot be resolved."""
    key, message = error.full_key, first_line(error)
    refused = message.partition(f"{ConfigError.__name__}{RESOLVING}")[2]
    if refused:
        return ConfigError(f"{key}: {refused}")
    before, after = NO_SUCH_KEY
    missing = message.partition(before)[2].partition(after)[0]
    if not missing:
        return ConfigError(f"{key}: {shown(message)}; correct the ${{...}} in its value")
    tree = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=False))
    if key_type(missing, tree) is not None:
        return ConfigError(f"{key}: refers to ${{{missing}}}, which is not set; set {missing}")
    hint = key_hint(missing, tree, run_schema(tree))
    return ConfigError(f"{key}: refers to ${{{missing}}}, which does not exist{hint}")
