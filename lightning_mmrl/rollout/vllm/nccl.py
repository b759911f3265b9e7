# pyright: reportMissingImports=false
# vllm is an extra that the type checker's environment does not have.
"""Weights to a server's GPUs over vLLM's own transfer interface with NCCL. **Not measured**: NCCL wants GPUs."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.clients import HTTPVLLMWeightSyncClient
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine
from vllm.utils.network_utils import get_ip, get_open_port

from lightning_mmrl.errors import RolloutError
from lightning_mmrl.rollout.vllm.client import Client
from lightning_mmrl.rollout.vllm.settings import first_line
from lightning_mmrl.rollout.vllm.transfer import Walk


class PolicySource(WeightSource):
    """A walk through a policy's weights, as vLLM takes them; one for every push."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk

    def metadata(self) -> list[ParamMeta]:
        """Names, dtypes and shapes of what the walk will give."""
        return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self._walk.described()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self._walk)


class NCCLTransfer:
    """Rank 0 of the trainer joins the server's workers in a group of their own, and broadcasts to them.

    A broadcast whose other side is gone never returns, so it runs in a thread that is left behind after the limit.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._engine: Any = None

    def send(self, weights: Walk) -> None:
        """Joins the workers on first use, then sends."""
        source = PolicySource(weights)
        if self._engine is None:
            self._engine = self._limited(lambda: self._join(source), "join the server's workers")
        self._engine.source = source
        self._limited(self._engine.send_weights, "send the weights")

    def _join(self, source: PolicySource) -> Any:
        workers = self._client.call("GET", "/get_world_size")["world_size"]
        info = NCCLTrainerInitInfo(get_ip(), get_open_port(), workers + 1, rank=0)
        client = HTTPVLLMWeightSyncClient(self._client.url, self._client.timeout_s)
        return NCCLTrainerWeightTransferEngine.trainer_init(info, client=client, source=source)

    def _limited(self, work: Callable[[], Any], what: str) -> Any:
        """The result of work that may never end.

        Raises:
            RolloutError: It failed, or took too long.
        """
        limit, outcome = self._client.timeout_s, _Outcome(work)
        outcome.join(limit)
        if outcome.is_alive():
            raise RolloutError(
                f"could not {what} within {limit:g} s (rollout.settings.server.timeout_s); is the network that NCCL "
                "uses open between trainer and server?"
            )
        if outcome.error is not None:
            raise RolloutError(f"could not {what}: {first_line(outcome.error)}") from outcome.error
        return outcome.value

    def close(self) -> None:
        """Leaves the workers' group."""
        if self._engine is not None:
            self._client.call("POST", "/shutdown_weight_transfer_engine")
            self._engine.shutdown()


class _Outcome(threading.Thread):
    """Work on a thread that does not keep the process from ending."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._work, self._device = work, torch.cuda.current_device()
        self.value: Any = None
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        """Keeps what the work returns or raises."""
        try:
            torch.cuda.set_device(self._device)
            self.value = self._work()
        except Exception as error:
            self.error = error
