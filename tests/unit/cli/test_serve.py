"""`mmrl serve`: the command that it becomes, and what it refuses."""

import json
import os
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import omni
import pytest

from lightning_mmrl.cli import serve
from lightning_mmrl.cli.main import main
from lightning_mmrl.config import rollout_checks
from lightning_mmrl.config.compose import compose
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.rollout.vllm.settings import VLLMServer


class Health(BaseHTTPRequestHandler):
    """Says that it is well."""

    def do_GET(self):
        self.server.asked.append(self.path)
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *args):
        """Says nothing else."""


@pytest.fixture
def installed(monkeypatch):
    """A machine that has vllm."""
    monkeypatch.setattr(rollout_checks, "find_spec", lambda name: object())


def test_help_says_how(capsys):
    assert main(["serve", "--help"]) == 0
    assert "mmrl serve experiment=quickstart rollout=vllm_server" in capsys.readouterr().out


def test_a_run_that_samples_by_itself_has_no_server(capsys):
    for rollout in ("hf", "vllm"):
        assert main(["serve", f"rollout={rollout}"]) == 2
        assert "has no rollout.settings.server to start; add rollout=vllm_server" in capsys.readouterr().err


def test_it_becomes_vllm_with_what_training_needs(installed, tmp_path, monkeypatch):
    checkpoint = omni.build(tmp_path / "omni")
    became = []
    monkeypatch.setattr(serve.os, "execve", lambda *arguments: became.append(arguments))
    overrides = [f"model.checkpoint={checkpoint}", f"output_dir={tmp_path}/runs", "rollout=vllm_server"]
    own = ["rollout.settings.server.url=http://127.0.0.1:4711", "rollout.settings.max_num_seqs=7"]
    assert main(["serve", "model=tiny_omni", *overrides, *own, "--", "--tensor-parallel-size", "2"]) == 0
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


def test_a_run_whose_server_does_not_answer_does_not_start(installed):
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


def test_a_run_whose_server_answers_starts(installed):
    with HTTPServer(("127.0.0.1", 0), Health) as server:
        server.asked = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        rollout_checks.require_engine(compose(["rollout=vllm_server", f"rollout.settings.server.url={url}"]))
        server.shutdown()
    assert server.asked == ["/health"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "127.0.0.1:8000"}, r"url is '127.0.0.1:8000'; it must be like http://"),
        ({"url": "ftp://node"}, "it must be like http://"),
        ({"timeout_s": 0}, "timeout_s is 0 and restart_s"),
        ({"restart_s": -1.0}, r"restart_s -1\.0"),
        ({"transfer": "pigeon"}, "transfer is 'pigeon'; it must be one of auto, nccl, files"),
    ],
)
def test_settings_of_a_server_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        VLLMServer(**settings)
