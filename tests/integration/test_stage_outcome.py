"""A stage says what it came to: all its steps or an error, and whether any weight changed."""

from dataclasses import replace

import omni
import pytest
import torch
from exact_cases import STEPS, Prompts, Stage

from lightning_mmrl.errors import StageError
from lightning_mmrl.models.digest import weight_digest
from lightning_mmrl.protocols.ranks import ALONE
from lightning_mmrl.settings.algorithm import RewardSettings
from lightning_mmrl.settings.run import StateSettings
from lightning_mmrl.settings.stage import Bound
from lightning_mmrl.training.interruption import Interruption

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return omni.build(tmp_path_factory.mktemp("model") / "omni")


def stage(kind, checkpoint, folder, **options):
    made = Stage(kind, checkpoint, folder, Interruption(), **options)
    made.heard = []
    made.module._context = replace(made.module._context, say=made.heard.append)
    return made


def out_of_data(made, monkeypatch):
    """Does what a decoder without a default once did: torch takes it for the end of the data."""
    whole, count = Prompts.__getitem__, [0]

    def ends(self, draw):
        count[0] += self is made.job.datamodule._sets[0]  # the other one is validated on
        if count[0] == 7:
            raise StopIteration
        return whole(self, draw)

    monkeypatch.setattr(Prompts, "__getitem__", ends)


def stopped_by_lightning(made, monkeypatch):
    """Whatever sets the trainer's flag."""
    end = made.module.on_train_batch_end

    def stop(outputs, batch, batch_idx):
        end(outputs, batch, batch_idx)
        made.trainer.should_stop = batch_idx == 2

    monkeypatch.setattr(made.module, "on_train_batch_end", stop)


def at_most_three_batches(made, monkeypatch):
    """A limit of Lightning's that nobody asked for."""
    monkeypatch.setattr(made.trainer, "limit_train_batches", 3)


@pytest.mark.parametrize("kind", ["sft", "grpo"])
@pytest.mark.parametrize("cause", [out_of_data, stopped_by_lightning, at_most_three_batches])
def test_a_stage_that_ends_before_its_last_step_is_an_error(checkpoint, tmp_path, monkeypatch, kind, cause):
    made = stage(kind, checkpoint, tmp_path)
    cause(made, monkeypatch)
    with pytest.raises(StageError, match=rf"stages.stage ended after 3 of {STEPS} steps, and nothing had asked for it"):
        made.job.run()


def test_a_stage_that_validation_ends_is_whole(checkpoint, tmp_path):
    bound = Bound(metric="validation/valid_format", at_least=0.0)
    came_to = stage("sft", checkpoint, tmp_path, stop_when=bound).job.run()
    assert (came_to.num_steps, came_to.num_skipped, came_to.changed) == (4, 0, True)
    again = stage("sft", checkpoint, tmp_path, stop_when=bound).job.run()
    assert (again.num_steps, again.changed) == (4, True)


def without_learning_rate(made):
    made.module._optimizer = replace(made.module._optimizer, schedule=lambda step, num_steps: 0.0)


def without_a_signal(made):
    if hasattr(made.module, "rewards"):
        made.module.rewards._reward = made.module.rewards._reward.__class__(
            components={"length": lambda sample, completion: 1.0}, settings=RewardSettings(weights={"length": 1.0})
        )


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("sft", without_learning_rate),
        ("grpo", without_learning_rate),
        ("grpo", without_a_signal),
    ],
)
def test_a_stage_that_changed_no_weight_says_so(checkpoint, tmp_path, kind, cause):
    made = stage(kind, checkpoint, tmp_path)
    cause(made)
    assert made.job.run().changed is False
    (said,) = [line for line in made.heard if "no weight changed" in line]
    assert said.startswith(f"no weight changed in {STEPS} steps; the likely causes are ")
    assert ("no group with a signal" in said) == (kind == "grpo")
    silent = [line for line in made.heard if line.startswith("no group had a signal in 5 iterations")]
    assert len(silent) == (cause is without_a_signal)


def test_a_stage_that_goes_on_compares_with_where_it_started(checkpoint, tmp_path):
    """Its own start, not the state that it went on from: the last steps here move nothing."""
    first = stage("sft", checkpoint, tmp_path)
    first.store._settings = StateSettings(keep=STEPS)
    first.job.run()
    for place in first.store._states()[:3]:
        place.rename(place.with_suffix(".partial"))
    second = stage("sft", checkpoint, tmp_path)
    second.change_rate = second.module.on_train_start

    def without_a_rate():
        second.change_rate()
        for group in second.trainer.optimizers[0].param_groups:
            group["lr"] = 0.0
        for config in second.trainer.lr_scheduler_configs:
            config.scheduler.base_lrs = [0.0]

    second.module.on_train_start = without_a_rate
    assert second.job.run().changed is True
    assert second.heard == []


def test_the_digest_is_of_weights_that_train_alone(checkpoint):
    _, policy = omni.load(checkpoint)
    policy.freeze(["vision"])
    before = weight_digest(policy, ALONE)
    frozen = next(parameter for parameter in policy.parameters() if not parameter.requires_grad)
    trained = next(parameter for parameter in policy.parameters() if parameter.requires_grad)
    with torch.no_grad():
        frozen.add_(1)
        assert weight_digest(policy, ALONE) == before
        trained.view(-1)[0] += 1
    assert weight_digest(policy, ALONE) != before
