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
from lightning_mmrl.curriculum.experts.ledger import Ledger
from lightning_mmrl.curriculum.experts.replies import Failure, Reply, begun, read_reply
from lightning_mmrl.errors import ConfigError, StageError
from lightning_mmrl.protocols.experts import ExpertAnswer, ExpertRequest, Missing
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
class Tally:
    """Counts of questions in one process, over all calls of `ask`.

    Attributes:
        num_questions: All questions.
        num_answered: Questions that the endpoint answered, kept answers aside.
        num_failed: Questions that the endpoint left without an answer, refused ones aside.
        num_unfit: Questions whose media cannot be sent.
        first: Why the first question of `num_failed` and `num_unfit` has no answer.
    """

    num_questions: int = 0
    num_answered: int = 0
    num_failed: int = 0
    num_unfit: int = 0
    first: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A question without an answer: the reason in one word, and whose it is."""

    problem: str
    missing: Missing


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
        tally: The counts.
    """

    expert: ExpertSettings
    endpoint: EndpointSettings
    bodies: ChatBodies
    ledger: Ledger
    poll: Callable[[], None] = lambda: None
    on_progress: Callable[[int, int, str], None] = lambda done, total, details: None
    tally: Tally = field(default_factory=Tally)

    @property
    def name(self) -> str:
        """The name of the model."""
        return self.expert.model

    def ask(self, requests: Sequence[ExpertRequest]) -> list[ExpertAnswer]:
        """Returns an answer for each request, in their order.

        Raises:
            ConfigError: There is no key.
            StageError: The endpoint is down, refuses all, or left too large a share of all questions so far without an
                answer. The answers that it gave are kept.
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
        self._check_share()
        return answers

    def _check_share(self) -> None:
        """Ends the stage if too many of all its questions have no answer; a refused one is an outcome like an answer.

        Raises:
            StageError: Saying how to go on.
        """
        tally, share = self.tally, self.endpoint.max_failed_rate
        if tally.num_failed + tally.num_unfit <= share * tally.num_questions:
            return
        ways = [f"set endpoint.max_failed_rate above {share:g} to go on without them"]
        if tally.num_unfit:
            ways.append(f"mend the media of {tally.num_unfit} of them, which cannot be sent, or raise max_media_mb")
        raise StageError(
            f"{tally.num_failed + tally.num_unfit} of {tally.num_questions} questions to {self.name} at {self.address} "
            f"failed (the first: {tally.first}), more than endpoint.max_failed_rate {share:g} allows; "
            f"{' or '.join(ways)}; {self._kept_in}"
        )

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
        mend = "mend it"
        if failure.of_all:
            why = "refuses all requests"
        elif failure.own:
            why = f"has answered nothing and refused {number} questions"
            mend = "mend expert and sampling, or raise endpoint.give_up_after if other questions will be answered"
        else:
            why = f"left {number} questions in a row without an answer"
        return StageError(
            f"the expert {self.name} at {self.address} {why} (the last: {failure.problem}{redact(said)}); "
            f"{mend}; {self._kept_in}"
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
        self._owner.tally.num_questions += len(requests)
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
        tally = self._owner.tally
        for place, request in waiting:
            start = time.monotonic()
            try:
                found = await self._asked(request, session)
            except UnfitError as error:
                tally.num_unfit += 1
                tally.first = tally.first or str(error)
                found = Gap(problem=str(error), missing="not_asked")
            self._answers[place] = _answer(request.key, found, time.monotonic() - start)
            self.num_done += 1

    async def _asked(self, request: ExpertRequest, session: aiohttp.ClientSession) -> Reply | Gap:
        """Returns the answer to a question, kept or asked for; or the reason why there is none.

        Raises:
            UnfitError: A medium cannot be sent.
            StageError: The endpoint is down, or refuses all.
        """
        owner, bodies = self._owner, self._owner.bodies
        ledger, name = owner.ledger, await asyncio.to_thread(bodies.hash, request)
        kept = ledger.answer(name)
        if kept is not None:
            return kept
        refusal = None if self._settings.ask_refused_again else ledger.refusal(name)
        if refusal is not None:
            return Gap(problem=refusal, missing="refused")
        body = await asyncio.to_thread(bodies.body, request)
        found = await self._tried(request, name, body, session)
        if isinstance(found, Reply):
            return found
        if found is None:
            return Gap(problem=OVER_BUDGET, missing="not_asked")
        return self._gap(found)

    async def _tried(
        self, request: ExpertRequest, name: str, body: dict[str, Any], session: aiohttp.ClientSession
    ) -> Reply | Failure | None:
        """Sends a request until it is answered or shall not be sent again; returns None if the budget is spent.

        Raises:
            StageError: The endpoint refuses all.
        """
        owner, ledger = self._owner, self._owner.ledger
        num_asked = sum(len(turn.content) for turn in request.turns)
        found: Reply | Failure | None = None
        for number in range(self._settings.retries + 1):
            await asyncio.sleep(max(0.0, self._not_before - time.monotonic()))
            if owner.over_budget:
                return None
            ledger.sent(name)
            found = await self._sent(body, session)
            if isinstance(found, Reply):
                ledger.keep(name, found, found.usage.billed(num_asked, len(found.text)))
                owner.tally.num_answered += 1
                self._failed_in_row = 0
                return found
            billed = 0 if found.usage is None else found.usage.billed(num_asked, found.num_characters)
            ledger.failed(name, found, billed)
            if found.of_all and not owner.tally.num_answered:
                raise owner.gone(found, 1)
            if not found.again or not await self._waited(found, number, name):
                break
        return found

    def _gap(self, failure: Failure) -> Gap:
        """Counts a question that was asked and has no answer.

        A refused question is its own outcome once the endpoint has answered another one; until then it may be of all.

        Raises:
            StageError: The endpoint left too many in a row without an answer.
        """
        owner = self._owner
        if failure.own and owner.ledger.has_answers:
            return Gap(problem=failure.problem, missing="refused")
        self._failed_in_row += 1
        if self._failed_in_row >= self._settings.give_up_after:
            raise owner.gone(failure, self._failed_in_row)
        if not failure.own:
            owner.tally.num_failed += 1
            owner.tally.first = owner.tally.first or failure.problem
        return Gap(problem=failure.problem, missing="refused" if failure.own else "failed")

    async def _sent(self, body: dict[str, Any], session: aiohttp.ClientSession) -> Reply | Failure:
        """Sends a request once. A redirect counts as a failure: it would show the key to somebody else."""
        url = self._settings.base_url.rstrip("/") + PATH
        content, usage = bytearray(), None
        try:
            async with session.post(url, json=body, allow_redirects=False) as response:
                usage = begun(response.status, b"")
                async for chunk in response.content.iter_chunked(_CHUNK):
                    content += chunk
                    usage = begun(response.status, content)
                    if len(content) > MOST_BYTES:
                        return Failure(
                            problem="too_long", again=False, own=True, usage=usage, num_characters=len(content)
                        )
                return self._read(response, bytes(content))
        except TimeoutError:
            return Failure(problem="timeout", again=True, usage=usage, num_characters=len(content))
        except (aiohttp.ClientError, OSError) as error:
            said = f"{type(error).__name__}: {error}"
            return Failure(problem="unreachable", again=True, detail=said, usage=usage, num_characters=len(content))

    def _read(self, response: aiohttp.ClientResponse, content: bytes) -> Reply | Failure:
        """Reads a response that is whole."""
        found = read_reply(response.status, response.headers, content, thoughts=self._owner.expert.thoughts)
        if self._key is None or not isinstance(found, Reply) or self._key not in found.text:
            return found
        # Answers are written down, and the key is not.
        usage, length = found.usage, len(found.text)
        return Failure(problem="repeats_key", again=False, own=True, usage=usage, num_characters=length)

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


def _answer(key: str, found: Reply | Gap, seconds: float) -> ExpertAnswer:
    """The answer that a question gets."""
    if isinstance(found, Gap):
        return ExpertAnswer(key=key, problem=found.problem, missing=found.missing, answered_s=seconds)
    return ExpertAnswer(key=key, text=found.text, num_tokens=found.num_tokens, is_cut=found.is_cut, answered_s=seconds)


async def _ended() -> None:
    """Returns when all cancelled tasks of the loop have ended, so that no connection is left."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_default_executor()
