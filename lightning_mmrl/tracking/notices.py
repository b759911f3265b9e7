"""Tells the user about trouble with the tracking server: each kind of it once in an outage, and no credentials."""

import logging
import threading
import time
from typing import Literal

from lightning_mmrl.types.redaction import redact

Kind = Literal["failed", "waiting", "refused", "disk", "left"]
"""Five kinds: an outage is at most five lines, however long it lasts and however many entries it concerns."""

THREAD = "mmrl-tracking"
"""Name of the thread that delivers."""

_log = logging.getLogger("lightning_mmrl.tracking")

_QUIET_S = 600.0
"""A server that fails again within this time is in the same outage."""


class Notices:
    """Logs warnings; one of a kind that was logged already is counted only, until the outage is over.

    Args:
        quiet_s: How long the server must have answered before trouble is a new outage, in seconds.
    """

    def __init__(self, quiet_s: float = _QUIET_S) -> None:
        self._quiet_s = quiet_s
        self._said: set[Kind] = set()
        self._well_since: float | None = None
        self._guard = threading.Lock()

    def say(self, kind: Kind, message: str) -> None:
        """Warns, unless this kind of trouble was warned of in the present outage."""
        with self._guard:
            if self._well_since is not None and time.monotonic() - self._well_since > self._quiet_s:
                self._said.clear()
            self._well_since = None
            if kind in self._said:
                return
            self._said.add(kind)
        _log.warning("%s", redact(message))

    def well(self) -> None:
        """The server has everything; after a quiet time, trouble is a new outage."""
        with self._guard:
            if self._well_since is None:
                self._well_since = time.monotonic()


def quiet_clients() -> None:
    """Silences what MLflow and urllib3 log from the thread that delivers: every retry is a line, with the address."""
    for name in ("urllib3.connectionpool", "mlflow", "mlflow.exceptions", "mlflow.utils.rest_utils"):
        logger = logging.getLogger(name)
        for target in (logger, *logger.handlers):
            if _from_elsewhere not in target.filters:
                target.addFilter(_from_elsewhere)


def _from_elsewhere(record: logging.LogRecord) -> bool:
    """Whether a record is not a client's from that thread; a handler may be shared with our own warnings."""
    return record.threadName != THREAD or not record.name.startswith(("urllib3", "mlflow"))
