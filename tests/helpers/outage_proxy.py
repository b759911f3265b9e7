"""A loopback proxy before a tracking server that can fail in every way that a server, a proxy or a network does."""

import json
import socket
import struct
import threading
import time
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PAGES = {
    "html_400": (400, {}, b"<html><h1>Bad Request</h1></html>"),
    "html_404": (404, {}, b"<html><h1>Not Found</h1></html>"),
    "html_401": (401, {"WWW-Authenticate": 'Basic realm="x"'}, b"<html><h1>Sign in</h1></html>"),
    "json_403": (403, {}, b'{"error_code": "PERMISSION_DENIED", "message": "no"}'),
    "empty_200": (200, {}, b""),
    "braces_200": (200, {}, b"{}"),
    "html_200": (200, {}, b"<html><form>user name</form></html>"),
    "login": (302, {"Location": "/login"}, b""),
    "busy_429": (429, {"Retry-After": "86400"}, b"slow down"),
    "busy_503": (503, {"Retry-After": "86400"}, b"<html>maintenance</html>"),
}
"""Answers of something that stands before the server, which sees nothing of the request."""

HANG_S = 600.0
SLOW_CREATE_S = 12.0


class Proxy:
    """Passes requests on to `127.0.0.1:port`, or fails in the way that `mode` names.

    Besides `PAGES`: `reset` (the connection breaks before the server sees the request), `lost` (after the server did
    what it was asked), `cut` (the answer ends in the middle), `part` (half of the points of a batch are passed on and
    the answer is good), `hang` (no answer until the mode changes), `slow_create` (12 s before a run is created).
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.mode = "up"
        self.failures = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.proxy = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        self.uri = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self.mode = "closed"
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def _handle(self) -> None:
        proxy: Proxy = self.server.proxy
        mode = proxy.mode
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if mode == "slow_create" and self.path.endswith("/runs/create"):
            proxy.failures += 1
            time.sleep(SLOW_CREATE_S)
        if mode in ("up", "slow_create") or (mode == "part" and not self.path.endswith("log-batch")):
            self._answer(*self._forward(body))
            return
        proxy.failures += 1
        if mode in PAGES:
            self._answer(*PAGES[mode])
        elif mode == "part":
            sent = json.loads(body)
            points = sent.get("metrics", [])
            sent["metrics"] = points[: len(points) // 2]
            self._answer(*self._forward(json.dumps(sent).encode()))
        elif mode == "cut":
            status, headers, content = self._forward(body)
            self._answer(status, {**headers, "Content-Length": str(len(content))}, content[: len(content) // 2])
            self._break()
        else:
            self._fail(mode, body)

    def _fail(self, mode: str, body: bytes) -> None:
        if mode == "hang":
            until = time.monotonic() + HANG_S
            while self.server.proxy.mode == mode and time.monotonic() < until:
                time.sleep(0.05)
        if mode == "lost":
            self._forward(body)
        self._break()

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        skipped = ("host", "content-length", "connection", "accept-encoding")
        headers = {key: value for key, value in self.headers.items() if key.lower() not in skipped}
        connection = HTTPConnection("127.0.0.1", self.server.proxy.port, timeout=60)
        try:
            connection.request(self.command, self.path, body=body or None, headers=headers)
            answer = connection.getresponse()
            return answer.status, {"Content-Type": answer.getheader("Content-Type", "")}, answer.read()
        except OSError as error:
            return 502, {}, f"<html>no upstream: {type(error).__name__}</html>".encode()
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)

    def _break(self) -> None:
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:  # the client gave up
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
    setattr(_Handler, f"do_{method}", _Handler._handle)
