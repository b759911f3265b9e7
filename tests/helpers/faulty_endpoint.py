"""An OpenAI-compatible endpoint on the loopback that adds numbers, and fails as it is told for each question."""

import json
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

RIGHT = "right"
ANSWERS = (RIGHT, "wrong", "language", "cut_short")
"""Faults that are answers: they are kept, and the rewards judge them."""
PASSING = ("429", "500", "503", "html", "half", "lost", "reset", "slow", "empty")
"""Faults after which the same request is sent again."""
REFUSED = ("400", "422", "cut_empty", "declined")
"""Faults that are the question's own outcome: it is not asked again."""
FINAL = (*REFUSED, "redirect", "busy")
"""Faults after which the same request is not sent again."""
COUNTED = (*ANSWERS, "empty", "cut_empty", "declined")
"""Faults whose reply says that it was billed `BILLED` tokens."""
BILLED = 15
SLOW_S = 1.5
"""Seconds that a slow answer takes."""
PAGES = {
    "429": (429, b"", {"Retry_After": "0"}),
    "busy": (429, b"", {"Retry_After": "3600"}),
    "wait": (503, b"", {"Retry_After": "1"}),
    "redirect": (302, b"", {"Location": "http://127.0.0.1:1/"}),
    "html": (200, b"<!doctype html><title>Sign in</title>", {}),
}
"""Status, content and headers of faults that are no answer."""


def question(left, right):
    """The text of a question."""
    return f"{left} + {right} = ?"


class FaultyEndpoint:
    """Serves in a thread, as a context manager.

    Args:
        plans: Maps a question to what its requests get, one after the other; the last one counts for all further ones.
            A question without a plan gets the right answer.
        key: The key that is asked for; None: none.
        reads: Takes the part of a question that has the numbers.
        says: Takes a question and returns the right answer to it; None: the sum of its numbers.

    Attributes:
        asked: How often each question came.
        bodies: The bodies of all requests.
        most_at_once: Largest number of requests under way.
    """

    def __init__(self, plans=None, key=None, reads=str, says=None):
        self.plans, self.key, self.reads, self.says = dict(plans or {}), key, reads, says
        self.asked, self.bodies, self.most_at_once = Counter(), [], 0
        self._lock, self._now = threading.Lock(), 0
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.endpoint = self
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def began(self, body):
        """Counts a request."""
        with self._lock:
            self.bodies.append(body)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)

    def ended(self):
        """Counts the end of a request."""
        with self._lock:
            self._now -= 1

    def due(self, text):
        """Counts a question and returns what it gets."""
        with self._lock:
            plan = self.plans.get(text, (RIGHT,))
            self.asked[text] += 1
            return plan[min(self.asked[text], len(plan)) - 1]


class _Server(ThreadingHTTPServer):
    request_queue_size = 64

    def handle_error(self, request, client_address):
        """Says nothing: a client that is killed, or does not wait, resets its connection."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def endpoint(self):
        return self.server.endpoint

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.endpoint.began(body)
        try:
            key = self.endpoint.key
            if key is not None and self.headers["Authorization"] != f"Bearer {key}":
                self.reply(401, json.dumps({"error": f"bad key {self.headers['Authorization']}"}).encode())
            else:
                self.act(self.endpoint.due(text_of(body)), text_of(body))
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client did not wait
        finally:
            self.endpoint.ended()

    def act(self, fault, text):
        if fault in PAGES:
            status, content, headers = PAGES[fault]
            self.reply(status, content, **headers)
        elif fault.isdecimal():
            self.reply(int(fault), b"<html>no</html>")
        elif fault == "reset":
            self.close_connection = True
            self.connection.close()
        else:
            self.answer(fault, text)

    def answer(self, fault, text):
        terms = re.findall(r"[+-]? ?\d+", self.endpoint.reads(text))
        number = sum(int(term.replace(" ", "")) for term in terms) + (fault == "wrong")
        texts = {"language": "Das Ergebnis ist sieben.", "empty": " ", "cut_empty": None, "declined": None}
        said = texts.get(
            fault, f"<answer>{number}</answer>" if self.endpoint.says is None else self.endpoint.says(text)
        )
        reason = "length" if fault in ("cut_short", "cut_empty") else "stop"
        message = {"role": "assistant", "content": said, **({"refusal": "No."} if fault == "declined" else {})}
        choice = {"message": message, "finish_reason": reason}
        usage = {"prompt_tokens": 10, "completion_tokens": 5}
        content = json.dumps({"choices": [choice], "usage": usage}).encode()
        if fault == "slow":
            time.sleep(SLOW_S)
        if fault == "half":
            content = content[: len(content) // 2]
        self.reply(200, content, length=len(content) + (100 if fault == "lost" else 0))
        if fault == "lost":
            self.close_connection = True

    def reply(self, status, content, length=None, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)


def text_of(body):
    """The question of a body: the last turn's text."""
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def expected(plan, retries):
    """How often a question is asked, and how it ends: with an answer of this kind, or with this fault."""
    for number in range(1, retries + 2):
        fault = plan[min(number, len(plan)) - 1]
        if fault in ANSWERS or fault in FINAL or number == retries + 1:
            return number, fault
    raise AssertionError
