"""Handoffs as MLflow's logged models: code that asks a handoff where it lies, without pickle and without weights."""

import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_mmrl.tracking.answers import NoAnswerError, is_answer, post
from lightning_mmrl.tracking.connection import Connection, find_run
from lightning_mmrl.tracking.refusals import NotYetError, WaitingError

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.models import ModelSignature

KEY_TAG = "mmrl.model_key"
"""Tag by which later attempts find the logged model of a run and a handoff."""
DIGEST_TAG = "mmrl.output_digest"
"""Tag with the digest of the handoff."""
PARENT_TAG = "mlflow.parentRunId"
MODEL_TYPE = "lightning_mmrl"
WEIGHTS = "handoff"
"""Name of the artifact with the weights of a registered version."""

CODE = '''\
"""Asks a checkpoint of lightning_mmrl about files; MLflow runs this file when it loads the model."""

from typing import Any

import pandas
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class Handoff(PythonModel):
    """The checkpoint in the artifact `handoff` if this model has one, else the folder that its configuration names."""

    def load_context(self, context: Any) -> None:
        from pathlib import Path

        from lightning_mmrl.app.predict import Predictor

        place = context.artifacts.get("handoff", context.model_config["handoff"])
        self.predictor = Predictor(Path(place), digest=context.model_config["digest"])

    def predict(self, context: Any, model_input: pandas.DataFrame, params: Any = None) -> list[dict[str, str]]:
        return [self.predictor.asked(row) for row in model_input.to_dict("records")]


set_model(Handoff())
'''
_CODE_FILE = "ask.py"
_PACKAGES = ("torch", "transformers", "lightning", "mlflow")
_CREATE_LIMIT_S = 120.0
_SETTLING_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A handoff that is asked: its stage's name, folder and digest, and a copy of its files to upload, or None."""

    name: str
    handoff: Path
    digest: str
    copied: Path | None = None


