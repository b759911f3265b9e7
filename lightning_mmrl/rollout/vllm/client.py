"""HTTP to a vLLM server: a thread sends many requests at once, each with a time limit, and all can be interrupted."""

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

import aiohttp

from lightning_mmrl.errors import RolloutError
from lightning_mmrl.rollout.vllm.keys import Key

T = TypeVar("T")

POLL_S = 0.1
"""Seconds between two checks whether the run must end."""
PROBE_S = 5.0
"""Longest time in seconds that a healthy server takes to answer a health check."""
UNAUTHORIZED = 401


class UnreachableError(RolloutError):
    """No server answers, or the connection was lost during an answer."""


class TooLateError(RolloutError):
    """The server did not answer within its time limit."""


class KeyRefusedError(RolloutError):
    """The server refuses the key, or does not ask for a key."""


class Client:
    """Talks to one server.

    Args:
        url: Address of the server, without a path.
        key: The key that the server asks for.
        timeout_s: Longest wait for an answer; with many requests at once, for the next answer to any of them.
        connections: Largest number of open requests.
    """

    def __init__(self, url: str, key: Key, timeout_s: float, connections: int = 128) -> None:
        self.url = url.rstrip("/")
        self._key = key
        self.timeout_s = timeout_s
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm-client", daemon=True)
        self._thread.start()
        self._session = self.wait(self._open(connections))

    async def _open(self, connections: int) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            # The server closes idle connections after 5 s; a request at that moment would look like a lost server.
            connector=aiohttp.TCPConnector(limit=connections, keepalive_timeout=2),
            # `call` and `gather` set their own limits; a request that waits for a connection is not late.
            timeout=aiohttp.ClientTimeout(total=None),
        )

    def close(self) -> None:
        """Ends all connections; the server drops their requests."""
        self.wait(self._session.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def wait(self, work: Coroutine[Any, Any, T], poll: Callable[[], None] = lambda: None) -> T:
        """Returns the result of `work`, which runs on the client's thread; an error of `poll` cancels the work."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            while True:
                try:
                    return future.result(POLL_S)
                except TimeoutError:
                    if future.done():  # it finished just now, or itself raised a TimeoutError
                        return future.result()
                    poll()
        except BaseException:
            future.cancel()
            raise

    def call(self, method: str, path: str, body: Any = None, timeout_s: float | None = None) -> Any:
        """The server's answer as JSON, or None if it is empty.

        Raises:
            UnreachableError: No server answers.
            TooLateError: The answer takes longer than the limit.
            RolloutError: The server refuses the request.
        """
        limit = self.timeout_s if timeout_s is None else timeout_s
        return self.wait(self._limited(path, limit, self.request(method, path, body)))

    def require_guard(self) -> None:
        """Checks that the server is healthy, takes this key, and answers nobody without a key.

        Raises:
            UnreachableError: No server answers.
            TooLateError: The server takes longer than a healthy one.
            KeyRefusedError: The server asks for another key, or answers without a key: then `mmrl serve` did not start
                it.
            RolloutError: The server is not healthy.
        """
        path = "/health"
        status, text = self.wait(self._limited(path, PROBE_S, self._answer("GET", path, None, show_key=False)))
        if status >= 500:  # from a proxy whose server is away
            raise RolloutError(self._refusal(path, status, text))
        if status != UNAUTHORIZED:
            raise KeyRefusedError(
                f"the server at {self.url} answers {path} without a key (status {status}), so whoever reaches it may "
                "replace its weights; start it with mmrl serve, which asks for one"
            )
        self.call("GET", path, timeout_s=PROBE_S)

    async def _limited(self, path: str, limit: float, work: Coroutine[Any, Any, T]) -> T:
        try:
            async with asyncio.timeout(limit):
                return await work
        except TimeoutError:
            raise TooLateError(self._late(path, limit)) from None

    async def request(self, method: str, path: str, body: Any = None) -> Any:
        """The server's answer as JSON, or None if it is empty; there is no time limit."""
        status, text = await self._answer(method, path, body, show_key=True)
        if status == UNAUTHORIZED:
            raise KeyRefusedError(
                f"the vLLM server at {self.url} does not take the key of {self._key.source}; give mmrl serve and the "
                "trainer the same one"
            )
        if status >= 300:
            raise RolloutError(self._refusal(path, status, text))
        try:
            return json.loads(text) if text else None
        except ValueError:
            raise RolloutError(self._refusal(path, status, text)) from None

    async def _answer(self, method: str, path: str, body: Any, *, show_key: bool) -> tuple[int, str]:
        headers = {"Authorization": self._key.authorization} if show_key else {}
        try:
            # A redirect would send the key, and the weights, elsewhere.
            async with self._session.request(
                method, f"{self.url}{path}", json=body, headers=headers, allow_redirects=False
            ) as answer:
                return answer.status, await answer.text()
        except (aiohttp.ClientError, ConnectionError) as error:
            raise UnreachableError(
                f"the vLLM server at {self.url} does not answer: {error or type(error).__name__}"
            ) from None

    def gather(self, bodies: Mapping[int, Any], path: str, answers: dict[int, Any], poll: Callable[[], None]) -> None:
        """Posts all bodies and stores each answer under its body's key as it arrives.

        Raises:
            UnreachableError: The connection was lost; `answers` has the answers until then.
            TooLateError: No answer arrived within the limit.
            RolloutError: The server refuses a body.
        """
        self.wait(self._gather(bodies, path, answers), poll)

    async def _gather(self, bodies: Mapping[int, Any], path: str, answers: dict[int, Any]) -> None:
        tasks = {asyncio.create_task(self.request("POST", path, body)): key for key, body in bodies.items()}
        waiting: set[asyncio.Task[Any]] = set(tasks)
        try:
            while waiting:
                done, waiting = await asyncio.wait(waiting, timeout=self.timeout_s, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    raise TooLateError(self._late(path, self.timeout_s))
                failures = [error for error in (task.exception() for task in done) if error is not None]
                answers |= {tasks[task]: task.result() for task in done if task.exception() is None}
                if failures:
                    # Of both kinds, the refusal is raised: after a lost connection, callers may try again.
                    raise min(failures, key=lambda failure: isinstance(failure, UnreachableError))
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    def _late(self, path: str, limit: float) -> str:
        return (
            f"the vLLM server at {self.url} has not answered {path} for {limit:g} s "
            "(rollout.settings.server.timeout_s); it hangs, or is too slow for this limit"
        )

    def _refusal(self, path: str, status: int, text: str) -> str:
        hint = "; start it with mmrl serve, which switches on what training needs" if status in (403, 404, 405) else ""
        return f"the vLLM server at {self.url} answers {path} with {status}: {text.strip()[:300]}{hint}"
