"""Values that cannot work, one by one and against each other; every message names key, value and rule."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields

from lightning_mmrl.config.schema import (
    AdapterConfig,
    AlgorithmConfig,
    BoundConfig,
    DropoutConfig,
    EvaluationConfig,
    PhaseConfig,
    RewardsConfig,
    RootConfig,
    StageConfig,
    StageDataConfig,
    TrainerConfig,
)
from lightning_mmrl.config.specs import stage_specs
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.prompts.labels import LabelMatcher
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.suggestions import did_you_mean, shown
from lightning_mmrl.types.redaction import redact

KINDS = ("sft", "rl")
RL_PARTS = ("algorithm", "sampling", "rewards")
TOWERS = ("vision", "audio")
FREEZABLE = (*TOWERS, "text")
FAMILY = ("backbone", "encoder")
MAX_SEED = 2**31
MAX_NAME = 100
MAX_WEIGHT = 3.4e38
"""Of a reward: totals are float32."""
ABLATIONS = ("silent", "blank")
DTYPES = ("float32", "bfloat16", "float64")
POSITION_RULES = ("previous_maximum", "transformers")
AUDIO_IN_VIDEO = ("separate", "interleaved")
LOGGERS = ("csv", "tensorboard")
BALANCES = ("label",)
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
PRECISIONS = ("32-true", "64-true", "bf16-true", "bf16-mixed", "16-true", "16-mixed")
SHARDED_PRECISIONS = ("32-true", "64-true", "bf16-true", "bf16-mixed")
STRATEGIES = ("auto", "ddp", "fsdp2")
KL_ESTIMATORS = ("k1", "k2", "k3")
KL_PLACES = ("loss", "reward")
VALIDATED = ("war", "uar", "valid_format")
"""Metrics of a validation during training."""
WITH_CUES = ("consistency", "grounded")
"""Metrics that a dataset with cue phrases has besides."""
EVALUATED = (*VALIDATED, "macro_f1", "unparseable")
"""Metrics of an evaluated set, beside the recall of each label."""


def check_values(config: RootConfig) -> None:
    """Refuses values that cannot work.

    Raises:
        ConfigError: Naming the first such key, its value and what it must be.
    """
    check_name("run_name", config.run_name)
    require(0 <= config.seed < MAX_SEED, "seed", config.seed, f"between 0 and {MAX_SEED - 1}")
    _not_empty(config, "", "output_dir")
    _not_empty(config.model, "model.", "checkpoint")
    _not_empty(config.tracking, "tracking.", "uri", "experiment")
    uri = config.tracking.uri
    stores = uri is None or uri.startswith(("sqlite:", "http://", "https://"))
    require(stores, "tracking.uri", redact(uri), "sqlite:///FILE or http(s)://HOST")
    one_of(config.model.dtype, "model.dtype", DTYPES)
    one_of(config.model.position_rule, "model.position_rule", POSITION_RULES)
    one_of(config.model.audio_in_video, "model.audio_in_video", AUDIO_IN_VIDEO)
    for part in config.model.family if isinstance(config.model.family, Mapping) else ():
        if part not in FAMILY:
            raise ConfigError(f"model.family.{part}: unknown key{did_you_mean(str(part), FAMILY)}")
    for part in FAMILY:
        _require_target(config.model.family, f"model.family.{part}", part)
    _optional_target(config.model.build, "model.build")
    _check_data(config)
    _check_trainer("trainer", config.trainer)
    _at_least_one(config.state, "state", "every_n_steps", "keep")
    for name in config.tracking.loggers:
        one_of(name, "tracking.loggers", LOGGERS)
    # What these two refuse would otherwise show when the first stage is built.
    PromptTemplate(**asdict(config.prompt))
    LabelMatcher(labels=tuple(config.data.labels))
    for name, stage in config.stages.items():
        one_of(stage.kind, f"stages.{name}.kind", KINDS)
    stage_specs(config)
    _check_evaluation(config.evaluation)
    for name in config.order:
        _check_stage(f"stages.{name}", config.stages[name])
        _check_bounds(f"stages.{name}", config.stages[name], config)
        _check_share(f"stages.{name}", config.stages[name], config.trainer)
    _check_feature_cache(config)


def require(valid: object, key: str, value: object, rule: str) -> None:
    """Refuses a value.

    Raises:
        ConfigError: `valid` is false.
    """
    if not valid:
        raise ConfigError(f"{key} is {shown(value)}; it must be {rule}")


def one_of(value: object, key: str, choices: Iterable[str]) -> None:
    """Refuses a value that is none of the choices, with the nearest one.

    Raises:
        ConfigError: Naming key, value and choice.
    """
    known = list(choices)
    if value not in known:
        raise ConfigError(f"{key} is {shown(repr(value))}, which is no choice{did_you_mean(str(value), known)}")


def check_name(key: str, name: object) -> None:
    """Refuses names that could not be those of a folder.

    Raises:
        ConfigError: Naming the rule.
    """
    rule = f"letters, digits, '.', '_' and '-', not starting with '.' or '-', at most {MAX_NAME} characters"
    valid = re.fullmatch(r"\w[\w.-]*", str(name)) and len(str(name)) <= MAX_NAME
    require(valid, key if key == "run_name" else f"a name in {key}", name, rule)


def _check_feature_cache(config: RootConfig) -> None:
    """Refuses a cache that no stage could use; the outputs of a tower that trains are out of date after a step."""
    cache = config.model.feature_cache
    if cache is None:
        return
    _not_empty(cache, "model.feature_cache.", "directory")
    _at_least_one(cache, "model.feature_cache", "max_bytes")
    if not any(_freezes_towers(config.stages[name]) for name in config.order):
        raise ConfigError(
            "model.feature_cache is set, and no stage freezes its media towers; add vision and audio, as far as the "
            "model has them, to stages.NAME.freeze, or set model.feature_cache=null"
        )


def _freezes_towers(stage: StageConfig) -> bool:
    """True if a tower stays as it is: an adapter freezes all that it is not within."""
    trained = FREEZABLE if stage.adapter is None else stage.adapter.groups
    return bool(set(TOWERS) & set(stage.freeze) or set(TOWERS) - set(trained))


def _check_data(config: RootConfig) -> None:
    data = config.data
    require(data.media.num_frames >= 2, "data.media.num_frames", data.media.num_frames, "at least 2")
    _at_least_one(data.media, "data.media", "decode_workers", "decode_memory_mb", "max_pixels", "max_bytes")
    for name in ("max_duration_s", "decode_deadline_s"):
        _positive(f"data.media.{name}", getattr(data.media, name))
    _not_empty(data.media, "data.media.", "cache_dir")
    _not_empty(data, "data.", "root", "validation")
    _at_least_one(data, "data", "validation_limit", "limit")
    _require_target(asdict(data), "data.module", "module")
    _optional_target(data.build, "data.build")


def _check_trainer(path: str, trainer: TrainerConfig) -> None:
    one_of(trainer.accelerator, f"{path}.accelerator", ACCELERATORS)
    one_of(trainer.precision, f"{path}.precision", PRECISIONS)
    one_of(trainer.strategy, f"{path}.strategy", STRATEGIES)
    _at_least_one(trainer, path, "devices", "num_nodes", "num_threads", "max_steps")
    sharded = trainer.strategy == "fsdp2"
    require(sharded or not trainer.cpu_offload, f"{path}.cpu_offload", "true", "false unless strategy is fsdp2")
    rule = f"one that fsdp2 runs: {', '.join(SHARDED_PRECISIONS)}"
    require(not sharded or trainer.precision in SHARDED_PRECISIONS, f"{path}.precision", trainer.precision, rule)


def _check_share(path: str, stage: StageConfig, run: TrainerConfig) -> None:
    """Refuses a stage that the ranks of the run cannot share; they are joined once, for all stages."""
    for name in ("devices", "num_nodes"):
        value, wanted = getattr(stage.trainer, name), getattr(run, name)
        require(value == wanted, f"{path}.trainer.{name}", value, f"trainer.{name}, which is {wanted}")
    size, num_ranks = stage.data.batch_size, run.devices * run.num_nodes
    rule = f"a multiple of {num_ranks} (trainer.devices x trainer.num_nodes): it counts the samples of all ranks"
    require(size % num_ranks == 0, f"{path}.data.batch_size", size, rule)


def _check_evaluation(evaluation: EvaluationConfig) -> None:
    require(evaluation.sets, "evaluation.sets", evaluation.sets, "at least one set, such as {test: test.jsonl}")
    for name, manifest in evaluation.sets.items():
        _check_set_name(name, evaluation.sets)
        require(manifest.strip(), f"evaluation.sets.{name}", repr(manifest), "the name of a manifest")
    _at_least_one(evaluation, "evaluation", "batch_size", "max_new_tokens", "num_resamples", "limit")
    for name in evaluation.ablations:
        one_of(name, "evaluation.ablations", ABLATIONS)
    one_of(evaluation.ablation_stages, "evaluation.ablation_stages", ("last", "all"))


def _check_set_name(name: str, names: Iterable[str]) -> None:
    """Refuses a name under which another set's metrics and files are kept."""
    check_name("evaluation.sets", name)
    require(name != "validation", "a name in evaluation.sets", name, "another one: validations during training have it")
    for each in names:
        for ablation in ABLATIONS:
            rule = f"another one: set {each} without its {ablation} part has it"
            require(name != f"{each}-{ablation}", "a name in evaluation.sets", name, rule)


