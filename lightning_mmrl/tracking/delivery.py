"""Turns journal entries into MLflow calls; sending one again leaves the server as it was."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_mmrl.tracking.connection import Connection
from lightning_mmrl.tracking.journal import Entry
from lightning_mmrl.tracking.spool import UndeliverableError

if TYPE_CHECKING:
    from mlflow.entities import Run

RUN_KEY = "mmrl.run_key"
LOCAL_PREFIX = "local-"
PARENT_TAG = "mlflow.parentRunId"

_REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST")
_ARTIFACT_ATTEMPTS = 3


class MlflowDelivery:
    """Sends entries through an MLflow client.

    A run opened during an outage has a local id (`local-...`); the server's run carries it as the tag `mmrl.run_key`,
    by which later entries, and later processes, find it.
    """

    def __init__(self, connection: Connection) -> None:
        self._client = connection.client
        self._experiment_id = connection.experiment_id
        self._server_ids: dict[str, str] = {}
        self._artifact_failures: Counter[str] = Counter()

    def __call__(self, entry: Entry) -> None:
        """Sends one entry.

        Raises:
            UndeliverableError: The server answered that it will not take it, or its file is gone.
        """
        from mlflow.exceptions import MlflowException

        send = {
            "metrics": self._send_metrics,
            "params": self._send_params,
            "tags": self._send_tags,
            "dataset": self._send_dataset,
            "status": self._send_status,
            "nest": self._send_nest,
        }
        try:
            if entry.operation == "create":
                self.create_run(entry.run_id, **entry.payload)
            elif entry.operation == "artifact":
                self._send_artifact(self.resolve(entry.run_id), entry)
            else:
                send[entry.operation](self.resolve(entry.run_id), entry.payload)
        except MlflowException as error:
            if error.error_code in _REFUSALS:
                raise UndeliverableError(str(error)) from error
            raise
        except (TypeError, KeyError) as error:  # a journal of another version
            raise UndeliverableError(f"malformed entry: {error!r}") from error

    def create_run(self, run_key: str, *, tags: Mapping[str, str], parent_id: str | None, start_ms: int) -> str:
        """Creates the run with this key, unless an earlier attempt whose answer was lost has, and returns its id."""
        experiment_id = self._experiment_id
        tags = {**tags, RUN_KEY: run_key}
        if parent_id is not None:
            parent = self._client.get_run(self.resolve(parent_id))
            experiment_id = parent.info.experiment_id
            tags[PARENT_TAG] = parent.info.run_id
        run = self._find_run(run_key, [experiment_id])
        if run is None:
            run = self._client.create_run(
                experiment_id, start_time=start_ms, tags=tags, run_name=tags["mlflow.runName"]
            )
        self._server_ids[run_key] = run.info.run_id
        return run.info.run_id

    def resolve(self, run_id: str) -> str:
        """Returns the server's id for a local one, and any other as it is."""
        if not run_id.startswith(LOCAL_PREFIX):
            return run_id
        if run_id not in self._server_ids:
            experiments = [experiment.experiment_id for experiment in self._client.search_experiments()]
            run = self._find_run(run_id, experiments)
            if run is None:
                raise UndeliverableError(f"the server has no run with the tag {RUN_KEY}={run_id}")
            self._server_ids[run_id] = run.info.run_id
        return self._server_ids[run_id]

    def _find_run(self, run_key: str, experiment_ids: list[str]) -> "Run | None":
        found = self._client.search_runs(experiment_ids, filter_string=f"tags.`{RUN_KEY}` = '{run_key}'", max_results=1)
        return found[0] if found else None

    def _send_metrics(self, run_id: str, payload: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric

        self._client.log_batch(run_id, metrics=[Metric(*point) for point in payload["points"]])

    def _send_params(self, run_id: str, payload: Mapping[str, Any]) -> None:
        """Logs new parameters; one whose value differs becomes a tag, because MLflow refuses to change it."""
        from mlflow.entities import Param, RunTag

        data = self._client.get_run(run_id).data
        new, changed = [], []
        for key, value in payload.items():
            tag = f"changed.{key}"
            if key not in data.params:
                new.append(Param(key, value))
            elif data.params[key] != value or tag in data.tags:
                changed.append(RunTag(tag, value))
        self._client.log_batch(run_id, params=new, tags=changed)

    def _send_tags(self, run_id: str, payload: Mapping[str, Any]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in payload.items()])

    def _send_dataset(self, run_id: str, payload: Mapping[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=payload["name"],
            digest=payload["digest"],
            source_type="local",
            source=payload["source"],
            profile=payload["profile"],
        )
        context = InputTag("mlflow.data.context", payload["context"])
        self._client.log_inputs(run_id, datasets=[DatasetInput(dataset=dataset, tags=[context])])

    def _send_status(self, run_id: str, payload: Mapping[str, Any]) -> None:
        if payload["status"] == "RUNNING":
            self._client.update_run(run_id, status="RUNNING")
        else:
            self._client.set_terminated(run_id, status=payload["status"], end_time=payload["time_ms"])

    def _send_nest(self, run_id: str, payload: Mapping[str, Any]) -> None:
        """Moves a run, and what lies below it, below the run `run_id`; one still RUNNING is shown as KILLED if asked.

        Where the two lie in different stores or experiments only the tags are set: MLflow nests within one experiment.
        """
        child, parent = self._find(payload["child"]), self._find(run_id)
        if child is None:
            return
        child_id, tags = child.info.run_id, dict(payload["tags"])
        if parent is not None and parent.info.experiment_id == child.info.experiment_id:
            tags[PARENT_TAG] = run_id
            below = f"tags.`{PARENT_TAG}` = '{child_id}'"
            for stage in self._client.search_runs([child.info.experiment_id], filter_string=below):
                self._client.set_tag(stage.info.run_id, PARENT_TAG, run_id)
        self._send_tags(child_id, tags)
        if payload["killed"] and child.info.status == "RUNNING":
            self._client.set_terminated(child_id, status="KILLED")

    def _find(self, run_id: str) -> "Run | None":
        """The run with this id, None if the server has none."""
        from mlflow.exceptions import MlflowException

        try:
            return self._client.get_run(self.resolve(run_id))
        except UndeliverableError:
            return None
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    def _send_artifact(self, run_id: str, entry: Entry) -> None:
        """Uploads a file or folder; gives up after three failures while the server answers, so that metrics go on."""
        path = Path(entry.payload["path"])
        if not path.exists():
            raise UndeliverableError(f"{path} is gone")
        try:
            self._client.log_artifact(run_id, str(path), entry.payload["folder"])
        except Exception as error:  # each artifact store raises its own
            self._client.get_run(run_id)
            self._artifact_failures[entry.key] += 1
            if self._artifact_failures[entry.key] >= _ARTIFACT_ATTEMPTS:
                raise UndeliverableError(f"{path} cannot be uploaded: {error}") from error
            raise
