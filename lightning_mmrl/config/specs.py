"""The part of the configuration that decides the outcome of each stage; the orchestrator compares it between runs."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lightning_mmrl.curriculum.spec import plan_stages, source_stage
from lightning_mmrl.files import file_digest
from lightning_mmrl.settings.renamed import ADDED, first_name
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.settings.stage import StageSettings
from lightning_mmrl.types.records import StageSpec
from lightning_mmrl.types.redaction import redacted_tree

NOT_DECISIVE = ("gate", "max_bad_steps", "rollout_table_every", "start_from")
"""Keys of a stage that its outcome does not depend on."""


def stage_specs(config: RunSettings, data: Mapping[str, Mapping[str, str]] | None = None) -> list[StageSpec]:
    """The stages in order, each with the digest of everything that decides its outcome.

    Args:
        config: The configuration.
        data: Digests of each stage's data, see `manifest_digests`; None before there are any.

    Raises:
        ConfigError: The order or a starting point is wrong.
    """
    specs = plan_stages(config.order, config.stages)
    # A stage's seed depends on its place in the order, and its outcome on all stages that led to its starting point.
    history: dict[str | None, str] = {None: ""}
    complete = []
    for spec in specs:
        source = source_stage(spec, config.order)
        content = {**_decisive(config, spec.name), "index": spec.index, "starts_from": source or "base"}
        content |= {f"data.{key}": digest for key, digest in (data or {}).get(spec.name, {}).items()}
        history[spec.name] = _digest({"content": content, "history": history[source]})
        evaluation = _evaluated_how(config, spec.name, with_data=data is not None)
        complete.append(replace(spec, content=content, digest=history[spec.name], evaluation=evaluation))
    return complete


def manifest_digests(config: RunSettings) -> dict[str, dict[str, str]]:
    """For each stage, maps the existing manifests that decide its outcome to the beginnings of their sha256.

    These are the manifests that the stage trains on and, if validation may end it, the manifest of the validation.
    """
    root, found = Path(config.data.root), {}
    for name in config.order:
        stage = config.stages[name]
        sources = stage.data.located(config.data.root).items()
        files = {key if stage.data.manifest else f"{key}/{source.manifest}": source.path for key, source in sources}
        if stage.stop_when is not None and config.data.validation is not None:
            files[config.data.validation] = root / config.data.validation
        found[name] = {key: file_digest(path)[:16] for key, path in files.items() if path.is_file()}
    return found


def flattened(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level of dotted keys.

    >>> flattened({"a": {"b": 1}, "c": 2})
    {'a.b': 1, 'c': 2}
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _decisive(config: RunSettings, name: str) -> dict[str, Any]:
    """The keys that decide the outcome of a stage, dotted and by first name, with their values but no credentials."""
    stage = {key: value for key, value in asdict(config.stages[name]).items() if key not in NOT_DECISIVE}
    if config.stages[name].num_epochs is not None:  # with the digests of the data, this decides the number of steps
        stage["num_steps"] = config.stages[name].trainer.max_steps
    stage["trainer"] = {"precision": config.stages[name].trainer.precision}
    data = asdict(config.data)
    data["media"] = {"num_frames": config.data.media.num_frames}
    model = asdict(config.model)
    del model["feature_cache"]
    model["checkpoint"] = config.model.checkpoint_but_build
    shared = {"seed": config.seed, "model": model, "data": data, "prompt": asdict(config.prompt)}
    found = flattened(redacted_tree({**shared, "stage": stage}))
    return {first_name(key): value for key, value in found.items() if (key, value) not in ADDED.items()}


def _evaluated_how(config: RunSettings, name: str, *, with_data: bool) -> str:
    """Hash of how, and on what, the handoff of a stage is evaluated."""
    settings = asdict(config.evaluation)
    del settings["batch_size"]
    if settings.pop("ablation_stages") == "last" and name != config.order[-1]:
        settings["ablations"] = []
    data = {"root": config.data.root, "labels": config.data.labels, "cue_lexicon": config.data.cue_lexicon}
    files = {each: Path(config.data.root) / manifest for each, manifest in config.evaluation.sets.items()}
    found = {each: file_digest(path)[:16] for each, path in files.items() if with_data and path.is_file()}
    return _digest({"evaluation": settings, "data": data, "sets": found})


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def cap_steps(stage: StageSettings) -> StageSettings:
    """Limits the known steps of a stage to `trainer.max_steps`, and `validate_every` to the remaining steps."""
    cap = stage.trainer.max_steps
    if cap is None or stage.num_steps is None or cap >= stage.num_steps:
        return stage
    every = None if stage.validate_every is None else min(stage.validate_every, cap)
    return replace(stage, num_steps=cap, validate_every=every)