def _check_stage(path: str, stage: StageConfig) -> None:
    for part in ("module", "optimizer", "schedule"):
        _require_target(asdict(stage), f"{path}.{part}", part)
    _check_optimizer(f"{path}.optimizer", stage.optimizer)
    _at_least_one(stage, path, "num_steps", "rollout_table_every")
    _check_stage_data(f"{path}.data", stage.data)
    _check_trainer(f"{path}.trainer", stage.trainer)
    require(stage.max_grad_norm > 0, f"{path}.max_grad_norm", stage.max_grad_norm, "above 0")
    require(stage.max_bad_steps >= 0, f"{path}.max_bad_steps", stage.max_bad_steps, "at least 0")
    every = stage.validate_every
    valid = every is None or 1 <= every <= stage.num_steps
    require(valid, f"{path}.validate_every", every, f"null or between 1 and num_steps {stage.num_steps}")
    for group in stage.freeze:
        one_of(group, f"{path}.freeze", FREEZABLE)
    require(
        set(stage.freeze) != set(FREEZABLE), f"{path}.freeze", stage.freeze, "fewer groups, so that something trains"
    )
    if stage.adapter is not None:
        _check_adapter(f"{path}.adapter", stage.adapter, stage.freeze)
    if stage.kind == "rl":
        _check_rl(path, stage)
        return
    for part in RL_PARTS:
        if getattr(stage, part) is not None:
            raise ConfigError(f"{path}.{part}: belongs to rl stages, and {path} is sft; leave it out or take stage/rl")


