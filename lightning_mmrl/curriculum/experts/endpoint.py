"""An expert at an OpenAI-compatible endpoint: many requests at once, with retries, a budget and kept answers."""

import asyncio
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from lightning_mmrl.curriculum.experts.chat import ChatBodies, UnfitError
from lightning_mmrl.curriculum.experts.ledger import Ledger, tokens_of
from lightning_mmrl.curriculum.experts.replies import Failure, Reply, read_reply
from lightning_mmrl.errors import ConfigError, StageError
from lightning_mmrl.protocols.experts import ExpertAnswer, ExpertRequest
from lightning_mmrl.settings.experts import EndpointSettings, ExpertSettings
from lightning_mmrl.types.redaction import redact, remember_secret

PATH = "/chat/completions"
MOST_BYTES = 16 * 2**20
"""Bytes of the longest response."""
POLL_S = 0.1
"""Seconds between two checks whether the run must end."""
OVER_BUDGET = "over_budget"
_CHUNK = 2**16


def key_of(settings: EndpointSettings) -> str | None:
    """Returns the key, which is in the environment alone, and keeps it out of messages from now on.

    Raises:
        ConfigError: The variable is not set, or its value cannot be sent.
    """
    if settings.key_variable is None:
        return None
    key = os.environ.get(settings.key_variable, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise ConfigError(
            f"endpoint.key_variable is {settings.key_variable}, and the environment has no usable key of this name; "
            "set the variable, or key_variable to null if the endpoint asks for no key"
        )
    remember_secret(key)
    return key


@dataclass(kw_only=True)
class Spent:
    """Counts of one process, for progress and metrics: where each question ended, and how often it was asked."""

    num_questions: int = 0
    num_kept: int = 0
    num_asked: int = 0
    num_failed: int = 0
    num_retries: int = 0


@dataclass(kw_only=True)
class ChatEndpoint:
    """Implements `Expert`: asks a chat endpoint, and takes answers that are kept on disk first.

    Attributes:
        expert: The model.
        endpoint: The address, and how patiently it is asked.
        bodies: Makes the bodies of requests.
        ledger: What was asked and answered before.
        poll: Called often while requests are under way; raises to end them.
        on_progress: Called with the numbers of questions that are done and of all, and with the cost in words.
        spent: The counts.
    """

    expert: ExpertSettings
    endpoint: EndpointSettings
    bodies: ChatBodies
    ledger: Ledger
    poll: Callable[[], None] = lambda: None
    on_progress: Callable[[int, int, str], None] = lambda done, total, details: None
    spent: Spent = field(default_factory=Spent)

    @property
    def name(self) -> str:
        """The name of the model."""
        return self.expert.model

    def ask(self, requests: Sequence[ExpertRequest]) -> list[ExpertAnswer]:
        """Returns an answer for each request, in their order.

        Raises:
            ConfigError: There is no key.
            StageError: The endpoint is down, refuses all, or left too large a share without an answer. The answers that
                it gave are kept.
        """
        asking = _Asking(self, len(requests))
        work = asyncio.run_coroutine_threadsafe(asking.all(requests), loop := asyncio.new_event_loop())
        thread = threading.Thread(target=loop.run_forever, name="expert", daemon=True)
        thread.start()
        try:
            while not work.done():
                time.sleep(POLL_S)
                self.poll()
                self.on_progress(asking.num_done, len(requests), self.cost)
            answers = work.result()
        except BaseException:
            work.cancel()
            raise
        finally:
            asyncio.run_coroutine_threadsafe(_ended(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()
        failed = [answer for answer in answers if answer.problem not in (None, OVER_BUDGET)]
        if len(failed) > self.endpoint.max_failed_rate * len(answers):
            raise StageError(
                f"{len(failed)} of {len(answers)} questions to {self.name} at {self.address} failed (the first: "
                f"{failed[0].problem}), more than endpoint.max_failed_rate {self.endpoint.max_failed_rate:g} "
                f"allows; {self._kept_in}"
            )
        return answers

    @property
    def address(self) -> str:
        """The address without credentials, for messages."""
        return redact(self.endpoint.base_url)

    @property
    def cost(self) -> str:
        """The requests and tokens of the whole stage in words."""
        return f"{self.ledger.num_requests} requests, {self.ledger.num_tokens} tokens"

    @property
    def _kept_in(self) -> str:
        return f"answers so far are kept in {self.ledger.path}, and the same command asks for the others"

    @property
    def over_budget(self) -> bool:
        """Whether nothing more may be asked."""
        requests, tokens = self.endpoint.max_requests, self.endpoint.max_total_tokens
        return (requests is not None and self.ledger.num_requests >= requests) or (
            tokens is not None and self.ledger.num_tokens >= tokens
        )

    def gone(self, failure: Failure, number: int) -> StageError:
        """The error that ends the stage."""
        said = f", which says {' '.join(failure.detail.split())[:200]}" if failure.detail.strip() else ""
        why = "refuses all requests" if failure.of_all else f"left {number} questions in a row without an answer"
        return StageError(
            f"the expert {self.name} at {self.address} {why} (the last: {failure.problem}{redact(said)}); "
            f"mend it; {self._kept_in}"
        )


class _Asking:
    """One call of `ask`, on the thread of its event loop."""

    def __init__(self, owner: ChatEndpoint, num_requests: int) -> None:
        self._owner = owner
        self._settings = owner.endpoint
        self._key = key_of(owner.endpoint)
        self.num_done = 0
        self._failed_in_row = 0
        self._not_before = 0.0
        self._answers: list[ExpertAnswer | None] = [None] * num_requests

    async def all(self, requests: Sequence[ExpertRequest]) -> list[ExpertAnswer]:
        """Asks with `concurrency` workers; the first error ends them all."""
        headers = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        waiting = iter(enumerate(requests))
        self._owner.spent.num_questions += len(requests)
        # A connection that the server closed meanwhile would take a request that nobody gets.
        connector = aiohttp.TCPConnector(limit=self._settings.concurrency, force_close=True)
        timeout = aiohttp.ClientTimeout(total=self._settings.request_timeout_s)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session:
            workers = [
                asyncio.create_task(self._work(waiting, session))
                for _ in range(min(self._settings.concurrency, len(requests)))
            ]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        return [answer for answer in self._answers if answer is not None]

    async def _work(self, waiting: Iterator[tuple[int, ExpertRequest]], session: aiohttp.ClientSession) -> None:
        for place, request in waiting:
            start = time.monotonic()
            try:
                found = await self._asked(request, session)
            except UnfitError as error:
                found = str(error)
            seconds, spent = time.monotonic() - start, self._owner.spent
            if isinstance(found, str):
                spent.num_failed += 1
                self._answers[place] = ExpertAnswer(key=request.key, problem=found, answered_s=seconds)
            else:
                self._answers[place] = ExpertAnswer(
                    key=request.key,
                    text=found.text,
                    num_tokens=tokens_of(found),
                    is_cut=found.is_cut,
                    answered_s=seconds,
                )
            self.num_done += 1

    async def _asked(self, request: ExpertRequest, session: aiohttp.ClientSession) -> Reply | str:
        """Returns the answer to a question, kept or asked for; or the reason why there is none.

        Raises:
            StageError: The endpoint is down, or refuses all.
        """
        owner, bodies = self._owner, self._owner.bodies
        ledger, name = owner.ledger, await asyncio.to_thread(bodies.hash, request)
        kept = ledger.answer(name)
        if kept is not None:
            owner.spent.num_kept += 1
            return kept
        owner.spent.num_asked += 1
        body = await asyncio.to_thread(bodies.body, request)
        failure = Failure(problem=OVER_BUDGET, again=False)
        for number in range(self._settings.retries + 1):
            await asyncio.sleep(max(0.0, self._not_before - time.monotonic()))
            if owner.over_budget:
                return OVER_BUDGET
            ledger.sent(name)
            owner.spent.num_retries += number > 0
            found = await self._sent(body, session)
            if isinstance(found, Reply):
                ledger.keep(name, found)
                self._failed_in_row = 0
                return found
            ledger.failed(name, found.problem)
            failure = found
            if failure.of_all:
                raise owner.gone(failure, 1)
            if not failure.again or not await self._waited(failure, number, name):
                break
        self._failed_in_row += 1
        if self._failed_in_row >= self._settings.give_up_after:
            raise owner.gone(failure, self._failed_in_row)
        return failure.problem

    async def _sent(self, body: dict[str, Any], session: aiohttp.ClientSession) -> Reply | Failure:
        """Sends a request once. A redirect counts as a failure: it would show the key to somebody else."""
        url = self._settings.base_url.rstrip("/") + PATH
        try:
            async with session.post(url, json=body, allow_redirects=False) as response:
                content = b""
                async for chunk in response.content.iter_chunked(_CHUNK):
                    content += chunk
                    if len(content) > MOST_BYTES:
                        return Failure(problem="too_long", again=False)
                thoughts = self._owner.expert.thoughts
                found = read_reply(response.status, response.headers, content, thoughts=thoughts)
                if self._key is not None and isinstance(found, Reply) and self._key in found.text:
                    return Failure(problem="repeats_key", again=False)  # answers are written down, and the key is not
                return found
        except TimeoutError:
            return Failure(problem="timeout", again=True)
        except (aiohttp.ClientError, OSError) as error:
            return Failure(problem="unreachable", again=True, detail=f"{type(error).__name__}: {error}")

    async def _waited(self, failure: Failure, number: int, name: str) -> bool:
        """Waits before the next request for an answer; returns False if there shall be none.

        A Retry-After counts for all workers.
        """
        settings = self._settings
        if number == settings.retries:
            return False
        if failure.wait_s:  # 0 asks for no pause, and the usual one keeps retries apart
            if failure.wait_s > settings.longest_wait_s:
                return False
            self._not_before = max(self._not_before, time.monotonic() + failure.wait_s)
            return True
        spread = random.Random(f"{name}/{number}").uniform(0.5, 1.0)  # so that workers do not come back together
        await asyncio.sleep(min(settings.longest_wait_s, settings.first_wait_s * 2**number) * spread)
        return True


async def _ended() -> None:
    """Returns when all cancelled tasks of the loop have ended, so that no connection is left."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_default_executor()
