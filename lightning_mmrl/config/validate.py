"""Refuses a configuration that cannot work, before torch is imported; every message names key, value and fix."""

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from typing import Any, cast, get_args, get_origin, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from lightning_mmrl.config.schema import EvaluationConfig, RootConfig, StageConfig
from lightning_mmrl.curriculum.spec import plan_stages, source_stage
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.prompts.labels import LabelMatcher
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.types.records import StageSpec

ALLOWED_TARGETS = ("lightning_mmrl.", "torch.optim.")
KINDS = ("sft", "rl")
ABLATIONS = ("silent", "blank")
DTYPES = ("float32", "bfloat16", "float64")


def validated(composed: DictConfig) -> RootConfig:
    """The composed tree as typed objects, checked again as a whole (Hydra's `+key` walks past struct mode).

    Raises:
        ConfigError: A key is unknown or missing, a value has the wrong type, or two keys contradict each other.
    """
    try:
        tree = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {first_line(error)}") from error
    assert isinstance(tree, dict)
    check_keys(cast(dict[str, Any], tree), RootConfig, "")
    try:
        typed = OmegaConf.merge(OmegaConf.structured(RootConfig), tree)
        config = OmegaConf.to_object(typed)
    except ConfigKeyError as error:
        raise ConfigError(f"{error.full_key}: unknown key") from error
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key}: has no value; set it, for example {error.full_key}=...") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {first_line(error)}") from error
    assert isinstance(config, RootConfig)
    _check_values(config)
    check_allowed(tree, "")
    return config


def check_allowed(tree: Any, path: str) -> None:
    """Refuses a `_target_` outside the allow-list: no configuration, also none inside a checkpoint, runs any code.

    Raises:
        ConfigError: Naming the key and the target.
    """
    for key, target in _targets(tree, path):
        if not str(target).startswith(ALLOWED_TARGETS):
            raise ConfigError(f"{key}._target_ is {target!r}; it must start with one of {', '.join(ALLOWED_TARGETS)}")


def check_keys(tree: Mapping[str, Any], schema: Any, prefix: str) -> None:
    """Refuses keys that the schema does not have, with the nearest one that it has.

    Raises:
        ConfigError: Naming the key with its full path.
    """
    types = get_type_hints(schema)
    for key, value in tree.items():
        if key not in types:
            raise ConfigError(f"{prefix}{key}: unknown key{did_you_mean(str(key), types)}")
        _check_form(value, types[key], f"{prefix}{key}")
        if isinstance(value, Mapping):
            _descend(value, types[key], f"{prefix}{key}.")


def _check_form(value: Any, annotation: Any, key: str) -> None:
    """Refuses a plain value where keys or a list belong."""
    if value is None or value == MISSING:
        return
    kinds = (annotation, *get_args(annotation))
    if any(is_dataclass(kind) for kind in kinds) or get_origin(annotation) is dict:
        _require(isinstance(value, Mapping), key, value, f"a group of keys, such as {key}.NAME=...")
    if get_origin(annotation) is list:
        _require(isinstance(value, list), key, value, f"a list, such as {key}=[{value}]")


