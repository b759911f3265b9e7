"""Rewards for processes that score beside the trainer; a spawned process imports them."""

import time
from pathlib import Path

WAIT_S = 20.0


class AfterFile:
    """Scores once a file exists, and fails if it never does; texts with `failing` have no score."""

    def __init__(self, path: Path, failing: str = "nothing of the kind") -> None:
        self.path = path
        self.failing = failing

    def __call__(self, sample, completion):
        until = time.monotonic() + WAIT_S
        while not self.path.exists():
            if time.monotonic() > until:
                raise TimeoutError("nobody worked in the meantime")
            time.sleep(0.01)
        if self.failing in completion.text:
            raise ValueError("verifier down")
        return float(sum(completion.text.encode()) % 7)
