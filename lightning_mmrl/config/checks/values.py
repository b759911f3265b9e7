"""Refuses values that contradict each other, or that the rule of one key cannot check.

The rule of a key is declared with the key, in `settings`. Every message names key, value and rule.
"""

import math
import re
from collections.abc import Iterable, Mapping

from lightning_mmrl.config.budget import check_budget
from lightning_mmrl.config.checks.engines import check_engines
from lightning_mmrl.config.checks.media import check_feature_cache, check_media
from lightning_mmrl.config.checks.precision import check_precision, refuse_half_weights, refuse_rounded_weights
from lightning_mmrl.config.checks.targets import check_targets
from lightning_mmrl.config.specs import stage_specs
from lightning_mmrl.curriculum.graph import plan_stages
from lightning_mmrl.data.formats.readers.registry import AUTO, FORMATS
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.prompts.labels import LabelMatcher
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.registry.kinds import kind_of
from lightning_mmrl.settings.algorithm import AlgorithmSettings, RewardSettings
from lightning_mmrl.settings.data import DataSettings, check_weights
from lightning_mmrl.settings.model import BUILD, PARAMETER_GROUPS, AdapterSettings, frozen_parts
from lightning_mmrl.settings.rules import check_rules, one_of, require
from lightning_mmrl.settings.run import VARIANTS, RunSettings, data_key
from lightning_mmrl.settings.stage import PREVIOUS, StageSettings, TrainerSettings
from lightning_mmrl.suggestions import did_you_mean, nearest, offered
from lightning_mmrl.types.records import WEIGHTS, StageSpec
from lightning_mmrl.types.redaction import redact

RL_PARTS = ("algorithm", "sampling", "rewards")
FAMILY = ("backbone", "encoder")
MAX_NAME = 100
MAX_WEIGHT = 3.4e38
"""Largest weight of a reward, since totals are float32."""


def check_values(config: RunSettings) -> None:
    """Refuses values that cannot work.

    Raises:
        ConfigError: Naming the first such key, its value and what it must be.
    """
    for part in str(config.run_name).split("/"):  # a run may lie in a folder of runs
        check_name("run_name", part, config.run_name)
    refuse_half_weights("trainer", config.trainer)
    check_rules(config, leave_out=("stages",))
    uri = config.tracking.uri
    stores = uri is None or uri.startswith(("sqlite:", "http://", "https://"))
    require(stores, "tracking.uri", redact(uri), "sqlite:///FILE or http(s)://HOST")
    alone = uri is None or config.tracking.tracker is None
    require(alone, "tracking.uri", redact(uri), "null beside tracking.tracker, which takes MLflow's place")
    if config.model.build is None and BUILD in config.model.checkpoint:
        raise ConfigError(
            f"model.checkpoint is {config.model.checkpoint}, and model.build is null; name a folder or a hub id"
        )
    _check_family(config.model.family)
    sizes = config.model.known_sizes
    require(sizes is None or isinstance(sizes, Mapping), "model.known_sizes", sizes, "null or keys of a config.json")
    _check_trainer("trainer", config.trainer, config)
    # Otherwise errors of these two would show only when the first stage is built.
    PromptTemplate(config.prompt)
    _check_labels("data", config.data)
    check_media(config.data.media)
    for name, data in config.datasets.items():
        check_name("datasets", name)
        _check_labels(f"datasets.{name}", data)
        rule = "as data.media: all datasets of a run are decoded alike"
        require(data.media == config.data.media, f"datasets.{name}.media", data.media, rule)
    for name, stage in config.stages.items():
        kind_of(stage, f"stages.{name}")
    _check_dataset_names(config)
    plan_stages(config.order, config.stages, kind_of)
    check_budget(config)
    specs = stage_specs(config)
    _check_evaluation(config)
    for spec in specs:
        path, stage = f"stages.{spec.name}", config.stages[spec.name]
        refuse_half_weights(f"{path}.trainer", stage.trainer)
        check_rules(stage, path)
        if stage.prompt is not None:
            PromptTemplate(stage.prompt)
        alone = stage.checkpoint is None or stage.start_from == PREVIOUS
        require(
            alone, f"{path}.start_from", stage.start_from, f"left out beside {path}.checkpoint, which takes its place"
        )
        _check_trainer(f"{path}.trainer", stage.trainer, config)
        if isinstance(stage, StageSettings):
            _check_length(path, stage)
        check_targets(path, stage)
        kind_of(stage, path).check(path, stage, config)
        _check_stage_data(f"{path}.data", spec)  # last, since a kind knows which tables take the place of data
        _check_share(path, spec, config.trainer)
    check_feature_cache(config)
    check_engines(config)


