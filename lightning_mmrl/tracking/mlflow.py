"""Runs of a curriculum in MLflow: one parent, and a child for each stage."""

import json
import logging
import math
import os
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.protocols.plain import RunStatus, TrackedRun
from lightning_mmrl.settings.run import TrackingSettings
from lightning_mmrl.tracking.answers import NoAnswerError
from lightning_mmrl.tracking.connection import connect, find_run
from lightning_mmrl.tracking.delivery import LOCAL_PREFIX, MlflowDelivery
from lightning_mmrl.tracking.journal import Entry, Operation
from lightning_mmrl.tracking.leftovers import note_store
from lightning_mmrl.tracking.logged_models import PARENT_TAG
from lightning_mmrl.tracking.null import UNTRACKED, UNTRACKED_STAGE, NullRun
from lightning_mmrl.tracking.refusals import WaitingError
from lightning_mmrl.tracking.spool import Spool
from lightning_mmrl.tracking.system_metrics import SystemMetrics
from lightning_mmrl.types.redaction import redact, redacted_tree

_log = logging.getLogger(__name__)

NON_FINITE_KEY = "tracking/non_finite"
NOTE_TAG = "mlflow.note.content"
"""Tag that MLflow shows as the description of a run."""

ABOVE = "MMRL_PARENT_RUN_ID"
"""Variable with the id of the run below which a process opens its parent runs; `mmrl compare` sets it."""

_GENERATED_NAME = r"[a-z]+-[a-z]+-\d+"  # a name that MLflow makes up, such as bold-fox-12
_OPENING_S = 10.0
_MAX_KEY = 250
_MAX_PARAM = 6000
_MAX_TAG = 8000
_MAX_DATASET_NAME = 500
_MAX_DIGEST = 36


