"""One step of any stage on any tiny family: optimizer, context, reward, targets and trainer."""

from functools import partial

import families
import omni
import torch
from torch.utils.data import DataLoader

from lightning_mmrl.algorithms.schedules import WarmupConstant
from lightning_mmrl.data.collate import EncodedSample, collate_targets
from lightning_mmrl.rewards.compose import WeightedReward
from lightning_mmrl.rewards.pool import InlineRewards
from lightning_mmrl.settings.algorithm import RewardSettings
from lightning_mmrl.settings.stage import StageSettings, TrainerSettings
from lightning_mmrl.stages.context import OptimizerSettings, StageContext
from lightning_mmrl.tracking.lightning_logger import RunLogger
from lightning_mmrl.tracking.null import NullRun
from lightning_mmrl.training.trainer import training_trainer


class CountsEvens:
    """Something that any sampled text has more or less of: the share of even characters."""

    def __call__(self, sample, completion):
        return sum(ord(letter) % 2 == 0 for letter in completion.text) / max(1, len(completion.text))


def rewards(component=None):
    """Of one component alone; without one, of even characters."""
    components = {"evens": component or CountsEvens()}
    return InlineRewards(WeightedReward(components=components, settings=RewardSettings(weights={"evens": 1.0})))


def settings(folder):
    """Arguments that the module of every stage takes."""
    return {
        "optimizer": OptimizerSettings(factory=partial(torch.optim.SGD, lr=0.05), schedule=WarmupConstant()),
        "context": StageContext(name="stage", settings=StageSettings(num_steps=1), seed=0, directory=folder),
    }


def targets(name, encoder):
    """Each prompt of a family with the same answer."""
    items = []
    for index, content in enumerate(families.FAMILIES[name].contents):
        item = omni.encoded(encoder, f"p{index}", content, index)
        ids = tuple(encoder.encode_target("<think>fast tone</think><answer>angry</answer>"))
        items.append(EncodedSample(sample=item.sample, prompt=item.prompt, target_ids=ids))
    return collate_targets(items, encoder.pad_token_id)


def fit(module, batch, folder, steps=1):
    """Trains on one batch, again and again."""
    trainer = training_trainer(
        TrainerSettings(accelerator="cpu"),
        directory=folder,
        logger=RunLogger(NullRun("run"), folder),
        callbacks=[],
        validate_every=None,
        gradient_clip_val=None,
    )
    trainer.fit(module, DataLoader([batch] * steps, batch_size=None))


def reports(module, batch, folder, steps=1):
    """Trains and returns what was reported at each step."""
    seen = []
    module._report = lambda values, step: seen.append(dict(values))
    fit(module, batch, folder, steps)
    return seen