def _check_optimizer(path: str, node: Mapping[str, object]) -> None:
    """Its class checks the rest when torch has been loaded."""
    rate = node.get("lr", 0.0)
    valid = isinstance(rate, int | float) and 0 <= rate < math.inf
    require(valid, f"{path}.lr", rate, "a finite number of at least 0, such as 1.0e-5")
    for key, value in node.items():
        require(not isinstance(value, float) or math.isfinite(value), f"{path}.{key}", value, "a finite number")


def _check_adapter(path: str, adapter: AdapterConfig, frozen: Iterable[str]) -> None:
    """Which targets a model has is checked when its family has been imported."""
    _at_least_one(adapter, path, "r", "alpha")
    require(0 <= adapter.dropout < 1, f"{path}.dropout", adapter.dropout, "at least 0 and below 1")
    targets = adapter.targets if isinstance(adapter.targets, list) else [adapter.targets]
    valid = targets and all(isinstance(target, str) and target.strip() for target in targets)
    require(valid, f"{path}.targets", repr(adapter.targets), "all, attention, mlp or another name, or a list of them")
    require(adapter.groups, f"{path}.groups", adapter.groups, f"at least one of {', '.join(FREEZABLE)}")
    for group in adapter.groups:
        one_of(group, f"{path}.groups", FREEZABLE)
        if group in frozen:
            raise ConfigError(
                f"{path}.groups has {group}, and {path.removesuffix('.adapter')}.freeze as well; take {group} out of "
                "freeze (weights under an adapter stay as they are anyway), or out of the adapter's groups"
            )


