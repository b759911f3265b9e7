"""The interface of an engine to a running vLLM, in this process or over HTTP."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lightning_mmrl.errors import RolloutError
from lightning_mmrl.rollout.engine_inputs import EnginePrompt
from lightning_mmrl.rollout.weights import PolicyWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingRequest:
    """One prompt and how to sample its completions.

    Attributes:
        prompt: The prompt; its media are inputs of the towers.
        seeds: One seed per completion; None: greedy, without noise and without temperature.
        temperature: Number that divides the logits.
        max_tokens: Longest completion.
        stop_token_ids: Tokens that end a completion; the one that ends it counts as its last token.
        num_logprobs: How many of the likeliest tokens are returned with their log-probabilities at each place, in
            addition to the sampled token.
    """

    prompt: EnginePrompt
    seeds: tuple[int | None, ...]
    temperature: float
    max_tokens: int
    stop_token_ids: tuple[int, ...]
    num_logprobs: int = 0

    def sampling(self, seed: int | None, **more: Any) -> dict[str, Any]:
        """Arguments of vLLM's SamplingParams for completions of one seed."""
        return {
            "temperature": 0.0 if seed is None else self.temperature,
            # vLLM counts up from the seed for further completions, in 64 bits.
            "seed": None if seed is None else seed % 2**62,
            "max_tokens": self.max_tokens,
            "stop_token_ids": list(self.stop_token_ids),
            "ignore_eos": True,  # the tokenizer's end; the policy's ends are `stop_token_ids`
            "logprobs": self.num_logprobs,
            "detokenize": False,
            **more,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """One completion: its tokens, log-probabilities by token id at each place, and whether `max_tokens` ended it."""

    token_ids: list[int]
    logprobs: Sequence[Mapping[int, float]]
    truncated: bool


class Host(Protocol):
    """A running vLLM with the model of the policy's family."""

    @property
    def num_restores(self) -> int:
        """How many times the host pushed the last weights again, to a server that came back without them."""
        ...

    def sample(self, requests: Sequence[SamplingRequest], poll: Callable[[], None]) -> list[list[Sampled]]:
        """Returns the completions of every request, in the order of its seeds; an error of `poll` ends the sampling.

        Raises:
            RolloutError: vLLM fails, or does not answer within its time.
        """
        ...

    def push(self, weights: PolicyWeights, version: int) -> None:
        """Takes over all weights, one tensor at a time, and empties the caches of results of earlier weights.

        Raises:
            RolloutError: A weight is missing, unknown to the model, or of another shape than in the model.
        """
        ...

    def sleep(self) -> None:
        """Gives device memory back until the next push or sampling."""
        ...

    def close(self) -> None:
        """Frees everything."""
        ...


def require_loaded(report: Mapping[str, Any]) -> None:
    """Checks that `worker.reload` reports all weights as loaded.

    Raises:
        RolloutError: A weight was refused, or one is missing.
    """
    if report["refused"]:
        raise RolloutError(f"vLLM does not take the policy's weights at {report['refused']}")
    if report["missing"]:
        raise RolloutError(f"the policy has no {', '.join(report['missing'][:5])}, which vLLM's model needs")
