"""Decode steps that CUDA can replay sample the tokens of steps that it cannot, in every family.

Replays are recordings (`replays`), which repeat the operations of a step without its Python, as a CUDA graph does.
"""

import gc
import weakref
from contextlib import nullcontext

import device_stand_in as stand_in
import families
import omni
import pytest
import torch
from device_stand_in import DEVICE, Log, on_device
from replays import Recording, recorded

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.models import captured, decode_cache, static_decoding
from lightning_mmrl.models.captured import CapturedStep
from lightning_mmrl.models.decoding import start_decoding
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.models.static_decoding import StaticCache, StaticDecoding
from lightning_mmrl.rollout.hf import HFEngine
from lightning_mmrl.rollout.sampling import group_seeds
from lightning_mmrl.settings.algorithm import SamplingSettings
from lightning_mmrl.settings.model import ModelSettings
from lightning_mmrl.settings.speculation import SpeculationSettings

GROUP, LENGTH = 3, 22
EXACT = 1e-9
ROOM = 4


@pytest.fixture(scope="module", params=families.each())
def family(request, tmp_path_factory):
    """Encoder, policy, and prompts with all kinds of media and of several lengths."""
    name = request.param
    encoder, policy = families.load(name, families.build(name, tmp_path_factory.mktemp(name)))
    families.enliven(policy.model)
    prompts = omni.prompts(encoder, (*families.FAMILIES[name].contents, "Which emotion? " * 30))
    return encoder, policy, policy.media.encode(prompts)


@pytest.fixture(autouse=True)
def many_buckets(monkeypatch):
    """Short rooms and few rows, so that a short rollout passes through many buckets."""
    monkeypatch.setattr(decode_cache, "OWN_TOKENS", ROOM)
    monkeypatch.setattr(static_decoding, "FEWEST_ROWS", 1)


def rollout(family, *, graphs, group_size=GROUP, greedy=False, **how):
    encoder, policy, prompts = family
    engine = omni.engine(
        encoder, policy, max_new_tokens=LENGTH, eos_token_ids=families.frequent_ends(encoder, policy), **how
    )
    engine.cuda_graphs = graphs
    seeds = group_seeds(0, 1, [sample.id for sample in prompts.samples], group_size)
    return engine.generate(prompts, group_size=group_size, seeds=seeds, greedy=greedy)


def same_tokens(one, other):
    return torch.equal(one.completion_ids, other.completion_ids) and torch.equal(
        one.completion_mask, other.completion_mask
    )


@pytest.mark.parametrize("how", [{}, {"group_size": 1, "greedy": True}, {"top_p": 0.9}], ids=["sample", "greedy", "p"])
def test_static_and_replayed_steps_sample_the_same_tokens(family, monkeypatch, how):
    usual, static = (rollout(family, graphs=graphs, **how) for graphs in (False, True))
    with recorded(monkeypatch) as recorders:
        replayed = rollout(family, graphs=True, **how)
    assert len(set(usual.completion_mask.sum(-1).tolist())) > 2, "rows must end at several steps"
    assert same_tokens(static, usual)
    torch.testing.assert_close(static.sampler_logprobs, usual.sampler_logprobs, rtol=0, atol=EXACT)
    assert same_tokens(replayed, static)
    assert torch.equal(replayed.sampler_logprobs, static.sampler_logprobs)  # every bit
    assert len(recorders[0].recordings) > 3
    assert len(recorders[0].recordings) <= 1 + 5 + 3  # 18 rows, 22 tokens in a room of 4


def shows_later_columns(self):
    self._bias = self._own[0].new_zeros(()).expand(self._num_rows, 1, 1, self._own[0].shape[3])


def never_moved(self):
    """Keeps a replay whose tensors are no longer those of the decoding."""


FAULTS = {
    "later columns": (StaticCache, "begin_step", shows_later_columns),
    "column that stands still": (StaticCache, "end_step", lambda self: None),
    "replay of another bucket": (CapturedStep, "moved", never_moved),
}


