"""The memory of an engine, by hand, and which way the messages point."""

import pytest
from transformers import Qwen2Config

from lightning_mmrl.errors import RolloutError
from lightning_mmrl.rollout.vllm.memory import GIB, EngineSize, advice, check_cache, check_share, engine_size

# Qwen2.5-3B in bfloat16: 36 layers with 2 heads of 128 for keys, and as many for values, of 2 bytes: 36 KiB a token.
QWEN_3B = Qwen2Config(
    hidden_size=2048,
    num_hidden_layers=36,
    num_attention_heads=16,
    num_key_value_heads=2,
    max_position_embeddings=32_768,
)
SIZE = EngineSize(weights=6 * GIB, token=36 * 2**10, longest=32_768)


def refused(check, *arguments, **more):
    with pytest.raises(RolloutError) as error:
        check(*arguments, **more)
    return str(error.value)


def test_the_size_of_an_engine_is_that_of_its_configuration():
    size = engine_size(QWEN_3B, weights=6 * GIB, itemsize=2, max_model_len=None)
    assert size == SIZE
    assert size.cache == 32_768 * 36 * 2**10 == 1.125 * GIB
    assert engine_size(QWEN_3B, weights=6 * GIB, itemsize=4, max_model_len=100).cache == 100 * 72 * 2**10
    # A width of heads of its own: 64 in place of 2048 / 16.
    QWEN_3B.head_dim = 64
    narrow = engine_size(QWEN_3B, weights=0, itemsize=2, max_model_len=None)
    del QWEN_3B.head_dim
    assert narrow.token == SIZE.token / 2


def test_a_share_that_is_too_small_is_to_be_raised():
    """The default share on 24 GiB with 3B weights: the message once advised to lower it."""
    said = refused(check_share, SIZE, 0.3, None, free=20 * GIB, total=24 * GIB)
    assert said == (
        "rollout.settings.gpu_memory_utilization is 0.3, which is 7.2 of the device's 24.0 GiB, and its weights take "
        "6.0 GiB, activations about 1.5 and the cache 1.1 for one prompt with its completion of 32768 tokens; raise it "
        "to 0.36, or lower rollout.settings.max_model_len"
    )
    check_share(SIZE, 0.36, None, free=20 * GIB, total=24 * GIB)


def test_the_share_that_is_advised_has_room_for_a_useful_cache_where_the_device_has_it():
    short = EngineSize(weights=6 * GIB, token=36 * 2**10, longest=2048)
    # vLLM starts with 6 + 1.5 + 0.07 GiB, which is a share of 0.32; a cache of 32,768 tokens asks for 0.36.
    assert "raise it to 0.36" in refused(check_share, short, 0.3, None, free=20 * GIB, total=24 * GIB)
    assert "raise it to 0.33" in refused(check_share, short, 0.3, None, free=8 * GIB, total=24 * GIB)
    check_share(short, 0.32, None, free=20 * GIB, total=24 * GIB)


def test_a_share_that_the_trainer_leaves_no_room_for_is_to_be_lowered():
    said = refused(check_share, SIZE, 0.9, None, free=12 * GIB, total=24 * GIB)
    assert said == (
        "rollout.settings.gpu_memory_utilization is 0.9, which is 21.6 of the device's 24.0 GiB, and only 12.0 are "
        "free; lower it to at most 0.5"
    )
    check_share(SIZE, 0.5, None, free=12 * GIB, total=24 * GIB)


def test_no_share_helps_if_less_is_free_than_the_engine_takes():
    said = refused(check_share, SIZE, 0.3, None, free=8 * GIB, total=24 * GIB)
    assert said.startswith("vLLM does not fit: its weights take 6.0 GiB, activations about 1.5 and the cache 1.1, and ")
    assert "8.0 of the device's 24.0 GiB are free; lower rollout.settings.max_model_len (now 32768), take " in said
    assert "gpu_memory_utilization" not in said


def test_a_cache_of_its_own_counts_in_place_of_the_share():
    check_share(SIZE, 0.1, 2.0, free=10 * GIB, total=24 * GIB)
    assert "and the cache 4.0" in refused(check_share, SIZE, 0.1, 4.0, free=10 * GIB, total=24 * GIB)


@pytest.mark.parametrize("cache_gib", [None, 1.125, 2.0])
def test_a_cache_that_holds_the_longest_completion_passes(cache_gib):
    check_cache(SIZE, cache_gib)


def test_a_cache_that_does_not_is_to_be_raised():
    assert refused(check_cache, SIZE, 0.25) == (
        "rollout.settings.kv_cache_gib is 0.25, and the keys and values of one prompt with its completion of 32768 "
        "tokens (rollout.settings.max_model_len) take 1.12 GiB; raise rollout.settings.kv_cache_gib to at least 1.2, "
        "or lower rollout.settings.max_model_len"
    )


# The sentences of vLLM 0.32: v1/core/kv_cache_utils.py:1011 and 1030, v1/worker/utils.py:764.
TOO_SMALL = "No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing"
TOO_LONG = "To serve at least one request, KV cache is larger than the available memory. Try increasing `gpu_memory_u"
TOO_LARGE = "Free memory on device is less than desired GPU memory utilization (0.9). Decrease GPU memory utilization"


@pytest.mark.parametrize(
    ("text", "cache_gib", "wanted"),
    [
        (TOO_SMALL, None, "; raise rollout.settings.gpu_memory_utilization, or lower rollout.settings.max_model_len"),
        (TOO_LONG, 0.1, "; raise rollout.settings.kv_cache_gib, or lower rollout.settings.max_model_len"),
        (TOO_LARGE, None, "; lower rollout.settings.gpu_memory_utilization"),
        (
            "CUDA out of memory. Tried to allocate 2 GiB",
            None,
            "; lower rollout.settings.gpu_memory_utilization, rollout.settings.kv_cache_gib or "
            "rollout.settings.max_model_len",
        ),
        ("Model architectures ['Odd'] are not supported", None, ""),
    ],
)
def test_an_error_of_vllm_is_followed_by_the_direction_that_helps(text, cache_gib, wanted):
    assert advice(ValueError(text), cache_gib) == wanted
