"""A stage that is interrupted anywhere and continued equals, bit for bit, the one that was not."""

import random
import shutil
from functools import cache

import omni
import pytest
import torch
from exact_cases import KINDS, STEPS, Stage, assert_equal, kill_in, logged

from lightning_mmrl.algorithms.penalties.entropy import EntropyBonus
from lightning_mmrl.algorithms.penalties.kl import KLPenalty
from lightning_mmrl.algorithms.schedules import WarmupCosine
from lightning_mmrl.errors import StageError
from lightning_mmrl.settings.algorithm import EntropySettings, KLSettings
from lightning_mmrl.settings.run import StateSettings
from lightning_mmrl.settings.stage import Bound
from lightning_mmrl.training.interruption import Interrupted, Interruption
from lightning_mmrl.training.rng import rng_state
from lightning_mmrl.training.state_store import MANIFEST

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return omni.build(tmp_path_factory.mktemp("model") / "omni")


@pytest.fixture(scope="module")
def undisturbed(checkpoint, tmp_path_factory):
    """By its kind, a stage without an interruption and without a state."""

    @cache
    def run(kind):
        folder = tmp_path_factory.mktemp(kind)
        stage = Stage(kind, checkpoint, folder, Interruption(), every=STEPS + 1)
        return stage.outcome(), logged(folder), rng_state()["torch"]

    return run


@pytest.fixture(scope="module")
def all_states(checkpoint, tmp_path_factory):
    """The folder of a stage that kept the state of each step, by its kind, written in the background or not."""

    @cache
    def run(kind, background):
        folder = tmp_path_factory.mktemp(f"states-{kind}")
        stage = Stage(kind, checkpoint, folder, Interruption(), background=background)
        stage.store._settings = StateSettings(keep=STEPS)
        stage.job.run()
        return folder

    return run


PLACES = [
    ("sft", "scoring", 4),
    ("sft", "report", 3),
    ("sft", "validation", 3),
    ("dft", "scoring", 3),
    ("routed", "reward", 3),
    ("routed", "scoring", 5),
    ("routed", "report", 4),
    ("dpo", "scoring", 5),
    ("dpo", "report", 4),
    ("grpo", "rollout", 5),
    pytest.param("grpo", "reward", 3, marks=pytest.mark.main_path),
    ("grpo", "scoring", 7),
    ("grpo", "validation", 2),
    ("grpo", "report", 4),
    ("rloo", "reward", 2),
    ("rloo", "validation", 5),
    ("ppo", "scoring", 9),
    ("ppo", "report", 4),
]


@pytest.mark.parametrize(("kind", "place", "at"), PLACES)
def test_an_interrupted_stage_saves_itself_and_goes_on_exactly(checkpoint, undisturbed, tmp_path, kind, place, at):
    """Saved on the way out alone: as of the last safe point, wherever the signal came."""
    expected, points, generators = undisturbed(kind)  # now, since it draws numbers
    with Interruption() as interruption:
        first = Stage(kind, checkpoint, tmp_path, interruption, every=STEPS + 1)
        kill_in(first, place, at)
        with pytest.raises(Interrupted, match="SIGTERM"):
            first.job.run()
    assert "the same command continues after step" in first.said[-1]
    with Interruption() as interruption:
        second = Stage(kind, checkpoint, tmp_path, interruption, every=STEPS + 1)
        outcome = second.outcome()
    assert second.said[0].startswith("continuing after step")
    assert torch.equal(rng_state()["torch"], generators)
    assert_equal(outcome, expected)
    assert logged(tmp_path) == points


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [1, 2, 5, 6])
def test_every_state_leads_to_the_same_end(checkpoint, undisturbed, all_states, tmp_path, kind, step):
    """After a batch, after a validation, and after the last step."""
    shutil.copytree(all_states(kind, step % 2 == 0), tmp_path / "first")
    for place in (tmp_path / "first" / "state").glob("step-*"):
        if int(place.name.removeprefix("step-")) > step:
            for path in place.rglob("*"):
                path.unlink()
    second = Stage(kind, checkpoint, tmp_path / "first", Interruption())
    outcome = second.outcome()
    assert second.said[0] == f"continuing after step {step}"
    assert_equal(outcome, undisturbed(kind)[0])
    assert logged(tmp_path / "first") == undisturbed(kind)[1]


