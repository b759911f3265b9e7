"""The guard of `mmrl serve`: without the key nothing reaches what it guards, and nothing is said about it."""

import asyncio

import pytest

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.rollout.vllm.guard import Guard
from lightning_mmrl.rollout.vllm.keys import VARIABLE

KEY = "mmrl-" + "x" * 28
RIGHT = (b"authorization", f"Bearer {KEY}".encode())
REFUSAL = [
    {
        "type": "http.response.start",
        "status": 401,
        "headers": [(b"content-length", b"0"), (b"www-authenticate", b"Bearer"), (b"connection", b"close")],
    },
    {"type": "http.response.body", "body": b""},
]

ROUTES = (
    *("/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc", "/load", "/version", "/kv_event_sources", "/health"),
    *("/metrics", "/tokenize", "/detokenize", "/v1/models", "/ping", "/invocations", "/reset_prefix_cache"),
    *(
        "/reset_mm_cache",
        "/reset_encoder_cache",
        "/collective_rpc",
        "/server_info",
        "/sleep",
        "/wake_up",
        "/is_sleeping",
    ),
    *("/release_kv_cache_memory", "/pause", "/resume", "/abort_requests", "/is_paused", "/init_weight_transfer_engine"),
    *("/shutdown_weight_transfer_engine", "/start_weight_update", "/start_draft_weight_update", "/update_weights"),
    *("/finish_weight_update", "/update_weight_version", "/weight_info", "/weight_checker", "/get_world_size"),
    *("/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/messages", "/generative_scoring"),
    *("/scale_elastic_ep", "/v1/chat/completions/render", "/inference/v1/generate", "/inference/v1/abort_requests"),
)
"""Of vLLM 0.32 in the development mode; tests/engine_vllm asks the server itself."""


class Application:
    """Stands for vLLM: notes what reaches it, and would read and answer it."""

    def __init__(self):
        self.reached = []

    async def __call__(self, scope, receive, send):
        self.reached.append((scope["type"], scope.get("path")))
        await receive()
        await send({"type": "answered"})


@pytest.fixture
def application():
    return Application()


@pytest.fixture
def ask(application, monkeypatch):
    """Sends one connection through a guard; returns what it sent back and how often it read."""
    monkeypatch.setenv(VARIABLE, KEY)
    guard = Guard(application)

    def ask(headers=(), **scope):
        sent, reads = [], []

        async def receive():
            reads.append(True)
            return {"type": "http.request", "body": b"", "more_body": True}

        async def send(message):
            sent.append(message)

        whole = {"type": "http", "method": "GET", "path": "/health", "query_string": b"", "headers": list(headers)}
        asyncio.run(guard({**whole, **scope}, receive, send))
        return sent, len(reads)

    return ask


@pytest.mark.parametrize("headers", [[], [(b"authorization", b"Bearer " + b"y" * len(KEY))]], ids=["no", "wrong"])
def test_no_route_is_reached_without_the_key_by_any_method(ask, application, headers):
    for path in ROUTES:
        for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT"):
            assert ask(headers, path=path, method=method) == (REFUSAL, 0)
    assert application.reached == []


BEARER = b"Bearer " + KEY.encode()


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([(b"authorization", BEARER), (b"authorization", BEARER)], id="twice"),
        pytest.param([(b"authorization", BEARER), (b"Authorization", b"Bearer x")], id="right and wrong"),
        pytest.param([(b"authorization", BEARER + b", " + BEARER)], id="joined"),
        pytest.param([(b"authorization", KEY.encode())], id="no scheme"),
        pytest.param([(b"authorization", b"Bearer")], id="no key"),
        pytest.param([(b"authorization", b"Bearer ")], id="an empty key"),
        pytest.param([(b"authorization", b"")], id="nothing"),
        pytest.param([(b"authorization", b"Bearer  " + KEY.encode())], id="two spaces"),
        pytest.param([(b"authorization", b"Bearer\t" + KEY.encode())], id="a tab"),
        pytest.param([(b"authorization", BEARER + b" ")], id="a space behind"),
        pytest.param([(b"authorization", BEARER + b"\x00")], id="a null behind"),
        pytest.param([(b"authorization", BEARER[:-1])], id="one short"),
        pytest.param([(b"authorization", BEARER.lower().replace(b"mmrl", b"MMRL"))], id="another case"),
        pytest.param([(b"authorization", b"Bearer \xff\xfe" + KEY.encode())], id="not text"),
        pytest.param([(b"authorization", b"Bearer " + b"x" * 2**20)], id="very long"),
        pytest.param([(b"authorization", b"Basic " + KEY.encode())], id="another scheme"),
        pytest.param([(b"proxy-authorization", BEARER)], id="of a proxy"),
        pytest.param([(b"x-api-key", KEY.encode()), (b"cookie", b"key=" + KEY.encode())], id="other headers"),
        pytest.param([(b"x-forwarded-for", b"127.0.0.1"), (b"x-forwarded-proto", b"https")], id="forwarded"),
        pytest.param([(b"x-original-url", b"/health"), (b"x-http-method-override", b"OPTIONS")], id="overridden"),
    ],
)
def test_only_one_header_with_the_very_key_is_let_in(ask, application, headers):
    assert ask(headers, method="POST", path="/collective_rpc") == (REFUSAL, 0)
    assert application.reached == []


@pytest.mark.parametrize(
    "scope",
    [
        {"path": "//collective_rpc"},
        {"path": "/v1/../collective_rpc"},
        {"path": "/%63ollective_rpc", "raw_path": b"/%63ollective_rpc"},
        {"path": ""},
        {"path": "*", "method": "OPTIONS"},
        {"root_path": "/v1", "path": "/v1/collective_rpc"},
        {"query_string": b"key=" + KEY.encode()},
        {"query_string": b"access_token=" + KEY.encode()},
        {"http_version": "1.0"},
        {"http_version": "2"},
        {"client": ("127.0.0.1", 1), "scheme": "https"},
        {"method": "get"},
    ],
    ids=str,
)
def test_the_way_a_request_is_written_opens_nothing(ask, application, scope):
    assert ask(**scope) == (REFUSAL, 0)
    assert application.reached == []


def test_a_websocket_without_the_key_is_closed_before_it_opens(ask, application):
    assert ask(type="websocket", path="/v1/realtime") == ([{"type": "websocket.close", "code": 1008}], 0)
    assert application.reached == []


def test_a_connection_of_an_unknown_kind_gets_nothing(ask, application):
    assert ask(type="webtransport") == ([], 0)
    assert application.reached == []


@pytest.mark.parametrize("scheme", [b"Bearer", b"bearer", b"BEARER"])
def test_the_key_opens_and_its_scheme_has_no_case(ask, application, scheme):
    header = (b"Authorization", scheme + b" " + KEY.encode())
    assert ask([header], path="/weight_info") == ([{"type": "answered"}], 1)
    assert ask([header], type="websocket", path="/v1/realtime") == ([{"type": "answered"}], 1)
    assert application.reached == [("http", "/weight_info"), ("websocket", "/v1/realtime")]


def test_the_events_of_the_server_itself_pass(ask, application):
    ask(type="lifespan")
    assert [kind for kind, _ in application.reached] == ["lifespan"]


@pytest.mark.parametrize("value", [None, "", "short", "with a space in it", "k\u00e9" * 10])
def test_without_a_key_there_is_no_guard_and_no_server(application, monkeypatch, value):
    if value is None:
        monkeypatch.delenv(VARIABLE, raising=False)
    else:
        monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(ConfigError, match=rf"^the server key {VARIABLE} "):
        Guard(application)
