"""Both of vLLM's model runners load the processor of banned tokens by their own loaders, and each applies it."""

from types import SimpleNamespace

import pytest
import torch

from lightning_mmrl.rollout.vllm.settings import VLLMSettings

BANNED = [1, 4]
CONFIG = SimpleNamespace(additional_config={"banned_token_ids": BANNED})


def named():
    """The processors that the engine names to vLLM."""
    return VLLMSettings().arguments(torch.float32, BANNED)["logits_processors"]


def of_v1():
    """As `GPUModelRunner` of V1 makes it (v1/worker/gpu_model_runner.py:725)."""
    from vllm.v1.sample.logits_processor import _load_custom_logitsprocs

    (kind,) = _load_custom_logitsprocs(named())
    processor = kind(CONFIG, torch.device("cpu"), False)
    processor.update_state(None)
    assert not processor.is_argmax_invariant()
    return processor.apply


def of_v2():
    """As `GPUModelRunner` of V2 makes it (v1/worker/gpu/model_runner.py:457), and as its sampler uses it."""
    from vllm.v1.worker.gpu.sample.logits_processor import build_custom_logits_processors

    names = ("max_num_reqs", "vocab_size", "all_token_ids", "prompt_len", "prefill_len", "total_len")
    requests = SimpleNamespace(device=torch.device("cpu"), **dict.fromkeys(names))
    (processor,) = build_custom_logits_processors(CONFIG, requests, False, named())
    # Without this the sampler leaves the logits of the request as they are (v1/worker/gpu/sample/sampler.py:102).
    assert processor.add_request(0, None)
    processor.apply_staged_writes()
    return lambda logits: processor.apply(logits, SimpleNamespace())


@pytest.mark.parametrize("made", [of_v1, of_v2])
def test_either_runner_bans_tokens_in_every_row(made):
    logits = torch.arange(12.0).reshape(2, 6)
    masked = made()(logits.clone())
    kept = [token for token in range(6) if token not in BANNED]
    assert masked[:, BANNED].eq(-torch.inf).all()
    assert torch.equal(masked[:, kept], logits[:, kept])


def test_the_front_end_admits_requests_under_v2():
    """It would raise for a processor that V2 does not take."""
    from vllm.v1.worker.gpu.sample.logits_processor import build_custom_logits_processors_params_validator

    assert build_custom_logits_processors_params_validator(named())(None) is None


def test_each_runner_refuses_a_processor_of_the_other_alone():
    """The control: without both interfaces the loaders above would raise."""
    from vllm.v1.sample.logits_processor import LogitsProcessor, _load_custom_logitsprocs
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as ProcessorOfV2
    from vllm.v1.worker.gpu.sample.logits_processor.loader import _load_v2_logitsprocs_by_fqcns

    alone = type("OfV1", (LogitsProcessor,), {})
    with pytest.raises(ValueError, match=r"is not a subclass of vllm\.v1\.worker\.gpu"):
        _load_v2_logitsprocs_by_fqcns([alone])
    with pytest.raises(ValueError, match="is not a subclass of LogitsProcessor"):
        _load_custom_logitsprocs([type("OfV2", (ProcessorOfV2,), {})])