@pytest.mark.parametrize(
    "part", [pytest.param("optimizer", marks=pytest.mark.main_path), "sampler", "generators", "stage", "weights"]
)
def test_each_part_of_a_state_is_needed(checkpoint, undisturbed, tmp_path, part):
    """The negative control: without any one of them the stage ends elsewhere."""
    with Interruption() as interruption:
        first = Stage("grpo", checkpoint, tmp_path, interruption, every=STEPS + 1)
        kill_in(first, "reward", 4)
        with pytest.raises(Interrupted):
            first.job.run()
    found = first.store.latest()
    path, generators = found.folder / "checkpoint", found.folder / "generators-00000.pt"
    state = torch.load(path, weights_only=True)
    if part == "optimizer":
        for slot in state["optimizer_states"][0]["state"].values():
            slot["exp_avg"].zero_()
    elif part == "sampler":
        state["Data"]["consumed"] -= 1
    elif part == "generators":
        random.seed(99)
        torch.manual_seed(99)
        torch.save(rng_state(), generators)
    elif part == "stage":
        state["lr_schedulers"][0]["last_epoch"] = 0
    else:
        name = next(key for key in state["state_dict"] if key.endswith("mlp.up_proj.weight"))
        state["state_dict"][name].add_(1e-3)
    torch.save(state, path)
    (folder := first.store.begin(found.step)).rmdir()
    found.folder.rename(folder)
    (folder / MANIFEST).unlink()
    first.store.commit(found.step, {})
    outcome = Stage("grpo", checkpoint, tmp_path, Interruption(), every=STEPS + 1).outcome()
    with pytest.raises(AssertionError):
        assert_equal(outcome, undisturbed("grpo")[0])


@pytest.mark.parametrize("part", ["values", "optimizer"])
def test_a_state_has_the_critic_and_its_optimizer(checkpoint, undisturbed, tmp_path, part):
    """The negative control: with another critic, or another optimizer of it, the stage ends elsewhere."""
    with Interruption() as interruption:
        first = Stage("ppo", checkpoint, tmp_path, interruption, every=STEPS + 1)
        kill_in(first, "reward", 4)
        with pytest.raises(Interrupted):
            first.job.run()
    second = Stage("ppo", checkpoint, tmp_path, Interruption(), every=STEPS + 1)
    start = second.module.on_train_start

    def spoil():
        start()
        if part == "values":
            second.module.critic.trunk.head.weight.data.mul_(1.01)
        else:
            for slot in second.module.optimizers()[1].state.values():
                slot["exp_avg"].zero_()

    second.module.on_train_start = spoil
    outcome = second.outcome()
    with pytest.raises(AssertionError):
        assert_equal(outcome, undisturbed("ppo")[0])


@pytest.mark.parametrize(("place", "at"), [("reward", 3), ("scoring", 7), ("scoring", 8), ("report", 3)])
def test_running_moments_of_rewards_go_on_exactly_wherever_the_stage_was_interrupted(checkpoint, tmp_path, place, at):
    """Also between the scores of an iteration and its update; negative control: an iteration that counts again."""
    options = {"every": STEPS + 1, "normalize": True}
    expected = Stage("ppo", checkpoint, tmp_path / "whole", Interruption(), **options).outcome()
    assert expected[0]["rollout/running_reward_std"] > 0
    outcomes = []
    for name in ("right", "spoiled"):
        with Interruption() as interruption:
            first = Stage("ppo", checkpoint, tmp_path / name, interruption, **options)
            kill_in(first, place, at)
            with pytest.raises(Interrupted):
                first.job.run()
        second = Stage("ppo", checkpoint, tmp_path / name, Interruption(), **options)
        if name == "spoiled":
            forget(second)
        outcomes.append(second.outcome())
    assert_equal(outcomes[0], expected)
    with pytest.raises(AssertionError):
        assert_equal(outcomes[1], expected)


def forget(stage):
    """A mistake: the moments are not those of the state."""
    start = stage.module.on_train_start

    def late():
        start()
        running = stage.module._critic_trainer._rewards
        running.moments = running.before = running.moments.plus([3.0, 1.0])

    stage.module.on_train_start = late


