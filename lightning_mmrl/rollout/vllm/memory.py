"""How much memory an engine takes, and which way its settings have to go; loads no torch.

An engine needs its weights, a key-value cache, and room for activations. vLLM does not start unless the cache holds the
longest prompt with its completion, and unless its share of the device is free at that time.
"""

import math
from dataclasses import dataclass
from typing import Any

from lightning_mmrl.errors import RolloutError

GIB = 2**30
ROOM = 3 * GIB // 2
"""Bytes for activations, logits and CUDA graphs of an engine; an estimate that was not measured on a GPU."""
USEFUL_TOKENS = 32_768
"""Tokens of a cache that is worth having, such as 16 completions of 2,000 tokens at a time; a smaller one makes vLLM
drop completions in the middle and compute them again."""
SHARE = "rollout.settings.gpu_memory_utilization"
CACHE = "rollout.settings.kv_cache_gib"
LENGTH = "rollout.settings.max_model_len"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSize:
    """Bytes of the parts of an engine.

    >>> size = EngineSize(weights=6 * GIB, token=36 * 2**10, longest=32_768)  # 3B weights in bfloat16
    >>> round(size.least / GIB, 3), size.share(24 * GIB)
    (8.625, 0.36)

    Attributes:
        weights: Bytes of all weights.
        token: Bytes of the keys and values of one token, in all layers.
        longest: Longest prompt with its completion, in tokens.
    """

    weights: int
    token: int
    longest: int

    @property
    def cache(self) -> int:
        """Bytes of the smallest cache with which vLLM starts."""
        return self.token * self.longest

    @property
    def least(self) -> int:
        """Bytes with which vLLM starts."""
        return self.weights + ROOM + self.cache

    @property
    def rest(self) -> int:
        """Bytes beside weights and cache."""
        return ROOM

    @property
    def useful(self) -> int:
        """Bytes with a useful cache."""
        return self.weights + ROOM + self.token * max(self.longest, USEFUL_TOKENS)

    def share(self, total: int) -> float:
        """The share of a device that also has a useful cache, rounded up to a hundredth."""
        return math.ceil(100 * self.useful / total) / 100


def engine_size(text_config: Any, *, weights: int, itemsize: int, max_model_len: int | None) -> EngineSize:
    """The size of an engine.

    Args:
        text_config: Configuration of the text model, as transformers names its keys.
        weights: Bytes of all weights.
        itemsize: Bytes of one number of the cache.
        max_model_len: Longest prompt with its completion, in tokens; None: the number of positions of the model.
    """
    config = text_config.to_dict()
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    token = 2 * config["num_hidden_layers"] * heads * width * itemsize
    return EngineSize(weights=weights, token=token, longest=max_model_len or config["max_position_embeddings"])


def check_cache(size: EngineSize, cache_gib: float | None) -> None:
    """Refuses a cache that does not hold the longest completion.

    Raises:
        RolloutError: Naming the keys and the figures.
    """
    if cache_gib is not None and cache_gib * GIB < size.cache:
        raise RolloutError(
            f"{CACHE} is {cache_gib:g}, and the keys and values of one prompt with its completion of {size.longest} "
            f"tokens ({LENGTH}) take {size.cache / GIB:.3g} GiB; raise {CACHE} to at least {_up(size.cache / GIB)}, or "
            f"lower {LENGTH}"
        )


def chosen_share(size: EngineSize, share: float | None, *, free: int, total: int) -> float:
    """The share of a device that an engine gets: the given one, else one with a useful cache, if so much is free.

    >>> chosen_share(EngineSize(weights=6 * GIB, token=36 * 2**10, longest=32_768), None, free=20 * GIB, total=24 * GIB)
    0.36
    """
    # One hundredth less than is free, since vLLM takes some memory before it compares the two.
    return min(size.share(total), math.floor(100 * free / total - 1) / 100) if share is None else share


def check_share(size: EngineSize, share: float, cache_gib: float | None, *, free: int, total: int) -> None:
    """Refuses a share of a device that is too small for the engine, or larger than the rest of the device.

    Args:
        size: The size of the engine.
        share: Share of the device's memory for the engine.
        cache_gib: Size of the cache, if it does not come out of the share.
        free: Free bytes of the device.
        total: Bytes of the device.

    Raises:
        RolloutError: Naming the key, which way it has to go, and the figures.
    """
    least = size.least if cache_gib is None else size.weights + ROOM + int(cache_gib * GIB)
    parts = f"its weights take {size.weights / GIB:.1f} GiB, activations about {ROOM / GIB:.1f} and the cache "
    parts += f"{(least - size.weights - ROOM) / GIB:.1f}"
    if least > free:
        raise RolloutError(
            f"vLLM does not fit: {parts}, and {free / GIB:.1f} of the device's {total / GIB:.1f} GiB are free; lower "
            f"{LENGTH} (now {size.longest}), take a smaller model, train an adapter, shard the trainer "
            "(trainer.strategy=fsdp2), or sample on other devices (rollout=vllm_server)"
        )
    most = math.floor(100 * free / total) / 100
    if share * total > free:
        raise RolloutError(
            f"{SHARE} is {share:g}, which is {share * total / GIB:.1f} of the device's {total / GIB:.1f} GiB, and only "
            f"{free / GIB:.1f} are free; lower it to at most {most:g}"
        )
    if cache_gib is None and share * total < least:
        raise RolloutError(
            f"{SHARE} is {share:g}, which is {share * total / GIB:.1f} of the device's {total / GIB:.1f} GiB, and "
            f"{parts} for one prompt with its completion of {size.longest} tokens; raise it to "
            f"{max(min(size.share(total), most), math.ceil(100 * least / total) / 100):g}, or lower {LENGTH}"
        )


def advice(error: BaseException, cache_gib: float | None) -> str:
    """Which settings to change after an error of vLLM that is about memory, or nothing.

    >>> advice(ValueError("Free memory on device cuda:0 is less than desired GPU memory utilization"), None)
    '; lower rollout.settings.gpu_memory_utilization'
    """
    text = str(error).lower()
    if "less than desired" in text:
        return f"; lower {SHARE}"
    if "out of memory" in text:
        return f"; lower {SHARE}, {CACHE} or {LENGTH}"
    if "increas" in text and "memory" in text:
        return f"; raise {SHARE if cache_gib is None else CACHE}, or lower {LENGTH}"
    return ""


def _up(number: float) -> str:
    """A number rounded up to two digits.

    >>> _up(1.1251), _up(0.00312), _up(12.0)
    ('1.2', '0.0032', '12')
    """
    place = 1 - math.floor(math.log10(number))
    return f"{math.ceil(round(number * 10**place, 6)) / 10**place:g}"
