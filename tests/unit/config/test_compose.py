"""A configuration is refused in one sentence with the key, the value and the nearest valid choice."""

import re

import pytest
from omegaconf import OmegaConf

from lightning_mmrl.config.compose import compose, compose_tree
from lightning_mmrl.config.folders import configs_dir, groups, options
from lightning_mmrl.config.specs import stage_specs
from lightning_mmrl.config.validate import validated
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.settings.data import ABLATIONS

LIST = "must be a list, such as"

SPELLING = {
    "sede=1": "sede: unknown key; did you mean 'seed'?",
    "+sede=1": "sede: unknown key; did you mean 'seed'?",
    "modle=tiny_omni": "modle: unknown key; did you mean 'model'?",
    "stages.raeson.num_steps=1": "stages.raeson: unknown name; did you mean 'reason'?, or add one by",
    "stages.base.num_steps=1": "stages.base: unknown name; known are cold_start, reason; or add one by",
    "+stages.raeson.num_steps=1": "stages.raeson: has no kind; did you mean 'reason'?",
    "stages.reason.optimzer.lr=1": "stages.reason.optimzer: unknown key; did you mean 'optimizer'?",
    "+stages.reason.algoritm.group_size=4": "stages.reason.algoritm: unknown key; did you mean 'algorithm'?",
    "stages.reason.optimizer.lrr=1": "did you mean 'lr'?, or add a parameter of the _target_ by +stages.",
    "data.media.max_pixels=9": "data.media.max_pixels: is not set in this composition; add it by +data.",
    "+seed=1": "seed: is there already; change it without the plus: seed=...",
    "~sede": "~sede: unknown key, so it cannot be removed; did you mean 'seed'?",
    "~seed": "model.checkpoint: refers to ${seed}, which is not set; set seed",
    "~debug=fast": "~debug: is not chosen in this composition",
    # groups and options
    "expermient=quickstart": "expermient: unknown key; did you mean 'experiment'?",
    "+expermient=quickstart": "expermient: unknown key; did you mean 'experiment'?",
    "algorithm@stages.raeson=rloo": "there is nothing to override; did you mean 'algorithm@stages.reason'?",
    "algorithm@stages.cold_start=rloo": "there is nothing to override; did you mean 'algorithm@stages.reason'?",
    "algorithm@stages.reason=rlo": "algorithm=rlo: no such option; did you mean 'rloo'?",
    "algoritm@stages.reason=rloo": "there is no group 'algoritm'; did you mean 'algorithm'?",
    "algorithm=rloo": "algorithm: this composition has 'algorithm@stages.reason' to override",
    "stage@stages.reason=tiny/reasn": "stage=tiny/reasn: no such option; did you mean 'tiny/reason'?",
    "+model=tiny_omni": "model: takes one option, without a plus; write model=NAME",
    "++model=tiny_omni": "++model=tiny_omni: an option cannot be forced; write model=tiny_omni",
    "+experiment=quickstart": "experiment: takes one option, without a plus; write experiment=NAME",
    "debug=null": "debug=null: debug needs the name of an option; known are fast, overfit",
    "hydra/launcher=x": "hydra/launcher: is refused; of Hydra's own keys hydra.sweeper.params alone can be set",
    # right words in the wrong place
    "lr=1": "did you mean 'stages.cold_start.optimizer.lr' or 'stages.reason.optimizer.lr'?",
    "stages.reason.lr=1": "stages.reason.lr: unknown key; did you mean 'stages.reason.optimizer.lr'?",
    "+stages.reason.lr=1": "stages.reason.lr: unknown key; did you mean 'stages.reason.optimizer.lr'?",
    "group_size=4": "group_size: unknown key; did you mean 'stages.reason.algorithm.group_size'?",
    "stages.reason.group_size=4": "did you mean 'stages.reason.algorithm.group_size'?",
    "reason.num_steps=4": "reason: unknown key; did you mean 'stages.reason'?",
    "stages.reason.data.sources={a: {manifest: x}}": "unknown name; known are none; or add one by",
    "model=tiny_omi": "model=tiny_omi: no such option; did you mean 'tiny_omni'?",
    "trainer=gpuu": "trainer=gpuu: no such option; known are auto, cpu",
    "experiment=quickstat": "experiment=quickstat: no such option; did you mean 'quickstart'?",
    "data=emotions_jsonl": "data.root: has no value; set it, for example data.root=...",
    "run_name=???": "run_name: has no value",
    "foo": "'foo' is not an override; write KEY=VALUE",
    "a=[1": """'a=[1' is not an override; write KEY=VALUE, close every bracket and quote""",
    "run_name=a\u00e9": """twice, for the shell and for Hydra: 'run_name="a\u00e9"'""",
    "seed='1": "is not an override; write KEY=VALUE, close every bracket and quote",
    "=1": "'=1' has no key; write KEY=VALUE",
    "seed=1,2": """seed=1,2: is ambiguous; write seed=[1,2] for a list, 'seed="1,2"' for one text, or""",
    # names of one's own
    "+datasets.dots.limit=1": "datasets.dots: has no module; a dataset of your own is taken from a file, for example",
    "+stages.reason.rewards.components.labl.labels=1": "it must be a node with a _target_; did you mean 'label'?",
    # values of another form
    "stages.reason=[]": "stages.reason is []; it must be a group of keys",
    "data.labels={a: 1}": "data.labels is {a: 1}; it must be a list, such as data.labels=[...]",
    "model=5": "model=5: model needs the name of an option",
    "+reflection@stages.cold_start=usual": "stages.cold_start.reflection_words: belongs to rl stages",
    "stages.reason.reflection_words=[wait,' ']": "stages.reason.reflection_words is",
    "+algorithm@stages.cold_start=rloo": "stages.cold_start.algorithm: belongs to rl stages, and stages.cold_start",
}