def _check_dataset_names(config: RunSettings) -> None:
    """Refuses stages and sets of a dataset that the run does not have."""
    stages = {name: config.stages[name] for name in config.order if name in config.stages}
    named = {f"stages.{name}.data.dataset": stage.data.dataset for name, stage in stages.items()}
    named |= {f"evaluation.sets.{name}.dataset": each.dataset for name, each in config.evaluation.sets.items()}
    for key, name in named.items():
        if name is not None:
            one_of(name, key, config.datasets)


def check_name(key: str, name: object, whole: object = None) -> None:
    """Refuses names that could not be names of a folder.

    Args:
        key: The key that holds the name, or the group that the name is in.
        name: The name.
        whole: The value of the key of which the name is a part; None if the name stands alone.

    Raises:
        ConfigError: Naming the rule.
    """
    rule = f"letters, digits, '.', '_' and '-', not starting with '.' or '-', at most {MAX_NAME} characters"
    valid = re.fullmatch(r"\w[\w.-]*", str(name)) and len(str(name)) <= MAX_NAME
    require(valid, key if whole is not None else f"a name in {key}", name if whole is None else whole, rule)


def _check_family(family: object) -> None:
    parts = family if isinstance(family, Mapping) else {}
    for part in parts:
        if part not in FAMILY:
            raise ConfigError(f"model.family.{part}: unknown key{did_you_mean(str(part), FAMILY)}")
    for part in FAMILY:
        node = parts.get(part)
        valid = isinstance(node, Mapping) and "_target_" in node
        require(valid, f"model.family.{part}", node, "a node with a _target_")


def _check_labels(path: str, data: DataSettings) -> None:
    """Refuses labels that cannot be told apart, and an empty label set unless the dataset has a task."""
    if not data.labels and data.task is None:
        raise ConfigError(
            f"{path}.labels is empty; give at least one label, or set {path}.task to a task without labels"
        )
    if data.labels:
        LabelMatcher(labels=tuple(data.labels))


def _check_trainer(path: str, trainer: TrainerSettings, config: RunSettings) -> None:
    require(trainer.shards or not trainer.cpu_offload, f"{path}.cpu_offload", "true", "false unless strategy is fsdp2")
    check_precision(path, trainer, config.model)


def _check_share(path: str, spec: StageSpec, run: TrainerSettings) -> None:
    """Refuses a stage that the ranks of the run cannot share; they are joined once, for all stages."""
    stage = spec.settings
    if not spec.reads_weights:
        return  # there is no model to share
    for name in ("devices", "num_nodes"):
        value, wanted = getattr(stage.trainer, name), getattr(run, name)
        require(value == wanted, f"{path}.trainer.{name}", value, f"trainer.{name}, which is {wanted}")
    size, num_ranks = stage.data.batch_size, run.world_size
    rule = f"a multiple of {num_ranks} (trainer.devices x trainer.num_nodes): it counts the samples of all ranks"
    require(size % num_ranks == 0, f"{path}.data.batch_size", size, rule)


def _check_evaluation(config: RunSettings) -> None:
    evaluation = config.evaluation
    require(evaluation.sets, "evaluation.sets", evaluation.sets, "at least one set, such as {test: test.jsonl}")
    taken = {f"{each}-{variant}": (each, variant) for each in evaluation.sets for variant in VARIANTS}
    for name, each in evaluation.sets.items():
        check_name("evaluation.sets", name)
        one_of(each.format or AUTO, f"evaluation.sets.{name}.format", FORMATS)
        if each.prompt is not None:
            PromptTemplate(each.prompt)
        rule = "another one: validations during training have it"
        require(name != "validation", "a name in evaluation.sets", name, rule)
        if name in taken:
            rule = f"another one: the {taken[name][1]} variant of set {taken[name][0]} has it"
            require(False, "a name in evaluation.sets", name, rule)