def _descend(value: Mapping[str, Any], annotation: Any, prefix: str) -> None:
    inner = next((kind for kind in (annotation, *get_args(annotation)) if is_dataclass(kind)), None)
    if get_origin(annotation) is dict:
        for name, entry in value.items():
            if inner is not None and isinstance(entry, Mapping):
                check_keys(entry, inner, f"{prefix}{name}.")
    elif inner is not None:
        check_keys(value, inner, prefix)


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest choice, or a list of them.

    >>> did_you_mean("sede", ["seed", "order"])
    "; did you mean 'seed'?"
    """
    known = sorted(choices)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"


def first_line(error: Exception) -> str:
    """The first line of a message, without the trailing key path that OmegaConf adds."""
    return str(error).strip().splitlines()[0]


def stage_specs(config: RootConfig) -> list[StageSpec]:
    """The stages in order, each with the digest of everything that decides its outcome."""
    shared = {
        "seed": config.seed,
        "model": asdict(config.model),
        "data": {**asdict(config.data), "media": {"num_frames": config.data.media.num_frames}},
        "prompt": asdict(config.prompt),
        "precision": config.trainer.precision,
    }
    digests = {name: _digest({**shared, "stage": asdict(stage)}) for name, stage in config.stages.items()}
    starts = {name: stage.start_from for name, stage in config.stages.items()}
    kinds = {name: stage.kind for name, stage in config.stages.items()}
    specs = plan_stages(config.order, starts, kinds, digests)
    # A stage's seed depends on its place, and its outcome on all that its starting point went through.
    chained: dict[str | None, str] = {None: ""}
    for spec in specs:
        history = chained[source_stage(spec, config.order)]
        chained[spec.name] = _digest({"stage": spec.digest, "index": spec.index, "history": history})
    return [replace(spec, digest=chained[spec.name]) for spec in specs]


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _targets(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        if "_target_" in tree:
            yield path, tree["_target_"]
        for key, value in tree.items():
            yield from _targets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from _targets(value, f"{path}[{index}]")


def _check_values(config: RootConfig) -> None:
    rule = "letters, digits, '.', '_' and '-', not starting with '.' or '-'"
    _require(re.fullmatch(r"\w[\w.-]*", config.run_name), "run_name", config.run_name, rule)
    _require(config.model.dtype in DTYPES, "model.dtype", config.model.dtype, f"one of {', '.join(DTYPES)}")
    for part in ("backbone", "encoder"):
        _require_target(config.model.family, f"model.family.{part}", part)
    _require(config.data.media.num_frames >= 2, "data.media.num_frames", config.data.media.num_frames, "at least 2")
    _at_least_one(config.data.media, "data.media", "decode_workers", "max_pixels", "max_bytes")
    _at_least_one(config.data, "data", "validation_limit")
    _at_least_one(config.trainer, "trainer", "devices", "num_threads")
    # What these two refuse would otherwise show when the first stage is built.
    PromptTemplate(**asdict(config.prompt))
    LabelMatcher(labels=tuple(config.data.labels))
    for name, stage in config.stages.items():
        _require(stage.kind in KINDS, f"stages.{name}.kind", stage.kind, f"one of {', '.join(KINDS)}")
    stage_specs(config)
    for name in config.order:
        _check_stage(f"stages.{name}", config.stages[name])
    _check_evaluation(config.evaluation)


def _check_evaluation(evaluation: EvaluationConfig) -> None:
    _at_least_one(evaluation, "evaluation", "batch_size", "max_new_tokens", "num_resamples")
    for name in evaluation.ablations:
        _require(name in ABLATIONS, "evaluation.ablations", name, f"among {', '.join(ABLATIONS)}")
    stages = evaluation.ablation_stages
    _require(stages in ("last", "all"), "evaluation.ablation_stages", stages, "last or all")


def _check_stage(path: str, stage: StageConfig) -> None:
    for part in ("module", "optimizer", "schedule"):
        _require_target(asdict(stage), f"{path}.{part}", part)
    _at_least_one(stage, path, "num_steps", "rollout_table_every")
    _at_least_one(stage.data, f"{path}.data", "batch_size", "limit")
    _require(stage.max_grad_norm > 0, f"{path}.max_grad_norm", stage.max_grad_norm, "above 0")
    dropout = stage.data.modality_dropout
    total = dropout.silent + dropout.blank
    valid = min(dropout.silent, dropout.blank) >= 0 and total <= 1
    shares = f"{dropout.silent} + {dropout.blank}"
    _require(valid, f"{path}.data.modality_dropout", shares, "probabilities that sum to at most 1")
    every = stage.validate_every
    valid = every is None or 1 <= every <= stage.num_steps
    _require(valid, f"{path}.validate_every", every, f"null or between 1 and num_steps {stage.num_steps}")
    if stage.kind == "rl":
        _check_rl(path, stage)


def _check_rl(path: str, stage: StageConfig) -> None:
    for part in ("algorithm", "sampling", "rewards"):
        if getattr(stage, part) is None:
            raise ConfigError(f"{path}.{part}: is missing; an rl stage needs it, take it from stage/grpo")
    assert stage.algorithm is not None
    assert stage.sampling is not None
    assert stage.rewards is not None
    size = stage.algorithm.group_size
    _require(size >= 2, f"{path}.algorithm.group_size", size, "at least 2, so that completions can be compared")
    _require(stage.sampling.temperature > 0, f"{path}.sampling.temperature", stage.sampling.temperature, "above 0")
    _at_least_one(stage.sampling, f"{path}.sampling", "max_new_tokens")
    parts = stage.algorithm.update.num_minibatches
    valid = parts >= 1 and stage.data.batch_size % parts == 0
    rule = f"a divisor of data.batch_size {stage.data.batch_size}"
    _require(valid, f"{path}.algorithm.update.num_minibatches", parts, rule)
    update = stage.algorithm.update
    _at_least_one(update, f"{path}.algorithm.update", *(field.name for field in fields(update)))
    for name in stage.rewards.parts:
        _require_target(stage.rewards.parts, f"{path}.rewards.parts.{name}", name)
    missing = set(stage.rewards.parts) ^ set(stage.rewards.weights)
    if missing:
        raise ConfigError(
            f"{path}.rewards: parts and weights differ in {', '.join(sorted(missing))}; give each part a weight"
        )


def _require(valid: object, key: str, value: object, rule: str) -> None:
    if not valid:
        raise ConfigError(f"{key} is {value}; it must be {rule}")


def _require_target(parent: object, key: str, part: str) -> None:
    node = parent.get(part) if isinstance(parent, Mapping) else None
    _require(isinstance(node, Mapping) and "_target_" in node, key, node, "a node with a _target_")


def _at_least_one(owner: object, path: str, *names: str) -> None:
    """Refuses numbers below 1; null is another word for no number."""
    for name in names:
        value = getattr(owner, name)
        _require(value is None or value >= 1, f"{path}.{name}", value, "at least 1")
