"""Lightning Trainers for training and evaluation, without the automatic steps that a stage does itself."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from lightning_mmrl.settings.stage import TrainerSettings
from lightning_mmrl.training.group import cluster_environment
from lightning_mmrl.training.strategies import build_strategy, lightning_precision


def training_trainer(
    settings: TrainerSettings,
    *,
    directory: Path,
    logger: Logger | list[Logger],
    callbacks: Sequence[Callback],
    validate_every: int | None,
    gradient_clip_val: float | None,
    checkpoint_io: CheckpointIO | None = None,
) -> lightning.Trainer:
    """A trainer for one epoch, which is the whole stage; `ExactState` saves checkpoints in Lightning's place.

    Args:
        settings: Devices, strategy and precision.
        directory: Lightning's root directory.
        logger: One logger or several.
        callbacks: Progress and the like.
        validate_every: Batches between validations; None for no validation.
        gradient_clip_val: Gradient norm limit of automatic optimization; None for stages that clip by hand.
        checkpoint_io: Reads and writes states; None for a stage that is not saved.
    """
    # A stage may have no validation split.
    warnings.filterwarnings("ignore", message="You defined a `validation_step` but have no `val_dataloader`")
    # The data module resumes the order of the data, so the loader need not be resumable.
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
    return lightning.Trainer(
        **_placement(settings),
        max_epochs=1,
        logger=logger,
        callbacks=list(callbacks),
        plugins=[cluster_environment(settings), *([] if checkpoint_io is None else [checkpoint_io])],
        default_root_dir=directory,
        gradient_clip_val=gradient_clip_val,
        val_check_interval=validate_every,
        check_val_every_n_epoch=None if validate_every else 1,
        limit_val_batches=1.0 if validate_every else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def evaluation_trainer(
    settings: TrainerSettings, *, directory: Path, callbacks: Sequence[Callback]
) -> lightning.Trainer:
    """A trainer that only tests."""
    return lightning.Trainer(
        **_placement(settings),
        logger=False,
        callbacks=list(callbacks),
        plugins=[cluster_environment(settings)],
        default_root_dir=directory,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def _placement(settings: TrainerSettings) -> dict[str, Any]:
    """Arguments of a trainer for devices, strategy and precision."""
    return {
        "accelerator": settings.accelerator,
        "devices": settings.devices,
        "num_nodes": settings.num_nodes,
        "strategy": build_strategy(settings),
        "precision": lightning_precision(settings),
        # Weights that were gathered in inference mode could not be trained afterwards.
        "inference_mode": not settings.shards,
    }


def prepare_process(settings: TrainerSettings, seed: int) -> None:
    """Seeds Python, NumPy and torch, and sets the number of torch's CPU threads if the settings give one."""
    lightning.seed_everything(seed, verbose=False)
    if settings.num_threads is not None:
        torch.set_num_threads(settings.num_threads)