@pytest.mark.parametrize("family", ["qwen2"], indirect=True)
@pytest.mark.parametrize("fault", FAULTS)
def test_control_a_fault_changes_what_is_sampled(family, monkeypatch, fault):
    usual = rollout(family, graphs=False)
    monkeypatch.setattr(*FAULTS[fault])
    try:
        with recorded(monkeypatch):
            found = rollout(family, graphs=True)
    except (RuntimeError, IndexError):  # shapes that do not fit
        return
    gap = (found.sampler_logprobs[:, :6] - usual.sampler_logprobs[:, :6]).abs().max()
    assert not same_tokens(found, usual)
    assert float(gap) > 1e-3


@pytest.mark.parametrize("family", ["qwen2"], indirect=True)
def test_control_a_step_that_the_host_decides_cannot_be_replayed(family, monkeypatch):
    begin = StaticCache.begin_step

    def by_the_host(self):
        self._column = torch.full((1,), self.num_own)
        begin(self)

    monkeypatch.setattr(StaticCache, "begin_step", by_the_host)
    usual, static = (rollout(family, graphs=graphs) for graphs in (False, True))
    assert same_tokens(static, usual)
    with recorded(monkeypatch):
        assert not same_tokens(rollout(family, graphs=True), usual)


def test_rows_are_halved_and_filled_up():
    decoding = object.__new__(StaticDecoding)
    decoding.states = torch.zeros(9, 1)
    assert decoding.smaller([0, 1, 2, 3, 4]) is None
    assert decoding.smaller([3, 5, 7, 8]) == [0, 3, 5, 7, 8]
    assert decoding.smaller([8]) == [8]


def weights_converted_in_a_step(tmp_path, monkeypatch):
    """Number of weights that autocast converts in a recorded step, after it has converted them for the prefill."""
    _, policy = families.load("qwen2", families.build("qwen2", tmp_path), dtype=torch.float32)
    encoder, _ = families.parts("qwen2", tmp_path)
    prompts = omni.prompts(encoder, ["angry"])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), recorded(monkeypatch) as recorders:
        running = start_decoding(policy, prompts, 1, static=True)
        for _ in range(2):
            running.advance(torch.zeros(1, dtype=torch.long))
    weights = {parameter.data_ptr() for parameter in policy.model.parameters()}
    operations = recorders[0].recordings[0].operations
    return sum(
        str(func).startswith(("aten.to.", "aten._to_copy")) and args[0].data_ptr() in weights
        for func, args, *_ in operations
    )


def test_autocast_converts_the_weights_in_each_step(tmp_path, monkeypatch):
    """A copy that autocast keeps is of the weights of then, and is freed with its context."""
    assert weights_converted_in_a_step(tmp_path, monkeypatch) >= 7 * 2  # linear layers of two decoder layers
    monkeypatch.setattr(captured, "_without_cached_casts", lambda device: nullcontext())
    assert weights_converted_in_a_step(tmp_path, monkeypatch) == 0  # the control


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float32], ids=str)
def on_stand_in(request, tmp_path_factory):
    """Policy and prompts on the stand-in for a GPU."""
    encoder, policy = omni.load(omni.build(tmp_path_factory.mktemp("omni")), dtype=request.param)
    contents = ("<video><audio>Which emotion?", "angry", "<audio>user", "Which emotion? " * 40, "Which emotion? " * 33)
    with stand_in.device_stand_in(Log()):
        on_device(policy)
        prompts = policy.media.encode(omni.prompts(encoder, contents).to(DEVICE))
    return policy.eval(), prompts


