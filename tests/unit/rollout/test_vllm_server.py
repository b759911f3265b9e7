"""The trainer's end of a vLLM server, against one that only answers; the real one is tested where vllm is installed."""

import asyncio
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import torch

from lightning_mmrl.errors import ConfigError, RolloutError
from lightning_mmrl.rollout.engine_inputs import EnginePrompt
from lightning_mmrl.rollout.vllm import server as product
from lightning_mmrl.rollout.vllm import settings
from lightning_mmrl.rollout.vllm.client import Client, KeyRefusedError, TooLateError
from lightning_mmrl.rollout.vllm.host import SamplingRequest
from lightning_mmrl.rollout.vllm.keys import VARIABLE, Key
from lightning_mmrl.rollout.vllm.settings import VLLMServer
from lightning_mmrl.rollout.weights import WeightStream

KEY = "mmrl-the-key-of-these-tests"
WEIGHTS = {"a": torch.zeros(2), "b": torch.ones(3)}


class Weights:
    """A policy's weights, as far as the product knows them."""

    def items(self):
        return iter(WEIGHTS.items())

    def described(self):
        return [(name, tensor.to("meta")) for name, tensor in WEIGHTS.items()]


class Handler(BaseHTTPRequestHandler):
    """Answers as the server's script says."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._answer(None)

    def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        self._answer(json.loads(self.rfile.read(length)) if length else None)

    def _answer(self, body):
        script = self.server.script
        shown = self.headers.get("Authorization")
        allowed = script.key is None or shown == f"Bearer {script.key}"
        status, answer = script(self.path, body) if allowed else (401, None)
        if status is None:
            self.close_connection = True
            return
        data = b"" if answer is None else script.raw or json.dumps(answer).encode()
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        """Says nothing."""


class Script:
    """A server that works, with what it was asked; `reasons` are those that its next completions end for."""

    def __init__(self):
        self.version, self.asked, self.reasons, self.num_read, self.refuse = "default", [], [], 2, {}
        self.key, self.raw = KEY, None

    def __call__(self, path, body):
        self.asked.append(path)
        if path in self.refuse:
            return self.refuse[path]
        if path == "/weight_info":
            return 200, {"weight_version": self.version}
        if path == "/update_weight_version":
            self.version = body["new_version"]
        if path == "/collective_rpc":
            report = {"num_read": self.num_read, "refused": None, "missing": []}
            return 200, {"results": [report if body["method"] == "mmrl_load_files" else None]}
        if path == "/reset_prefix_cache":
            return 200, {"success": True}
        if path == product.GENERATE:
            return 200, {"choices": [self._choice(index) for index in range(body["sampling_params"].get("n", 1))]}
        return 200, None

    def _choice(self, index):
        reason = self.reasons.pop(0) if self.reasons else "stop"
        step = {"token_id": index, "logprob": -0.5, "top_logprobs": []}
        versions = [{"version": self.version, "start": 0, "end": 1}]
        return {
            "finish_reason": reason,
            "token_ids": [index],
            "weight_versions": versions,
            "logprobs": {"content": [step]},
        }


@pytest.fixture
def script():
    return Script()


@pytest.fixture
def connected(script, monkeypatch):
    """Connects to the scripted server; vllm itself is not asked for anything."""
    monkeypatch.setattr(settings, "installed", lambda: True)
    monkeypatch.setattr(product, "LEAVING_S", 0.01)
    monkeypatch.setenv(VARIABLE, KEY)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.script = script
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hosts = []

    def connect(**limits):
        node = VLLMServer(
            url=f"http://127.0.0.1:{server.server_port}",
            transfer="files",
            **{"timeout_s": 5.0, "restart_s": 5.0} | limits,
        )
        encoder = SimpleNamespace(config=SimpleNamespace(), media_kinds=frozenset())
        hosts.append(product.ServerHost(node, encoder))
        return hosts[-1]

    yield connect
    for host in hosts:
        host.close()
    server.shutdown()
    server.server_close()


def request(*seeds):
    prompt = EnginePrompt(token_ids=[1, 2], positions=torch.zeros(3, 3), tensors={}, spans={})
    return SamplingRequest(prompt=prompt, seeds=seeds, temperature=1.0, max_tokens=4, stop_token_ids=(0,))


def sample(host, *requests):
    return [[row.token_ids for row in group] for group in host.sample(requests, lambda: None)]


def test_completions_come_in_the_order_of_their_seeds(script, connected):
    host = connected()
    host.push(Weights(), 1)
    assert sample(host, request(5, 6, 7), request(None, None)) == [[[0], [1], [2]], [[0], [0]]]
    assert script.asked.count(product.GENERATE) == 3  # greedy ones come one by one


def test_completions_that_a_stopping_server_cuts_off_are_asked_again(script, connected):
    """VLLM answers 200 with what it has when it is told to end; that is no end of the completion."""
    host = connected()
    host.push(Weights(), 1)
    script.reasons = ["stop", "abort"]
    rows = host.sample([request(1, 2)], lambda: None)
    assert script.asked.count(product.GENERATE) == 2
    assert [row.truncated for row in rows[0]] == [False, False]
    script.reasons = ["abort"] * 8
    with pytest.raises(RolloutError, match="cut 1 requests off"):
        host.sample([request(1, 2)], lambda: None)


def test_a_restarted_server_gets_the_weights_again(script, connected):
    host = connected()
    host.push(Weights(), 1)
    script.version = "default"
    assert sample(host, request(1)) == [[[0]]]
    assert script.asked.count("/collective_rpc") == 4
    assert host.num_restores == 1


def test_weights_that_the_server_does_not_see_are_named_so(script, connected):
    host = connected()
    script.num_read = 0
    with pytest.raises(RolloutError, match=r"found 0 of 2 weights in .*exchange_dir must be a folder"):
        host.push(Weights(), 1)
    assert script.version.endswith("is being pushed")


@pytest.mark.parametrize("variable", [None, "mmrl-another-key-than-the-server's"])
def test_a_trainer_without_the_key_is_refused_in_one_sentence(script, connected, monkeypatch, tmp_path, variable):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(VARIABLE)
    sentence = (
        r"^rollout.settings.server.url is http://127.*, and there is no key for it: .* is missing; start the server"
    )
    if variable:
        monkeypatch.setenv(VARIABLE, variable)
        sentence = (
            rf"^the vLLM server at http://\S+ does not take the key of {VARIABLE}; give mmrl serve and the trainer"
        )
    with pytest.raises(KeyRefusedError if variable else ConfigError, match=sentence) as refused:
        connected()
    assert "another" not in str(refused.value)
    assert script.asked == []


def test_a_server_that_asks_for_no_key_is_refused(script, connected):
    script.key = None
    with pytest.raises(
        KeyRefusedError, match=r"answers /health without a key \(status 200\), so .*start it with mmrl serve"
    ):
        connected()


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_proxy_before_a_server_that_is_away_is_waited_for(script, connected, status):
    host = connected(restart_s=0.2)
    script.key, script.refuse = None, {"/health": (status, None)}
    with pytest.raises(RolloutError, match=r"went away and was not back within 0.2 s"):
        host.push(Weights(), 1)


@pytest.mark.parametrize("status", [302, 307, 308])
def test_a_redirection_is_not_followed_with_the_key(script, connected, status):
    host = connected()
    script.refuse = {"/weight_info": (status, {"detail": "elsewhere"})}
    with pytest.raises(RolloutError, match=f"answers /weight_info with {status}"):
        host.sample([request(1)], lambda: None)
    assert "/elsewhere" not in script.asked


def test_what_is_not_json_is_one_sentence(script, connected):
    host = connected()
    script.raw = b"<html>"
    with pytest.raises(RolloutError, match="answers /weight_info with 200: <html>"):
        host.sample([request(1)], lambda: None)


@pytest.mark.parametrize("key", ["of-another-start-of-the-server", None])
def test_a_server_that_comes_back_with_another_key_is_not_waited_for(script, connected, key):
    host = connected(restart_s=60.0)
    host.push(Weights(), 1)
    script.key = key
    begun = time.monotonic()
    with pytest.raises(KeyRefusedError):
        host.push(Weights(), 2)
    if key:
        with pytest.raises(KeyRefusedError, match="does not take the key"):
            sample(host, request(1))
    assert time.monotonic() - begun < 5
    assert script.asked.count("/collective_rpc") == 2


def test_a_connection_that_is_lost_within_a_push_is_tried_once_more(script, connected):
    host = connected()
    script.refuse = {"/reset_mm_cache": (None, None)}
    with pytest.raises(RolloutError, match="does not answer"):
        host.push(Weights(), 1)
    assert script.asked.count("/reset_mm_cache") == 2


def test_a_server_of_other_settings_is_told_how_to_start(script, connected):
    host = connected()
    script.refuse = {"/update_weight_version": (404, {"detail": "Not Found"})}
    with pytest.raises(RolloutError, match=r"answers /update_weight_version with 404: .*start it with mmrl serve"):
        host.push(Weights(), 1)


def test_an_exchange_folder_that_cannot_be_written_is_named(tmp_path, connected):
    (tmp_path / "file").write_text("")
    host = connected(exchange_dir=str(tmp_path / "file"))
    with pytest.raises(RolloutError, match=r"exchange_dir .*file cannot be written"):
        host.push(Weights(), 1)


def test_a_stream_goes_on_where_it_was_left():
    stream = WeightStream(Weights())
    assert next(iter(stream))[0] == "a"
    stream.finish()
    assert stream.num_read == len(WEIGHTS)
    assert list(stream) == []


@contextmanager
def client(timeout_s):
    made = Client("http://127.0.0.1:9", Key(value=KEY, source="a test"), timeout_s)
    try:
        yield made
    finally:
        made.close()


def test_what_polling_raises_ends_the_wait_and_an_answer_is_never_lost():
    async def slow():
        await asyncio.sleep(0.25)
        return "answer"

    async def late():
        raise TooLateError("late")

    def interrupt():
        raise KeyboardInterrupt

    with client(1.0) as made:
        assert made.wait(slow()) == "answer"
        with pytest.raises(TooLateError):
            made.wait(late())
        with pytest.raises(KeyboardInterrupt):
            made.wait(slow(), interrupt)
