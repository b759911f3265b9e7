"""Operations of a step by hand, and what a stage writes."""

from dataclasses import replace

import pytest

from lightning_mmrl.config.compose import compose
from lightning_mmrl.planning.costs import Operations, Shares, counted_operations, disk, operations
from lightning_mmrl.planning.memory import Lengths
from lightning_mmrl.planning.shapes import shape_of
from lightning_mmrl.planning.stacks import Linear, Stack
from lightning_mmrl.types.costs import GRADIENT, SAMPLE, SCORE, UPDATE, Counts, Work

SIZES = {
    "model_type": "qwen2",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "vocab_size": 1000,
    "tie_word_embeddings": True,
}
SHAPE, LENGTHS = shape_of(SIZES), Lengths(prompt=10, answer=4)
LINEAR = 2 * 3 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128)
HEAD = 2 * 1000 * 64
READ = LINEAR * 10 + 4 * 3 * 64 * 50
WRITTEN = 4 * (LINEAR + HEAD + 4 * 3 * 64 * 12)


def stages(*overrides):
    sizes = ["stages.cold_start.data.batch_size=2", "stages.reason.data.batch_size=2"]
    sizes += ["stages.reason.algorithm.group_size=5", "stages.reason.sampling.max_new_tokens=4"]
    return compose([*sizes, *overrides]).stages


def test_a_step_of_sft_is_a_pass_and_a_backward_pass():
    assert operations(SHAPE, stages()["cold_start"], LENGTHS) == Operations(
        training=3 * 2 * (READ + WRITTEN), sampling=0
    )


ATTENTION = 4 * 3 * 64 * (50 + 4 * 12)


def test_checkpointing_adds_a_forward_pass():
    found = operations(SHAPE, stages("stages.cold_start.trainer.activation_checkpointing=true")["cold_start"], LENGTHS)
    assert found.training == 4 * 2 * (READ + WRITTEN)


def test_a_gradient_goes_through_a_frozen_text_model_to_what_trains_below_it():
    """As much again for the inputs of linear layers, and twice as much for attention, which has two inputs."""
    stage = stages("stages.cold_start.freeze=[text]")["cold_start"]
    assert operations(SHAPE, stage, LENGTHS).training == 2 * (2 * (READ + WRITTEN) + ATTENTION)
    nothing = replace(stage, freeze=["text", "vision", "audio"])
    assert operations(SHAPE, nothing, LENGTHS).training == 2 * (READ + WRITTEN)


def test_an_adapter_adds_its_own_layers_with_both_gradients():
    found = operations(SHAPE, stages("stages.cold_start.adapter={r: 4}")["cold_start"], LENGTHS)
    pairs = [(64, 64), (64, 32), (64, 32), (64, 64), (64, 128), (64, 128), (128, 64)]
    added = 14 * 2 * 3 * sum(4 * (inputs + outputs) for inputs, outputs in pairs)
    assert found.training == 2 * (2 * (READ + WRITTEN) + ATTENTION + 3 * added)


def test_a_step_of_pairs_scores_two_answers_of_a_prompt_that_counts_once_and_the_reference_once_more():
    pairs = compose(["+stage@stages.prefer=dpo", "order=[prefer]", "stages.prefer.data.batch_size=2"]).stages["prefer"]
    found = operations(SHAPE, pairs, LENGTHS)
    assert found == Operations(training=(3 + 1) * 2 * (READ + 2 * WRITTEN), sampling=0)


def test_counted_tokens_take_the_operations_of_their_passes():
    stage = stages()["reason"]
    work = Work.of([10, 10], [[4] * 5] * 2)
    assert (work.prompt_tokens, work.prompt_pairs) == (20, 100)
    assert (work.completion_tokens, work.completion_pairs) == (40, 40 * 12)
    passes = {SAMPLE: work, SCORE: work, UPDATE: work + work}
    found = counted_operations(SHAPE, stage, Counts(passes=passes))
    scored = 2 * READ + 10 * WRITTEN
    assert found == Operations(training=scored + 3 * 2 * scored + 2 * READ, sampling=10 * WRITTEN)
    again = counted_operations(SHAPE, stage, Counts(passes=passes), recomputed=True)
    assert again.training - found.training == 2 * scored
    draws = compose(["+stage@stages.draw=sample", "order=[draw]", "stages.draw.data.manifest=x.jsonl"]).stages["draw"]
    assert counted_operations(SHAPE, draws, Counts(passes={SAMPLE: work})) == Operations(
        training=2 * READ, sampling=10 * WRITTEN
    )


@pytest.mark.parametrize(
    ("freeze", "blocks", "first", "projector"),
    [((), 3, 2, 3), (("vision_tower",), 1, 1, 2), (("projector",), 3, 2, 2), (("vision",), 1, 1, 1)],
)
def test_a_tower_has_the_backward_pass_of_what_trains_in_it(freeze, blocks, first, projector):
    block = Linear(name="fc", kind="mlp", reads="first", inputs=8, outputs=4)
    merger = Linear(name="visual.merger", kind="projector", reads="", inputs=32, outputs=16)
    sizes = {"path": "", "depth": 2, "width": 8, "inner": 4, "heads": 1, "queries": 8, "keys": 8, "norm_parameters": 0}
    tower = Stack(
        **sizes, linears=(block,), rms_norms=True, inner_copies=1, rest=0, rows_per_token=4, projector=(merger,),
        input_products=48,
    )  # fmt: skip
    shape = replace(SHAPE, stacks={"vision": tower, "text": SHAPE.text})
    rows = {"image": 5, f"video{GRADIENT}": 2, "audio": 7}  # this model has no tower for sound
    found = counted_operations(shape, replace(stages()["reason"], freeze=[*freeze]), Counts(rows=rows))
    forward = 4 * (2 * 2 * 8 * 4 + 2 * 48) + 2 * 32 * 16
    both = 4 * (blocks * 2 * 2 * 8 * 4 + first * 2 * 48) + projector * 2 * 32 * 16
    assert found == Operations(training=5 * forward + 2 * both, sampling=0)


def test_an_iteration_of_rl_samples_and_scores_groups_whose_prompt_counts_once():
    found = operations(SHAPE, stages()["reason"], LENGTHS)
    assert found.sampling == 2 * 5 * WRITTEN
    assert found.training == 3 * (2 * READ + 2 * 5 * WRITTEN) + 2 * READ
    penalty = operations(SHAPE, stages("stages.reason.algorithm.kl.coefficient=0.1")["reason"], LENGTHS)
    assert penalty.training - found.training == 2 * READ + 2 * 5 * WRITTEN
    assert found.seconds(1e6, Shares(training=0.5, sampling=0.1)) == found.training / 5e5 + found.sampling / 1e5


def test_a_state_holds_weights_and_moments_and_one_more_than_kept_exists():
    config = compose(["model.dtype=float32", "stages.reason.adapter={}"])
    found = disk(config, "cold_start", SHAPE)
    assert found.state == 3 * 4 * SHAPE.parameters
    assert found.states == 3 * found.state
    assert found.handoff == 4 * SHAPE.parameters
    assert disk(config, "reason", SHAPE).state < found.state
