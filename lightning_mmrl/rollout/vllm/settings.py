"""Settings of vLLM for a policy; they are the same in this process and on a server."""

import importlib.util
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from lightning_mmrl.errors import RolloutError
from lightning_mmrl.protocols.tensors import PromptEncoder

ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # bound threads would stay bound for the trainer
    "VLLM_NO_USAGE_STATS": "1",
}
"""Environment variables that are set before vllm is imported, unless the user has set them."""

TRANSFERS = ("auto", "nccl", "files")
"""Ways to send weights to a server."""

SLEEP_LEVELS = (0, 1)
"""Memory that is given back between rollouts: 0 nothing, 1 weights and cache."""

CPU_CACHE_GIB = 0.25
"""Size of the key-value cache on a CPU, unless the user gives it."""

CPU_SHARE = 0.3
"""Share of a machine's memory that must be free on a CPU; the cache has its own size there."""

WORKER = "lightning_mmrl.rollout.vllm.worker"
BANNED = "lightning_mmrl.rollout.vllm.banned:BannedTokens"
"""The logits processor of both model runners."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VLLMServer:
    """The address of a server and its time limits.

    Attributes:
        url: The address that `mmrl serve` was given.
        timeout_s: Longest time without an answer, to one call or to any completion of a rollout.
        restart_s: Longest time for a lost server to come back; 0: do not wait for it.
        transfer: How weights reach the server: `nccl`, `files`, or `auto`, which is NCCL on CUDA and files elsewhere.
        exchange_dir: Folder for `files` that trainer and server both see under this path; None: the system's
            temporary folder, for a server on this machine.
        key_file: File with the key that the server asks for and the trainer shows, unless the environment has one;
            None: the user's own file, for a server on this machine (`keys`).
    """

    url: str = "http://127.0.0.1:8000"
    timeout_s: float = 600.0
    restart_s: float = 300.0
    transfer: str = "auto"
    exchange_dir: str | None = None
    key_file: str | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"rollout.settings.server.url is {self.url!r}; it must be like http://127.0.0.1:8000")
        if "@" in parts.netloc or parts.query or parts.fragment:
            # The message does not repeat the URL, since it may hold a password.
            raise ValueError(
                "rollout.settings.server.url has a user, a query or a fragment; it must be like http://127.0.0.1:8000: "
                "the key belongs into the environment or a file"
            )
        if self.timeout_s <= 0 or self.restart_s < 0:
            raise ValueError(
                f"rollout.settings.server.timeout_s is {self.timeout_s} and restart_s {self.restart_s}; they must be "
                "above 0 and at least 0"
            )
        if self.transfer not in TRANSFERS:
            raise ValueError(
                f"rollout.settings.server.transfer is {self.transfer!r}; it must be one of {', '.join(TRANSFERS)}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class VLLMSettings:
    """Settings that say how the engine shares its device.

    Attributes:
        gpu_memory_utilization: Share of a GPU's memory for the engine's weights, activations and cache; None: a share
            for this model with a cache of 32,768 tokens, and on a server vLLM's own default.
        kv_cache_gib: Size of the key-value cache in GiB; None: the rest of the share on a GPU, and 0.25 on a CPU.
        max_model_len: Longest prompt with its completion, in tokens; None: as many as the model has positions.
        max_num_seqs: Completions sampled at a time.
        enforce_eager: Run the model without CUDA graphs, which a CPU never uses.
        sleep_level: Memory given back until the next rollout: 0 nothing, 1 weights and cache. A server ignores it.
        server: Where vLLM runs; None: in this process. `mmrl serve` starts a server with the rest of these settings.
    """

    gpu_memory_utilization: float | None = None
    kv_cache_gib: float | None = None
    max_model_len: int | None = None
    max_num_seqs: int = 256
    enforce_eager: bool = False
    sleep_level: int = 1
    server: VLLMServer | None = None

    def __post_init__(self) -> None:
        fits = {
            "gpu_memory_utilization": (
                self.gpu_memory_utilization is None or 0 < self.gpu_memory_utilization <= 1,
                "above 0 and at most 1, or null",
            ),
            "kv_cache_gib": (self.kv_cache_gib is None or self.kv_cache_gib > 0, "above 0, or null"),
            "max_model_len": (self.max_model_len is None or self.max_model_len > 1, "above 1, or null"),
            "max_num_seqs": (self.max_num_seqs > 0, "above 0"),
            "sleep_level": (self.sleep_level in SLEEP_LEVELS, "0 or 1"),
        }
        for name, (fit, wanted) in fits.items():
            if not fit:
                raise ValueError(f"rollout.settings.{name} is {getattr(self, name)}; it must be {wanted}")

    @property
    def cache_gib(self) -> float | None:
        """Size of the key-value cache in GiB; None: the rest of the share of a GPU."""
        return self.kv_cache_gib or (None if torch.cuda.is_available() else CPU_CACHE_GIB)

    def arguments(self, dtype: torch.dtype, banned_token_ids: list[int]) -> dict[str, Any]:
        """VLLM's engine arguments except the model; None stands for vLLM's default."""
        on_cpu = not torch.cuda.is_available()
        cache_gib = self.cache_gib
        return {
            "load_format": "dummy",  # the weights come with the first push
            "dtype": str(dtype).removeprefix("torch."),
            "logprobs_mode": "processed_logprobs",
            "logits_processors": [BANNED],
            "additional_config": {"banned_token_ids": banned_token_ids},
            "gpu_memory_utilization": self.gpu_memory_utilization or (CPU_SHARE if on_cpu else None),
            "kv_cache_memory_bytes": int(cache_gib * 2**30) if cache_gib else None,
            "max_model_len": self.max_model_len,
            "max_num_seqs": self.max_num_seqs,
            "enforce_eager": self.enforce_eager or on_cpu,
            "mm_processor_cache_gb": 0,  # media arrive processed
            "mm_device_do_normalize": False,  # and normalized; vLLM would do it again
            "skip_mm_profiling": True,
            # A seeded request with a chunked prompt rewinds its generator, which is impossible on a CPU.
            "enable_chunked_prefill": False if on_cpu else None,
        }


def flags(arguments: Mapping[str, Any]) -> list[str]:
    """Engine arguments as options of `vllm serve`.

    >>> flags({"max_num_seqs": 2, "dtype": None, "enforce_eager": True, "additional_config": {"a": [1]}})
    ['--max-num-seqs', '2', '--enforce-eager', '--additional-config', '{"a": [1]}']
    """
    found = []
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            found += [f"--{flag}" if value else f"--no-{flag}"]
        elif isinstance(value, list):
            found += [f"--{flag}", *map(str, value)]
        elif value is not None:
            found += [f"--{flag}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return found


def installed() -> bool:
    """Whether vllm, in any of its builds, can be imported."""
    return importlib.util.find_spec("vllm") is not None


def prepare_environment(**more: str) -> None:
    """Sets the environment variables that vLLM reads when it is imported.

    Raises:
        RolloutError: vllm is not installed.
    """
    if not installed():
        raise RolloutError("rollout is vllm, which is not installed; run uv pip install -e '.[vllm]'")
    for name, value in {**ENVIRONMENT, **more}.items():
        os.environ.setdefault(name, value)


def server_arguments(server: VLLMServer) -> dict[str, Any]:
    """Further arguments of vLLM, for a server that a trainer can push to."""
    address = urlsplit(server.url)
    on_cpu = not torch.cuda.is_available()
    return {
        "host": address.hostname,
        "port": address.port or (443 if address.scheme == "https" else 80),
        "enable_scale_out": True,  # tokens in, tokens out
        "worker_extension_cls": f"{WORKER}.WorkerExtension",
        "weight_transfer_config": None if on_cpu else {"backend": "nccl"},
        "distributed_executor_backend": "uni" if on_cpu else None,
        "disable_log_stats": True,
        "disable_uvicorn_access_log": True,
    }


def write_model(encoder: PromptEncoder, folder: Path) -> None:
    """Writes the files of a model that vLLM reads, except the weights."""
    encoder.engine_config().save_pretrained(folder)
    encoder.processor.save_pretrained(folder)


def first_line(error: BaseException) -> str:
    """The first line of a message of vLLM, which names the problem."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")