class LoggedModels:
    """Creates the logged model of a run's handoff once, however often it is sent.

    A model carries the tag `mmrl.model_key`, the run's id and the handoff's digest, by which later attempts find it.
    Its files are written, and it is linked to its run and to the parent of this run, each time until it is complete.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._client = connection.client
        self._unanswered: dict[str, float] = {}

    def send(self, run: "Run", asked: Asked) -> str:
        """Returns the id of the model, once the server has all of it.

        Raises:
            NotYetError: An earlier request to create it got no answer, and may still be carried out.
            NoAnswerError: The model is not there when it is read back.
        """
        from mlflow.entities import LoggedModelStatus

        key = f"{run.info.run_id}/{asked.digest}" + ("/weights" if asked.copied else "")
        model_id = self._found(run.info.experiment_id, key) or self._created(run, asked, key)
        if self._client.get_logged_model(model_id).status != LoggedModelStatus.READY:
            self._upload(model_id, run.info.run_id, asked)
            self._client.finalize_logged_model(model_id, LoggedModelStatus.READY)
        if self._client.get_logged_model(model_id).status != LoggedModelStatus.READY:
            raise NoAnswerError("the model was finished, and is not when it is read back")
        self._link(run.info.run_id, model_id)
        if PARENT_TAG in run.data.tags:
            with suppress(WaitingError):  # the parent was deleted: the model still belongs to its stage
                self._link(run.data.tags[PARENT_TAG], model_id)
        return model_id

    def _found(self, experiment_id: str, key: str) -> str | None:
        query = f"tags.`{KEY_TAG}` = '{key}'"
        if self._connection.remote:
            body = {"experiment_ids": [experiment_id], "filter": query, "max_results": 1}
            answer = post(self._client, "logged-models/search", body, timeout_s=_CREATE_LIMIT_S)
            return next((str(model["info"]["model_id"]) for model in answer.get("models", [])), None)
        found = self._client.search_logged_models([experiment_id], filter_string=query, max_results=1)
        return next((model.model_id for model in found), None)

    def _created(self, run: "Run", asked: Asked, key: str) -> str:
        """Creates the model by one request: a repeated one would make a second model."""
        settling_s = self._unanswered.get(key, 0.0) + _SETTLING_S - time.monotonic()
        if key in self._unanswered and settling_s > 0:
            raise NotYetError("the creation of a logged model was not answered; it may still happen", settling_s)
        tags = {KEY_TAG: key, DIGEST_TAG: asked.digest}
        params = {"handoff": str(asked.handoff), "digest": asked.digest, "stage": asked.name}
        experiment_id, run_id = run.info.experiment_id, run.info.run_id
        if not self._connection.remote:
            return self._client.create_logged_model(
                experiment_id, asked.name, run_id, tags=tags, params=params, model_type=MODEL_TYPE
            ).model_id
        body = {
            "experiment_id": experiment_id,
            "name": asked.name,
            "source_run_id": run_id,
            "model_type": MODEL_TYPE,
            "tags": [{"key": name, "value": value} for name, value in tags.items()],
            "params": [{"key": name, "value": value} for name, value in params.items()],
        }
        try:
            answer = post(self._client, "logged-models", body, timeout_s=_CREATE_LIMIT_S)
            model_id = str(answer["model"]["info"]["model_id"])
        except Exception as error:
            if not is_answer(error, remote=True):
                self._unanswered[key] = time.monotonic()
            if isinstance(error, KeyError | TypeError):
                raise NoAnswerError(f"the answer to logged-models has no model ({error!r})") from error
            raise
        self._unanswered.pop(key, None)
        return model_id

    def _upload(self, model_id: str, run_id: str, asked: Asked) -> None:
        with tempfile.TemporaryDirectory(prefix="mmrl-model-") as scratch:
            write_model(Path(scratch), asked, model_id=model_id, run_id=run_id)
            if asked.copied is not None:
                self._client.log_model_artifacts(model_id, str(asked.copied), f"artifacts/{WEIGHTS}")
            self._client.log_model_artifacts(model_id, scratch)
        if "MLmodel" not in [item.path for item in self._client.list_logged_model_artifacts(model_id)]:
            raise NoAnswerError("the files of a logged model were uploaded and are not listed")

    def _link(self, run_id: str, model_id: str) -> None:
        """Makes the model an output of a run; MLflow refuses a second link of both."""
        from mlflow.entities import LoggedModelOutput

        def linked() -> bool:
            outputs = find_run(self._connection, run_id).outputs
            return outputs is not None and model_id in [each.model_id for each in outputs.model_outputs]

        if linked():
            return
        self._client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
        if not linked():
            raise NoAnswerError("a logged model was linked to its run, and is not when it is read back")


def write_model(folder: Path, asked: Asked, *, model_id: str, run_id: str | None) -> None:
    """Writes the files of a logged model: MLmodel, the code, and the packages that it needs.

    `mlflow.pyfunc.save_model` would write the same flavor. It also starts pip to look for packages, and the import of
    `mlflow.pyfunc` warns on the console (its own `types/responses.py`).
    """
    from mlflow.models import Model

    requirements = [f"lightning-mmrl=={version('lightning-mmrl')}", *(f"{name}=={version(name)}" for name in _PACKAGES)]
    (folder / _CODE_FILE).write_text(CODE, encoding="utf-8")
    (folder / "requirements.txt").write_text("\n".join(requirements) + "\n", encoding="utf-8")
    python = ".".join(map(str, sys.version_info[:3]))
    (folder / "python_env.yaml").write_text(
        f'python: "{python}"\nbuild_dependencies: []\ndependencies:\n- -r requirements.txt\n', encoding="utf-8"
    )
    model = Model(artifact_path=asked.name, run_id=run_id, model_id=model_id, signature=_signature())
    flavor: dict[str, Any] = {
        "loader_module": "mlflow.pyfunc.loaders.code_model",
        "python_version": python,
        "env": {"virtualenv": "python_env.yaml"},
        "config": {"handoff": str(asked.handoff), "digest": asked.digest},
        "model_code_path": _CODE_FILE,
    }
    if asked.copied is not None:
        flavor["artifacts"] = {WEIGHTS: {"path": f"artifacts/{WEIGHTS}", "uri": asked.handoff.as_uri()}}
    model.add_flavor("python_function", **flavor)
    model.save(str(folder / "MLmodel"))


def _signature() -> "ModelSignature":
    """Columns of a question (all may be left out, not all at once) and of its answer."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, Schema

    asked = Schema([ColSpec("string", name, required=False) for name in ("file", "audio", "question")])
    answered = Schema([ColSpec("string", name) for name in ("answer", "reasoning", "text")])
    return ModelSignature(inputs=asked, outputs=answered)