def _check_stage_data(path: str, data: StageDataConfig) -> None:
    _at_least_one(data, path, "batch_size", "limit")
    if bool(data.manifest) == bool(data.sources):
        given = "both" if data.manifest else "neither"
        raise ConfigError(f"{path} has {given} of manifest and sources; give a manifest, or sources and manifest=null")
    for name, source in data.sources.items():
        check_name(f"{path}.sources", name)
        _positive(f"{path}.sources.{name}.weight", source.weight)
        _not_empty(source, f"{path}.sources.{name}.", "manifest", "root")
        _at_least_one(source, f"{path}.sources.{name}", "limit")
    if data.balance is not None:
        one_of(data.balance, f"{path}.balance", BALANCES)
    _optional_target(data.module, f"{path}.module")
    _check_dropout(f"{path}.modality_dropout", data.modality_dropout)


def _check_dropout(path: str, dropout: DropoutConfig) -> None:
    valid = min(dropout.silent, dropout.blank) >= 0 and dropout.silent + dropout.blank <= 1
    shares = f"{dropout.silent} + {dropout.blank}"
    require(valid, path, shares, "probabilities that sum to at most 1")


def _check_rl(path: str, stage: StageConfig) -> None:
    for part in RL_PARTS:
        if getattr(stage, part) is None:
            raise ConfigError(f"{path}.{part}: is missing; an rl stage needs it, take it from stage/rl")
    assert stage.algorithm is not None
    assert stage.sampling is not None
    assert stage.rewards is not None
    if stage.trainer.precision == "16-mixed":
        raise ConfigError(
            f"{path}.trainer.precision is 16-mixed, whose scaled gradients an rl stage would clip; take bf16-mixed"
        )
    _positive(f"{path}.sampling.temperature", stage.sampling.temperature)
    _at_least_one(stage.sampling, f"{path}.sampling", "max_new_tokens")
    update = stage.algorithm.update
    _at_least_one(update, f"{path}.algorithm.update", *(field.name for field in fields(update)))
    rule = f"a divisor of data.batch_size {stage.data.batch_size}"
    valid = stage.data.batch_size % update.num_minibatches == 0
    require(valid, f"{path}.algorithm.update.num_minibatches", update.num_minibatches, rule)
    _check_algorithm(f"{path}.algorithm", stage.algorithm)
    _check_phases(f"{path}.algorithm.phases", stage.algorithm.phases, stage.num_steps)
    _check_rewards(f"{path}.rewards", stage.rewards)


def _check_algorithm(path: str, algorithm: AlgorithmConfig) -> None:
    for part in ("advantage", "loss", "aggregation"):
        _optional_target(getattr(algorithm, part), f"{path}.{part}")
    one_of(algorithm.kl.estimator, f"{path}.kl.estimator", KL_ESTIMATORS)
    one_of(algorithm.kl.where, f"{path}.kl.where", KL_PLACES)
    for name, part in (("kl", algorithm.kl), ("entropy", algorithm.entropy)):
        valid = 0 <= part.coefficient < math.inf
        require(valid, f"{path}.{name}.coefficient", part.coefficient, "at least 0 and finite")
        _optional_target(part.schedule, f"{path}.{name}.schedule")


def _check_phases(path: str, phases: Mapping[str, PhaseConfig], num_steps: int) -> None:
    before = 0
    for name, phase in phases.items():
        rule = f"more than {before} and less than num_steps {num_steps}: phases come one after the other"
        require(before < phase.after < num_steps, f"{path}.{name}.after", phase.after, rule)
        _at_least_one(phase, f"{path}.{name}", "max_new_tokens")
        if phase.temperature is not None:
            _positive(f"{path}.{name}.temperature", phase.temperature)
        before = phase.after


