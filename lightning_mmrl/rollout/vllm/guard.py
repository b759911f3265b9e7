"""The one door of `mmrl serve`: no request reaches vLLM, whatever its path and method, unless it shows the key.

VLLM's own `--api-key` leaves out all paths but /v1, /v2 and /inference, and those that replace weights are not among
them.
"""

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from lightning_mmrl.rollout.vllm.keys import environment_key

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

POLICY_VIOLATION = 1008
"""Code that closes a websocket (RFC 6455, 7.4.1)."""


class Guard:
    """ASGI middleware that asks for the key of the environment.

    It answers all requests without it alike, and before it reads anything of their bodies: 401, nothing else.

    Args:
        app: Where requests with the key go, and the server's own events.

    Raises:
        ConfigError: The environment has no key.
    """

    def __init__(self, app: Application) -> None:
        self._app = app
        self._key = environment_key().value.encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Passes on or refuses one connection."""
        if scope["type"] == "lifespan" or self._admits(scope.get("headers", ())):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": POLICY_VIOLATION})
        elif scope["type"] == "http":
            await _refuse(send)

    def _admits(self, headers: Any) -> bool:
        given = [value for name, value in headers if name.lower() == b"authorization"]
        if len(given) != 1:
            return False
        scheme, _, key = given[0].partition(b" ")
        # Compared in a time that tells nothing of where they differ.
        return scheme.lower() == b"bearer" and hmac.compare_digest(key, self._key)


async def _refuse(send: Send) -> None:
    headers = [
        (b"content-length", b"0"),
        (b"www-authenticate", b"Bearer"),
        # Otherwise the server reads on, and throws away, whatever body comes.
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
