"""Refuses a configuration that cannot work, before torch is imported; every message names key, value and fix."""

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any, cast, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from lightning_mmrl.config.schema import RootConfig, StageConfig
from lightning_mmrl.curriculum.spec import plan_stages
from lightning_mmrl.errors import ConfigError
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
        if isinstance(value, Mapping):
            _descend(value, types[key], f"{prefix}{key}.")


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
    return plan_stages(config.order, starts, kinds, digests)


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
    _require(
        re.fullmatch(r"[\w.-]+", config.run_name), "run_name", config.run_name, "letters, digits, '.', '_' and '-'"
    )
    _require(config.model.dtype in DTYPES, "model.dtype", config.model.dtype, f"one of {', '.join(DTYPES)}")
    _require(config.data.media.num_frames >= 2, "data.media.num_frames", config.data.media.num_frames, "at least 2")
    _require(
        config.data.media.decode_workers >= 1,
        "data.media.decode_workers",
        config.data.media.decode_workers,
        "at least 1",
    )
    for name in config.evaluation.ablations:
        _require(name in ABLATIONS, "evaluation.ablations", name, f"among {', '.join(ABLATIONS)}")
    stages = config.evaluation.ablation_stages
    _require(stages in ("last", "all"), "evaluation.ablation_stages", stages, "last or all")
    stage_specs(config)
    for name in config.order:
        _check_stage(f"stages.{name}", config.stages[name])


def _check_stage(path: str, stage: StageConfig) -> None:
    _require(stage.kind in KINDS, f"{path}.kind", stage.kind, f"one of {', '.join(KINDS)}")
    _require(stage.num_steps >= 1, f"{path}.num_steps", stage.num_steps, "at least 1")
    _require(stage.data.batch_size >= 1, f"{path}.data.batch_size", stage.data.batch_size, "at least 1")
    _require(stage.max_grad_norm > 0, f"{path}.max_grad_norm", stage.max_grad_norm, "above 0")
    dropout = stage.data.modality_dropout
    total = dropout.silent + dropout.blank
    valid = min(dropout.silent, dropout.blank) >= 0 and total <= 1
    _require(
        valid,
        f"{path}.data.modality_dropout",
        f"{dropout.silent} + {dropout.blank}",
        "probabilities that sum to at most 1",
    )
    if stage.validate_every is not None:
        valid = 1 <= stage.validate_every <= stage.num_steps
        _require(
            valid, f"{path}.validate_every", stage.validate_every, f"null or between 1 and num_steps {stage.num_steps}"
        )
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
    _require(
        stage.sampling.max_new_tokens >= 1,
        f"{path}.sampling.max_new_tokens",
        stage.sampling.max_new_tokens,
        "at least 1",
    )
    parts = stage.algorithm.update.num_minibatches
    valid = parts >= 1 and stage.data.batch_size % parts == 0
    rule = f"a divisor of data.batch_size {stage.data.batch_size}"
    _require(valid, f"{path}.algorithm.update.num_minibatches", parts, rule)
    for field in fields(stage.algorithm.update):
        value = getattr(stage.algorithm.update, field.name)
        _require(value >= 1, f"{path}.algorithm.update.{field.name}", value, "at least 1")
    missing = set(stage.rewards.parts) ^ set(stage.rewards.weights)
    if missing:
        raise ConfigError(
            f"{path}.rewards: parts and weights differ in {', '.join(sorted(missing))}; give each part a weight"
        )


def _require(valid: object, key: str, value: object, rule: str) -> None:
    if not valid:
        raise ConfigError(f"{key} is {value}; it must be {rule}")
