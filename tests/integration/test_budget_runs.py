"""A run with a budget of operations, recounted from what it logged by formulas of their own."""

import json
import math

import pytest
from recount_budgets import Run

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


@pytest.mark.parametrize("stage", ["cold_start", "reason"])
def test_the_operations_of_a_stage_are_those_of_what_it_logged(run, stage):
    assert counted(run, stage) == pytest.approx(Run(run).operations(stage), rel=0.02)  # lengths are means of a step


def test_the_logged_tokens_are_those_of_the_completions(run):
    (folder,) = run.glob("stages/*-reason")
    lines = [json.loads(line)["metrics"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    generated = [line["reason/tokens/generated"] for line in lines if "reason/tokens/generated" in line]
    assert len(generated) == finished(run, "reason")["num_steps"]
    for step, tokens in enumerate(generated, start=1):
        rows = [json.loads(line) for line in (folder / f"rollouts/iteration_{step:06d}.jsonl").read_text().splitlines()]
        assert sum(each["num_tokens"] for row in rows for each in row["responses"]) == tokens


def test_a_recount_that_leaves_a_part_out_is_noticed(run):
    """The negative control: an update without its backward pass, and an iteration without what it sampled."""
    third = Run(run).operations("cold_start") / 3
    assert counted(run, "cold_start") != pytest.approx(third, rel=0.02)  # as a right recount may be off
    costs = finished(run, "reason")["costs"]["ranks"][0]["operations"]
    assert costs["sampling"] > 0
    assert costs["training"] != pytest.approx(Run(run).operations("reason"), rel=0.02)  # as a right recount may be off


def test_the_stages_of_a_run_end_where_their_shares_say(run):
    first, both = counted(run, "cold_start"), counted(run, "cold_start") + counted(run, "reason")
    for spent, limit, stage in ((first, 0.4 * BUDGET, "cold_start"), (both, BUDGET, "reason")):
        step = counted(run, stage) / finished(run, stage)["num_steps"]
        assert abs(spent - limit) <= 0.6 * step  # half of the last step, which may be longer than the mean
    assert math.isclose(both, BUDGET, rel_tol=0.02)  # half of a step, of about fifty
