"""Data are part of what a stage was run with: changed manifests are another configuration."""

import pytest
from omegaconf import OmegaConf
from published_files import LLAMA_FACTORY

from lightning_mmrl.config.compose import compose
from lightning_mmrl.config.epochs import with_steps
from lightning_mmrl.config.saved import saved_config
from lightning_mmrl.config.specs import base_evaluation, manifest_digests, stage_specs
from lightning_mmrl.curriculum.changes import describe_changes, same_content
from lightning_mmrl.errors import ConfigError


def specs(root, *overrides):
    config = compose([f"data.root={root}", *overrides])
    return stage_specs(config, manifest_digests(config))


def test_corrected_labels_are_a_change_of_the_stages_that_train_on_them(tmp_path):
    for name in ("train", "cold_start", "validation"):
        (tmp_path / f"{name}.jsonl").write_text("{}\n")
    before = {spec.name: spec.content for spec in specs(tmp_path)}
    assert describe_changes(before, specs(tmp_path)) == []
    (tmp_path / "validation.jsonl").write_text("changed")
    assert describe_changes(before, specs(tmp_path)) == []
    (tmp_path / "train.jsonl").write_text("changed")
    old, now = before["reason"]["data.train.jsonl"], specs(tmp_path)[1].content["data.train.jsonl"]
    assert old != now
    assert describe_changes(before, specs(tmp_path)) == [f"data.train.jsonl: {old} -> {now}"]


def test_validation_data_decide_where_they_end_a_stage(tmp_path):
    (tmp_path / "validation.jsonl").write_text("{}\n")
    stop = "++stages.reason.stop_when={metric: validation/uar, at_least: 0.9}"
    cold_start, reason = specs(tmp_path, stop)
    assert "data.validation.jsonl" in reason.content
    assert "data.validation.jsonl" not in cold_start.content


