"""Requests whose answers count only if MLflow itself gave them."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_API = "/api/2.0/mlflow/"


class NoAnswerError(Exception):
    """Something answered, and it was not MLflow: a proxy, a login page, a body that was cut off."""


def is_answer(error: Exception, *, remote: bool) -> bool:
    """Whether an error is what MLflow says, and not what its client made of a page of something in between.

    The client gives a plain `MlflowException` with the error code of the HTTP status to any page, so that a proxy's
    404 looks like a run that does not exist. MLflow's own answers are JSON objects with an `error_code`.
    """
    from mlflow.exceptions import MlflowException, RestException

    if not remote:
        return isinstance(error, MlflowException)
    return isinstance(error, RestException) and isinstance(error.json.get("error_code"), str)


def post(client: "MlflowClient", endpoint: str, body: Mapping[str, Any], *, timeout_s: float) -> dict[str, Any]:
    """Sends one request to a server, once, and returns its answer.

    MLflow's client takes an empty page for an empty answer, and sends a request again whose answer is late: a slow
    `runs/create` then makes three runs.

    Raises:
        RestException: MLflow refuses the request.
        NoAnswerError: Something else answered.
        MlflowException: Nothing answered in time.
    """
    from mlflow.exceptions import RestException
    from mlflow.utils.rest_utils import http_request

    credentials = client._tracking_client.store.get_host_creds()
    response = http_request(
        credentials, _API + endpoint, "POST", json=dict(body), timeout=timeout_s, max_retries=0, raise_on_status=False
    )
    if response is None:
        raise NoAnswerError("nothing answered")
    try:
        answer = json.loads(response.text)
    except ValueError as error:
        raise NoAnswerError(_not_mlflow(response.status_code, response.text)) from error
    if not isinstance(answer, dict):
        raise NoAnswerError(_not_mlflow(response.status_code, response.text))
    if response.status_code != 200:
        raise RestException(answer)
    return answer


def _not_mlflow(status: int, text: str) -> str:
    begin = " ".join(text.split())[:60]
    return f"it answers {status} with {begin!r}, which is no answer of MLflow" if begin else f"its {status} is empty"