class MlflowTracker:
    """Opens runs in an MLflow database or server; only rank 0 may build a tracker.

    If no server can be reached at the start, that is a `ConfigError`. Once the tracker is open, an outage neither stops
    nor slows training: undelivered entries wait in `spool_dir`. They are delivered when the server answers again, or
    when a tracker is next opened on the same folder. A run that the server has not created after 10 s, as in an outage,
    gets a local id (`local-...`), which `run_id` and `parent_id` accept like any other id.

    Under `mlflow run` the first parent that is opened is the run that MLflow created (MLFLOW_RUN_ID). If the call that
    opens it names an earlier run to continue, MLflow's run gets the tag `mmrl.continues`. The earlier run is nested
    below it with its stages, if both are in one experiment, so there is one parent however often the curriculum was
    started. A process of `mmrl compare` opens its parent runs below the run of the comparison (MMRL_PARENT_RUN_ID).

    Args:
        settings: The store, `sqlite:///<file>` or `http(s)://<host>`, the experiment, created if it does not exist, and
            the seconds between two measurements of the machine.
        spool_dir: Folder for undelivered entries, used by one tracker at a time.
        origin: Tags of each run that is created here: who made it, by which command and commit.

    Raises:
        ConfigError: The URI has another form, no usable store answers at it, or the store has no run MLFLOW_RUN_ID.
    """

    def __init__(self, settings: TrackingSettings, spool_dir: Path, origin: Mapping[str, str] | None = None) -> None:
        self._project_run_id = os.environ.get("MLFLOW_RUN_ID") or None
        self._above = os.environ.get(ABOVE) or None
        self._continues_another = False
        self._connection = connect(settings.uri or "", settings.experiment, run_id=self._project_run_id)
        self._delivery = MlflowDelivery(self._connection, spool_dir)
        note_store(spool_dir, self._connection.uri, settings.experiment)
        self._spool = Spool(spool_dir, self._delivery)
        self._origin = _clean_tags(origin or {})
        self._system = None if settings.system_every_s is None else SystemMetrics(settings.system_every_s)

    def open_run(
        self,
        name: str,
        *,
        parent_id: str | None = None,
        run_id: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> TrackedRun:
        """Opens a new run, or sets `run_id` to RUNNING again and continues it.

        Raises:
            ConfigError: The server answers that it has no run `run_id`.
        """
        all_tags = {**_clean_tags(tags or {}), "mlflow.runName": name}
        if run_id == UNTRACKED_STAGE:
            return NullRun(run_id)
        if run_id == UNTRACKED:
            run_id = None
        if parent_id is None and self._project_run_id is not None:
            return self._adopt_run(self._project_run_id, all_tags, earlier=run_id)
        parent_id = parent_id or self._above
        if run_id is not None:
            return self._continue_run(run_id, all_tags, parent_id)
        run_key = f"{LOCAL_PREFIX}{time.time_ns()}-{uuid.uuid4().hex[:8]}"
        payload = {"tags": {**self._origin, **all_tags}, "parent_id": parent_id, "start_ms": _now_ms()}
        is_backlogged = self._spool.is_backlogged
        self._spool.submit(Entry(run_id=run_key, operation="create", payload=payload))
        new_id = None if is_backlogged else self._delivery.wait_for_run(run_key, _OPENING_S)
        return self._opened(new_id or run_key)

    def note_report(self, run_id: str) -> None:
        """After an `mlflow run` that had nothing to train, nests its run below the finished run `run_id`."""
        if self._project_run_id is not None and run_id != UNTRACKED:
            payload = {"child": self._project_run_id, "tags": {"mmrl.reports": run_id}, "killed": False}
            self._spool.submit(Entry(run_id=run_id, operation="nest", payload=payload))

    def close(self) -> None:
        """Delivers queued entries for at most 30 s; a warning names the files with the rest."""
        if self._system is not None:
            self._system.close()
        self._spool.close()

    def _opened(self, run_id: str) -> "MlflowRun":
        """A run that is measured until it is finished."""
        run = MlflowRun(run_id, self._spool, self._system)
        if self._system is not None:
            self._system.watch(run_id, run.log_metrics)
        return run

    def _adopt_run(self, run_id: str, tags: dict[str, str], earlier: str | None) -> TrackedRun:
        """Uses the run of `mlflow run` as parent; if the user gave it a name, it keeps that name."""
        self._project_run_id = None
        if not re.fullmatch(_GENERATED_NAME, self._connection.run_name or ""):
            del tags["mlflow.runName"]
        if earlier in (None, run_id):
            return self._continue_run(run_id, tags, None)
        self._continues_another = True
        run = self._continue_run(run_id, {**tags, "mmrl.continues": str(earlier)}, None)
        payload = {"child": earlier, "tags": {"mmrl.continued_by": run_id}, "killed": True}
        self._spool.submit(Entry(run_id=run_id, operation="nest", payload=payload))
        return run

    def _continue_run(self, run_id: str, tags: dict[str, str], parent_id: str | None) -> TrackedRun:
        from mlflow.exceptions import MlflowException

        if not self._spool.is_backlogged and not run_id.startswith(LOCAL_PREFIX):
            try:
                find_run(self._connection, run_id)
            except WaitingError as error:
                if not self._continues_another:
                    raise ConfigError(str(error)) from error
                _log.warning("Run %s was made in another tracking store; it stays there as it is.", run_id)
                return NullRun(run_id)
            except (MlflowException, NoAnswerError) as error:
                _log.warning("The tracking server failed (%s); run %s goes on.", redact(error), run_id)
        run = self._opened(run_id)
        self._spool.submit(Entry(run_id=run_id, operation="status", payload={"status": "RUNNING"}))
        run.set_tags(tags if parent_id is None else {**tags, PARENT_TAG: parent_id})
        return run


@dataclass(frozen=True, slots=True)
class MlflowRun:
    """One open run; each call is queued in the spool and returns at once."""

    id: str
    spool: Spool
    system: SystemMetrics | None = None

    def log_metrics(self, metrics: Mapping[str, float], step: int, time_s: float | None = None) -> None:
        """Logs values at a step, with the given time or the present one.

        Values that are not finite numbers are left out, because MLflow would plot infinity as 1.8e308. The metric
        `tracking/non_finite` counts them.
        """
        values = {}
        for key, value in metrics.items():
            try:
                values[clean_key(key)] = float(value)
            except (TypeError, ValueError):
                values[clean_key(key)] = math.nan
        finite = {key: value for key, value in values.items() if math.isfinite(value)}
        if len(finite) < len(values):
            finite[NON_FINITE_KEY] = float(len(values) - len(finite))
        if finite:
            at = _now_ms() if time_s is None else round(time_s * 1000)
            self._submit("metrics", {"points": [[key, value, at, int(step)] for key, value in finite.items()]})

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Logs parameters as text; a value that differs from the one logged before becomes the tag `changed.<key>`."""
        values = {
            clean_key(key)[: _MAX_KEY - len("changed.")]: str(value)[:_MAX_PARAM] for key, value in params.items()
        }
        self._submit("params", values)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._submit("tags", _clean_tags(tags))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Uploads a file or a whole folder as `<folder>/<its name>`; the upload reads it later, so do not remove it."""
        self._submit("artifact", {"path": str(path.absolute()), "folder": folder})

    def log_dataset(self, name: str, digest: str, source: str, context: str, profile: Mapping[str, Any]) -> None:
        """Logs a dataset as an input; MLflow keeps 36 characters of the digest."""
        payload = {
            "name": name[:_MAX_DATASET_NAME],
            "digest": digest[:_MAX_DIGEST],
            "source": json.dumps({"uri": source}),
            "context": context,
            "profile": json.dumps(dict(profile), default=str, skipkeys=True),
        }
        self._submit("dataset", payload)

    def describe(self, text: str) -> None:
        """Sets the description, in Markdown, unless the run has one: the user may have edited it."""
        payload = redacted_tree(_clean_tags({NOTE_TAG: text}))
        self.spool.submit(Entry(run_id=self.id, operation="tags", payload=payload, late=True))

    def log_table(self, path: Path, folder: str) -> None:
        """Uploads a file as `log_artifact` does, and has MLflow show it as a table.

        The file holds `{"columns": [...], "data": [[...], ...]}`, as `mlflow.log_table` writes it.
        """
        self._submit("table", {"path": str(path.absolute()), "folder": folder})

    def log_model(self, run_id: str, stage: str, handoff: Path, digest: str) -> None:
        """Logs a handoff as a model of the run `run_id`, once: it answers by the weights in `handoff`, not by a copy.

        Sent a second time, it changes nothing.
        """
        if run_id not in (UNTRACKED, UNTRACKED_STAGE):
            payload = {"stage": stage, "handoff": str(handoff.absolute()), "digest": digest}
            self.spool.submit(Entry(run_id=run_id, operation="model", payload=payload))

    def finish(self, status: RunStatus) -> None:
        if self.system is not None:
            self.system.leave(self.id)
        self._submit("status", {"status": status, "time_ms": _now_ms()})

    def _submit(self, operation: Operation, payload: Mapping[str, Any]) -> None:
        if operation in ("params", "tags", "dataset"):
            payload = redacted_tree(payload)
        self.spool.submit(Entry(run_id=self.id, operation=operation, payload=payload))


def clean_key(key: str) -> str:
    """Returns the key as MLflow accepts it: letters, digits, `_-. :/`, no empty or dotted path parts, 250 characters.

    >>> clean_key("reason//rollout/reward@k")
    'reason/rollout/reward_k'
    """
    parts = re.sub(r"[^/\w.\- :]", "_", key).split("/")
    return "/".join(part for part in parts if part not in ("", ".", ".."))[:_MAX_KEY].rstrip("/") or "_"


def _clean_tags(tags: Mapping[str, str]) -> dict[str, str]:
    return {clean_key(key): str(value)[:_MAX_TAG] for key, value in tags.items()}


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