def _check_length(path: str, stage: StageSettings) -> None:
    steps, epochs = stage.num_steps, stage.num_epochs
    if steps is None and epochs is None:
        raise ConfigError(f"{path} has neither num_steps nor num_epochs; give one, for example {path}.num_epochs=2")
    if steps is not None and epochs is not None:
        raise ConfigError(
            f"{path} has both num_steps {steps} and num_epochs {epochs:g}; set the other one to null, for example "
            f"{path}.num_steps=null"
        )


def _limit(stage: StageSettings) -> tuple[float, str]:
    """Returns the number of steps (infinite while it is unknown), and the words for it in messages."""
    of_epochs = "" if stage.num_epochs is None else f" (of num_epochs {stage.num_epochs:g})"
    return (math.inf if stage.num_steps is None else stage.num_steps), f"num_steps {stage.num_steps}{of_epochs}"


def check_trained_stage(path: str, stage: StageSettings, config: RunSettings) -> None:
    """Refuses values that no stage that trains can have; a part of `StageKind.check`.

    Raises:
        ConfigError: Naming the first such key, its value and what it must be.
    """
    _check_optimizer(f"{path}.optimizer", stage.optimizer)
    refuse_rounded_weights(path, stage, config.model)
    every, (most, steps) = stage.validate_every, _limit(stage)
    valid = every is None or 1 <= every <= most
    require(valid, f"{path}.validate_every", every, f"null or between 1 and {steps}")
    all_frozen = frozen_parts(stage.freeze) == frozen_parts(PARAMETER_GROUPS)
    require(not all_frozen, f"{path}.freeze", stage.freeze, "fewer groups, so that something trains")
    words = stage.reflection_words
    require(all(map(str.strip, words)), f"{path}.reflection_words", words, "a list of words that are not blank")
    if stage.adapter is not None:
        _check_adapter(f"{path}.adapter", stage.adapter, stage.freeze)
    _check_use_of_run(path, stage, config)


def require_parts(path: str, stage: StageSettings) -> None:
    """Refuses an rl stage that lacks one of its parts.

    Raises:
        ConfigError: Naming the part.
    """
    for part in RL_PARTS:
        if getattr(stage, part) is None:
            raise ConfigError(f"{path}.{part}: is missing; an rl stage needs it, take it from stage/rl")


def refuse_parts(path: str, stage: StageSettings) -> None:
    """Refuses parts of rl stages in a stage of another kind.

    Raises:
        ConfigError: Naming the part.
    """
    for part in (*RL_PARTS, "reflection_words"):
        if getattr(stage, part) not in (None, []):
            raise ConfigError(
                f"{path}.{part}: belongs to rl stages, and {path} is {stage.kind}; leave it out or take stage/rl"
            )


def _check_optimizer(path: str, node: Mapping[str, object]) -> None:
    """Checks the numbers; the optimizer's class checks the rest once torch is loaded."""
    rate = node.get("lr", 0.0)
    valid = isinstance(rate, int | float) and 0 <= rate < math.inf
    require(valid, f"{path}.lr", rate, "a finite number of at least 0, such as 1.0e-5")
    for key, value in node.items():
        require(not isinstance(value, float) or math.isfinite(value), f"{path}.{key}", value, "a finite number")


