"""Which key would change what a profile measured: each rule at its bound, and on both sides of it."""

from dataclasses import replace

import pytest

from lightning_mmrl.config.compose import compose
from lightning_mmrl.planning.advice import advice
from lightning_mmrl.planning.profile_page import page
from lightning_mmrl.types.costs import RankCosts, StageCosts
from lightning_mmrl.types.profile import Operator, StageProfile


def profile(stage="reason", *, ranks=1, work=None, costs=None, **seconds):
    """A profile of two steps whose phases take the given seconds; `other` fills up to 10 s."""
    rest = {"other": 10.0 - sum(seconds.values())} if sum(seconds.values()) < 10 else {}
    one = RankCosts(seconds=seconds | rest, **(work or {}))
    return StageProfile(stage=stage, costs=StageCosts(num_steps=2, ranks=(one,) * ranks), **(costs or {}))


def texts(found, *overrides):
    config = compose(["experiment=quickstart", *overrides])
    return [each.text for each in advice(found, config.stages[found.stage], config)]


def told(found, *overrides):
    return "\n".join(texts(found, *overrides))


def test_time_in_no_phase_asks_for_no_key():
    assert texts(profile()) == []


@pytest.mark.parametrize(
    ("phase", "key"),
    [
        ("data", "data.media.decode_workers (now 2)"),
        ("score", "stages.reason.rewards.num_workers (now 0)"),
        ("encode", "data.media.num_frames"),
        ("push", "stages.reason.data.batch_size, now 32"),
    ],
)
def test_a_phase_names_its_key_from_a_tenth_of_a_step_on(phase, key):
    assert key in told(profile(**{phase: 1.0}))
    assert key not in told(profile(**{phase: 0.9}))


def test_samples_that_are_read_when_they_are_needed_are_to_be_read_ahead():
    slow = profile(data=3.0)
    assert "set data.media.prefetch_samples (now 0)" in told(slow, "++data.media.prefetch_samples=0")
    assert "raise data.media.prefetch_samples (now 64)" in told(slow)


def test_sampling_names_the_engine_and_a_limit_that_cuts_completions_off():
    slow = profile(generate=4.0, costs={"truncated": 0.3})
    assert "rollout=vllm in place of the policy itself" in told(slow)
    assert "lower stages.reason.sampling.max_new_tokens (now 24), which ends 30%" in told(slow)
    assert texts(profile(generate=3.9, costs={"truncated": 0.3})) == []
    short = told(profile(generate=4.0, costs={"truncated": 0.29}), "rollout=vllm")
    assert "rollout=vllm" not in short
    assert "few completions reach stages.reason.sampling.max_new_tokens" in short


def test_the_reference_policy_is_named_where_the_algorithm_has_a_penalty():
    slow = profile(reference=2.0)
    penalty = "stages.reason.algorithm.kl.coefficient=0.1"
    assert "stages.reason.algorithm.kl.coefficient (now 0.1)" in told(slow, penalty)
    assert texts(profile("cold_start", reference=2.0)) == []


def test_small_microbatches_are_raised_where_memory_is_left():
    small = {"num_microbatches": 6}
    slow = profile(optimize=5.0, work=small, costs={"memory_share": 0.49})
    assert "updates in 3.0 microbatches of a rank, and 49% of the device's memory is used" in told(slow)
    assert "stages.reason.algorithm.update.tokens_per_microbatch (now 8192)" in told(
        slow, "stages.reason.algorithm.update.tokens_per_microbatch=8192"
    )
    cold = replace(slow, stage="cold_start")
    assert "stages.cold_start.tokens_per_microbatch (now 512)" in told(
        cold, "stages.cold_start.tokens_per_microbatch=512"
    )
    checkpointed = told(slow, "stages.reason.trainer.activation_checkpointing=true")
    assert "stages.reason.trainer.activation_checkpointing=false" in checkpointed
    for without in (
        replace(slow, memory_share=0.5),
        replace(slow, memory_share=None),
        profile(optimize=0.9, work=small, costs={"memory_share": 0.1}),
        profile(optimize=3.9, work={"num_microbatches": 2}, costs={"memory_share": 0.1}),
    ):
        assert "microbatch" not in told(without)


