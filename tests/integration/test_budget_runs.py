"""A run with a budget of operations, recounted from what it logged by formulas of their own."""

import json
import math

import pytest

from lightning_mmrl.cli.main import main

pytestmark = pytest.mark.slow

BUDGET = 3.0e10
RUN = (
    "experiment=task_arithmetic",
    "model=tiny_qwen2",
    "tracking=none",
    "trainer.num_threads=1",
    "data.validation=null",
    "+data.build.scale=0.05",
    "evaluation.base=false",
    "evaluation.limit=2",
    "evaluation.max_new_tokens=4",
    "evaluation.num_resamples=50",
    "stages.cold_start.validate_every=null",
    "stages.cold_start.stop_when=null",
    "stages.cold_start.data.batch_size=4",
    "stages.reason.validate_every=null",
    "stages.reason.data.batch_size=4",
    "stages.reason.algorithm.group_size=2",
    "stages.reason.sampling.max_new_tokens=24",
    "stages.reason.rollout_table_every=1",
    # Some groups have a signal from it, and others none, whatever the model knows.
    "+stages.reason.rewards.components.length._target_=lightning_mmrl.rewards.repetition.Repetition",
    "+stages.reason.rewards.components.length.n=1",
    "+stages.reason.rewards.weights.length=0.1",
    f"budget={{flops: {BUDGET}, shares: {{cold_start: 0.4, reason: 0.6}}}}",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("budget")
    assert main(["train", *RUN, f"output_dir={folder}", f"data.root={folder}/sums", "run_name=own"]) == 0
    return folder / "own"


def finished(run, stage):
    return json.loads((run / "manifest.json").read_text())["stages"][stage]["result"]


def counted(run, stage):
    return sum(sum(rank["operations"].values()) for rank in finished(run, stage)["costs"]["ranks"])


def logged(run, stage, name):
    """A metric of each step."""
    (folder,) = run.glob(f"stages/*-{stage}")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["metrics"][key] for line in lines for key in line["metrics"] if key == f"{stage}/{name}"}


def sizes(run):
    """Weights that a token is multiplied with, in the blocks and in the head, and products of a pair in attention."""
    (folder,) = run.glob("stages/*-cold_start/handoff")
    config = json.loads((folder / "config.json").read_text())
    width, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    heads, keys = config["num_attention_heads"], config["num_key_value_heads"]
    head = config.get("head_dim") or width // heads
    blocks = layers * (2 * width * head * (heads + keys) + 3 * width * inner)
    return blocks, config["vocab_size"] * width, 2 * layers * heads * head


def passes(run, prompts, prompt_tokens, answers, answer_tokens):
    """Operations of one pass over prompts and answers of their mean lengths: of reading, and of writing."""
    blocks, head, products = sizes(run)
    prompt, answer = prompt_tokens / max(1, prompts), answer_tokens / max(1, answers)
    read = 2 * blocks * prompt_tokens + 2 * products * prompts * prompt**2 / 2
    written = 2 * (blocks + head) * answer_tokens + 2 * products * answers * answer * (prompt + answer / 2)
    return read, written


def recounted(run, stage):
    """The operations of a stage: three passes' worth for each update, and what it sampled."""
    prompt, answer = (logged(run, stage, f"tokens/{name}") for name in ("prompt", "completion"))
    if stage == "cold_start":
        return sum(3 * sum(passes(run, 4, prompt[step], 4, answer[step])) for step in prompt)
    total, generated = 0.0, logged(run, stage, "tokens/generated")
    for step, tokens in prompt.items():
        (table,) = run.glob(f"stages/*-{stage}/rollouts/iteration_{step:06d}.jsonl")
        rows = [json.loads(line) for line in table.read_text().splitlines()]
        moved = sum(any(each["advantage"] for each in row["responses"]) for row in rows)
        assert sum(each["num_tokens"] for row in rows for each in row["responses"]) == generated[step]
        read = tokens * len(rows) / (len(rows) + moved)  # all prompts to sample, those with a signal once more
        total += sum(passes(run, len(rows), read, 2 * len(rows), generated[step]))
        total += 3 * sum(passes(run, moved, tokens - read, 2 * moved, answer[step]))
    return total


@pytest.mark.parametrize("stage", ["cold_start", "reason"])
def test_the_operations_of_a_stage_are_those_of_what_it_logged(run, stage):
    assert counted(run, stage) == pytest.approx(recounted(run, stage), rel=0.02)  # lengths are means of a step
    assert len(logged(run, stage, "tokens/prompt")) == finished(run, stage)["num_steps"]


def test_a_recount_that_leaves_a_part_out_is_noticed(run):
    """The negative control: an update without its backward pass, and an iteration without what it sampled."""
    third = recounted(run, "cold_start") / 3
    assert counted(run, "cold_start") != pytest.approx(third, rel=0.02)  # as a right recount may be off
    costs = finished(run, "reason")["costs"]["ranks"][0]["operations"]
    assert costs["sampling"] > 0
    assert costs["training"] != pytest.approx(recounted(run, "reason"), rel=0.02)  # as a right recount may be off


def test_the_stages_of_a_run_end_where_their_shares_say(run):
    first, both = counted(run, "cold_start"), counted(run, "cold_start") + counted(run, "reason")
    for spent, limit, stage in ((first, 0.4 * BUDGET, "cold_start"), (both, BUDGET, "reason")):
        step = counted(run, stage) / finished(run, stage)["num_steps"]
        assert abs(spent - limit) <= 0.6 * step  # half of the last step, which may be longer than the mean
    assert math.isclose(both, BUDGET, rel_tol=0.02)  # half of a step, of about fifty
