"""The part of the configuration that decides the outcome of each stage; the orchestrator compares it between runs."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lightning_mmrl.config.budget import counted_before, limits
from lightning_mmrl.curriculum.graph import place_among_trained, plan_stages
from lightning_mmrl.data.sources import source_digest
from lightning_mmrl.registry.kinds import kind_of
from lightning_mmrl.settings.data import MediaSettings, PromptSettings
from lightning_mmrl.settings.renamed import LATER, first_name
from lightning_mmrl.settings.rollout import engine_node, lag_of
from lightning_mmrl.settings.run import MAX_SEED, RunSettings
from lightning_mmrl.settings.stage import BASE, PREVIOUS, NodeSettings, StageSettings
from lightning_mmrl.types.records import WEIGHTS, StageSpec
from lightning_mmrl.types.redaction import redacted_tree

NOT_DECISIVE = (
    "checkpoint",
    "endpoint",
    "evaluation_sets",
    "gate",
    "max_bad_steps",
    "pairs_per_microbatch",
    "prompt",
    "reflection_words",
    "rollout_table_every",
    "start_from",
    "tokens_per_microbatch",
    "when_empty",
)
"""Keys of a stage that its outcome does not depend on."""


def stage_specs(config: RunSettings, data: Mapping[str, Mapping[str, str]] | None = None) -> list[StageSpec]:
    """Returns the stages in order, each with the digest of everything that decides its outcome.

    Args:
        config: The configuration.
        data: Digests of each stage's data, see `manifest_digests`; None while they are unknown.

    Raises:
        ConfigError: The order, a starting point or a source of data is wrong.
    """
    specs = plan_stages(config.order, config.stages, kind_of)
    last = next((spec.name for spec in reversed(specs) if spec.trains), None)
    history: dict[str | None, str] = {None: ""}
    complete, ends = [], limits(config)
    for spec in specs:
        place = place_among_trained(spec, specs)
        content = _decisive(config, spec.name)
        if spec.reads_weights:
            content["starts_from"] = spec.settings.checkpoint or spec.source or BASE
        else:
            content = {key: value for key, value in content.items() if not key.startswith("model.")}
        content |= {} if place is None else {"index": place}
        content |= {f"data.{key}": digest for key, digest in (data or {}).get(spec.name, {}).items()}
        led_here = {"content": content, "history": history[spec.source]}
        made = {key: history[edge.stage] for key, edge in spec.inputs.items() if key != WEIGHTS}
        if config.budget is not None and spec.name in ends:
            content[f"budget.{config.budget.measure}"] = ends[spec.name]
            content["budget.after"] = counted_before(config, spec.name)  # what these spend decides when it ends
            made |= {f"budget/{each}": history[each] for each in content["budget.after"]}
        history[spec.name] = _digest({**led_here, "data": made} if made else led_here)
        stage = spec.settings
        how = ""
        if isinstance(stage, StageSettings):
            how = _evaluated_how(config, stage, is_last=spec.name == last, with_data=data is not None)
        seed = _seed_of(config.seed, spec.name) if place is None else config.seed + place
        digest = history[spec.name]
        complete.append(replace(spec, content=content, digest=digest, evaluation=how, seed=seed))
    return complete


def _seed_of(seed: int, name: str) -> int:
    """Returns the seed of a stage that trains nothing, which does not depend on its place in the order."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()) % MAX_SEED


def base_evaluation(config: RunSettings) -> str:
    """Returns a hash of the settings and data with which the base model is evaluated; empty if it is not evaluated."""
    if not config.evaluation.base or not config.trained:
        return ""
    first, seen = first_trained(config), _seen(config.data.media)
    how = _evaluated_how(config, replace(first, evaluation_sets=None), is_last=False, with_data=True)
    seen |= {key: getattr(config.model, key) for key in ("dtype", "position_rule", "audio_in_video")}
    prompts = {name: _texts(config.prompt_of(each, first)) for name, each in config.evaluation.sets.items()}
    return _digest({"evaluation": how, "model": seen, "prompts": prompts})


def first_trained(config: RunSettings) -> StageSettings:
    """Returns the first stage that starts from the base model, else the first that trains.

    The base model is evaluated with the prompt of this stage.
    """
    stages = list(config.trained.values())
    for number, stage in enumerate(stages):
        if stage.checkpoint is None and stage.start_from in (BASE if number else PREVIOUS, BASE):
            return stage
    return stages[0]


def manifest_digests(config: RunSettings) -> dict[str, dict[str, str]]:
    """For each stage, maps the existing manifests that decide its outcome to the beginnings of their sha256.

    These are the manifests that the stage reads and, if validations decide what it makes, the manifest of the
    validation. Data that another stage makes may not exist yet; the digests of its artifacts stand for them.
    """
    found, kept = {}, Path(config.data.media.cache_dir)
    for name in config.order:
        stage = config.stages[name]
        data = config.dataset(stage.data.dataset)
        sources = stage.data.located(data).items()
        named = {key: source for key, source in sources if source.stage is None}
        files = {
            key if stage.data.manifest else f"{key}/{each.manifest}": source_digest(each.path, each.format, kept)
            for key, each in named.items()
        }
        decides = isinstance(stage, StageSettings) and stage.validation_decides
        if decides and data.validation is not None:
            files[data.validation] = source_digest(Path(data.root) / data.validation, kept=kept)
        found[name] = {key: digest[:16] for key, digest in files.items() if digest is not None}
    return found


