"""Warns about trouble with the tracking server: each kind once per outage, and never with credentials."""

import logging
import threading
import time
from typing import Literal

from lightning_mmrl.types.redaction import redact

Kind = Literal["failed", "waiting", "refused", "disk", "left"]
"""Kinds of warnings. An outage gives at most one line of each, however long it lasts."""

THREAD = "mmrl-tracking"
"""Name of the thread that delivers."""

_log = logging.getLogger("lightning_mmrl.tracking")

_QUIET_S = 600.0
"""A server that fails again within this time is still in the same outage."""


class Notices:
    """Logs warnings; each kind once until the outage is over.

    Args:
        quiet_s: Seconds that the server must have answered before trouble counts as a new outage.
    """

    def __init__(self, quiet_s: float = _QUIET_S) -> None:
        self._quiet_s = quiet_s
        self._said: set[Kind] = set()
        self._well_since: float | None = None
        self._guard = threading.Lock()

    def say(self, kind: Kind, message: str) -> None:
        """Logs a warning, unless one of this kind was logged in the present outage."""
        with self._guard:
            if self._well_since is not None and time.monotonic() - self._well_since > self._quiet_s:
                self._said.clear()
            self._well_since = None
            if kind in self._said:
                return
            self._said.add(kind)
        _log.warning("%s", redact(message))

    def well(self) -> None:
        """Notes that the server has everything; after `quiet_s`, trouble counts as a new outage."""
        with self._guard:
            if self._well_since is None:
                self._well_since = time.monotonic()


def quiet_clients() -> None:
    """Silences MLflow and urllib3 in the delivery thread, where each retry would log a line with the address."""
    for name in ("urllib3.connectionpool", "mlflow", "mlflow.exceptions", "mlflow.utils.rest_utils"):
        logger = logging.getLogger(name)
        for target in (logger, *logger.handlers):
            if _from_elsewhere not in target.filters:
                target.addFilter(_from_elsewhere)


def _from_elsewhere(record: logging.LogRecord) -> bool:
    """Drops the clients' own records in the delivery thread, and keeps all others, which may share the handlers."""
    return record.threadName != THREAD or not record.name.startswith(("urllib3", "mlflow"))
