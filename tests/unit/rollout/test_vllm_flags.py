"""Flags of `vllm serve`: only those that open nothing are passed on."""

import pytest

from lightning_mmrl.cli.main import main
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.rollout.vllm.flags import passed_flags


def test_harmless_flags_are_passed_on_and_the_last_of_one_name_counts():
    given = ["-tp", "2", "--max_num_seqs=8", "--no-enforce-eager", "--host", "a", "--host=b", "--numa-bind"]
    assert passed_flags(given) == {
        "--tensor-parallel-size": "2",
        "--max-num-seqs": "8",
        "--no-enforce-eager": "",
        "--host": "b",
        "--numa-bind": "",
    }
    assert passed_flags([]) == {}


@pytest.mark.parametrize(
    "flag",
    [
        # Code of others.
        "--middleware evil.Guard",
        "--middleware=evil.Guard",
        "--middlewar evil.Guard",  # argparse takes the first letters of a name
        "--trust-remote-code",
        "--trust_remote_code",
        "--trust-remote",
        "--worker-cls evil.Worker",
        "--worker-extension-cls evil.Extension",
        "--worker_extension_cls evil.Extension",
        "--logits-processors evil:Processor",
        "--scheduler-cls evil.Scheduler",
        "--distributed-executor-backend evil.Executor",
        "--tool-parser-plugin evil.py",
        "--reasoning-parser-plugin evil.py",
        "--io-processor-plugin evil",
        "--model-class-overrides {}",
        "--compilation-config {}",
        "-cc {}",
        "-cc.backend evil",
        "--logging-config evil.json",
        # Other doors.
        "--config file.yaml",
        "--uds /tmp/socket",
        "--grpc",
        "--grpc-port 1",
        "--headless",
        "--api-key other",
        "--api-server-count 2",
        "--root-path /v1",
        "--allow-credentials",
        '--allowed-origins ["*"]',
        "--data-parallel-size 2",
        "--data-parallel-rpc-port 1",
        "--master-addr 0.0.0.0",
        "--kv-transfer-config {}",
        "--kv-events-config {}",
        "--weight-transfer-config {}",
        "--ec-transfer-config {}",
        "--tool-server demo",
        "--allowed-local-media-path /",
        "--allowed-media-domains node",
        "--ho 0.0.0.0",
        "--hos=0.0.0.0",
        # The key in a log.
        "--uvicorn-log-level trace",
        "--hf-token secret",
        # Another model, or no longer what training needs.
        "--model elsewhere",
        "elsewhere",
        "--load-format auto",
        "--hf-overrides {}",
        "--logprobs-mode raw_logprobs",
        "--additional-config {}",
        "--additional-config.banned_token_ids []",
        "--enable-lora",
        "--no-enable-scale-out",
        # No flags.
        "--",
        "-",
        "",
        "--numa-bind=1",
    ],
)
def test_what_might_open_the_server_is_refused(flag):
    name = flag.partition(" ")[0].partition("=")[0]
    with pytest.raises(
        ConfigError, match=r"^mmrl serve does not pass .* on to vLLM, where it might let others in"
    ) as refused:
        passed_flags(["--max-num-seqs", "8", *flag.split(" ")])
    assert repr(name) in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("given", [["--host"], ["--host="], ["--host", "--port"], ["--port", ""], ["--host=--uds"]])
def test_a_flag_without_its_value_is_refused(given):
    with pytest.raises(ConfigError, match=r"^--\w+ has no value; write --\w+ VALUE$"):
        passed_flags(given)


def test_the_command_line_says_what_was_meant(capsys):
    assert main(["serve", "rollout=vllm_server", "--", "--tensor-paralel-size", "2"]) == 2
    assert "did you mean --tensor-parallel-size?" in capsys.readouterr().err
