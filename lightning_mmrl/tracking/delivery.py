"""Turns journal entries into MLflow calls that may be repeated: a second delivery leaves the server as it was."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_mmrl.tracking.answers import NoAnswerError, is_answer, post
from lightning_mmrl.tracking.connection import Connection, find_run, how_to_restore
from lightning_mmrl.tracking.journal import Entry
from lightning_mmrl.tracking.logged_models import PARENT_TAG, Asked, LoggedModels
from lightning_mmrl.tracking.refusals import NotYetError, RefusedError, UndeliverableError, WaitingError

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run
    from mlflow.tracking import MlflowClient

RUN_KEY = "mmrl.run_key"
LOCAL_PREFIX = "local-"
TABLES_TAG = "mlflow.loggedArtifacts"
"""Tag with the artifacts that MLflow shows as tables, as its `log_table` writes it."""

_REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "INVALID_STATE")
_ARTIFACT_ATTEMPTS = 3
_CREATE_LIMIT_S = 120.0
_SETTLING_S = 5.0
"""Seconds to search for a run whose creation got no answer, before it is created once more."""


class MlflowDelivery:
    """Sends entries through an MLflow client, and reads back whether the server has them.

    A new run has a local key (`local-...`). The server's run carries it as the tag `mmrl.run_key`, by which later
    attempts, entries and processes find the run.

    Args:
        connection: The store.
        spool: Folder of the entries, `<output_dir>/spool/<store>`. Only files below that output_dir are uploaded: a
            journal may come from somebody else and name any file that this user can read.
    """

    def __init__(self, connection: Connection, spool: Path) -> None:
        self._output_dir = spool.absolute().parent.parent
        self._client = connection.client
        self._connection = connection
        self._models = LoggedModels(connection)
        self._server_ids: dict[str, str] = {}
        self._artifact_failures: Counter[str] = Counter()
        self._unanswered: dict[str, float] = {}
        self._opened = threading.Condition()
        self._tried: set[str] = set()

    def __call__(self, entry: Entry) -> None:
        """Sends one entry, and returns once the server has it.

        Raises:
            UndeliverableError: The entry can never be sent: its file is gone, or it is malformed.
            RefusedError: The server works and has the entry's run, but refuses the entry.
            WaitingError: The server does not have the entry's run, or has deleted it.
            Exception: Any other error is an outage.
        """
        from mlflow.exceptions import MlflowException

        send: dict[str, Callable[[str, Mapping[str, Any]], None]] = {
            "metrics": self._send_metrics,
            "params": self._send_params,
            "tags": self._send_tags,
            "dataset": self._send_dataset,
            "status": self._send_status,
            "nest": self._send_nest,
        }
        try:
            if entry.operation == "create":
                self._create(entry.run_id, **entry.payload)
            elif entry.operation in ("artifact", "table"):
                self._send_artifact(self.resolve(entry.run_id), entry)
            elif entry.operation == "model":
                self._send_model(entry)
            else:
                run_id = self.resolve(entry.run_id)
                send[entry.operation](run_id, self._still_true(run_id, entry) if entry.late else entry.payload)
        except MlflowException as error:
            if error.error_code in _REFUSALS and is_answer(error, remote=self._connection.remote):
                self._look_for_cause(entry)
                raise RefusedError(str(error)) from error
            raise
        except (TypeError, KeyError) as error:  # a journal of another version
            raise UndeliverableError(f"malformed entry: {error!r}") from error

    def _still_true(self, run_id: str, entry: Entry) -> Mapping[str, Any]:
        """The payload of a late entry without tags that the run already has; a run that has ended keeps its status."""
        run = find_run(self._connection, run_id)
        if entry.operation == "tags":
            return {key: value for key, value in entry.payload.items() if key not in run.data.tags}
        if entry.operation == "status" and run.info.status != "RUNNING":
            return {"status": run.info.status, "time_ms": run.info.end_time}
        return entry.payload

    def wait_for_run(self, run_key: str, timeout_s: float) -> str | None:
        """Waits for the first attempt to create a run; returns the server's id, or None if it fails or takes longer."""
        with self._opened:
            self._opened.wait_for(lambda: run_key in self._tried, timeout_s)
            return self._server_ids.get(run_key)

    def resolve(self, run_id: str) -> str:
        """Returns the server's id for a local one; any other id is the server's already.

        Raises:
            WaitingError: The server has no such run.
        """
        if not run_id.startswith(LOCAL_PREFIX):
            return run_id
        if run_id not in self._server_ids:
            experiments = [experiment.experiment_id for experiment in self._client.search_experiments()]
            found = self._find_by_key(run_id, [*dict.fromkeys([self._connection.experiment_id, *experiments])])
            if found is None:
                raise WaitingError(f"{self._connection.uri} has no run with the tag {RUN_KEY}={run_id}")
            self._server_ids[run_id] = found
        return self._server_ids[run_id]

    def _create(self, run_key: str, *, tags: Mapping[str, str], parent_id: str | None, start_ms: int) -> None:
        """Creates the run with this key, unless an earlier attempt created it and the answer was lost."""
        try:
            experiment_id = self._connection.experiment_id
            tags = {**tags, RUN_KEY: run_key}
            if parent_id is not None:
                parent = find_run(self._connection, self.resolve(parent_id))
                experiment_id = parent.info.experiment_id
                tags[PARENT_TAG] = parent.info.run_id
            run_id = self._find_by_key(run_key, [experiment_id])
            if run_id is None:
                settling_s = self._unanswered.get(run_key, 0.0) + _SETTLING_S - time.monotonic()
                if run_key in self._unanswered and settling_s > 0:
                    raise NotYetError("the creation of a run was not answered; it may still happen", settling_s)
                run_id = self._created(experiment_id, run_key, start_ms, tags)
            self._unanswered.pop(run_key, None)
            self._server_ids[run_key] = run_id
        finally:
            with self._opened:
                self._tried.add(run_key)
                self._opened.notify_all()

    def _created(self, experiment_id: str, run_key: str, start_ms: int, tags: Mapping[str, str]) -> str:
        """Creates a run by one request with a long deadline: a repeated request would make a second run."""
        name = tags["mlflow.runName"]
        if not self._connection.remote:
            return self._client.create_run(
                experiment_id, start_time=start_ms, tags=dict(tags), run_name=name
            ).info.run_id
        body = {
            "experiment_id": experiment_id,
            "start_time": start_ms,
            "run_name": name,
            "tags": [{"key": key, "value": value} for key, value in tags.items()],
        }
        try:
            answer = post(self._client, "runs/create", body, timeout_s=_CREATE_LIMIT_S)
            return str(answer["run"]["info"]["run_id"])
        except Exception as error:
            if not is_answer(error, remote=True):
                self._unanswered[run_key] = time.monotonic()
            if isinstance(error, KeyError | TypeError):
                raise NoAnswerError(f"the answer to runs/create has no run ({error!r})") from error
            raise

    def _find_by_key(self, run_key: str, experiment_ids: list[str]) -> str | None:
        """The id of the run with this key, deleted or not.

        Raises:
            WaitingError: The run was deleted.
        """
        from mlflow.entities import ViewType

        query = f"tags.`{RUN_KEY}` = '{run_key}'"
        if self._connection.remote:
            body = {"experiment_ids": experiment_ids, "filter": query, "run_view_type": "ALL", "max_results": 1}
            runs = post(self._client, "runs/search", body, timeout_s=_CREATE_LIMIT_S).get("runs", [])
            infos = [(run["info"]["run_id"], run["info"].get("lifecycle_stage", "active")) for run in runs]
        else:
            found = self._client.search_runs(experiment_ids, query, ViewType.ALL, max_results=1)
            infos = [(run.info.run_id, run.info.lifecycle_stage) for run in found]
        for run_id, stage in infos:
            if stage != "active":
                find_run(self._connection, run_id)
            return run_id
        return None

    def _look_for_cause(self, entry: Entry) -> None:
        """Checks whether a refusal means that the entry's run or experiment is missing.

        Raises:
            WaitingError: The run or its experiment is missing, or was deleted.
        """
        from mlflow.exceptions import MlflowException

        if entry.operation != "create":
            find_run(self._connection, self.resolve(entry.run_id))
            return
        uri, experiment_id = self._connection.uri, self._connection.experiment_id
        try:
            experiment = self._client.get_experiment(experiment_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST" or not is_answer(error, remote=self._connection.remote):
                raise
            raise WaitingError(f"{uri} has no experiment {experiment_id}") from error
        if experiment.lifecycle_stage != "active":
            restore = how_to_restore(uri, None, experiment)
            raise WaitingError(f"the experiment {experiment.name!r} was deleted; restore it: {restore}")

    def _confirm(self, run_id: str, is_there: Callable[["Run"], bool]) -> None:
        """Reads back what was sent, because an empty answer, or a proxy's, says nothing about the database.

        Raises:
            NoAnswerError: The run does not hold what was sent.
        """
        if not is_there(find_run(self._connection, run_id)):
            raise NoAnswerError("it was answered, but is not there when it is read back")

    def _send_metrics(self, run_id: str, payload: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric

        points = [Metric(*point) for point in payload["points"]]
        self._client.log_batch(run_id, metrics=points)
        self._confirm(run_id, lambda run: _has_points(self._client, run, points))

    def _send_params(self, run_id: str, payload: Mapping[str, Any]) -> None:
        """Logs new parameters; a changed value becomes a tag, because MLflow refuses to change a parameter."""
        from mlflow.entities import Param, RunTag

        data = find_run(self._connection, run_id).data
        new, changed = {}, {}
        for key, value in payload.items():
            tag = f"changed.{key}"
            if key not in data.params:
                new[key] = value
            elif data.params[key] != value or tag in data.tags:
                changed[tag] = value
        self._client.log_batch(
            run_id,
            params=[Param(key, value) for key, value in new.items()],
            tags=[RunTag(key, value) for key, value in changed.items()],
        )
        self._confirm(
            run_id, lambda run: new.items() <= run.data.params.items() and changed.items() <= run.data.tags.items()
        )

    def _send_tags(self, run_id: str, payload: Mapping[str, Any]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in payload.items()])
        self._confirm(run_id, lambda run: payload.items() <= run.data.tags.items())

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
        identity = attrgetter("dataset.name", "dataset.digest")
        self._confirm(
            run_id,
            lambda run: (
                run.inputs is not None and (dataset.name, dataset.digest) in map(identity, run.inputs.dataset_inputs)
            ),
        )

    def _send_status(self, run_id: str, payload: Mapping[str, Any]) -> None:
        if payload["status"] == "RUNNING":
            self._client.update_run(run_id, status="RUNNING")
        else:
            self._client.set_terminated(run_id, status=payload["status"], end_time=payload["time_ms"])
        self._confirm(run_id, lambda run: run.info.status == payload["status"])

    def _send_nest(self, run_id: str, payload: Mapping[str, Any]) -> None:
        """Moves the run `child` and its children below the run `run_id`.

        With `killed`, a child that is still RUNNING is shown as KILLED. MLflow nests runs within one experiment only:
        if the two lie in different stores or experiments, just the tags are set.
        """
        found: dict[str, Run] = {}
        for each in (payload["child"], run_id):
            with suppress(WaitingError):
                found[each] = find_run(self._connection, self.resolve(each))
        child, parent = found.get(payload["child"]), found.get(run_id)
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

    def _send_artifact(self, run_id: str, entry: Entry) -> None:
        """Uploads a file or folder, and has MLflow show a table as such.

        A file outside of the run's output_dir is refused, and so is a folder with a link that leads out of it.
        """
        path, folder = Path(entry.payload["path"]), entry.payload["folder"]
        if not path.exists():
            raise UndeliverableError(f"{path} is gone")
        place = path.resolve()
        leading_out = (
            each for each in path.rglob("*") if each.is_symlink() and not each.resolve().is_relative_to(place)
        )
        outside = next(leading_out, None) if place.is_relative_to(self._output_dir.resolve()) else path
        if outside is not None:
            raise UndeliverableError(f"{outside} lies outside of {self._output_dir}, whose files alone are sent")
        with self._limited(entry, run_id, str(path)):
            self._client.log_artifact(run_id, str(path), folder)
            listed = [Path(item.path).name for item in self._client.list_artifacts(run_id, folder)]
            if path.name not in listed:
                raise NoAnswerError(f"{path} was uploaded and is not listed")
        if entry.operation == "table":
            place = {"path": path.name if folder is None else f"{folder}/{path.name}", "type": "table"}
            known = json.loads(find_run(self._connection, run_id).data.tags.get(TABLES_TAG, "[]"))
            if place not in known:
                self._send_tags(run_id, {TABLES_TAG: json.dumps([*known, place])})

    def _send_model(self, entry: Entry) -> None:
        """Logs a handoff as a model of the run that made it, unless that run is in another store or was deleted."""
        payload = entry.payload
        asked = Asked(name=payload["stage"], handoff=Path(payload["handoff"]), digest=payload["digest"])
        run_id = self.resolve(entry.run_id)
        with suppress(WaitingError):
            run = find_run(self._connection, run_id)
            with self._limited(entry, run_id, f"the model of stage {asked.name}"):
                self._models.send(run, asked)

    @contextmanager
    def _limited(self, entry: Entry, run_id: str, what: str) -> Iterator[None]:
        """Gives up an upload after three failures while the server answers, so that metrics go on.

        Raises:
            UndeliverableError: The upload is given up.
        """
        try:
            yield
        except (NotYetError, WaitingError):
            raise
        except Exception as error:  # each artifact store raises its own
            find_run(self._connection, run_id)
            self._artifact_failures[entry.key] += 1
            if self._artifact_failures[entry.key] >= _ARTIFACT_ATTEMPTS:
                raise UndeliverableError(f"{what} cannot be uploaded: {error}") from error
            raise


def _has_points(client: "MlflowClient", run: "Run", points: Sequence["Metric"]) -> bool:
    """Whether the server has the points of one batch.

    A batch is one transaction, so if the newest point of a key has arrived, all points of that key have. A run carries
    its newest points; where the server has newer ones, the history of the key is read.
    """
    place = attrgetter("step", "timestamp")  # not the value, which a database may round
    newest = {metric.key: place(metric) for metric in run.data._metric_objs}
    last: dict[str, tuple[int, int]] = {}
    for point in points:
        last[point.key] = max(last.get(point.key, place(point)), place(point))
    for key, sent in last.items():
        known = newest.get(key)
        if known is None or known < sent:
            return False
        if known != sent and sent not in map(place, client.get_metric_history(run.info.run_id, key)):
            return False
    return True
