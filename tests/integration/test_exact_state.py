"""A stage that is interrupted anywhere and continued equals, bit for bit, the one that was not."""

import os
import random
import signal
from functools import partial

import lightning
import omni
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from lightning_mmrl.algorithms.advantages.group_normalized import GroupNormalized
from lightning_mmrl.algorithms.losses.aggregation import TokenMean
from lightning_mmrl.algorithms.losses.ppo_clip import PPOClip
from lightning_mmrl.algorithms.schedules import WarmupConstant
from lightning_mmrl.data.collate import EncodedSample, collate_prompts, collate_targets
from lightning_mmrl.data.sampler import DrawSampler, SourceRows
from lightning_mmrl.errors import StageError
from lightning_mmrl.prompts.labels import LabelMatcher
from lightning_mmrl.rewards.compose import WeightedReward
from lightning_mmrl.rewards.pool import InlineRewards
from lightning_mmrl.stages.answers import Examiner
from lightning_mmrl.stages.context import OptimizerSettings, StageContext
from lightning_mmrl.stages.grpo import GRPOModule
from lightning_mmrl.stages.optimize import UpdateSettings
from lightning_mmrl.stages.policy_gradient import Algorithm
from lightning_mmrl.stages.rloo import RLOOModule
from lightning_mmrl.stages.sft import SFTModule
from lightning_mmrl.tracking.jsonl import read_lines
from lightning_mmrl.tracking.lightning_logger import RunLogger
from lightning_mmrl.tracking.null import NullRun
from lightning_mmrl.training.callbacks.exact_state import ExactState, SavingSettings
from lightning_mmrl.training.checkpoint_io import SnapshotIO
from lightning_mmrl.training.interruption import Interrupted, Interruption
from lightning_mmrl.training.job import LightningJob
from lightning_mmrl.training.rng import rng_state
from lightning_mmrl.training.state_store import MANIFEST, StateStore
from lightning_mmrl.training.trainer import TrainerSettings, prepare_process, training_trainer
from lightning_mmrl.types.records import Bound

STEPS = 6
KINDS = {"sft": SFTModule, "grpo": GRPOModule, "rloo": RLOOModule}


class Prompts(Dataset):
    """A few prompts with media; for SFT with targets of different length."""

    def __init__(self, encoder, supervised):
        self._encoder, self._supervised = encoder, supervised

    def __len__(self):
        return len(omni.CONTENTS)

    def __getitem__(self, draw):
        index = getattr(draw, "index", draw)
        sample = omni.encoded(self._encoder, f"p{index}", omni.CONTENTS[index], index)
        if not self._supervised:
            return sample
        target = torch.tensor(self._encoder.encode_target("angry " * (index + 1)))
        return EncodedSample(sample=sample.sample, prompt=sample.prompt, target_ids=target)


class Data(lightning.LightningDataModule):
    """Draws as the product's data modules do, and counts what is consumed."""

    def __init__(self, encoder, supervised, num_batches):
        super().__init__()
        self._sets = Prompts(encoder, supervised), Prompts(encoder, False)
        self._collate = partial(collate_targets if supervised else collate_prompts, pad_token_id=encoder.pad_token_id)
        self._collate_prompts = partial(collate_prompts, pad_token_id=encoder.pad_token_id)
        self.sampler = DrawSampler([SourceRows(num_samples=4)], batch_size=2, num_batches=num_batches, seed=3)

    def train_dataloader(self):
        return DataLoader(self._sets[0], batch_sampler=self.sampler, collate_fn=self._collate)

    def val_dataloader(self):
        return DataLoader(self._sets[1], batch_size=2, collate_fn=self._collate_prompts)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        if self.trainer.training:
            self.sampler.advance()
        return batch

    def state_dict(self):
        return self.sampler.state_dict()

    def load_state_dict(self, state_dict):
        self.sampler.load_state_dict(state_dict)