VALUES = {
    # types
    "seed=abc": "seed is abc; it must be a whole number",
    "seed=[1]": "seed is [1]; it must be a whole number",
    "trainer.devices=[0]": "trainer.devices is [0]; it must be a whole number",
    "stages.reason.num_steps=2.5": "stages.reason.num_steps is 2.5; it must be a whole number",
    "stages.reason.num_steps=null": "stages.reason has neither num_steps nor num_epochs; give one",
    "stages.reason.max_grad_norm=much": "stages.reason.max_grad_norm is much; it must be a number",
    "stages.reason=null": "stages.reason is null; it must be a group of keys",
    "stages.reason=5": "stages.reason is 5; it must be a group of keys",
    "stages.reason.data=5": "stages.reason.data is 5; it must be a group of keys",
    "evaluation.sets.test=null": "evaluation.sets.test.manifest is null; it must be text",
    "order=reason": "order is reason; it must be a list",
    "order=[{a: 1}]": "order is [{'a': 1}]; it must be a list of plain values",
    "data.labels=happy": "data.labels is happy; it must be a list",
    "seed=${nothing}": "seed: refers to ${nothing}, which does not exist; known are",
    "seed=${sede}": "seed: refers to ${sede}, which does not exist; did you mean 'seed'?",
    "run_name=${nothing:1}": "run_name: Unsupported interpolation type nothing; correct the ${...} in its value",
    # targets
    "stages.reason.module._target_=os.system": "'os.system', which is no stage module; the nearest one is",
    "stages.reason.optimizer=5": "stages.reason.optimizer is 5; it must be a node with a _target_",
    "stages.reason.rewards.components.label=5": ("rewards.components.label is 5; it must be a node with a _target_"),
    "model.family.encoder=null": "model.family.encoder is None; it must be a node with a _target_",
    "model.family.encodr.x=1": "model.family.encodr: unknown key; did you mean 'encoder'?",
    "data.build=5": "data.build is 5; it must be null or a node with a _target_",
    "stages.reason.algorithm.loss=5": "stages.reason.algorithm.loss is 5; it must be null or a node with a _target_",
    # order
    "order=[]": "order is empty; name at least one stage",
    "order=[cold_start,raeson]": "order[1]: unknown stage 'raeson'; stages defines cold_start, reason",
    "order=[reason,reason]": "order[1]: stage 'reason' appears twice",
    "stages.cold_start.start_from=reason": "start_from is 'reason', which comes later in the order; choose one of base",
    # datasets
    "stages.reason.data.dataset=dots": "stages.reason.data.dataset is 'dots', which is no choice; known are none",
    "evaluation.sets.test={manifest: test.jsonl, dataset: dots}": "sets.test.dataset is 'dots', which is no choice;",
    # values
    "run_name=a/../b": "run_name is a/../b; it must be letters, digits",
    "run_name=/a": "run_name is /a; it must be letters, digits",
    "run_name=..": "run_name is ..; it must be",
    "model.dtype=float16": "model.dtype is 'float16', which is no choice; did you mean 'bfloat16'",
    "model.build=null": "model.checkpoint is runs/models/tiny_omni-seed0-{build}, and model.build is null; name a",
    "model.position_rule=vllm": "model.position_rule is 'vllm', which is no choice; known are previous_maximum, tra",
    "model.audio_in_video=interleave": "model.audio_in_video is 'interleave', which is no choice; did you mean 'inte",
    "model.feature_cache={directory: x}": "model.feature_cache is set, and no stage freezes a media tower with its",
    "model.feature_cache={max_bytes: 1}": "model.feature_cache.directory: has no value; set it",
    "model.feature_cache={directory: ''}": "model.feature_cache.directory is ''; it must be a name or path",
    "model.feature_cache={directory: x, max_bytes: 0}": "model.feature_cache.max_bytes is 0; it must be at least 1",
    "model.feature_cache={directry: x}": "model.feature_cache.directry: unknown key; did you mean 'directory'?",
    "data.media.num_frames=1": "data.media.num_frames is 1; it must be at least 2",
    "data.labels=[]": "labels is empty",
    "prompt.suffix='<video>'": "prompt.suffix holds the media tag <video>",
    "trainer.devices=0": "trainer.devices is 0; it must be at least 1",
    "evaluation.batch_size=0": "evaluation.batch_size is 0; it must be at least 1",
    "evaluation.num_resamples=0": "evaluation.num_resamples is 0; it must be at least 1",
    "evaluation.ablations=[slient]": "evaluation.ablations is 'slient', which is no choice; did you mean 'silent'?",
    "evaluation.ablation_stages=some": "evaluation.ablation_stages is 'some', which is no choice; known are all, last",
    "stages.reason.kind=ppo": "stages.reason.kind is 'ppo', which is no choice; did you mean 'dpo'?",
    "stages.reason.num_steps=0": "stages.reason.num_steps is 0; it must be at least 1",
    "stages.reason.data.batch_size=0": "stages.reason.data.batch_size is 0; it must be at least 1",
    "stages.reason.data.limit=0": "stages.reason.data.limit is 0; it must be at least 1",
    "stages.reason.max_grad_norm=nan": "stages.reason.max_grad_norm is nan; it must be above 0",
    "stages.cold_start.data.modality_dropout.silent=1.5": "modality_dropout is 1.5 + 0.0; it must be probabilities",
    "stages.cold_start.data.modality_dropout={silent: 0.6, blank: 0.6}": "modality_dropout is 0.6 + 0.6; it must be",
    "stages.reason.validate_every=0": "validate_every is 0; it must be null or between 1 and num_steps 250",
    "stages.reason.algorithm=null": "stages.reason.algorithm: is missing; an rl stage needs it",
    "stages.reason.algorithm.group_size=1": "stages.reason.algorithm.group_size is 1; it must be at least 2",
    "stages.reason.algorithm.update.num_minibatches=5": "num_minibatches is 5; it must be a divisor of data.batch_size",
    "stages.reason.algorithm.update.num_minibatches=0": "num_minibatches is 0; it must be at least 1",
    "stages.reason.algorithm.update.num_epochs=0": "algorithm.update.num_epochs is 0; it must be at least 1",
    "stages.reason.sampling.temperature=0": "stages.reason.sampling.temperature is 0.0; it must be above 0",
    "stages.reason.sampling.top_p=0.9": "stages.reason.sampling.top_p is 0.9; it must be 1, since without",
    "stages.reason.sampling.max_new_tokens=0": "stages.reason.sampling.max_new_tokens is 0; it must be at least 1",
    "stages.reason.rewards.weights.labl=1": "rewards.weights.labl: weighs no component; did you mean 'label'?",
    "stages.reason.rewards.weights.label=nan": "rewards.weights.label is nan; it must be a finite number of float32",
    "stages.reason.rewards.weights.label=inf": "rewards.weights.label is inf; it must be a finite number of float32",
    "stages.reason.rewards.weights.label=1e39": "rewards.weights.label is 1e+39; it must be a finite number of float32",
    "stages.reason.rewards.weights.label=-1e39": "weights.label is -1e+39; it must be a finite number of float32",
    "stages.reason.optimizer.lr=nan": "stages.reason.optimizer.lr is nan; it must be a finite number of at least 0",
    "stages.cold_start.optimizer.lr=inf": "cold_start.optimizer.lr is inf; it must be a finite number of at least 0",
    "stages.reason.optimizer.lr=-1e-3": "optimizer.lr is -0.001; it must be a finite number of at least 0",
    "stages.reason.optimizer.lr=fast": "optimizer.lr is fast; it must be a finite number of at least 0",
    "stages.reason.optimizer.lr=null": "optimizer.lr is None; it must be a finite number of at least 0",
    "stages.reason.optimizer.weight_decay=.inf": "stages.reason.optimizer.weight_decay is inf; it must be a finite",
    "stages.reason.rewards.components.style={_target_: lightning_mmrl.x}": (
        "rewards.components.style: has no weight; give it"
    ),
    "stages.reason.rewards.num_workers=-1": "rewards.num_workers is -1; it must be at least 0",
    "stages.reason.rewards.deadline_s=0": "rewards.deadline_s is 0.0; it must be above 0 and finite",
    "stages.reason.rewards.soft_deadline_s=0": "rewards.soft_deadline_s is 0.0; it must be above 0 and finite",
    "stages.reason.rewards.memory_limit_mb=0": "rewards.memory_limit_mb is 0; it must be at least 1",
    "stages.reason.rewards.max_invalid_rate=1.5": "rewards.max_invalid_rate is 1.5; it must be from 0 to 1",
    "stages.reason.sampling.temperature=inf": "sampling.temperature is inf; it must be above 0 and finite",
    "stages.reason.freeze=[vison]": "stages.reason.freeze is 'vison', which is no choice; did you mean 'vision'?",
    "stages.reason.freeze=[vision,audio,text]": "freeze is ['vision', 'audio', 'text']; it must be fewer groups",
    "stages.cold_start.sampling={temperature: 1}": "stages.cold_start.sampling: belongs to rl stages",
    # adapters
    "stages.reason.adapter=5": "stages.reason.adapter is 5; it must be a group of keys",
    "stages.reason.adapter={rank: 8}": "stages.reason.adapter.rank: unknown key; known are alpha, dropout, groups, r",
    "stages.reason.adapter={r: 0}": "stages.reason.adapter.r is 0; it must be at least 1",
    "stages.reason.adapter={r: 2.5}": "stages.reason.adapter.r is 2.5; it must be a whole number",
    "stages.reason.adapter={alpha: 0}": "stages.reason.adapter.alpha is 0; it must be at least 1",
    "stages.reason.adapter={dropout: 1}": "stages.reason.adapter.dropout is 1.0; it must be at least 0 and below 1",
    "stages.reason.adapter={dropout: -0.1}": "stages.reason.adapter.dropout is -0.1; it must be at least 0",
    "stages.reason.adapter={dropout: nan}": "stages.reason.adapter.dropout is nan; it must be at least 0",
    "stages.reason.adapter={targets: []}": "stages.reason.adapter.targets is []; it must be all, attention, mlp or",
    "stages.reason.adapter={targets: null}": "stages.reason.adapter.targets is None; it must be all, attention, mlp",
    "stages.reason.adapter={targets: [1]}": "stages.reason.adapter.targets is [1]; it must be all, attention, mlp",
    "stages.reason.adapter={targets: {a: 1}}": "stages.reason.adapter.targets is {'a': 1}; it must be all, attention",
    "stages.reason.adapter={groups: []}": "adapter.groups is []; it must be at least one of vision, audio, text",
    "stages.reason.adapter={groups: text}": "stages.reason.adapter.groups is text; it must be a list",
    "stages.reason.adapter={groups: [txt]}": "adapter.groups is 'txt', which is no choice; did you mean 'text'?",
    # bounds
    "stages.reason.gate={metric: test/uarr, at_least: 0.5}": "reason.gate.metric is 'test/uarr', which is no choice;",
    "stages.reason.gate={metric: ood/recall/hapy, at_least: 0.5}": "did you mean 'ood/recall/happy'?",
    "stages.reason.gate={metric: test/uar}": "stages.reason.gate has neither at_least nor at_most; give one",
    "stages.reason.gate={at_least: 0.5}": "stages.reason.gate.metric: has no value; set it",
    "stages.reason.gate={metric: test/uar, at_least: nan}": "stages.reason.gate.at_least is nan; it must be a finite",
    "stages.reason.stop_when={metric: test/uar, at_least: 0.5}": "reason.stop_when.metric is 'test/uar', which is no",
    "stages.reason.stop_when={metric: validation/uar}": "stages.reason.stop_when has neither at_least nor at_most",
    "stages.cold_start.stop_when={metric: validation/uar, at_least: 0.5}": "cold_start.stop_when needs validations;",
    # data
    "stages.reason.data.manifest=null": "stages.reason.data has neither of manifest and sources; give a manifest",
    "stages.reason.data.sources={a: {manifest: a.jsonl}}": "stages.reason.data has both of manifest and sources",
    "stages.reason.data={manifest: null, sources: {a: {manifest: a, weight: 0}}}": "sources.a.weight is 0.0; it must",
    "stages.reason.data={manifest: null, sources: {a: {manifest: a, limit: 0}}}": "sources.a.limit is 0; it must be",
    "stages.reason.data={manifest: null, sources: {a: {manifst: a}}}": "sources.a.manifst: unknown key; did you mean",
    "stages.reason.data={manifest: null, sources: {a: {}}}": "sources.a has neither of manifest and stage; give a",
    "stages.reason.data.balance=lable": "stages.reason.data.balance is 'lable', which is no choice; did you mean",
    "data.media.decode_deadline_s=inf": "data.media.decode_deadline_s is inf; it must be above 0 and finite",
    "data.validation=''": "data.validation is ''; it must be a name or path",
    "output_dir=''": "output_dir is ''; it must be a name or path",
    # loggers, devices, sets, names
    "tracking.loggers=[cvs]": "tracking.loggers is 'cvs', which is no choice; did you mean 'csv'?",
    "tracking.loggers=csv": "tracking.loggers is csv; it must be a list",
    "trainer.accelerator=cud": "trainer.accelerator is 'cud', which is no choice; did you mean 'cuda'?",
    "trainer.precision=bf16": "trainer.precision is 'bf16', which is no choice; known are 16-mixed, 32-true, 64-true",
    "trainer.precision=bf16-true": "trainer.precision is bf16-true, which would round rotary angles and rewards",
    "trainer.precision=16-true": "half precision too; take 16-mixed, which keeps them and weights that train in float",
    "stages.reason.trainer.precision=bf16-true": "stages.reason.trainer.precision is bf16-true, which would round",
    "trainer.max_steps=0": "trainer.max_steps is 0; it must be at least 1",
    "stages.reason.trainer.accelerator=gpuu": "reason.trainer.accelerator is 'gpuu', which is no choice; did you",
    "stages.reason.trainer.devices=0": "stages.reason.trainer.devices is 0; it must be at least 1",
    "seed=99999999999999999999": "seed is 99999999999999999999; it must be from 0 to 2147483647",
    "seed=-1": "seed is -1; it must be from 0 to",
    "evaluation.sets.a/b=x": "a name in evaluation.sets is a/b; it must be letters",
    "evaluation.sets.validation=x.jsonl": "a name in evaluation.sets is validation; it must be another one",
    "evaluation.sets.test-silent=x.jsonl": "is test-silent; it must be another one: the silent variant of set test has",
    "evaluation.sets.ood-blank=x.jsonl": "is ood-blank; it must be another one: the blank variant of set ood has",
    "trainer.devices=3": "data.batch_size is 32; it must be a multiple of 3 (trainer.devices x trainer.num_nodes)",
    "stages.reason.trainer.devices=4": "stages.reason.trainer.devices is 4; it must be trainer.devices, which is 1",
    "stages.reason.algorithm.phases={long: {after: 0}}": "algorithm.phases.long.after is 0; it must be more than 0",
    "stages.reason.algorithm.phases={a: {after: 20}, b: {after: 20}}": "phases.b.after is 20; it must be more than 20",
    "stages.reason.algorithm.phases={x: {after: 9, group_size: 1}}": "phases.x.group_size is 1; it must be null or",
    "stages.reason.algorithm.phases={x: {after: 9, temperature: 0}}": "phases.x.temperature is 0.0; it must be above 0",
    "trainer.strategy=fsdp": "trainer.strategy is 'fsdp', which is no choice",
    "trainer.cpu_offload=true": "trainer.cpu_offload is true; it must be false unless strategy is fsdp2",
    "trainer.precision=16-mixed": "stages.reason.trainer.precision is 16-mixed, whose scaled gradients an rl stage",
    "stages.reason.cooldown_steps=-1": "cooldown_steps is -1; it must be at least 0 and less than num_steps 250",
}