def flattened(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested mappings to one level of dotted keys.

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


def _seen(media: MediaSettings) -> dict[str, Any]:
    """The keys that decide what a model sees of a clip or a picture; limits only decide whether it is left out."""
    return {"num_frames": media.num_frames, **media.chosen}


def _texts(prompt: PromptSettings) -> dict[str, Any]:
    """The texts of a prompt. Keys that came later are left out while they are empty, so that older digests hold."""
    return {key: text for key, text in asdict(prompt).items() if text or f"prompt.{key}" not in LATER}


def _decisive(config: RunSettings, name: str) -> dict[str, Any]:
    """Maps the keys that decide a stage's outcome (dotted, see `first_name`) to their values without credentials."""
    config = config.of_stage(config.stages[name])
    stage = {key: value for key, value in asdict(config.stages[name]).items() if key not in NOT_DECISIVE}
    stage["trainer"] = {"precision": config.stages[name].trainer.precision}
    data = asdict(config.data)
    del stage["data"]["dataset"]  # its keys are below `data`
    data["media"] = _seen(config.data.media)
    own = config.stages[name]
    if isinstance(own, StageSettings) and own.num_epochs is not None:
        stage["num_steps"] = own.trainer.max_steps  # with the digests of the data, this decides the number of steps
    if data["task"] is None or not isinstance(own, StageSettings) or not own.validation_decides:
        del data["task"]
    if not isinstance(own, StageSettings):
        for key in ("validation", "validation_limit", "cue_lexicon"):
            del data[key]
        if "rollout" in stage:
            stage["rollout"] = _without_drafts(stage["rollout"] or config.rollout)
    for node in ((stage.get("rewards") or {}).get("components") or {}).values():
        if isinstance(node, dict):  # another value stays for its check
            node.pop("endpoint", None)  # where a judge is asked decides no verdict
    if isinstance(own, StageSettings) and own.algorithm is not None and lag_of(config.rollout):
        stage["lag"] = lag_of(config.rollout)
    _record_weights(stage["data"]["sources"], own)
    model = asdict(config.model)
    model["checkpoint"] = config.model.checkpoint_but_build
    del model["feature_cache"], model["known_sizes"]
    shared = {"seed": config.seed, "model": model, "data": data, "prompt": asdict(config.prompt)}
    found = flattened(redacted_tree({**shared, "stage": stage}))
    known = {key: value for key, value in found.items() if key not in LATER or value != LATER[key]}
    return {first_name(key): value for key, value in known.items()}


def _record_weights(sources: Mapping[str, dict[str, Any]], stage: NodeSettings) -> None:
    """Writes the default of earlier versions where a weight has no effect, so that their runs continue."""
    if len(sources) == 1 or not isinstance(stage, StageSettings):
        for source in sources.values():
            source["weight"] = 1.0 if source["weight"] is None else source["weight"]


def _without_drafts(engine: Any) -> Any:
    """An engine's node without keys that decide no token of a stage whose weights stay as they are.

    A value that is no node stays for its check.
    """
    if not isinstance(engine, Mapping):
        return engine
    return {key: value for key, value in engine_node(engine).items() if key != "speculation"}


def _evaluated_how(config: RunSettings, stage: StageSettings, *, is_last: bool, with_data: bool) -> str:
    """Returns a hash of the settings and data with which a stage's handoff is evaluated.

    `is_last` says whether it is the handoff of the last trained stage.
    """
    sets = config.sets(stage.evaluation_sets)
    settings = {**asdict(config.evaluation), "sets": {each: config.evaluation.sets[each].short for each in sets}}
    del settings["batch_size"], settings["base"]
    if settings.pop("ablation_stages") == "last" and not is_last:
        settings |= {"ablations": [], "no_think": False, "samples": 0}
    settings = _with_passes(settings, config.seed)
    data = {"root": config.data.root, "labels": config.data.labels, "cue_lexicon": config.data.cue_lexicon}
    if config.data.task is not None:
        data["task"] = config.data.task
    kept = Path(config.data.media.cache_dir)
    digests = {each: source_digest(of.path, of.format, kept) for each, of in sets.items() if with_data}
    found = {each: digest[:16] for each, digest in digests.items() if digest is not None}
    used = {each.dataset: asdict(config.datasets[each.dataset]) for each in sets.values() if each.dataset is not None}
    others = {name: {key: of[key] for key in ("root", "labels", "cue_lexicon", "task")} for name, of in used.items()}
    own = config.of_stage(stage).prompt  # a part of the stage's own content already
    prompts = {name: config.prompt_of(each, stage) for name, each in sets.items()}
    further = {
        "datasets": others,
        "prompts": {name: _texts(prompt) for name, prompt in prompts.items() if prompt != own},
        "media": {name: str(each.media_folder) for name, each in sets.items() if each.media_root != each.root},
    }
    return _digest({"evaluation": settings, "data": data, "sets": found, **{k: v for k, v in further.items() if v}})


def _with_passes(settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """Leaves out passes that are not asked for, so that older digests hold; a seed decides the samples."""
    left_out = {"no_think"} if not settings["no_think"] else set()
    left_out |= {"samples", "temperature", "top_p"} if not settings["samples"] else set()
    kept = {key: value for key, value in settings.items() if key not in left_out}
    return kept | ({"seed": seed} if settings["samples"] else {})


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def cap_steps(stage: StageSettings) -> StageSettings:
    """Limits the known steps of a stage, and its `validate_every`, to `trainer.max_steps`."""
    cap = stage.trainer.max_steps
    if cap is None or stage.num_steps is None or cap >= stage.num_steps:
        return stage
    every = None if stage.validate_every is None else min(stage.validate_every, cap)
    return replace(stage, num_steps=cap, validate_every=every)


def cap_samples(stage: NodeSettings) -> NodeSettings:
    """Limits a stage that does not train to the samples of `trainer.max_steps` batches."""
    cap = stage.trainer.max_steps
    if cap is None:
        return stage
    most = cap * stage.data.batch_size
    return replace(stage, data=replace(stage.data, limit=min(most, stage.data.limit or most)))
