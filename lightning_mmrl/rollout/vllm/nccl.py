# pyright: reportMissingImports=false
# vllm is an extra that the type checker's environment does not have.
"""Sends weights to a server's GPUs with NCCL, over vLLM's transfer interface.

Never run so far: NCCL needs GPUs, and none were available.
"""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine
from vllm.utils.network_utils import get_ip, get_open_port

from lightning_mmrl.errors import RolloutError
from lightning_mmrl.rollout.vllm.client import Client
from lightning_mmrl.rollout.vllm.settings import first_line
from lightning_mmrl.rollout.weights import WeightStream

LEAVE_S = 10.0
"""Longest time in seconds for a server to leave a group."""


class PolicySource(WeightSource):
    """Streams the weights of a policy in the form that vLLM expects. Each push needs a new object."""

    def __init__(self, stream: WeightStream) -> None:
        self._stream = stream

    def metadata(self) -> list[ParamMeta]:
        """Names, dtypes and shapes of the weights to come."""
        described = self._stream.weights.described()
        return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in described]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self._stream)


class Control:
    """Forwards the HTTP requests of vLLM's weight transfer engine to a server, with the client's timeout and key."""

    def __init__(self, client: Client) -> None:
        self._call = partial(client.call, "POST")

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Makes the workers join a group."""
        self._call("/init_weight_transfer_engine", {"init_info": init_info})

    def start_weight_update(self) -> None:
        """Makes the workers wait for weights."""
        self._call("/start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        """Tells the workers which weights come."""
        self._call("/update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Makes the workers load the received weights."""
        self._call("/finish_weight_update", {"weight_version": weight_version})


class NCCLTransfer:
    """Broadcasts weights from rank 0 of the trainer to the server's workers.

    The process group contains only rank 0 and those workers.

    A broadcast whose other side is gone never returns, so it runs in a thread that is abandoned after the limit.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._engine: Any = None

    def send(self, weights: WeightStream) -> None:
        """Joins the workers on first use, then sends."""
        source = PolicySource(weights)
        engine, self._engine = self._engine, None  # stored again only if the transfer succeeds
        if engine is None:
            engine = self._limited(lambda: self._join(source), "join the server's workers")
        engine.source = source
        self._limited(engine.send_weights, "send the weights")
        self._engine = engine

    def _join(self, source: PolicySource) -> Any:
        workers = self._client.call("GET", "/get_world_size")["world_size"]
        info = NCCLTrainerInitInfo(get_ip(), get_open_port(), workers + 1, rank=0)
        return NCCLTrainerWeightTransferEngine.trainer_init(info, client=Control(self._client), source=source)

    def _limited(self, work: Callable[[], Any], what: str) -> Any:
        """The result of work that may never end.

        Raises:
            RolloutError: The work failed, or took too long.
        """
        limit, task = self._client.timeout_s, _ThreadedWork(work)
        task.join(limit)
        if task.is_alive():
            raise RolloutError(
                f"could not {what} within {limit:g} s (rollout.settings.server.timeout_s); is the network that NCCL "
                "uses open between trainer and server?"
            )
        if task.error is not None:
            raise RolloutError(f"could not {what}: {first_line(task.error)}") from task.error
        return task.value

    def forget(self) -> None:
        """Drops the group without leaving it, which would take both sides; the next push joins the workers again."""
        self._engine = None

    def close(self) -> None:
        """Leaves the workers' group."""
        if self._engine is not None:
            self._client.call("POST", "/shutdown_weight_transfer_engine", timeout_s=LEAVE_S)
            self._engine.shutdown()


class _ThreadedWork(threading.Thread):
    """Runs work on a daemon thread, which does not keep the process from ending."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._work, self._device = work, torch.cuda.current_device()
        self.value: Any = None
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        """Does the work and keeps its result or error."""
        try:
            torch.cuda.set_device(self._device)
            self.value = self._work()
        except Exception as error:
            self.error = error
