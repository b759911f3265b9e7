"""`mmrl serve`: the command line of the server, and its refusals."""

import json
import os
import re
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import omni
import pytest

from lightning_mmrl.cli import serve
from lightning_mmrl.cli.main import main
from lightning_mmrl.config.checks import rollout as rollout_checks
from lightning_mmrl.config.compose import compose
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.rollout.vllm.client import KeyRefusedError
from lightning_mmrl.rollout.vllm.keys import VARIABLE, own_file, read_key, write_key
from lightning_mmrl.rollout.vllm.settings import VLLMServer

KEY = "mmrl-the-key-of-these-tests"


class Health(BaseHTTPRequestHandler):
    """Answers /health to requests with the server's key, or to all if there is no key."""

    def do_GET(self):
        shown = self.headers.get("Authorization")
        self.server.asked.append((self.path, shown))
        self.send_response(200 if self.server.key is None or shown == f"Bearer {self.server.key}" else 401)
        self.end_headers()

    def log_message(self, *args):
        """Logs nothing."""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home without a key, and no key in the environment."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture
def installed(monkeypatch):
    """A machine that has vllm."""
    monkeypatch.setattr(rollout_checks, "find_spec", lambda name: object())


@pytest.fixture
def became(monkeypatch):
    """The command lines that `mmrl serve` would turn into."""
    calls = []
    monkeypatch.setattr(serve.os, "execve", lambda *arguments: calls.append(arguments))
    return calls


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return omni.build(tmp_path_factory.mktemp("checkpoint") / "omni")


@pytest.fixture
def start(checkpoint, tmp_path):
    """Starts a server for a URL, with further arguments; returns the exit code."""

    def start(url, *more):
        overrides = [f"model.checkpoint={checkpoint}", f"output_dir={tmp_path}/runs", "rollout=vllm_server"]
        return main(["serve", "model=tiny_omni", *overrides, f'rollout.settings.server.url="{url}"', *more])

    return start


def test_help_says_how(capsys):
    assert main(["serve", "--help"]) == 0
    assert "mmrl serve experiment=quickstart rollout=vllm_server" in capsys.readouterr().out


def test_a_run_that_samples_by_itself_has_no_server(capsys):
    for rollout in ("hf", "vllm"):
        assert main(["serve", f"rollout={rollout}"]) == 2
        assert "has no rollout.settings.server to start; add rollout=vllm_server" in capsys.readouterr().err


def test_it_becomes_vllm_with_what_training_needs(installed, became, start, checkpoint, tmp_path):
    flags = ["rollout.settings.max_num_seqs=7", "--", "--tensor-parallel-size", "2"]
    assert start("http://127.0.0.1:4711", *flags) == 0
    ((program, command, environment),) = became
    assert program == sys.executable
    assert command[-2:] == ["--tensor-parallel-size", "2"]

    def flag(name):
        return command[command.index(name) + 1]

    assert (flag("--host"), flag("--port"), flag("--max-num-seqs")) == ("127.0.0.1", "4711", "7")
    assert flag("--logprobs-mode") == "processed_logprobs"
    assert "--no-mm-device-do-normalize" in command
    banned = json.loads(flag("--additional-config"))["banned_token_ids"]
    assert banned == list(omni.load(checkpoint)[0].banned_token_ids()) != []
    assert environment["VLLM_SERVER_DEV_MODE"] == "1"
    assert environment["PATH"] == os.environ["PATH"]
    model = tmp_path / "runs" / "served" / "omni"
    assert json.loads((model / "config.json").read_text())["model_type"] == "qwen2_5_omni"
    assert not list(model.glob("*.safetensors"))


def test_the_key_goes_by_the_environment_alone(installed, became, start, tmp_path, monkeypatch, capsys):
    for name in ("VLLM_API_KEY", "VLLM_ALLOW_INSECURE_SERIALIZATION"):
        monkeypatch.setenv(name, "1")
    assert start("http://127.0.0.1:4711") == 0
    ((_, command, environment),) = became
    own = tmp_path / "home" / ".mmrl" / "server.key"
    key = read_key(own).value
    assert environment[VARIABLE] == key
    assert key not in " ".join(command)
    assert not {"VLLM_API_KEY", "VLLM_ALLOW_INSECURE_SERIALIZATION"} & set(environment)
    output = capsys.readouterr()
    assert f"with the key of {own};" in output.out
    assert key not in output.out + output.err
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file() and key in path.read_text("latin-1")]