@pytest.mark.parametrize("override", SPELLING)
def test_a_bad_override_is_refused_in_one_sentence(override):
    with pytest.raises(ConfigError, match=re.escape(SPELLING[override])) as caught:
        compose([override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("override", VALUES)
def test_a_bad_value_is_refused_in_one_sentence(override, changed):
    with pytest.raises(ConfigError, match=re.escape(VALUES[override])) as caught:
        changed(override)
    assert "\n" not in str(caught.value)


def test_a_key_that_hydra_let_pass_is_refused_with_its_full_path(changed):
    with pytest.raises(ConfigError, match=r"^stages\.reason\.sampling\.tempurature: .*did you mean 'temperature'"):
        changed("stages.reason.sampling.tempurature=1")


def test_neighbors_of_what_is_refused_are_not(changed):
    config = changed("stages.cold_start.trainer.precision=16-mixed", "evaluation.sets.loud-silent=x.jsonl")
    resting = changed("stages.reason.optimizer.lr=0", "stages.reason.rewards.weights.label=-3.4e38").stages["reason"]
    assert (resting.optimizer["lr"], resting.rewards.weights["label"]) == (0, -3.4e38)
    assert config.stages["cold_start"].trainer.precision == "16-mixed"
    assert "loud-silent" in config.evaluation.sets


def test_weights_are_not_frozen_and_adapted_at_once(changed):
    frozen, adapter = "stages.reason.freeze=[text]", "stages.reason.adapter"
    sentence = "stages.reason.adapter.groups has text, and stages.reason.freeze has text; take text out of freeze"
    for value in ("{r: 8}", "{groups: [vision, text]}"):
        with pytest.raises(ConfigError, match=re.escape(sentence)):
            changed(frozen, f"{adapter}={value}")
    assert changed(frozen, f"{adapter}={{groups: [vision, audio]}}").stages["reason"].adapter.groups
    assert changed("stages.reason.freeze=[vision, audio]", f"{adapter}={{r: 8}}").stages["reason"].adapter.r == 8


def test_parts_of_a_tower_are_frozen_apart(changed):
    cache = "model.feature_cache={directory: x}"
    apart = "stages.reason.freeze=[vision_tower,audio_tower"
    assert changed(f"{apart}]").stages["reason"].freeze == ["vision_tower", "audio_tower"]
    with pytest.raises(ConfigError, match="no stage freezes a media tower with its projector; add vision"):
        changed(cache, f"{apart}]")
    assert changed(cache, f"{apart},projector]").model.feature_cache.directory == "x"
    with pytest.raises(ConfigError, match="so that something trains"):
        changed(f"{apart},projector,text]")
    with pytest.raises(ConfigError, match=r"adapter\.groups has vision, and .*freeze has vision_tower; take"):
        changed(f"{apart}]", "stages.reason.adapter={groups: [vision]}")
    with pytest.raises(ConfigError, match=r"freeze is 'projektor', .* did you mean 'projector'"):
        changed("stages.reason.freeze=[projektor]")


def test_an_adapter_freezes_the_towers_that_it_is_not_within(changed):
    cache = "model.feature_cache={directory: x}"
    assert changed(cache, "stages.reason.adapter={r: 8}").model.feature_cache.directory == "x"
    assert changed(cache, "stages.reason.adapter={groups: [audio, text]}").model.feature_cache.directory == "x"
    with pytest.raises(ConfigError, match="no stage freezes a media tower with its projector; add vision"):
        changed(cache, "stages.reason.adapter={groups: [vision, audio]}")


GATED = ("stages.reason.gate={metric: test/uar, at_least: 0.5}",)
ENDING = ("stages.reason.stop_when={metric: validation/uar, at_least: 0.5}", "stages.reason.cooldown_steps=5")


def test_a_misspelled_dataset_is_told_the_nearest_one():
    with pytest.raises(
        ConfigError, match=r"^datasets.dost: has no module; did you mean 'dots'\?; a dataset of your own"
    ):
        compose(["+data@datasets.dots=counting_synth", "+datasets.dost.limit=1"])


@pytest.mark.parametrize("debug", ["trial=short", "trainer.max_steps=2"])
@pytest.mark.parametrize("bounds", [GATED, ENDING])
def test_a_debug_run_knows_no_gate_and_says_so(default_tree, debug, bounds):
    said = []
    config = validated(OmegaConf.merge(default_tree, OmegaConf.from_dotlist([debug, *bounds])), said.append)
    stage = config.stages["reason"]
    assert (stage.gate, stage.stop_when, stage.cooldown_steps) == (None, None, 0)
    assert said == ["stages.reason: gate and stop_when are dropped, since this is a debug run"]


def test_a_debug_run_keeps_wrong_answers_to_learn_from_and_says_so():
    def keep(*overrides, said=None):
        drawing = ["+stage@stages.draw=sample", "order=[draw]", "stages.draw.keep.max_pass_rate=0.5", *overrides]
        return validated(compose_tree(drawing), [].append if said is None else said.append).stages["draw"].keep

    said = []
    short = keep("debug=fast", said=said)
    assert (short.wrong, short.truncated, short.max_pass_rate) == (True, True, None)
    assert said == ["stages.draw: wrong answers are kept too, since this is a debug run"]
    whole = keep()
    assert (whole.wrong, whole.truncated, whole.max_pass_rate) == (False, False, 0.5)


def test_other_runs_keep_their_bounds(changed):
    stage = changed(*GATED, *ENDING).stages["reason"]
    assert (stage.gate.at_least, stage.stop_when.at_least, stage.cooldown_steps) == (0.5, 0.5, 5)


def test_the_name_of_a_trial_is_put_before_the_runs_once(changed):
    config = changed("trial=short", "run_name=mine")
    assert (config.run_name, config.trial) == ("short-mine", None)
    assert validated(OmegaConf.structured(config)).run_name == "short-mine"
    with pytest.raises(ConfigError, match="trial is a/b; it must be letters"):
        changed("trial=a/b", "run_name=mine")


def test_stages_that_do_not_run_are_not_checked(changed):
    config = changed("order=[cold_start]", "stages.reason.algorithm.group_size=1")
    assert config.order == ["cold_start"]


def test_values_arrive_typed_and_interpolated():
    config = compose(
        ["seed=3", "output_dir=/x", "stages.reason.optimizer.lr=1e-3", "+stages.reason.optimizer.fused=true"]
    )
    assert config.model.build["seed"] == 3
    assert config.data.media.cache_dir == "/x/cache"
    assert config.stages["reason"].optimizer["lr"] == 1e-3
    assert config.stages["reason"].optimizer["fused"] is True
    assert config.stages["reason"].algorithm.group_size == 8
    assert config.stages["cold_start"].algorithm is None


def test_a_users_folder_adds_options_to_the_groups(tmp_path):
    (tmp_path / "experiment").mkdir()
    content = "# @package _global_\nrun_name: mine\nstages: {reason: {num_steps: 7, validate_every: 7}}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(content)
    config = compose(["experiment=mine"], config_dir=tmp_path)
    assert (config.run_name, config.stages["reason"].num_steps) == ("mine", 7)
    with pytest.raises(ConfigError, match=r"experiment=mime: no such option; did you mean 'mine'?"):
        compose(["experiment=mime"], config_dir=tmp_path)


OWN = {
    "experiment/own_order.yaml": """# @package _global_
defaults:
  - /stage@stages.describe: captions
  - _self_
  - override /curriculum: three
  - override /algorithm@stages.explore: rloo
run_name: own_order
""",
    "curriculum/three.yaml": """# @package _global_
defaults:
  - /stage@stages.explore: rl
  - /stage@stages.settle: sft
order: [explore, describe, settle]
""",
    "stage/captions.yaml": "defaults: [sft, _self_]\nstart_from: base\nnum_steps: 7\ndata: {manifest: new.jsonl}\n",
    "data/own.yaml": "defaults: [emotions_jsonl, _self_]\nroot: /clips\nlabels: [happy, sad]\n",
}


@pytest.fixture
def own(tmp_path):
    """A user's own folder: three stages in an own order, one of them of an own kind, RLOO in another."""
    for name, text in OWN.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_users_folder_holds_a_curriculum_of_its_own(own):
    config = compose(["experiment=own_order", "data=own"], config_dir=own)
    assert [(spec.name, spec.settings.kind, spec.settings.start_from) for spec in stage_specs(config)] == [
        ("explore", "rl", "previous"),
        ("describe", "sft", "base"),
        ("settle", "sft", "previous"),
    ]
    assert config.stages["explore"].module["_target_"].endswith("RLOOModule")
    assert (config.stages["describe"].num_steps, config.stages["describe"].data.manifest) == (7, "new.jsonl")
    assert (config.data.root, config.data.labels) == ("/clips", ["happy", "sad"])


def test_misspelled_options_of_a_users_folder_get_its_names(own):
    for override, sentence in {
        "data=onw": "data=onw: no such option; did you mean 'own'?",
        "+stage@stages.x=caption": "stage=caption: no such option; did you mean 'captions'?",
        "experiment=own_oder": "did you mean 'own_order'?",
    }.items():
        with pytest.raises(ConfigError, match=re.escape(sentence)):
            compose([override], config_dir=own)


BAD_FILES = {
    "stages: {reason: {num_stesp: 5}}": "stages.reason.num_stesp: unknown key; did you mean 'num_steps'?",
    "stages: {raeson: {num_steps: 5}}": "stages.raeson: has no kind; did you mean 'reason'?",
    "run_nam: x": "run_nam: unknown key; did you mean 'run_name'?",
    "stages:\n\treason: 5": "bad.yaml:3: not valid YAML (found character '\\t' that cannot start any token)",
    "seed: [": "bad.yaml:3: not valid YAML",
    "defaults: [/stage@stages.base: rl]\norder: [base]": "order[0]: 'base' is a reserved name",
    "defaults: [override /modle: tiny_omni]": "did you mean 'model'?",
    "defaults: [override /model: tiny_omi]": "model=tiny_omi: no such option; did you mean 'tiny_omni'?",
    "defaults: [override /stage@stages.pretrain: sft]": "experiment=bad overrides stage@stages.pretrain: there is",
    "stages: {reason: {module: {_target_: os.system}}}": "stages.reason.module._target_ is 'os.system'",
    "stages: {'../x': {kind: sft}}": "a name in stages is ../x; it must be letters",
}


@pytest.mark.parametrize("text", BAD_FILES)
def test_a_bad_file_is_refused_in_one_sentence(text, tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "bad.yaml").write_text(f"# @package _global_\n{text}\n")
    with pytest.raises(ConfigError, match=re.escape(BAD_FILES[text])) as caught:
        compose(["experiment=bad"], config_dir=tmp_path)
    assert "\n" not in str(caught.value)


def test_options_are_listed_with_their_folders(own):
    assert {"sft", "rl", "tiny/reason"} < set(options("stage"))
    assert "captions" in options("stage", own)
    assert set(groups(own)) == set(groups())
    assert groups(own / "none") == groups()


def test_the_shipped_configs_are_found():
    assert (configs_dir() / "train.yaml").is_file()


@pytest.fixture
def digests(changed):
    return lambda *overrides: {spec.name: spec.digest for spec in stage_specs(changed(*overrides))}


PLAIN = {"cold_start", "reason"}
DFT = "lightning_mmrl.algorithms.losses.dft.DynamicFineTuning"
ROUTER = "stage.algorithm.router"


@pytest.mark.parametrize(
    ("override", "moved"),
    [
        ("stages.reason.num_steps=300", {"reason"}),
        ("stages.reason.optimizer.lr=1", {"reason"}),
        ("stages.cold_start.num_steps=300", PLAIN),  # the second stage starts from the first
        ("seed=1", PLAIN),
        ("prompt.suffix=now", PLAIN),
        ("data.media.num_frames=8", PLAIN),
        ("model.dtype=bfloat16", PLAIN),
        ("model.position_rule=transformers", PLAIN),
        ("model.audio_in_video=interleaved", PLAIN),
        ("trainer.precision=bf16-mixed", PLAIN),
        ("trainer.precision=32-true", set()),  # as for any float32 model without the key
        ("run_name=other", set()),
        ("tracking.uri=null", set()),
        ("evaluation.batch_size=8", set()),
        ("data.media.decode_workers=1", set()),
        ("stages.cold_start.tokens_per_microbatch=64", set()),
        ("stages.cold_start.pairs_per_microbatch=64", set()),
        ("stages.reason.algorithm.update.tokens_per_microbatch=64", {"reason"}),  # as in earlier versions
        ("stages.cold_start.mask_history=false", set()),
        ("stages.cold_start.mask_history=true", PLAIN),
        ("stages.cold_start.loss=null", set()),
        (f"stages.cold_start.loss={{_target_: {DFT}}}", PLAIN),
        ("stages.reason.algorithm.router=null", set()),
        ("stages.reason.algorithm.router={unsolved_at_most: 0.1}", {"reason"}),
    ],
)
def test_a_digest_is_of_what_decides_the_outcome_and_of_nothing_else(override, moved, digests):
    before, after = digests(), digests(override)
    assert {name for name in before if before[name] != after[name]} == moved


def test_keys_that_came_later_are_left_out_of_the_content_at_their_first_value(changed):
    """So stages that finished without the keys stay finished."""
    first, _ = stage_specs(changed())
    assert (
        not {"stage.mask_history", "stage.tokens_per_microbatch", "stage.pairs_per_microbatch"} & first.content.keys()
    )
    first, _ = stage_specs(changed("stages.cold_start.mask_history=true"))
    assert first.content["stage.mask_history"] is True
    plain, reason = stage_specs(changed())
    assert not {key for key in (*plain.content, *reason.content) if key.startswith(("stage.loss", ROUTER))}
    router = "stages.reason.algorithm.router={unsolved_at_most: 0.0}"
    plain, reason = stage_specs(changed(f"stages.cold_start.loss={{_target_: {DFT}}}", router))
    assert plain.content["stage.loss._target_"] == DFT
    assert reason.content[f"{ROUTER}.unsolved_at_most"] == 0.0


def test_an_rl_stage_has_no_keys_of_targets():
    for key in ("mask_history=true", "tokens_per_microbatch=64"):
        with pytest.raises(ConfigError, match=rf"^stages\.reason\.{key.partition('=')[0]}"):
            compose([f"+stages.reason.{key}"])


def test_a_stage_on_another_base_does_not_depend_on_the_one_before(digests):
    before = digests("stages.reason.start_from=base")
    after = digests("stages.reason.start_from=base", "stages.cold_start.num_steps=300")
    assert before["reason"] == after["reason"]
    assert before["cold_start"] != after["cold_start"]


def test_a_stage_that_moves_in_the_order_is_another_stage(digests):
    assert digests()["reason"] != digests("order=[reason]")["reason"]
    assert digests()["cold_start"] == digests("order=[cold_start]")["cold_start"]


def test_the_tree_is_the_one_hydra_prints():
    tree = compose_tree(["seed=5"])
    assert OmegaConf.select(tree, "seed") == 5
    assert "hydra" not in tree


MATH = "datasets.sums.task={_target_: lightning_mmrl.evaluation.tasks.mathematics.Mathematics}"


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["stages.reason.stop_when={metric: validation/accuracy, at_least: 0.5}", "datasets.sums.validation=null"],
            "set stages.reason.validate_every and datasets.sums.validation",
        ),
        (
            ["stages.reason.data.balance=label", "datasets.sums.labels=[]", MATH],
            "it must be null if datasets.sums.labels is empty",
        ),
    ],
)
def test_a_refusal_names_the_dataset_of_the_stage(overrides, sentence):
    given = ["+data@datasets.sums=arithmetic_synth", "+stages.reason.data.dataset=sums", *overrides]
    with pytest.raises(ConfigError) as error:
        compose(given)
    assert sentence in str(error.value)


def test_all_is_the_short_form_of_every_ablation_and_nothing_else_is():
    assert compose(["evaluation.ablations=all"]).evaluation.ablations == list(ABLATIONS)
    report = compose(["experiment=quickstart", "modality=with_conflicts"]).evaluation
    assert report.ablations == list(ABLATIONS)
    assert report.sets.keys() == {"test", "ood", "conflict"}
    assert compose(["experiment=quickstart"]).evaluation.ablations == ["silent", "blank"]
    with pytest.raises(ConfigError, match=r"evaluation\.ablations is silent; it must be a list of plain values"):
        compose(["evaluation.ablations=silent"])
