"""What a sample stage refuses, and how its place and its data decide what a run is."""

import pytest

from lightning_mmrl.config.compose import compose
from lightning_mmrl.config.specs import manifest_digests, stage_specs
from lightning_mmrl.curriculum.changes import describe_changes, same_content
from lightning_mmrl.errors import ConfigError

DRAW = ("order=[cold_start,draw,reason]", "+stage@stages.draw=sample")
READ = ("stages.reason.data.manifest=null", "+stages.reason.data.sources.own={stage: draw, artifact: own}")
OTHERS = "stages.draw.data.manifest=null"


def specs(*overrides):
    config = compose([*overrides])
    return {spec.name: spec for spec in stage_specs(config)}


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["+stages.draw.num_completion=4"], "stages.draw.num_completion: unknown key; did you mean 'num_completions'?"),
        (["+stages.draw.keep.max_per_promt=4"], "stages.draw.keep.max_per_promt: unknown key; did you mean"),
        (["stages.draw.keep.order=shortst"], "stages.draw.keep.order is 'shortst', .* did you mean 'shortest'?"),
        (["stages.draw.num_completions=0"], "stages.draw.num_completions is 0; it must be at least 1"),
        (["stages.draw.num_completions=x"], "stages.draw.num_completions is x; it must be a whole number"),
        (["stages.draw.rewards=null"], "stages.draw.rewards: is missing; a sample stage needs it, take it from"),
        (["stages.draw.sampling=null"], "stages.draw.sampling: is missing; a sample stage needs it"),
        (["stages.draw.rewards.pass_component=labl"], "pass_component is 'labl', which is no choice; did you mean"),
        (["stages.draw.data.balance=label"], "stages.draw.data.balance is label; it must be null"),
        (["stages.draw.data.modality_dropout.blank=0.5"], "modality_dropout.blank is 0.5; it must be 0"),
        (
            [OTHERS, "+stages.draw.data.sources.a={manifest: a.jsonl, weight: 2}"],
            "sources.a.weight is 2.0; it must be null",
        ),
        (
            [OTHERS, "+stages.draw.data.sources={a: {manifest: a.jsonl, weight: 1}, b: {manifest: b.jsonl}}"],
            "stages.draw.data.sources.b.weight is null, and other sources have a weight; give each source a weight",
        ),
        (
            [OTHERS, "+stages.draw.data.sources={a: {manifest: a.jsonl, root: x}, b: {manifest: b.jsonl, root: y}}"],
            "stages.draw.data.sources have media below x and y, and a stage that makes data has one media root; read",
        ),
        (["stages.draw.keep.min_tokens=9", "stages.draw.keep.max_tokens=3"], "min_tokens is 9; it must be at most"),
        (["stages.draw.rollout=vllm"], "stages.draw.rollout is vllm; it must be null or a node with a _target_"),
    ],
)
def test_a_value_that_cannot_work_is_refused_in_one_sentence(overrides, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        compose([*DRAW, *overrides])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("{artifact: own}", "sources.own has neither of manifest and stage; give a manifest, or a stage and its"),
        ("{stage: draw}", "sources.own has a stage and no artifact; set stages.reason.data.sources.own.artifact=own"),
        ("{manifest: a.jsonl, artifact: own}", "sources.own has an artifact and no stage; set .*sources.own.stage"),
        ("{manifest: a.jsonl, stage: draw, artifact: own}", "sources.own has both of manifest and stage"),
        ("{stage: draw, artifact: own, media_root: /clips}", "sources.own.media_root is /clips; it must be null"),
        ("{stage: draw, artifact: own, root: /clips}", "sources.own.root is /clips; it must be null"),
        ("{stage: draw, artifact: own, media_rot: /clips}", "media_rot: unknown key; did you mean 'media_root'?"),
        ("{stage: draw, artifact: rollouts}", "artifact is 'rollouts', which is no manifest but table; known are own"),
    ],
)
def test_a_source_that_is_no_edge_is_refused_in_one_sentence(source, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        compose([*DRAW, "stages.reason.data.manifest=null", f"+stages.reason.data.sources.own={source}"])
    assert "\n" not in str(caught.value)


def test_sources_may_have_one_media_root_in_several_folders():
    sources = "{a: {manifest: a.jsonl, root: x, media_root: z}, b: {manifest: b.jsonl, root: y, media_root: z}}"
    compose([*DRAW, OTHERS, f"+stages.draw.data.sources={sources}"])


def test_an_inserted_stage_changes_no_seed_content_or_digest_of_the_others():
    before, after = specs("order=[cold_start,reason]"), specs(*DRAW)
    for name, spec in before.items():
        assert (spec.seed, spec.content, spec.digest) == (after[name].seed, after[name].content, after[name].digest)
        assert spec.evaluation == after[name].evaluation
    last = specs("order=[cold_start,reason,draw]", "+stage@stages.draw=sample")
    assert last["draw"].seed == after["draw"].seed
    assert last["reason"].evaluation == before["reason"].evaluation  # the last stage that has weights to evaluate
    trained = specs("order=[warm,cold_start,reason]", "+stage@stages.warm=sft")  # the negative control
    assert trained["reason"].seed == before["reason"].seed + 1


def test_seeds_of_data_stages_differ_by_name_and_run():
    seeds = {specs(*DRAW)["draw"].seed, specs(*DRAW, "seed=1")["draw"].seed}
    more = specs("order=[cold_start,draw,draw_more]", "+stage@stages.draw=sample", "+stage@stages.draw_more=sample")
    assert len(seeds | {more["draw_more"].seed}) == 3


@pytest.mark.parametrize(
    "override",
    [
        "stages.draw.num_completions=4",
        "stages.draw.sampling.temperature=0.5",
        "stages.draw.keep.max_per_prompt=2",
        "stages.draw.rewards.max_invalid_rate=0.1",
        "stages.draw.data.limit=3",
        "stages.draw.checkpoint=Qwen/Base",
        "stages.draw.start_from=base",
    ],
)
def test_a_changed_key_of_the_sampler_is_a_change_of_it_and_of_what_builds_on_it(override):
    before, after = specs(*DRAW, *READ), specs(*DRAW, *READ, override)
    assert [name for name in before if not same_content(before[name].content, after[name].content)] == ["draw"]
    assert [name for name in before if before[name].digest != after[name].digest] == ["draw", "reason"]
    lines = describe_changes({name: spec.content for name, spec in before.items()}, list(after.values()))
    assert len(lines) == 1
    assert "draw" in lines[0]


def test_a_debug_run_samples_as_many_batches_as_it_trains_steps():
    config = compose([*DRAW, "trainer.max_steps=2", "stages.draw.data.batch_size=8"])
    assert config.stages["draw"].data.limit == 16
    config = compose([*DRAW, "trainer.max_steps=2", "stages.draw.data.batch_size=8", "stages.draw.data.limit=3"])
    assert config.stages["draw"].data.limit == 3


def test_the_manifest_of_another_stage_has_no_digest_before_it_is_made(tmp_path):
    config = compose([*DRAW, *READ, f"data.root={tmp_path}"])
    (tmp_path / "train.jsonl").write_text("{}\n")
    assert {name: list(found) for name, found in manifest_digests(config).items()} == {
        "cold_start": [],
        "draw": ["train.jsonl"],
        "reason": [],
    }


@pytest.mark.parametrize(("own", "sentence"), [("hf", None), ("vllm", "stages.draw.sampling.top_p is 0.5")])
def test_an_engine_of_its_own_is_held_to_what_it_can_do(own, sentence):
    overrides = [*DRAW, f"+rollout@stages.draw.rollout={own}", "stages.draw.sampling.top_p=0.5"]
    if sentence is None:
        compose(overrides)
        return
    with pytest.raises(ConfigError, match=sentence):
        compose(overrides)


def test_a_stage_that_samples_depends_on_its_engine_and_on_no_validation():
    before = specs(*DRAW)["draw"].content
    for same in ("data.validation_limit=5", "data.cue_lexicon=null", "data.validation=null"):
        assert same_content(before, specs(*DRAW, same, "stages.reason.validate_every=null")["draw"].content), same
    assert not same_content(before, specs(*DRAW, "rollout=vllm")["draw"].content)
    own = specs(*DRAW, "stages.draw.rollout={_target_: lightning_mmrl.rollout.hf.HFEngine.of}")["draw"].content
    assert same_content(before, own)


def test_a_checkpoint_leaves_no_other_starting_point():
    with pytest.raises(ConfigError, match=r"stages\.draw\.start_from is cold_start; it must be left out beside"):
        compose([*DRAW, "stages.draw.checkpoint=org/teacher", "stages.draw.start_from=cold_start"])