def _check_adapter(path: str, adapter: AdapterSettings, frozen: Iterable[str]) -> None:
    """Checks the keys of an adapter; whether a model has the targets is checked once its family is imported."""
    targets = adapter.targets if isinstance(adapter.targets, list) else [adapter.targets]
    valid = targets and all(isinstance(target, str) and target.strip() for target in targets)
    require(valid, f"{path}.targets", repr(adapter.targets), "all, attention, mlp or another name, or a list of them")
    require(adapter.groups, f"{path}.groups", adapter.groups, f"at least one of {', '.join(PARAMETER_GROUPS)}")
    for group in adapter.groups:
        both = [each for each in frozen if frozen_parts([each]) & frozen_parts([group])]
        if both:
            raise ConfigError(
                f"{path}.groups has {group}, and {path.removesuffix('.adapter')}.freeze has {both[0]}; take {both[0]} "
                "out of freeze (weights under an adapter stay as they are anyway), or take the group out of the adapter"
            )


def _check_stage_data(path: str, spec: StageSpec) -> None:
    data, others = spec.settings.data, spec.inputs.keys() - {WEIGHTS}
    if not data.manifest and not data.sources and others:
        return  # another input, such as a table, is all that the stage reads
    if bool(data.manifest) == bool(data.sources):
        given = "both" if data.manifest else "neither"
        raise ConfigError(f"{path} has {given} of manifest and sources; give a manifest, or sources and manifest=null")
    check_weights(data.sources, f"{path}.sources")
    for name, source in data.sources.items():
        check_name(f"{path}.sources", name)
        key = f"{path}.sources.{name}"
        one_of(source.format or AUTO, f"{key}.format", FORMATS)
        if bool(source.manifest.strip()) == bool(source.stage):
            given = "both" if source.stage else "neither"
            raise ConfigError(f"{key} has {given} of manifest and stage; give a manifest, or a stage and its artifact")
        if bool(source.stage) != bool(source.artifact):
            missing, there = ("artifact", "a stage") if source.stage else ("stage", "an artifact")
            raise ConfigError(f"{key} has {there} and no {missing}; set {key}.{missing}")
        for folder in ("root", "media_root"):
            rule = "null: the artifact of a stage says where its files are"
            require(
                not source.stage or getattr(source, folder) is None, f"{key}.{folder}", getattr(source, folder), rule
            )
    dropout = data.modality_dropout
    valid = min(dropout.silent, dropout.blank) >= 0 and dropout.silent + dropout.blank <= 1
    shares = f"{dropout.silent} + {dropout.blank}"
    require(valid, f"{path}.modality_dropout", shares, "probabilities that sum to at most 1")


def check_algorithm(path: str, stage: StageSettings) -> None:
    """Refuses values of an rl stage's algorithm, sampling and rewards that contradict each other.

    Raises:
        ConfigError: Naming the first such key, its value and what it must be.
    """
    assert stage.algorithm is not None
    assert stage.sampling is not None
    assert stage.rewards is not None
    check_rewards(f"{path}.rewards", stage.rewards)
    algorithm, below = stage.algorithm, f"{path}.algorithm"
    if stage.trainer.precision == "16-mixed":
        raise ConfigError(
            f"{path}.trainer.precision is 16-mixed, whose scaled gradients an rl stage would clip; take bf16-mixed"
        )
    size, num_minibatches = stage.data.batch_size, algorithm.update.num_minibatches
    rule = f"a divisor of data.batch_size {size}"
    require(size % num_minibatches == 0, f"{below}.update.num_minibatches", num_minibatches, rule)
    _check_groups(below, algorithm, _limit(stage))
    _check_selection(below, algorithm, _limit(stage))
    if algorithm.critic is not None and algorithm.advantage is not None:
        raise ConfigError(f"{below} has both an advantage and a critic; set one of them to null")
    if algorithm.correction is None:
        rule = f"1, since without {below}.correction the policy's probabilities are those of all tokens"
        require(stage.sampling.top_p == 1, f"{path}.sampling.top_p", stage.sampling.top_p, rule)


def _check_groups(path: str, algorithm: AlgorithmSettings, limit: tuple[float, str]) -> None:
    """Refuses groups that are too small for their estimator, and phases that are not in order."""
    least, why = (2, ", so that completions can be compared") if algorithm.critic is None else (1, "")
    size = algorithm.group_size
    require(size >= least, f"{path}.group_size", size, f"at least {least}{why}")
    before, (num_steps, steps) = 0, limit
    for name, phase in algorithm.phases.items():
        rule = f"more than {before} and less than {steps}: phases come one after the other"
        require(before < phase.after < num_steps, f"{path}.phases.{name}.after", phase.after, rule)
        size = phase.group_size
        require(size is None or size >= least, f"{path}.phases.{name}.group_size", size, f"null or at least {least}")
        before = phase.after


