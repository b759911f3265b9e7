"""Memory that is used up in any part of a step: the state is kept, and the stage goes on exactly."""

import omni
import pytest
import torch
from exact_cases import STEPS, Stage, assert_equal, logged
from small_runs import SMALL_RL

from lightning_mmrl.cli.main import main
from lightning_mmrl.machine import refusal
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.training import checkpoint_io
from lightning_mmrl.training.interruption import Interruption

pytestmark = pytest.mark.slow

DEVICE = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB free. See docs")
HOST = RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: no. E")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return omni.build(tmp_path_factory.mktemp("model") / "omni")


@pytest.fixture(scope="module")
def undisturbed(checkpoint, tmp_path_factory):
    found = {}
    for kind in ("sft", "grpo"):
        folder = tmp_path_factory.mktemp(kind)
        found[kind] = Stage(kind, checkpoint, folder, Interruption()).outcome(), logged(folder)
    return found


def exhaust(owner, name, at, error):
    """Raises in the `at`-th call, before it does anything."""
    whole, count = getattr(owner, name), [0]

    def call(*args, **kwargs):
        count[0] += 1
        if count[0] == at:
            raise error
        return whole(*args, **kwargs)

    setattr(owner, name, call)


def places(stage, monkeypatch):
    """Owner and name of what needs memory."""
    monkeypatch.setattr(torch.optim.AdamW, "step", torch.optim.AdamW.step)  # undone after the test
    return {
        "forward": (stage.policy, "forward"),
        "backward": (torch.Tensor, "backward"),
        "optimizer step": (torch.optim.AdamW, "step"),
        "generation": (stage.engine, "generate"),
        "decoding": (stage.policy, "next_logprobs"),
        "evaluation": (stage.module, "validation_step"),
        "restore": (stage.trainer.strategy.checkpoint_io, "load_checkpoint"),
    }


@pytest.mark.parametrize(
    ("kind", "place", "at", "error"),
    [
        ("sft", "forward", 4, DEVICE),
        ("sft", "backward", 3, DEVICE),
        ("sft", "optimizer step", 3, DEVICE),
        ("sft", "evaluation", 3, DEVICE),
        ("sft", "forward", 3, HOST),
        ("sft", "forward", 1, MemoryError()),
        ("grpo", "generation", 4, DEVICE),
        ("grpo", "decoding", 30, DEVICE),
        ("grpo", "backward", 5, DEVICE),
        ("grpo", "optimizer step", 4, DEVICE),
    ],
)
def test_the_state_is_kept_and_the_stage_goes_on_exactly(
    checkpoint, undisturbed, tmp_path, monkeypatch, kind, place, at, error
):
    first = Stage(kind, checkpoint, tmp_path, Interruption())
    monkeypatch.setattr(torch.Tensor, "backward", torch.Tensor.backward)
    exhaust(*places(first, monkeypatch)[place], at, error)
    with pytest.raises(type(error)) as caught:
        first.job.run()
    assert refusal(caught.value).memory
    monkeypatch.undo()
    second = Stage(kind, checkpoint, tmp_path, Interruption())
    outcome = second.outcome()
    if at > 1:
        assert first.said[-1].startswith("the same command continues after step")
        assert second.said[0].startswith("continuing after step")
    assert_equal(outcome, undisturbed[kind][0])
    assert logged(tmp_path) == undisturbed[kind][1]


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_a_state_that_there_was_no_memory_to_restore_is_still_there(
    checkpoint, undisturbed, tmp_path, monkeypatch, kind
):
    for place, at in (("forward", 4), ("restore", 1)):
        stage = Stage(kind, checkpoint, tmp_path, Interruption())
        exhaust(*places(stage, monkeypatch)[place], at, DEVICE)
        with pytest.raises(torch.OutOfMemoryError):
            stage.job.run()
    last = Stage(kind, checkpoint, tmp_path, Interruption())
    assert_equal(last.outcome(), undisturbed[kind][0])
    assert logged(tmp_path) == undisturbed[kind][1]


def test_without_memory_for_the_copy_of_a_state_training_goes_on(checkpoint, undisturbed, tmp_path, monkeypatch):
    stage = Stage("sft", checkpoint, tmp_path, Interruption())
    monkeypatch.setattr(checkpoint_io, "tree_map_only", checkpoint_io.tree_map_only)
    exhaust(checkpoint_io, "tree_map_only", 3, HOST)
    assert_equal(stage.outcome(), undisturbed["sft"][0])
    (sentence,) = [line for line in stage.said if "could not be saved" in line]
    assert "no memory is left on this machine" in sentence
    assert stage.store.latest().step == STEPS


def test_the_command_says_what_is_safe_and_what_takes_less_memory(tmp_path, monkeypatch, capsys):
    command = ["train", *SMALL_RL, "stages.reason.num_steps=3", "state.every_n_steps=1", "tracking=none"]
    command += ["evaluation.base=false"]
    command += [f"output_dir={tmp_path}/runs", f"data.root={tmp_path}/data", f"data.media.cache_dir={tmp_path}/cache"]
    with monkeypatch.context() as patch:
        patch.setattr(Policy, "next_logprobs", Policy.next_logprobs)
        exhaust(Policy, "next_logprobs", 8, DEVICE)
        assert main([*command, "run_name=a"]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    (sentence,) = [line for line in said.splitlines() if line.startswith("mmrl train: ")]
    assert sentence.startswith("mmrl train: stages.reason: no memory is left on the device (CUDA out of memory. Tried ")
    for part in (
        "the state of reason after step ",
        "the same command continues",
        "stages.reason.trainer.activation_checkpointing=true",
        "--allow-changes",
        "stages.reason.algorithm.group_size (2)",
    ):
        assert part in sentence
    assert main([*command, "run_name=a"]) == 0
    assert "continuing after step" in capsys.readouterr().err


def test_memory_that_runs_out_in_an_evaluation_is_told_as_no_stage(tmp_path, monkeypatch, capsys):
    """The base model's, before the first stage."""
    command = ["train", *SMALL_RL, "stages.reason.num_steps=1", "tracking=none", "run_name=a"]
    command += [f"output_dir={tmp_path}/runs", f"data.root={tmp_path}/data", f"data.media.cache_dir={tmp_path}/cache"]
    monkeypatch.setattr(Policy, "next_logprobs", Policy.next_logprobs)
    exhaust(Policy, "next_logprobs", 1, DEVICE)
    assert main(command) == 2
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mmrl train: ")]
    assert sentence.startswith("mmrl train: no memory is left on the device (CUDA out of memory. Tried ")
    assert sentence.endswith(
        f"; {tmp_path}/runs/a has no saved work yet; the same command continues; to use less set a lower "
        "evaluation.batch_size (64)"
    )
