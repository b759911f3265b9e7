"""Stages that do not fit are refused with keys that make them fit."""

import re

import pytest

from lightning_mmrl.config.compose import compose
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.planning.engines import RESTING, stage_estimate
from lightning_mmrl.planning.memory import Lengths
from lightning_mmrl.planning.refusals import refuse_misfits, require_room
from lightning_mmrl.planning.shapes import read_shape
from lightning_mmrl.rollout.vllm.memory import ROOM

LORA = ("stages.cold_start.adapter={}", "stages.reason.adapter={}")
AHEAD = (
    "rollout.lag=1",
    "+stages.reason.algorithm.correction._target_=lightning_mmrl.algorithms.corrections.importance.ImportanceCorrection",
)
OMNI = ("model=qwen2_5_omni_3b",)


def planned(*overrides):
    config = compose(list(overrides))
    return config, read_shape(config.model.checkpoint, config.model.known_sizes), Lengths()


def refuse(*overrides):
    config, *known = planned(*overrides)
    refuse_misfits(config, tuple(known))


def refused(*overrides):
    with pytest.raises(ConfigError) as caught:
        refuse(*overrides)
    return str(caught.value)


def test_a_refusal_says_what_is_needed_what_is_there_and_keys_that_help():
    said = refused(*OMNI, "trainer=h100_1")
    assert re.match(
        r"stages\.cold_start needs about \d+\.\d GiB on its device, at its peak in [a-z ]+ \(most of it [a-z ]+ "
        r"\d+\.\d GiB\), and trainer\.gpu_memory_gb is 80, which is 74\.5 GiB; set stages\.cold_start\.",
        said,
    )
    assert said.endswith("; stages.reason would not fit either")
    assert "\n" not in said


@pytest.mark.parametrize("model", ["qwen2_5_omni_3b", "qwen2_5_3b"])
def test_the_keys_of_a_refusal_make_the_stage_fit(model):
    keys = [f"model={model}", "trainer=gpu_24gb"]
    for _ in range(3):
        try:
            refuse(*keys)
        except ConfigError as error:
            keys += re.search(r"; set ([^;]+)", str(error))[1].split()
        else:
            break
    refuse(*keys)
    assert len(keys) > 2


def test_without_a_capacity_nothing_is_refused():
    refuse(*OMNI, "trainer=h100_1", "trainer.gpu_memory_gb=null")


def test_an_engine_that_does_not_fit_beside_the_trainer_is_refused_and_the_policy_alone_fits():
    assert "set rollout=hf" in refused(*OMNI, *LORA, "trainer=gpu_24gb", "rollout=vllm")
    refuse(*OMNI, *LORA, "trainer=gpu_24gb")


def test_a_share_that_does_not_hold_the_engine_is_refused_with_its_key():
    share = "rollout.settings.gpu_memory_utilization"
    given = (*OMNI, *LORA, "trainer=h100_1", "rollout=vllm")
    refuse(*given)
    assert f"{share} is 0.05" in refused(*given, f"{share}=0.05")
    refuse(*given, f"{share}=0.2")


def test_an_engine_counts_while_it_samples_and_rests_otherwise():
    config, shape, lengths = planned("model=qwen2_5_3b", "rollout=vllm", *LORA)
    stage = config.stages["reason"]
    phases = stage_estimate(config, stage, shape, 1, lengths).phases
    token = 2 * 36 * 2 * 128 * 2  # keys and values, 36 layers, 2 heads of 128, bfloat16
    assert phases["generation"]["engine"] == shape.parameters * 2 + ROOM + 32_768 * token
    assert {parts["engine"] for name, parts in phases.items() if name != "generation"} == {RESTING}
    for other in ("rollout=vllm_server", "rollout=hf"):
        config, shape, lengths = planned("model=qwen2_5_3b", other, *LORA)
        phases = stage_estimate(config, config.stages["reason"], shape, 1, lengths).phases
        assert not any("engine" in parts for parts in phases.values())
    config, shape, lengths = planned("model=qwen2_5_3b", "rollout=vllm", "rollout.settings.sleep_level=0", *LORA)
    phases = stage_estimate(config, config.stages["reason"], shape, 1, lengths).phases
    assert len({parts["engine"] for parts in phases.values()}) == 1


def test_a_process_that_samples_ahead_counts_in_every_phase():
    """A whole copy of the model, with keys and values, beside the trainer at any time; without it the stage fits."""
    given = ("model=qwen2_5_3b", "trainer=h100_1", "trainer.strategy=auto", *LORA)
    config, shape, lengths = planned(*given, *AHEAD)
    stage = config.stages["reason"]
    phases = stage_estimate(config, stage, shape, 1, lengths).phases
    (engine,) = {parts["engine"] for parts in phases.values()}
    assert 2 * shape.parameters < engine
    config, *_ = planned(*given)
    alone = stage_estimate(config, stage, shape, 1, lengths)
    assert not any("engine" in parts for parts in alone.phases.values())
    needed = alone.needed // 10**9 + 2
    given = (*given, f"stages.reason.trainer.gpu_memory_gb={needed}")
    refuse(*given)
    assert "set rollout.lag=0, since the second copy" in refused(*given, *AHEAD)


def test_evaluations_count_unless_a_stage_has_none():
    config, shape, lengths = planned(*OMNI, *LORA, "stages.cold_start.evaluation_sets=[]")
    with_sets = stage_estimate(config, config.stages["reason"], shape, 1, lengths).phases
    assert {"validation", "evaluation"} <= set(with_sets)
    assert not {"validation", "evaluation"} & set(
        stage_estimate(config, config.stages["cold_start"], shape, 1, lengths).phases
    )
    config.evaluation.batch_size *= 2
    larger = stage_estimate(config, config.stages["reason"], shape, 1, lengths).phases
    assert larger["evaluation"]["keys and values"] == 2 * with_sets["evaluation"]["keys and values"]


def test_a_device_refuses_what_exceeds_it_at_any_length_and_warns_of_the_rest():
    config, shape, lengths = planned("model=qwen2_5_3b", "trainer.activation_checkpointing=true")
    found = [stage_estimate(config, stage, shape, 1, lengths) for stage in config.trained.values()]
    least, most = max(each.least for each in found), max(each.needed for each in found)
    with pytest.raises(ConfigError, match=r"needs \d+\.\d GiB for weights, gradients and the optimizer's step alone"):
        require_room(config, (least - 1, "cuda:0"))
    assert require_room(config, (least, "cuda:0")).startswith("warning: stages.cold_start may need")
    assert require_room(config, (most, "cuda:0")) is None
    assert require_room(config, None) is None
    for stage in config.trained.values():
        stage.optimizer = {**stage.optimizer, "_target_": "mine.Optimizer"}
    assert require_room(config, (least - 1, "cuda:0")).startswith("warning: ")


@pytest.mark.parametrize(("keys", "copies"), [({}, 1.0), ({"fused": True}, 0.0), ({"foreach": False}, None)])
def test_an_optimizer_copies_what_its_keys_say(keys, copies):
    config, shape, lengths = planned("model=qwen2_5_3b")
    stage = config.stages["reason"]
    stage.optimizer = {**stage.optimizer, **keys}
    found = stage_estimate(config, stage, shape, 1, lengths).phases["optimizer step"]
    expected = 2 * 4 * 151_936 * 2048 if copies is None else copies * found["gradients"]
    assert found["copies"] == expected
