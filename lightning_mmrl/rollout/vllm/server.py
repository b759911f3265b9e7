# pyright: reportMissingImports=false
# vllm is an extra that the type checker's environment does not have.
"""The trainer's side of a vLLM server on other devices or machines, which `mmrl serve` starts.

Prompts with their media, and weights (`transfer`), go to `vllm serve` over its own interfaces. Every completion names
the weights that it was sampled with, and completions of other weights are refused. A server that was restarted has lost
the weights: they are pushed again, and open requests are sent again with the same seeds.
"""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch.distributed as dist

from lightning_mmrl.errors import RolloutError
from lightning_mmrl.protocols.tensors import PromptEncoder
from lightning_mmrl.rollout.engine_inputs import without_gaps
from lightning_mmrl.rollout.vllm.client import Client, KeyRefusedError, TooLateError, UnreachableError
from lightning_mmrl.rollout.vllm.host import Sampled, SamplingRequest
from lightning_mmrl.rollout.vllm.keys import trainer_key
from lightning_mmrl.rollout.vllm.media import media_items
from lightning_mmrl.rollout.vllm.settings import VLLMServer, prepare_environment, write_model
from lightning_mmrl.rollout.vllm.transfer import Transfer, named_transfer
from lightning_mmrl.rollout.weights import PolicyWeights, WeightStream

GENERATE = "/inference/v1/generate"
FRESH = "default"
"""vLLM's name for weights that nobody pushed."""
LEAVING_S = 2.0
"""Seconds for which a server that is being stopped may still look healthy."""
MAX_RETURNS = 3
"""Restarts of the server that one rollout survives."""