@pytest.mark.parametrize("part", ["mean", "count", "reference"])
def test_a_stage_of_pairs_goes_on_with_its_mean_reward_and_its_first_weights(checkpoint, undisturbed, tmp_path, part):
    """The negative control: with another mean, another number of rewards or another reference, it ends elsewhere."""
    with Interruption() as interruption:
        first = Stage("dpo", checkpoint, tmp_path, interruption, every=STEPS + 1)
        kill_in(first, "scoring", 5)
        with pytest.raises(Interrupted):
            first.job.run()
    assert first.module.shift.count > 0
    second = Stage("dpo", checkpoint, tmp_path, Interruption(), every=STEPS + 1)
    start = second.module.on_train_start

    def spoil():
        start()
        if part == "reference":
            for parameter in second.module._reference._copy.parameters():
                parameter.data.mul_(1.05)
        else:
            setattr(second.module.shift, part, getattr(second.module.shift, part) + 1)

    second.module.on_train_start = spoil
    outcome = second.outcome()
    with pytest.raises(AssertionError):
        assert_equal(outcome, undisturbed("dpo")[0])


@pytest.mark.parametrize("where", ["loss", "reward"])
def test_a_stage_with_a_reference_policy_goes_on_exactly_though_no_state_has_it(checkpoint, tmp_path, where):
    """Also the schedules of the coefficients; negative control: a reference of other weights leads elsewhere."""
    options = {
        "every": STEPS + 1,
        "kl": KLPenalty(KLSettings(coefficient=0.3, estimator="k1" if where == "reward" else "k3", where=where)),
        "entropy": EntropyBonus(
            EntropySettings(coefficient=0.05), schedule=WarmupCosine(warmup_steps=2, final_fraction=0.0)
        ),
    }
    whole = Stage("grpo", checkpoint, tmp_path / "whole", Interruption(), **options).outcome()
    assert whole[0]["train/reference_kl"] != 0
    with Interruption() as interruption:
        first = Stage("grpo", checkpoint, tmp_path / "cut", interruption, **options)
        kill_in(first, "reward", 4)
        with pytest.raises(Interrupted):
            first.job.run()
    found = first.store.latest()
    state = torch.load(found.folder / "checkpoint", weights_only=True)
    assert state["state_dict"].keys() == first.module.state_dict().keys()
    assert all(key.startswith("policy.model.") for key in state["state_dict"])
    shutil.copytree(tmp_path / "cut", tmp_path / "other")
    assert_equal(Stage("grpo", checkpoint, tmp_path / "cut", Interruption(), **options).outcome(), whole)
    other = Stage("grpo", checkpoint, tmp_path / "other", Interruption(), **options)
    for parameter in other.module._reference._copy.parameters():
        parameter.data.mul_(1.05)
    with pytest.raises(AssertionError):
        assert_equal(other.outcome(), whole)


def test_a_stage_that_validation_ended_stays_ended(checkpoint, tmp_path):
    bound = Bound(metric="validation/valid_format", at_least=0.0)
    first = Stage("sft", checkpoint, tmp_path, Interruption(), stop_when=bound)
    expected = first.outcome()
    assert max(step for step, _ in logged(tmp_path)) == 4
    before = logged(tmp_path)
    assert_equal(Stage("sft", checkpoint, tmp_path, Interruption(), stop_when=bound).outcome(), expected)
    assert logged(tmp_path) == before


def test_a_disk_that_refuses_a_state_does_not_end_the_stage(checkpoint, undisturbed, tmp_path, monkeypatch):
    stage = Stage("sft", checkpoint, tmp_path, Interruption())
    commit = stage.store.commit

    def refuse(step, facts):
        if step in (3, 4):
            raise OSError(28, "No space left on device")
        return commit(step, facts)

    monkeypatch.setattr(stage.store, "commit", refuse)
    assert_equal(stage.outcome(), undisturbed("sft")[0])
    told = "could not be saved (no space is left on the disk); training goes on, the last one is that of step 2"
    assert [line for line in stage.said if told in line] == stage.said
    assert len(stage.said) == 2
    assert stage.store.latest().step == STEPS


def test_a_state_of_other_data_is_refused(checkpoint, tmp_path):
    Stage("sft", checkpoint, tmp_path, Interruption(), steps=4).job.run()
    second = Stage("sft", checkpoint, tmp_path, Interruption())
    second.job.datamodule.sampler._seed = 99
    with pytest.raises(StageError, match="cannot resume the order of the data: seed was 3 and is 99"):
        second.job.run()
