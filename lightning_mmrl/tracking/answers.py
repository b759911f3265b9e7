"""Sends requests to MLflow, and accepts no answer from anything in between, such as a proxy."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_API = "/api/2.0/mlflow/"


class NoAnswerError(Exception):
    """Something other than MLflow answered: a proxy, a login page, or a body that was cut off."""


def is_answer(error: Exception, *, remote: bool) -> bool:
    """Whether MLflow itself reported an error, rather than a proxy or a login page in between.

    MLflow's client turns any page into a plain `MlflowException` with the error code of its HTTP status, so a proxy's
    404 looks like a missing run. MLflow's own errors are JSON objects with an `error_code`.
    """
    from mlflow.exceptions import MlflowException, RestException

    if not remote:
        return isinstance(error, MlflowException)
    return isinstance(error, RestException) and isinstance(error.json.get("error_code"), str)


def post(client: "MlflowClient", endpoint: str, body: Mapping[str, Any], *, timeout_s: float) -> dict[str, Any]:
    """Sends one request to a server without retries, and returns its answer.

    MLflow's own client accepts an empty page as an empty answer, and repeats a request whose answer is late: a slow
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
    status = response.status_code
    try:
        answer = json.loads(response.text)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        begin = " ".join(response.text.split())[:60]
        raise NoAnswerError(
            f"it answers {status} with {begin!r}, which is no answer of MLflow" if begin else f"its {status} is empty"
        )
    if status != 200:
        raise RestException(answer)
    return answer