def test_an_update_in_float32_on_a_gpu_is_named():
    slow = profile(optimize=4.0, costs={"memory_share": 0.9})
    assert "set stages.reason.trainer.precision (now 32-true) to bf16-mixed" in told(slow)
    assert texts(slow, "stages.reason.trainer.precision=bf16-mixed") == []
    assert texts(replace(slow, memory_share=None)) == []


def test_padding_is_named_from_a_share_of_the_positions_on():
    padded = profile(optimize=5.0, work={"positions": 100, "logical": 85})
    assert "15% of all positions of an update: raise stages.reason.algorithm.update.tokens_per" in told(padded)
    assert "set model.sharing=true" in told(padded, "++model.sharing=false")
    assert texts(profile(optimize=5.0, work={"positions": 100, "logical": 86})) == []
    config = compose(["experiment=quickstart"])
    [found] = advice(padded, config.stages["reason"], config)
    assert found.share == pytest.approx(0.15 * 0.5)


def test_states_are_weighed_by_how_often_they_are_written():
    slow = profile(costs={"state_s": 10.0})  # a step takes 5 s
    assert "writes states, 10.0 s each: raise state.every_n_steps (now 10)" in told(slow)
    assert "in_background" not in told(slow)
    assert "state.in_background=true" in told(slow, "state.in_background=false")
    assert texts(slow, "state.every_n_steps=100") == []


def test_waiting_names_the_slowest_rank_and_the_phase_that_makes_it_slow():
    slow, fast = RankCosts(seconds={"data": 6.0, "optimize": 4.0}), RankCosts(
        seconds={"data": 1.0, "optimize": 4.0, "wait": 5.0}
    )  # fmt: skip
    found = StageProfile(stage="reason", costs=StageCosts(num_steps=2, ranks=(fast, slow)))
    assert "waits for rank 1, which takes longer in the phase data: look at data.media.decode_workers" in told(found)
    alike = profile(ranks=2, wait=2.0)
    assert "exchanges with other ranks, all alike: more tokens per step" in told(alike)
    assert texts(profile(ranks=2, wait=0.9)) == []
    assert texts(profile(ranks=1, wait=2.0)) == []


def test_the_largest_share_comes_first():
    config = compose(["experiment=quickstart"])
    found = advice(profile(data=2.0, generate=6.0, score=1.5), config.stages["reason"], config)
    assert [round(each.share, 2) for each in found] == [0.6, 0.2, 0.15]


def test_the_page_has_a_part_for_each_stage():
    config = compose(["experiment=quickstart"])
    calls = (Operator(name="aten::mm", calls=3, seconds=0.5),)
    first = profile("cold_start", optimize=9.0, work={"tokens": {"prompt": 100, "completion": 20, "generated": 0}})
    second = replace(
        profile(generate=8.0, ranks=2), operators=calls, syncs=(replace(calls[0], name="cudaStreamSynchronize"),),
        trace="reason.trace.json", state_s=2.0,
    )  # fmt: skip
    text = page(config, [first, second])
    for line in (
        "## cold_start (sft): 5.00 s a step, over 2 steps",
        "| optimize | 4.500 | 90.0% | - |",
        "- Tokens a step: 50 prompt, 10 completion",
        "- MFU: unknown: trainer.gpu_teraflops has no peak",
        "- none: no phase that a key shortens is large",
        "- Waiting for other ranks, rank by rank: 0%, 0%",
        "- A state takes 2.00 s, and is written every 10 steps",
        "- Trace: reason.trace.json",
        "| aten::mm | 3 | 0.500 |",
        "| cudaStreamSynchronize | 3 | 0.500 |",
        "- 80% of a step samples: sample with vLLM",
    ):
        assert line in text
