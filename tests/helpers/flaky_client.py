"""An MLflow client that fails, hangs, or loses answers when a test says so."""

import threading

PATIENCE_S = 10.0


class Outage:
    """Stands between a tracker and its database: `up=False` fails each call, a cleared `release` lets it hang."""

    def __init__(self):
        self.up = True
        self.lose_answers = False
        self._called = threading.Condition()
        self._names = []
        self.failures = threading.Semaphore(0)
        self.release = threading.Event()
        self.release.set()

    def call(self, method, *args, **kwargs):
        from mlflow.exceptions import MlflowException

        with self._called:
            self._names.append(method.__name__)
            self._called.notify_all()
        assert self.release.wait(PATIENCE_S)
        answer = method(*args, **kwargs) if self.up or self.lose_answers else None
        if self.up:
            return answer
        self.failures.release()
        raise MlflowException("503: no server")

    def wait_for_call(self, name):
        with self._called:
            assert self._called.wait_for(lambda: name in self._names, PATIENCE_S)

    def wait_for_failure(self):
        assert self.failures.acquire(timeout=PATIENCE_S)


class FlakyClient:
    """An MLflow client whose calls go through an outage."""

    def __init__(self, client, outage):
        self._client = client
        self._outage = outage

    def __getattr__(self, name):
        method = getattr(self._client, name)
        return lambda *args, **kwargs: self._outage.call(method, *args, **kwargs)
