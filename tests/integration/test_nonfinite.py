"""A number that is not finite is in no state and no handoff, wherever it comes from; the campaign has all places."""

import itertools
import json
from dataclasses import replace

import exact_cases
import nonfinite_cases
import omni
import pytest
import ranks
import torch
from nonfinite_cases import AT, NAN, Stage, local, spoiled_output

from lightning_mmrl.errors import RolloutError, StageError
from lightning_mmrl.rollout.weights import GatheredState
from lightning_mmrl.training.interruption import Interrupted, Interruption

pytestmark = pytest.mark.slow

HERE = [
    ("sft", "loss of float32"),
    ("sft", "update"),
    ("sft", "moments without an update"),
    ("grpo", "distribution"),
    ("grpo", "component"),
    ("grpo", "state of an earlier version"),
    ("ppo", "critic's gradient"),
]
TWO_RANKS = [
    ("sft", "gradient", "fsdp2"),
    ("grpo", "advantages", "ddp"),
    ("sft", "answer", "ddp"),
    ("grpo", "handoff", "fsdp2"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return omni.build(tmp_path_factory.mktemp("model") / "omni")


@pytest.mark.parametrize(("kind", "fault"), HERE)
def test_a_stage_keeps_no_number_that_is_not_finite_and_goes_on_from_a_good_state(checkpoint, tmp_path, kind, fault):
    assert nonfinite_cases.strike(kind, fault, checkpoint, tmp_path)["problems"] == []


def test_two_ranks_decide_together(checkpoint, tmp_path):
    """The number is on the second rank alone."""
    plan = [
        {
            "name": f"{kind}-{fault}-{strategy}".replace(" ", "-"),
            "run": "nonfinite",
            "kind": kind,
            "fault": fault,
            "strategy": strategy,
            "checkpoint": str(checkpoint),
            "folder": str(tmp_path / f"{kind}-{fault}-{strategy}"),
        }
        for kind, fault, strategy in TWO_RANKS
    ]
    found = ranks.launch(plan, tmp_path / "ranks", timeout_s=300)
    answers = [each["error"] for each in found["sft-answer-ddp"]]
    assert answers[0] == answers[1]
    assert answers[0].startswith("the model has no finite probabilities for sample ")
    assert {name: [each["problems"] for each in parts] for name, parts in found.items()} == {
        case["name"]: [[], []] for case in plan
    }


def moved(stage):
    """All that a step may move."""
    found = {name: value.clone() for name, value in GatheredState(stage.module).items()}
    for number, optimizer in enumerate(stage.trainer.optimizers):
        for place, state in enumerate(optimizer.state.values()):
            found |= {f"{key} {place} of {number}": local(value).clone() for key, value in state.items()}
        found[f"rate of {number}"] = torch.tensor(optimizer.param_groups[0]["lr"])
    for number, config in enumerate(stage.trainer.lr_scheduler_configs):
        found[f"schedule {number}"] = torch.tensor(config.scheduler.last_epoch)
    return found


@pytest.mark.parametrize("kind", ["sft", "grpo", "ppo"])
def test_a_skipped_step_moves_nothing_and_is_written_down(checkpoint, tmp_path, kind):
    stage = Stage(kind, checkpoint, tmp_path, Interruption())
    spoiled_output(stage, lambda logprobs: nonfinite_cases.Poisoned.apply(logprobs, NAN))
    seen = []

    def note(trainer, module, *rest):
        seen.append(moved(stage))
        return trainer, module, *rest

    stage.change(stage.job.saver, "on_train_batch_end", before=note)
    came_to = stage.job.run()
    differ = [
        [name for name in after if name not in before or not torch.equal(after[name], before[name])]
        for before, after in itertools.pairwise(seen)
    ]
    assert [bool(names) for names in differ] == [step != AT for step in range(2, exact_cases.STEPS + 1)]
    assert (came_to.num_steps, came_to.num_skipped, came_to.changed) == (exact_cases.STEPS, 1, True)
    notes = [json.loads(line) for line in (tmp_path / "bad_steps.jsonl").read_text().splitlines()]
    assert {(each["step"], *each["not_finite"]) for each in notes} == {(AT, "gradient norm")}
    assert len(notes) == (1 if kind == "sft" else 2)  # minibatches
    assert all(each["samples"] for each in notes)
    assert exact_cases.logged(tmp_path)[AT, "stage/train/skipped_steps"] == 1.0


def test_a_later_update_of_a_step_is_skipped_alone_and_said_to_be_one(checkpoint, tmp_path):
    stage = Stage("grpo", checkpoint, tmp_path, Interruption())
    said, losses = [], [0]
    stage.module._bad_steps._context = replace(stage.module._context, say=said.append)

    def poison(output):
        if stage.struck and torch.is_grad_enabled():
            losses[0] += 1
            if losses[0] == 2:
                return replace(output, logprobs=nonfinite_cases.Poisoned.apply(output.logprobs, NAN))
        return output

    stage.change(stage.policy, "forward", after=poison)
    weights = []

    def note(*args):
        weights.append({name: value.clone() for name, value in GatheredState(stage.module).items()})
        return args

    stage.change(stage.job.saver, "on_train_batch_end", before=note)
    came_to = stage.job.run()
    assert losses == [2]
    assert any(not torch.equal(value, weights[AT - 2][name]) for name, value in weights[AT - 1].items())
    assert came_to.num_skipped == 1
    (sentence,) = [line for line in said if "skipped" in line]
    assert sentence.startswith(f"update 2 of 2 in step {AT} is skipped: gradient norm is not finite;")


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_a_skipped_step_is_exact_when_the_stage_is_interrupted_after_it(checkpoint, tmp_path, kind):
    """Counter, schedule and order of the data equal those in the stage that was left alone."""
    outcomes = []
    for name in ("whole", "cut"):
        folder = tmp_path / name
        with Interruption() as interruption:
            stage = Stage(kind, checkpoint, folder, interruption, every=exact_cases.STEPS + 1)
            spoiled_output(stage, lambda logprobs: logprobs * NAN)
            if name == "cut":
                exact_cases.kill_in(stage, "report", AT + 2)
                with pytest.raises(Interrupted):
                    stage.job.run()
        if name == "cut":
            stage = Stage(kind, checkpoint, folder, Interruption(), every=exact_cases.STEPS + 1)
            spoiled_output(stage, lambda logprobs: logprobs * NAN)
        outcomes.append((stage.outcome(), exact_cases.logged(folder), stage.module.outcome().num_skipped))
    exact_cases.assert_equal(outcomes[0][0], outcomes[1][0])
    assert outcomes[0][1:] == outcomes[1][1:]
    lines = [(tmp_path / name / "bad_steps.jsonl").read_text() for name in ("whole", "cut")]
    assert lines[0] == lines[1]


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_a_learning_rate_that_is_much_too_high_ends_the_stage_and_hands_over_nothing(checkpoint, tmp_path, kind):
    stage = Stage(kind, checkpoint, tmp_path, Interruption())
    stage.module._optimizer = replace(stage.module._optimizer, schedule=lambda step, num_steps: 1e38)
    with pytest.raises((StageError, RolloutError), match="not finite"):  # by a step, or by a validation before it
        stage.job.run()
    assert nonfinite_cases._wrong_states(tmp_path) == []


def test_a_stage_without_a_good_state_says_so(checkpoint, tmp_path):
    """All states are of an earlier version, and none is finite."""
    stage = Stage("sft", checkpoint, tmp_path, Interruption())
    nonfinite_cases.FAULTS["sft"]["state of an earlier version"].put(stage)
    with pytest.raises(nonfinite_cases.OutOfMemoryError):
        stage.job.run()
    for place in stage.store._states()[1:]:
        place.rename(place.with_suffix(".partial"))
    with pytest.raises(StageError, match=r"none of the states in .* is whole: step-00000003 \(.* is not finite\)"):
        Stage("sft", checkpoint, tmp_path, Interruption()).job.run()