def _check_rewards(path: str, rewards: RewardsConfig) -> None:
    for name in rewards.parts:
        _require_target(rewards.parts, f"{path}.parts.{name}", name)
    for name, weight in rewards.weights.items():
        if name not in rewards.parts:
            raise ConfigError(f"{path}.weights.{name}: weighs no part{did_you_mean(name, rewards.parts)}")
        rule = f"a finite number of float32, at most {MAX_WEIGHT} in size"
        require(abs(weight) <= MAX_WEIGHT, f"{path}.weights.{name}", weight, rule)
    for name in rewards.parts:
        if name not in rewards.weights:
            raise ConfigError(f"{path}.parts.{name}: has no weight; give it one by +{path}.weights.{name}=1.0")
    one_of(rewards.pass_part, f"{path}.pass_part", rewards.parts)
    require(rewards.num_workers >= 0, f"{path}.num_workers", rewards.num_workers, "at least 0")
    _positive(f"{path}.deadline_s", rewards.deadline_s)
    _positive(f"{path}.batch_budget_s", rewards.batch_budget_s)
    if rewards.soft_deadline_s is not None:
        _positive(f"{path}.soft_deadline_s", rewards.soft_deadline_s)
    _at_least_one(rewards, path, "memory_limit_mb")
    require(0 <= rewards.max_invalid_rate <= 1, f"{path}.max_invalid_rate", rewards.max_invalid_rate, "from 0 to 1")


def _check_bounds(path: str, stage: StageConfig, config: RootConfig) -> None:
    validated = stage.validate_every is not None and config.data.validation is not None
    cues = WITH_CUES if config.data.cue_lexicon is not None else ()
    metrics = [f"validation/{name}" for name in (*VALIDATED, *cues)] if validated else []
    if stage.stop_when is not None:
        if not metrics:
            raise ConfigError(f"{path}.stop_when needs validations; set {path}.validate_every and data.validation")
        _check_bound(f"{path}.stop_when", stage.stop_when, metrics)
    valid = 0 <= stage.cooldown_steps < stage.num_steps
    rule = f"at least 0 and less than num_steps {stage.num_steps}"
    require(valid, f"{path}.cooldown_steps", stage.cooldown_steps, rule)
    if stage.cooldown_steps and stage.stop_when is None:
        raise ConfigError(f"{path}.cooldown_steps is {stage.cooldown_steps} without stop_when; set {path}.stop_when")
    if stage.gate is not None:
        names = [*EVALUATED, *cues, *(f"recall/{label}" for label in config.data.labels)]
        metrics += [f"{each}/{name}" for each in config.evaluation.sets for name in names]
        _check_bound(f"{path}.gate", stage.gate, metrics)


def _check_bound(path: str, bound: BoundConfig, metrics: Iterable[str]) -> None:
    one_of(bound.metric, f"{path}.metric", metrics)
    for name in ("at_least", "at_most"):
        value = getattr(bound, name)
        require(value is None or math.isfinite(value), f"{path}.{name}", value, "a finite number")
    if bound.at_least is None and bound.at_most is None:
        raise ConfigError(f"{path} has neither at_least nor at_most; give one, for example {path}.at_least=0.5")


def _require_target(parent: object, key: str, part: str) -> None:
    node = parent.get(part) if isinstance(parent, Mapping) else None
    require(isinstance(node, Mapping) and "_target_" in node, key, node, "a node with a _target_")


def _optional_target(node: object, key: str) -> None:
    valid = node is None or (isinstance(node, Mapping) and "_target_" in node)
    require(valid, key, node, "null or a node with a _target_")


def _not_empty(owner: object, prefix: str, *names: str) -> None:
    """Refuses empty texts: an empty path would be the working folder."""
    for name in names:
        value = getattr(owner, name)
        require(value is None or value.strip(), f"{prefix}{name}", repr(value), "a name or path")


def _positive(key: str, value: float) -> None:
    require(0 < value < math.inf, key, value, "above 0 and finite")


def _at_least_one(owner: object, path: str, *names: str) -> None:
    """Refuses numbers below 1; null is another word for no number."""
    for name in names:
        value = getattr(owner, name)
        require(value is None or value >= 1, f"{path}.{name}", value, "at least 1")