def test_sources_are_told_apart_by_their_names(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n")
    key = "stages.reason.data"
    both = f"+{key}.sources={{one: {{manifest: a.jsonl}}, two: {{manifest: a.jsonl}}, none: {{manifest: b.jsonl}}}}"
    content = specs(tmp_path, f"{key}.manifest=null", both)[1].content
    assert {name for name in content if name.endswith(".jsonl")} == {"data.one/a.jsonl", "data.two/a.jsonl"}


def test_a_feature_cache_is_no_change_of_a_stage(tmp_path):
    frozen = "stages.reason.freeze=[vision,audio]"
    before = {spec.name: spec.content for spec in specs(tmp_path, frozen)}
    cache = "+model.feature_cache={directory: features}"
    assert describe_changes(before, specs(tmp_path, frozen, cache)) == []


def test_a_renamed_key_changes_no_stage_that_was_run_before(tmp_path):
    """A stage keeps the first names of its keys, and is told the present ones."""
    reason = specs(tmp_path, "stages.reason.rewards.weights.format=0.5")[-1]
    assert {"stage.algorithm.distill", "stage.rewards.pass_part"} <= reason.content.keys()
    assert not [key for key in reason.content if "resample" in key or "component" in key]
    changed = specs(tmp_path, "stages.reason.rewards.pass_component=format")[-1]
    assert describe_changes({"reason": reason.content}, [changed]) == [
        f"stages.reason.rewards.weights.format: 0.5 -> {changed.content['stage.rewards.weights.format']}",
        "stages.reason.rewards.pass_component: label -> format",
    ]


def test_the_configuration_of_an_earlier_run_is_read_with_the_present_names(tmp_path):
    config = OmegaConf.to_yaml(OmegaConf.structured(compose([])))
    old = (
        config.replace("components:", "parts:")
        .replace("pass_component:", "pass_part:")
        .replace("resample:", "distill:")
    )
    assert old != config
    (tmp_path / "config.yaml").write_text(old)
    assert saved_config(tmp_path, ["evaluation.limit=3"]) == compose(["evaluation.limit=3"])


def test_a_key_that_came_later_changes_no_stage_that_was_run_before(tmp_path):
    """A run of an earlier version, which lacks the key, continues; a stage that uses it is another one."""
    before = {spec.name: {k: v for k, v in spec.content.items() if k != "prompt.raw"} for spec in specs(tmp_path)}
    assert all(same_content(before[spec.name], spec.content) for spec in specs(tmp_path))
    raw = specs(tmp_path, 'prompt.raw="User: {question}"')
    assert not any(same_content(before[spec.name], spec.content) for spec in raw)
    assert describe_changes(before, raw) == ["prompt.raw: - -> User: {question}"]


def test_a_prefix_and_normalized_rewards_count_only_where_they_are_used(tmp_path):
    """What is only reported never counts."""
    common = [f"output_dir={tmp_path}", "algorithm@stages.reason=ppo"]

    def content(*overrides):
        return stage_specs(compose([*common, *overrides]))[-1]

    plain = content()
    assert not {"prompt.prefix", "stage.algorithm.critic.normalize_rewards"} & set(plain.content)
    assert "prompt.prefix" in content("prompt.prefix=Look: ").content
    normalized = content("stages.reason.algorithm.critic.normalize_rewards=true")
    assert normalized.content["stage.algorithm.critic.normalize_rewards"] is True
    assert normalized.digest != plain.digest
    assert content("stages.reason.reflection_words=[wait]").digest == plain.digest
    before, after = (
        base_evaluation(compose([*common, "evaluation.base=true", *more])) for more in ([], ["prompt.prefix=Look: "])
    )
    assert before
    assert before != after


def test_the_name_of_a_built_base_changes_no_stage_that_was_run_before(tmp_path):
    """Earlier versions built every base of a seed in one folder; a stage knows its base by what builds it."""
    content = specs(tmp_path)[0].content
    assert content["model.checkpoint"] == "runs/models/tiny_omni-seed0"
    other = specs(tmp_path, "+model.build.hidden_size=64")
    assert describe_changes({"cold_start": content}, other) == ["model.build.hidden_size: - -> 64"]


def test_a_run_of_the_earlier_weight_goes_on_only_where_it_has_no_effect_or_is_given(tmp_path):
    """Sources had the weight 1 by default, so that small ones were drawn as often as large ones."""
    key, own, hint = (
        "stages.reason.data",
        "stage.data.sources",
        " (1 was the default of earlier versions; set weight: 1",
    )

    def reason(*sources):
        given = ", ".join(f"{name}: {{manifest: {name}.jsonl{more}}}" for name, more in sources)
        return specs(tmp_path, f"{key}.manifest=null", f"+{key}.sources={{{given}}}")[1]

    assert reason(("a", "")).content[f"{own}.a.weight"] == 1.0
    both = reason(("a", ""), ("b", ""))
    before = {**both.content, f"{own}.a.weight": 1.0, f"{own}.b.weight": 1.0}
    assert not same_content(before, both.content)
    assert [line.partition(hint)[0] for line in describe_changes({"reason": before}, [both])] == [
        f"stages.reason.data.sources.{name}.weight: 1.0 -> None" for name in "ab"
    ]
    assert same_content(before, reason(("a", ", weight: 1"), ("b", ", weight: 1")).content)
    files = "+stages.draw.data.sources={a: {manifest: a.jsonl}, b: {manifest: b.jsonl}}"
    draw = compose(["order=[draw]", "+stage@stages.draw=sample", "stages.draw.data.manifest=null", files])
    content = stage_specs(draw)[0].content  # each of its samples is read once
    assert [content[f"{own}.{name}.weight"] for name in "ab"] == [1.0, 1.0]


def test_a_source_names_a_known_format_and_null_is_no_change(tmp_path):
    key = "stages.reason.data"
    source = f"+{key}.sources={{one: {{manifest: a.parquet%s}}}}"
    before = {spec.name: spec.content for spec in specs(tmp_path, f"{key}.manifest=null", source % "")}
    absent = {name: dict(content) for name, content in before.items()}
    del absent["reason"]["stage.data.sources.one.format"]
    assert describe_changes(absent, specs(tmp_path, f"{key}.manifest=null", source % "")) == []
    named = specs(tmp_path, f"{key}.manifest=null", source % ", format: verl")
    assert describe_changes(before, named) == ["stages.reason.data.sources.one.format: None -> verl"]
    with pytest.raises(ConfigError, match=r"sources.one.format is 'verll', which is no choice; did you mean 'verl'"):
        specs(tmp_path, f"{key}.manifest=null", source % ", format: verll")


def test_a_published_set_is_part_of_what_a_stage_was_run_with(tmp_path):
    path = LLAMA_FACTORY.put(tmp_path)
    sources = f"+stages.reason.data.sources={{one: {{manifest: {path.name}}}}}"
    how = ("stages.reason.data.manifest=null", sources, "stages.reason.num_steps=null", "+stages.reason.num_epochs=1")
    before = specs(tmp_path, *how)[1]
    (tmp_path / "mmo.json").write_text((tmp_path / "mmo.json").read_text() + " ")
    assert specs(tmp_path, *how)[1].digest != before.digest
    config = compose([f"data.root={tmp_path}", *how, "stages.reason.data.batch_size=1"])
    assert with_steps(config, "reason").num_steps == len(LLAMA_FACTORY.samples)
