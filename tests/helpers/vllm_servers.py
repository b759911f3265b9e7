"""A vLLM server of a test's own, started as users start it."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from http.client import HTTPConnection
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

from ranks import free_port

from lightning_mmrl.rollout.vllm.keys import read_key, write_key

START_S = 240


class Server:
    """`mmrl serve` on the loopback, with its log in a file; the processes that it starts are a group of their own."""

    def __init__(self, folder: Path, overrides: Sequence[str], port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"server-{self.port}.log"
        self.key_file = folder / f"server-{self.port}.key"
        write_key(self.key_file)
        self._overrides = [
            *overrides,
            f"output_dir={folder}",
            "rollout=vllm_server",
            f"rollout.settings.server.url={self.url}",
            f"rollout.settings.server.key_file={self.key_file}",
        ]
        self._process: subprocess.Popen | None = None

    def start(self) -> "Server":
        """Starts the process, without waiting for it."""
        command = [sys.executable, "-m", "lightning_mmrl.cli.main", "serve", *self._overrides]
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, cwd=Path(__file__).parents[1]
            )
        return self

    def wait(self) -> "Server":
        """Waits until it answers."""
        assert self._process is not None
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self.log.read_text()[-2000:]
            try:
                self.get("/health")
                return self
            except (URLError, ConnectionError, TimeoutError):
                time.sleep(0.5)
        raise AssertionError(f"the server did not start within {START_S} s: {self.log.read_text()[-2000:]}")

    @property
    def pid(self) -> int:
        """Of the process that it became."""
        assert self._process is not None
        return self._process.pid

    def get(self, path: str) -> str:
        """Its answer to the right key."""
        request = Request(f"{self.url}{path}", headers={"Authorization": read_key(self.key_file).authorization})
        with urlopen(request, timeout=5) as answer:
            return answer.read().decode()

    def ask(self, method: str, path: str, body: str = "", **headers: str) -> tuple[int, str]:
        """The status and the body of its answer to anyone."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json", **headers})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def routes(self) -> list[tuple[str, str]]:
        """Methods and paths that vLLM says it has, with the one that it mounts."""
        found = re.findall(r"Route: (\S+), Methods: (.+)", self.log.read_text())
        return [(method, path) for path, methods in [*found, ("/metrics", "GET")] for method in methods.split(", ")]

    def signal(self, number: int) -> None:
        """Sends a signal to the server and all that it started."""
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """Ends it at once, as a machine that goes away does."""
        if self._process is not None and self._process.poll() is None:
            self.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
