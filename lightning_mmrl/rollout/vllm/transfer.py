"""Sends weights to a server: over vLLM's own transfer interface with NCCL, or through files that both sides see."""

import shutil
import tempfile
from pathlib import Path
from typing import Protocol

import torch

from lightning_mmrl.errors import RolloutError
from lightning_mmrl.rollout.vllm.client import Client
from lightning_mmrl.rollout.vllm.exchange import HostBuffer, write_files
from lightning_mmrl.rollout.vllm.host import require_loaded
from lightning_mmrl.rollout.weights import WeightStream


class Transfer(Protocol):
    """Brings weights into the workers of a server."""

    def send(self, weights: WeightStream) -> None:
        """Sends all weights; only one rank calls it.

        Raises:
            RolloutError: The weights do not arrive.
        """
        ...

    def forget(self) -> None:
        """Drops open connections, because the server was restarted."""
        ...

    def close(self) -> None:
        """Closes open connections."""
        ...


def named_transfer(name: str, client: Client, exchange_dir: str | None) -> Transfer:
    """The transfer with a name, one of `settings.TRANSFERS`."""
    if name == "auto":
        name = "nccl" if torch.cuda.is_available() else "files"
    if name == "files":
        return FileTransfer(client, exchange_dir)
    from lightning_mmrl.rollout.vllm.nccl import NCCLTransfer

    return NCCLTransfer(client)


class FileTransfer:
    """Writes weights as safetensors and makes the workers load them; all pushes use one buffer on the host.

    Args:
        client: The client of the server.
        exchange_dir: A folder that both sides see under this path; None: the system's temporary one.
    """

    def __init__(self, client: Client, exchange_dir: str | None) -> None:
        self._client, self._parent = client, exchange_dir
        self._buffer: HostBuffer | None = None

    def send(self, weights: WeightStream) -> None:
        """Writes the files, makes the workers load them, and always removes them."""
        try:
            if self._parent is not None:
                Path(self._parent).mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix="mmrl-weights-", dir=self._parent))
        except OSError as error:
            raise RolloutError(
                f"rollout.settings.server.exchange_dir {self._parent} cannot be written: {error}"
            ) from error
        try:
            if self._buffer is None:
                self._buffer = HostBuffer([each.nbytes for _, each in weights.weights.described()])
            write_files(weights, folder, self._buffer)
            arguments = [str(folder), folder.stat().st_uid]
            loaded = self._client.call("POST", "/collective_rpc", {"method": "mmrl_load_files", "args": arguments})
        except OSError as error:
            raise RolloutError(f"the policy's weights cannot be written to {folder}: {error}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        for report in loaded["results"]:
            if report["refused"] is None and report["num_read"] != weights.num_read:
                raise RolloutError(
                    f"the vLLM server at {self._client.url} found {report['num_read']} of {weights.num_read} weights "
                    f"in {folder}; rollout.settings.server.exchange_dir must be a folder that both sides can read"
                )
            require_loaded(report)

    def forget(self) -> None:
        """Does nothing, because no connection is kept open."""

    def close(self) -> None:
        """Frees the memory that weights pass through."""
        self._buffer = None
