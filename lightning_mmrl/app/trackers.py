"""The tracker that a configuration asks for, and who makes the runs in it; loads no torch."""

import getpass
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lightning_mmrl.app.starts import CHECKOUT, branch_of, commit_of
from lightning_mmrl.protocols.plain import Tracker
from lightning_mmrl.registry import targets
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.tracking.mlflow import MlflowTracker
from lightning_mmrl.tracking.null import NullTracker
from lightning_mmrl.tracking.store import absolute_sqlite, spool_folder

OWN_TRACKING = "tracking"
"""Folder in output_dir where a tracker of the user's own may keep files."""


def open_tracker(config: RunSettings, made_by: Mapping[str, str] | None = None) -> Tracker:
    """The configured tracker; `made_by` are tags of the runs that it creates in MLflow, see `origin`."""
    uri, node = config.tracking.uri, config.tracking.tracker
    if node is not None:
        folder = Path(config.output_dir).absolute() / OWN_TRACKING
        return targets.build(node, "tracking.tracker", folder=folder)
    if uri is None:
        return NullTracker()
    return MlflowTracker(replace(config.tracking, uri=absolute_sqlite(uri)), spool_folder(config, uri), made_by)


def origin(command: Sequence[str]) -> dict[str, str]:
    """Tags, named as MLflow names them, of who makes a run, by which command, at which commit of this package.

    Args:
        command: The arguments of `mmrl`; empty if a program calls this package.
    """
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container may have no name for the user's number
        user = str(os.getuid())
    tags = {
        "mlflow.user": user,
        "mlflow.source.name": " ".join(["mmrl", *command[:1]]),
        "mlflow.source.type": "LOCAL",
    }
    commit, changed, _ = (commit_of(CHECKOUT) or "").partition("+")
    if commit:
        tags |= {"mlflow.source.git.commit": commit, "mlflow.source.git.dirty": str(bool(changed)).lower()}
        branch = branch_of(CHECKOUT)
        tags |= {"mlflow.source.git.branch": branch} if branch else {}
    return tags