class Noisy:
    """A reward that also draws from the global generators, as a user's might."""

    def __call__(self, sample, completion):
        return float(sum(completion.text.encode()) % 7) + random.random() + float(torch.rand(()))


class Stage:
    """One process's attempt at a stage, in a folder that outlives it."""

    def __init__(
        self, kind, checkpoint, folder, interruption, *, every=1, background=True, stop_when=None, steps=STEPS
    ):
        prepare_process(TrainerSettings(accelerator="cpu"), seed=5)
        encoder, self.policy = omni.load(checkpoint, dtype=torch.float32)
        engine = omni.engine(encoder, self.policy, max_new_tokens=4)
        self.engine = engine
        examiner = Examiner(engine=engine, matcher=LabelMatcher(labels=("angry", "user")))
        common = {
            "optimizer": OptimizerSettings(
                factory=partial(torch.optim.AdamW, lr=1e-3), schedule=WarmupConstant(warmup_steps=3)
            ),
            "context": StageContext(
                name="stage", num_steps=steps, seed=5, directory=folder, stop_when=stop_when, cooldown_steps=2
            ),
            "examiner": examiner,
        }
        if kind == "sft":
            self.module = SFTModule(self.policy, **common)
        else:
            rewards = InlineRewards(WeightedReward(parts={"noisy": Noisy()}, weights={"noisy": 1.0}))
            algorithm = Algorithm(
                advantage=GroupNormalized(),
                loss=PPOClip(),
                aggregation=TokenMean(),
                group_size=3,
                update=UpdateSettings(num_minibatches=2),
            )
            self.module = KINDS[kind](self.policy, engine, rewards, algorithm=algorithm, **common)
        self.said = []
        self.store, io = StateStore(folder / "state"), SnapshotIO()
        settings = SavingSettings(every_n_steps=every, in_background=background)
        saver = ExactState(self.store, interruption, io, settings=settings, say=self.said.append)
        self.trainer = training_trainer(
            TrainerSettings(accelerator="cpu"),
            directory=folder,
            logger=RunLogger(NullRun("run"), folder),
            callbacks=[saver],
            validate_every=2,
            gradient_clip_val=1.0 if kind == "sft" else None,
            checkpoint_io=io,
        )
        self.job = LightningJob(
            trainer=self.trainer,
            module=self.module,
            datamodule=Data(encoder, kind == "sft", steps),
            exporter=lambda directory: None,
            states=self.store,
            saver=saver,
            say=self.said.append,
        )

    def outcome(self):
        """All that must not differ."""
        return self.job.train(), {name: value.clone() for name, value in self.policy.state_dict().items()}


def logged(folder):
    """Each metric of each step once, times left out."""
    values = {}
    for record in read_lines(folder / "metrics.jsonl"):
        for key, value in record["metrics"].items():
            assert (record["step"], key) not in values
            if "/time/" not in key:
                values[record["step"], key] = value
    return values


def assert_equal(first, second):
    assert {key: value for key, value in first[0].items() if "time/" not in key} == {
        key: value for key, value in second[0].items() if "time/" not in key
    }
    for name, value in first[1].items():
        assert torch.equal(value, second[1][name]), name


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return omni.build(tmp_path_factory.mktemp("model") / "omni")


@pytest.fixture(scope="module")
def undisturbed(checkpoint, tmp_path_factory):
    """Each kind of stage without an interruption, and without a state."""
    found = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        stage = Stage(kind, checkpoint, folder, Interruption(), every=STEPS + 1)
        found[kind] = stage.outcome(), logged(folder), rng_state()["torch"]
    return found


