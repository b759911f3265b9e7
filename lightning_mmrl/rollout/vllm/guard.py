"""The guard of `mmrl serve`: a request reaches vLLM only if it shows the key, whatever its path and method.

vLLM's own `--api-key` protects only the paths /v1, /v2 and /inference; weights are replaced under other paths.
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

    Every request without the key gets the same bare 401, before anything of its body is read.

    Args:
        app: The application that gets requests with the key, and the server's own events.

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
            headers = [
                (b"content-length", b"0"),
                (b"www-authenticate", b"Bearer"),
                # Otherwise the server would read the whole body to throw it away.
                (b"connection", b"close"),
            ]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": b""})

    def _admits(self, headers: Any) -> bool:
        given = [value for name, value in headers if name.lower() == b"authorization"]
        if len(given) != 1:
            return False
        scheme, _, key = given[0].partition(b" ")
        # The time of this comparison does not tell where the keys differ.
        return scheme.lower() == b"bearer" and hmac.compare_digest(key, self._key)