@pytest.mark.parametrize(
    ("url", "more"),
    [
        ("http://192.0.2.7:8000", []),
        ("http://0.0.0.0:8000", []),
        ("http://[::]:8000", []),
        ("http://127.0.0.1:8000", ["--", "--host", "0.0.0.0"]),
        ("http://127.0.0.1:8000", ["--", "--host=192.0.2.7"]),
        ("http://127.0.0.1:8000", ["--", "--host", "127.0.0.1", "--host", "0"]),
    ],
)
def test_where_others_reach_it_it_does_not_start_without_a_key(installed, became, start, capsys, url, more):
    write_key(own_file())  # the key of the loopback address
    assert start(url, *more) == 2
    assert re.search(
        r"^mmrl serve: mmrl serve would listen on '\S+', where other machines reach it, and no key .*serve --new-key",
        capsys.readouterr().err,
        re.MULTILINE,
    )
    assert became == []


def test_where_others_reach_it_it_starts_with_a_key_of_a_file(installed, became, start, tmp_path, capsys):
    path = tmp_path / "new.key"
    assert main(["serve", "--new-key", str(path)]) == 0
    assert start("http://0.0.0.0:8000", f"rollout.settings.server.key_file={path}") == 0
    ((_, _, environment),) = became
    key = read_key(path).value
    assert environment[VARIABLE] == key
    assert key not in capsys.readouterr().out
    path.chmod(0o644)
    assert start("http://0.0.0.0:8000", f"rollout.settings.server.key_file={path}") == 2
    assert f"the server key {path} has mode 644" in capsys.readouterr().err


def test_https_wants_a_certificate_and_http_none(installed, became, start, capsys):
    secure = ["--", "--ssl-certfile", "cert.pem", "--ssl-keyfile", "key.pem"]
    for url, more in (("https://127.0.0.1", []), ("https://127.0.0.1", secure[:3]), ("http://127.0.0.1", secure)):
        assert start(url, *more) == 2
        assert (
            "; https wants both -- --ssl-certfile FILE --ssl-keyfile FILE, and http neither" in capsys.readouterr().err
        )
    assert start("https://127.0.0.1", *secure) == 0
    ((_, command, _),) = became
    assert command[command.index("--port") + 1] == "443"
    assert command[-4:] == secure[1:]


def test_a_run_whose_server_does_not_answer_does_not_start(installed, monkeypatch):
    monkeypatch.setenv(VARIABLE, KEY)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    config = compose(["rollout=vllm_server", f"rollout.settings.server.url={url}"])
    with pytest.raises(ConfigError, match=f"is {url}, where no vLLM server answers .*start it with mmrl serve"):
        rollout_checks.require_engine(config)
    rollout_checks.require_engine(config, connect=False)
    # A run of SFT alone samples nothing.
    sft = compose(["rollout=vllm_server", f"rollout.settings.server.url={url}", "curriculum=sft_only"])
    rollout_checks.require_engine(sft)


@pytest.fixture
def server():
    with HTTPServer(("127.0.0.1", 0), Health) as server:
        server.asked, server.key = [], KEY
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def require(server):
    rollout_checks.require_engine(compose(["rollout=vllm_server", f"rollout.settings.server.url={server.url}"]))


def test_a_run_whose_server_takes_its_key_starts(installed, server, monkeypatch):
    monkeypatch.setenv(VARIABLE, KEY)
    require(server)
    assert server.asked == [("/health", None), ("/health", f"Bearer {KEY}")]


def test_a_run_without_the_servers_key_is_refused(installed, server, monkeypatch):
    with pytest.raises(
        ConfigError, match=f"^rollout.settings.server.url is {server.url}, and there is no key for it: .*"
    ):
        require(server)
    assert server.asked == []
    monkeypatch.setenv(VARIABLE, "mmrl-another-key-of-another-server")
    with pytest.raises(KeyRefusedError, match=f"^the vLLM server at {server.url} does not take the key of {VARIABLE};"):
        require(server)


def test_a_run_is_refused_by_a_server_that_asks_for_no_key_and_does_not_show_it_its_own(installed, server, monkeypatch):
    server.key = None
    monkeypatch.setenv(VARIABLE, KEY)
    with pytest.raises(KeyRefusedError, match=f"^the server at {server.url} answers /health without a key"):
        require(server)
    assert server.asked == [("/health", None)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "127.0.0.1:8000"}, r"url is '127.0.0.1:8000'; it must be like http://"),
        ({"url": "ftp://node"}, "it must be like http://"),
        ({"url": "http://me:secret@node:8000"}, "url has a user, a query or a fragment; .*environment or a file$"),
        ({"url": "http://node:8000/?key=secret"}, "url has a user, a query"),
        ({"url": "http://node:8000#secret"}, "url has a user, a query"),
        ({"timeout_s": 0}, "timeout_s is 0 and restart_s"),
        ({"restart_s": -1.0}, r"restart_s -1\.0"),
        ({"transfer": "pigeon"}, "transfer is 'pigeon'; it must be one of auto, nccl, files"),
    ],
)
def test_settings_of_a_server_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message) as refused:
        VLLMServer(**settings)
    assert "secret" not in str(refused.value)