class ServerHost:
    """Implements `Host` with a server; with several ranks each samples for itself, and rank 0 pushes.

    Args:
        settings: Where the server is, and its limits.
        encoder: The encoder of the policy's family.

    Attributes:
        num_restores: How many times the last weights were pushed again because the server had been restarted.

    Raises:
        ConfigError: There is no key for the server.
        RolloutError: vllm is not installed here, no server answers, or it asks for another key or for no key.
    """

    def __init__(self, settings: VLLMServer, encoder: PromptEncoder) -> None:
        prepare_environment()
        self._settings, self.num_restores = settings, 0
        self._pushed: tuple[PolicyWeights, int] | None = None
        self._rank, self._world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self._name = self._from_leader(uuid.uuid4().hex[:12])
        self._label = FRESH
        # An attention window of the sound tower has 2 * n_window frames, and a feature row four.
        audio = getattr(encoder.config, "audio_config", None)
        self._sound_window = 0 if audio is None else audio.n_window // 2
        self._processor = _media_processor(encoder) if encoder.media_kinds else None
        self._client = Client(settings.url, trainer_key(settings.url, settings.key_file), settings.timeout_s)
        self._transfer: Transfer = named_transfer(settings.transfer, self._client, settings.exchange_dir)
        try:
            self._client.require_guard()
        except RolloutError as error:
            self._client.close()
            if isinstance(error, KeyRefusedError):
                raise
            raise RolloutError(f"{error}; start it with mmrl serve, or mend rollout.settings.server.url") from error

    def _from_leader(self, item: Any) -> Any:
        """Returns the item of rank 0 on every rank."""
        items = [item]
        if self._world_size > 1:
            dist.broadcast_object_list(items, src=0)
        return items[0]

    def close(self) -> None:
        """Disconnects from the server, which keeps running."""
        with suppress(RolloutError):  # the server may be gone, and the error that ended the run matters more
            self._transfer.close()
        self._client.close()

    def sleep(self) -> None:
        """Does nothing, because the server keeps its memory."""

    def push(self, weights: PolicyWeights, version: int) -> None:
        """Sends weights and empties the server's caches; all ranks gather the weights together, whatever happens."""
        label = f"{self._name}-{version}"
        self._together(self._await_server)
        try:
            self._push(weights, label)
        except UnreachableError as error:  # only with one rank; with several, the error is a plain one and ends the run
            self._transfer.forget()
            self._await_return(lambda: None, str(error))
            self._push(weights, label)
        self._label, self._pushed = label, (weights, version)

    def _together(self, work: Callable[[], None]) -> None:
        """Does work on rank 0; if it fails, all ranks raise."""
        problem = None
        try:
            if self._rank == 0:
                work()
        except RolloutError as error:
            if self._world_size == 1:
                raise
            problem = str(error)
        problem = self._from_leader(problem)
        if problem is not None:
            raise RolloutError(problem)

    def _await_server(self) -> None:
        if not self._healthy():
            self._await_return(lambda: None, "it did not answer before a push")

    def _push(self, weights: PolicyWeights, label: str) -> None:
        stream = WeightStream(weights)
        if self._rank != 0:
            stream.finish()
        self._together(partial(self._send, stream, label))

    def _send(self, stream: WeightStream, label: str) -> None:
        call = self._client.call
        try:
            # The server has no valid version until the end, in case this process or the server dies in between.
            call("POST", "/update_weight_version", {"new_version": f"{label} is being pushed"})
            call("POST", "/collective_rpc", {"method": "mmrl_use_given_positions"})
            self._transfer.send(stream)
        finally:
            if self._world_size > 1:
                stream.finish()  # the others wait for each tensor
        # Requests whose client has just left may hold blocks of the cache for a moment.
        deadline = time.monotonic() + self._settings.timeout_s
        while not call("POST", "/reset_prefix_cache")["success"]:
            if time.monotonic() > deadline:
                raise RolloutError(
                    f"the vLLM server at {self._client.url} cannot empty its prefix cache: requests of others keep it "
                    "busy; a server takes one run"
                )
            time.sleep(0.2)
        call("POST", "/reset_mm_cache")
        call("POST", "/reset_encoder_cache")
        call("POST", "/update_weight_version", {"new_version": label})

    def sample(self, requests: Sequence[SamplingRequest], poll: Callable[[], None]) -> list[list[Sampled]]:
        """Samples the completions of a prompt in one request, for which vLLM counts up from the prompt's first seed."""
        bodies, owners = {}, []
        for owner, request in enumerate(requests):
            for body in self._bodies(request):
                bodies[len(owners)] = body
                owners.append(owner)
        answers: dict[int, Any] = {}
        returns = 0
        while len(answers) < len(bodies):
            missing = {key: body for key, body in bodies.items() if key not in answers}
            try:
                self._require_weights()
                self._ask(missing, answers, poll)
            except RolloutError as error:
                returns += 1
                if isinstance(error, TooLateError | KeyRefusedError) or returns > MAX_RETURNS:
                    raise
                if not isinstance(error, UnreachableError) and self._healthy():
                    raise
                self._await_return(poll, str(error))
        sampled: list[list[Sampled]] = [[] for _ in requests]
        for key, owner in enumerate(owners):
            sampled[owner] += [self._sampled(choice) for choice in answers[key]["choices"]]
        return sampled

    def _ask(self, bodies: Mapping[int, Any], answers: dict[int, Any], poll: Callable[[], None]) -> None:
        """Stores the answers to all bodies under their keys.

        Raises:
            UnreachableError: The connection was lost, or the server is being stopped and cut completions off.
        """
        try:
            self._client.gather(bodies, GENERATE, answers, poll)
        finally:
            ended = ("stop", "length")
            cut = [
                key
                for key in bodies
                if key in answers and any(each["finish_reason"] not in ended for each in answers[key]["choices"])
            ]
            for key in cut:
                del answers[key]
        if cut:
            raise UnreachableError(f"the vLLM server at {self._client.url} cut {len(cut)} requests off")

    def _require_weights(self) -> None:
        """Checks that the server holds the last pushed weights, and pushes them again if a restart lost them.

        Raises:
            RolloutError: The server holds the weights of another run, or lost ours while several ranks train.
        """
        found = self._client.call("GET", "/weight_info")["weight_version"]
        if found == self._label:
            return
        if found != FRESH:
            raise RolloutError(
                f"the vLLM server at {self._client.url} holds the weights {found!r}, not {self._label!r} of this run; "
                "a server takes one run"
            )
        if self._world_size > 1:
            raise RolloutError(
                f"the vLLM server at {self._client.url} was restarted within a rollout of several ranks, and lost the "
                "weights; the same command continues"
            )
        assert self._pushed is not None, "only a push changes the label"
        self._transfer.forget()
        self.push(*self._pushed)
        self.num_restores += 1

    def _healthy(self) -> bool:
        """Whether the server is healthy.

        Raises:
            KeyRefusedError: The server was restarted with another key or without one; waiting does not help.
        """
        try:
            self._client.require_guard()
        except KeyRefusedError:
            raise
        except RolloutError:
            return False
        return True

    def _await_return(self, poll: Callable[[], None], reason: str) -> None:
        """Waits until the server is back.

        Raises:
            RolloutError: The server did not come back in time.
        """
        limit = self._settings.restart_s
        deadline = time.monotonic() + limit
        time.sleep(min(LEAVING_S, limit))
        while not self._healthy():
            poll()
            if time.monotonic() > deadline:
                raise RolloutError(
                    f"the vLLM server at {self._client.url} went away and was not back within {limit:g} s "
                    f"(rollout.settings.server.restart_s): {reason}; start it again with mmrl serve, "
                    "then the same command continues"
                )
            time.sleep(0.2)

    def _bodies(self, request: SamplingRequest) -> list[dict[str, Any]]:
        """One body for all completions with noise; greedy ones have a body each, as vLLM requires."""
        body: dict[str, Any] = {"token_ids": request.prompt.token_ids}
        if request.prompt.spans:
            from vllm.entrypoints.scale_out.token_in_token_out.mm_serde import encode_mm_kwargs_item

            prompt = without_gaps(request.prompt, self._sound_window)  # the interface needs placeholders without gaps
            items, hashes = media_items(prompt, self._processor)
            places = {
                kind: [{"offset": span.offset, "length": len(span.mask)} for span in spans]
                for kind, spans in prompt.spans.items()
            }
            data = {kind: [encode_mm_kwargs_item(item) for item in items[kind]] for kind in items}
            body["features"] = {"mm_hashes": hashes, "mm_placeholders": places, "kwargs_data": data}
        if request.seeds[0] is None:
            return [{**body, "sampling_params": request.sampling(None)} for _ in request.seeds]
        return [{**body, "sampling_params": request.sampling(request.seeds[0], n=len(request.seeds))}]

    def _sampled(self, choice: dict[str, Any]) -> Sampled:
        versions = {span["version"] for span in choice["weight_versions"] or ()}
        if versions != {self._label}:
            raise RolloutError(
                f"the vLLM server at {self._client.url} sampled with the weights {sorted(versions)}, not with "
                f"{self._label!r}; a server takes one run"
            )
        logprobs = [
            {step["token_id"]: step["logprob"]}
            | {other["token_id"]: other["logprob"] for other in step["top_logprobs"]}
            for step in choice["logprobs"]["content"]
        ]
        return Sampled(token_ids=choice["token_ids"], logprobs=logprobs, truncated=choice["finish_reason"] == "length")


def _media_processor(encoder: PromptEncoder) -> Any:
    """VLLM's processor of the family, which alone tells where one medium ends in each of the towers' inputs."""
    from vllm.config import ModelConfig
    from vllm.multimodal import MULTIMODAL_REGISTRY

    with TemporaryDirectory(prefix="mmrl-vllm-") as folder:
        write_model(encoder, Path(folder))
        config = ModelConfig(model=folder, mm_device_do_normalize=False, mm_processor_cache_gb=0)
        return MULTIMODAL_REGISTRY.create_processor(config)