def kill_in(stage, place, at):
    """Sends SIGTERM to this process when the stage is at a place for the `at`-th time."""
    owner, name = {
        "rollout": (stage.engine, "generate"),
        "reward": (getattr(stage.module, "rewards", None), "score"),
        "scoring": (stage.policy, "forward"),
        "step": (stage.module, "optimizer_step"),
        "validation": (stage.module, "validation_step"),
        "report": (stage.module, "_report"),
    }[place]
    whole, count = getattr(owner, name), [0]

    def call(*args, **kwargs):
        count[0] += 1
        result = whole(*args, **kwargs)
        if count[0] == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    setattr(owner, name, call)


PLACES = [
    ("sft", "scoring", 4),
    ("sft", "report", 3),
    ("sft", "validation", 3),
    ("grpo", "rollout", 5),
    ("grpo", "reward", 3),
    ("grpo", "scoring", 7),
    ("grpo", "validation", 2),
    ("grpo", "report", 4),
    ("rloo", "reward", 2),
    ("rloo", "validation", 5),
]


@pytest.mark.parametrize(("kind", "place", "at"), PLACES)
def test_an_interrupted_stage_saves_itself_and_goes_on_exactly(checkpoint, undisturbed, tmp_path, kind, place, at):
    """Saved on the way out alone: the state is that of the last border, wherever the signal came."""
    with Interruption() as interruption:
        first = Stage(kind, checkpoint, tmp_path, interruption, every=STEPS + 1)
        kill_in(first, place, at)
        with pytest.raises(Interrupted, match="SIGTERM"):
            first.job.train()
    assert "the same command continues after step" in first.said[-1]
    with Interruption() as interruption:
        second = Stage(kind, checkpoint, tmp_path, interruption, every=STEPS + 1)
        outcome = second.outcome()
    assert second.said[0].startswith("continuing after step")
    assert_equal(outcome, undisturbed[kind][0])
    assert logged(tmp_path) == undisturbed[kind][1]
    assert torch.equal(rng_state()["torch"], undisturbed[kind][2])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [1, 2, 5, 6])
def test_every_state_leads_to_the_same_end(checkpoint, undisturbed, tmp_path, kind, step):
    """Behind a batch, behind a validation, and behind the last step."""
    first = Stage(kind, checkpoint, tmp_path / "first", Interruption(), background=step % 2 == 0)
    first.store._keep = STEPS
    first.job.train()
    for place in (tmp_path / "first" / "state").glob("step-*"):
        if int(place.name.removeprefix("step-")) > step:
            for path in place.rglob("*"):
                path.unlink()
    second = Stage(kind, checkpoint, tmp_path / "first", Interruption())
    outcome = second.outcome()
    assert second.said[0] == f"continuing after step {step}"
    assert_equal(outcome, undisturbed[kind][0])
    assert logged(tmp_path / "first") == undisturbed[kind][1]


@pytest.mark.parametrize("part", ["optimizer", "sampler", "generators", "stage", "weights"])
def test_each_part_of_a_state_is_needed(checkpoint, undisturbed, tmp_path, part):
    """The negative control: without any one of them the stage ends elsewhere."""
    with Interruption() as interruption:
        first = Stage("grpo", checkpoint, tmp_path, interruption, every=STEPS + 1)
        kill_in(first, "reward", 4)
        with pytest.raises(Interrupted):
            first.job.train()
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
        assert_equal(outcome, undisturbed["grpo"][0])


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
    assert_equal(stage.outcome(), undisturbed["sft"][0])
    told = "could not be saved ([Errno 28] No space left on device); training goes on, the last one is that of step 2"
    assert [line for line in stage.said if told in line] == stage.said
    assert len(stage.said) == 2
    assert stage.store.latest().step == STEPS


def test_a_state_of_other_data_is_refused(checkpoint, tmp_path):
    Stage("sft", checkpoint, tmp_path, Interruption(), steps=4).job.train()
    second = Stage("sft", checkpoint, tmp_path, Interruption())
    second.job.datamodule.sampler._seed = 99
    with pytest.raises(StageError, match="cannot resume the order of the data: seed was 3 and is 99"):
        second.job.train()