def _check_selection(path: str, algorithm: AlgorithmSettings, limit: tuple[float, str]) -> None:
    if algorithm.resample is not None and algorithm.critic is not None:
        raise ConfigError(
            f"{path} has both resample and a critic; completions are drawn by advantages of their own, and a critic's "
            "are of tokens, so set one of them to null"
        )
    if algorithm.router is not None:
        for name in ("critic", "resample"):
            rule = f"null: prompts that {path}.router sends to SFT have no completions to learn from"
            require(getattr(algorithm, name) is None, f"{path}.{name}", "set", rule)
    most, after, (num_steps, steps) = algorithm.max_samplings, algorithm.select_after, limit
    require(0 <= after < num_steps, f"{path}.select_after", after, f"at least 0 and less than {steps}")
    for name, value, neutral in (("max_samplings", most, 1), ("select_after", after, 0)):
        if algorithm.select is None and value != neutral:
            raise ConfigError(
                f"{path}.{name} is {value}, and nothing is selected; set {path}.select, or {path}.{name}={neutral}"
            )


def check_rewards(path: str, rewards: RewardSettings) -> None:
    """Refuses components without a weight and weights without a component; `path` is the key of the rewards.

    Raises:
        ConfigError: Naming the component.
    """
    whole = [name for name, node in rewards.components.items() if isinstance(node, Mapping) and "_target_" in node]
    for name, node in rewards.components.items():
        hint = offered(nearest(name, whole)) if nearest(name, whole) else ""
        require(name in whole, f"{path}.components.{name}", node, f"a node with a _target_{hint}")
    for name, weight in rewards.weights.items():
        if name not in rewards.components:
            raise ConfigError(f"{path}.weights.{name}: weighs no component{did_you_mean(name, rewards.components)}")
        rule = f"a finite number of float32, at most {MAX_WEIGHT} in size"
        require(abs(weight) <= MAX_WEIGHT, f"{path}.weights.{name}", weight, rule)
    for name in rewards.components:
        if name not in rewards.weights:
            raise ConfigError(f"{path}.components.{name}: has no weight; give it one by +{path}.weights.{name}=1.0")
    one_of(rewards.pass_component, f"{path}.pass_component", rewards.components)


def _check_use_of_run(path: str, stage: StageSettings, config: RunSettings) -> None:
    """Refuses a stage that needs data or evaluation sets that the run lacks; metrics are checked later."""
    for each in stage.evaluation_sets or ():
        one_of(each, f"{path}.evaluation_sets", config.evaluation.sets)
    balance, data = stage.data.balance, config.dataset(stage.data.dataset)
    labels = f"{data_key(stage.data.dataset)}.labels"
    require(balance is None or data.labels, f"{path}.data.balance", balance, f"null if {labels} is empty")
    if stage.validation_decides and (stage.validate_every is None or data.validation is None):
        key, needs = data_key(stage.data.dataset), "stop_when" if stage.stop_when is not None else "keep_best"
        raise ConfigError(f"{path}.{needs} needs validations; set {path}.validate_every and {key}.validation")
    for name, bound in (("stop_when", stage.stop_when), ("gate", stage.gate)):
        if bound is not None and bound.at_least is None and bound.at_most is None:
            given = f"{path}.{name}"
            raise ConfigError(f"{given} has neither at_least nor at_most; give one, for example {given}.at_least=0.5")
    most, steps = _limit(stage)
    valid = 0 <= stage.cooldown_steps < most
    require(valid, f"{path}.cooldown_steps", stage.cooldown_steps, f"at least 0 and less than {steps}")
    if stage.cooldown_steps and stage.stop_when is None:
        raise ConfigError(f"{path}.cooldown_steps is {stage.cooldown_steps} without stop_when; set {path}.stop_when")