def two_steps(monkeypatch, policy, prompts):
    """Signatures of two steps of one bucket, and why the host waited in them."""
    log, signatures = Log(), []
    monkeypatch.setattr(captured, "CAPTURES", {})
    with torch.inference_mode():
        with stand_in.device_stand_in(Log()):
            running = start_decoding(policy, prompts, GROUP, static=True, max_tokens=LENGTH)
            tokens = torch.zeros(GROUP * len(prompts.samples), dtype=torch.long, device=DEVICE)
        for _ in range(3):
            with stand_in.device_stand_in(log), Recording() as recording:
                running.advance(tokens)
            signatures.append(recording.signature())
    return signatures[1:], log.waits


def test_steps_of_a_bucket_repeat_the_same_operations_on_the_same_tensors_without_a_wait(on_stand_in, monkeypatch):
    (one, other), waits = two_steps(monkeypatch, *on_stand_in)
    assert len(one) > 100
    assert one == other
    assert not waits


@pytest.mark.parametrize("on_stand_in", [torch.float32], indirect=True, ids=str)
@pytest.mark.parametrize("fault", ["number", "tensor", "wait"])
def test_control_steps_that_differ_or_wait_show(on_stand_in, monkeypatch, fault):
    end = StaticCache.end_step

    def spoiled(self):
        end(self)
        if fault == "number":
            self._column.add_(self.num_own).sub_(self.num_own)
        elif fault == "tensor":
            self._column = self._column.clone()
        else:
            self._column.tolist()

    monkeypatch.setattr(StaticCache, "end_step", spoiled)
    (one, other), waits = two_steps(monkeypatch, *on_stand_in)
    assert (one != other) == (fault != "wait")
    assert bool(waits) == (fault == "wait")


def test_rows_with_graphs_leave_without_a_wait(on_stand_in, monkeypatch):
    policy, prompts = on_stand_in
    log = Log()
    with torch.inference_mode(), recorded(monkeypatch, "cuda"):
        with stand_in.device_stand_in(Log()):
            running = start_decoding(policy, prompts, GROUP, static=True, max_tokens=LENGTH)
            tokens = torch.zeros(GROUP * len(prompts.samples), dtype=torch.long, device=DEVICE)
        with stand_in.device_stand_in(log):
            for _ in range(ROOM + 2):
                running.advance(tokens)
            running.keep(torch.tensor(running.smaller([1, 2, 4, 9])))
            running.advance(tokens[: len(running.states)])
    assert len(running.states) == 4
    assert not log.waits


@pytest.mark.parametrize("family", ["qwen2"], indirect=True)
def test_keys_of_a_rollout_are_freed_when_it_ends(family, monkeypatch):
    """At once: the next one needs their memory before Python collects cycles."""
    alive, advance = set(), StaticDecoding.advance

    def noted(self, tokens):
        alive.add(weakref.ref(self))
        advance(self, tokens)

    monkeypatch.setattr(StaticDecoding, "advance", noted)
    gc.disable()
    try:
        with recorded(monkeypatch) as recorders:
            rollout(family, graphs=True)
            del recorders[:]  # recordings hold the tensors that they repeat
            assert [each() for each in alive] == [None]
    finally:
        gc.enable()


@pytest.mark.parametrize("reason", ["it is switched off", "rollout.speculation.max_draft is above 0"])
@pytest.mark.parametrize("family", ["qwen2"], indirect=True)
def test_an_engine_refuses_what_cannot_be_captured_in_one_sentence(family, reason):
    encoder, policy, _ = family
    settings = {"encoder": encoder, "cuda_graphs": True, "sampling": SamplingSettings()}
    assert HFEngine.of(policy, **settings).cuda_graphs
    if reason == "it is switched off":
        policy = Policy(policy._backbone, banned_token_ids=(), settings=ModelSettings(sharing=False))
    else:
        settings["speculation"] = SpeculationSettings(max_draft=2)
    with pytest.raises(ConfigError, match=f"rollout.cuda_graphs is true.*{reason}.*set rollout.cuda_graphs=false"):
        HFEngine.of(policy, **settings)
