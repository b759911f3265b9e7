"""The memory estimate of a rank, against the bytes of real tensors: what is stored, sharded, kept and held at most."""

import families
import omni
import pytest
import torch
import torch.distributed as dist
from live_bytes import LiveBytes
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from lightning_mmrl.config.compose import compose
from lightning_mmrl.data.collate import EncodedSample, collate_prompts
from lightning_mmrl.models import decode_cache, prefill
from lightning_mmrl.models.critic import Critic
from lightning_mmrl.models.decoding import start_decoding
from lightning_mmrl.models.parallelize import Sharding, recompute_activations
from lightning_mmrl.models.reference import Reference
from lightning_mmrl.ops import logprobs
from lightning_mmrl.ops.packing import Budget
from lightning_mmrl.planning import memory
from lightning_mmrl.planning.memory import CONTEXT, Estimate, Lengths, estimate
from lightning_mmrl.planning.shapes import read_shape
from lightning_mmrl.protocols.ranks import ALONE
from lightning_mmrl.rollout.hf import HFEngine
from lightning_mmrl.settings.algorithm import SamplingSettings
from lightning_mmrl.settings.model import AdapterSettings
from lightning_mmrl.stages.microbatches import microbatches
from lightning_mmrl.types.batches import ScoringBatch
from lightning_mmrl.types.records import Message, Sample

GROUP, ANSWER, BATCH = 4, 64, 2
PENALTY = "algorithm.kl.coefficient=0.04"


def stage_of(*overrides, batch=BATCH):
    """A GRPO stage of small numbers."""
    settings = [f"data.batch_size={batch}", f"algorithm.group_size={GROUP}", f"sampling.max_new_tokens={ANSWER}"]
    return compose([f"stages.reason.{each}" for each in (*settings, *overrides)]).stages["reason"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A model of text alone."""
    folder = tmp_path_factory.mktemp("text") / "model"
    return families.FAMILIES["qwen2"].build(folder, text=omni.TEXT, hidden_size=256, num_layers=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with towers."""
    return omni.build(tmp_path_factory.mktemp("omni") / "model")


def scoring(encoder, length=256):
    """Two groups with prompts of equal length, and that length."""
    messages = (Message(role="user", content=" ".join(["angry"] * length)),)
    prompt = encoder.encode_prompt(messages, "", [])
    items = [
        EncodedSample(sample=Sample(id=f"p{row}", messages=messages, solution="angry"), prompt=prompt)
        for row in range(BATCH)
    ]
    prompts = collate_prompts(items, encoder.pad_token_id)
    tokens = torch.randint(5, 200, (BATCH * GROUP, ANSWER), generator=torch.Generator().manual_seed(0))
    batch = ScoringBatch(
        prompts=prompts,
        completion_ids=tokens,
        completion_mask=torch.ones_like(tokens, dtype=torch.bool),
        group_size=GROUP,
    )
    return batch, prompts.input_ids.shape[1]


def local(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def size_of(tensors):
    return sum(local(tensor).numel() * tensor.element_size() for tensor in tensors)


def stepped(policy):
    """Bytes of weights, gradients and optimizer state after a step of AdamW."""
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = [value for state in optimizer.state.values() for key, value in state.items() if key != "step"]
    return {
        "weights": size_of(policy.parameters()),
        "gradients": size_of(parameter.grad for parameter in trained),
        "optimizer state": size_of(moments),
    }


def resident(found):
    return {part: found.phases["optimizer step"][part] for part in ("weights", "gradients", "optimizer state")}


@pytest.mark.parametrize(
    ("dtype", "precision"), [("float32", "32-true"), ("bfloat16", "32-true"), ("bfloat16", "bf16-mixed")]
)
@pytest.mark.parametrize("how", ["all", "frozen", "adapter", "projectors", "no projectors"])
def test_what_is_stored_is_exact(folder, dtype, precision, how):
    overrides = {
        "all": [],
        "frozen": ["freeze=[vision,audio]"],
        "adapter": ["adapter={r: 4}"],
        "projectors": ["freeze=[vision_tower,audio_tower]"],
        "no projectors": ["freeze=[projector]"],
    }[how]
    stage = stage_of(*overrides, f"trainer.precision={precision}")
    _, policy = families.load("qwen2_5_omni", folder, dtype=getattr(torch, dtype))
    policy.freeze(stage.freeze)
    if how == "adapter":
        policy.adapt(AdapterSettings(r=4))
    if stage.trainer.mixed:
        policy.keep_masters()
    found = resident(estimate(read_shape(str(folder)), stage, dtype, 1, Lengths()))
    assert found == stepped(policy)
    other = resident(estimate(read_shape(str(folder)), stage_of("freeze=[text]"), dtype, 1, Lengths()))
    assert found != other


def test_a_critic_is_a_second_model_of_what_trains(folder):
    """Its head over the vocabulary is counted, and has one output; shards are all its own."""
    _, policy = omni.load(folder, dtype=torch.float32)
    policy.freeze(["vision", "audio"])
    critic, shape = Critic(policy), read_shape(str(folder))
    trained = [parameter for parameter in critic.parameters() if parameter.requires_grad]
    missing = policy.head.weight.numel() - critic.trunk.head.weight.numel()
    own = 4 * (sum(parameter.numel() for parameter in trained) + missing)
    found = {}
    for name in ("grpo", "ppo"):
        for strategy in ("auto", "fsdp2"):
            changes = [f"algorithm@stages.reason={name}", "stages.reason.freeze=[vision,audio]"]
            stage = compose([*changes, f"trainer.strategy={strategy}"])
            phases = estimate(shape, stage.stages["reason"], "float32", 1, Lengths()).phases
            found[name, strategy] = phases["optimizer step"]
    assert found["ppo", "auto"]["weights"] == found["grpo", "auto"]["weights"] + own
    assert found["ppo", "fsdp2"]["weights"] == 2 * found["grpo", "fsdp2"]["weights"]
    assert found["ppo", "fsdp2"]["reference weights"] == found["grpo", "fsdp2"]["weights"], "of the KL penalty"
    for part, size in (("gradients", own), ("optimizer state", 2 * own)):
        assert found["ppo", "auto"][part] == found["grpo", "auto"][part] + size == 2 * size


def test_a_reference_policy_is_a_copy_of_what_trains(folder):
    """An adapter needs none, and without a penalty there is none."""
    _, policy = omni.load(folder, dtype=torch.float32)
    policy.freeze(["vision", "audio"])
    with Reference(policy).entered() as frozen:
        own = {id(parameter) for parameter in policy.parameters()}
        copied = size_of(parameter for parameter in frozen.parameters() if id(parameter) not in own)
    shape, freeze = read_shape(str(folder)), "freeze=[vision,audio]"
    found = {
        how: estimate(shape, stage_of(*how), "float32", 1, Lengths()).phases["optimizer step"]["reference weights"]
        for how in ((freeze,), (freeze, PENALTY), ("adapter={}", PENALTY))
    }
    assert found == {(freeze,): 0, (freeze, PENALTY): copied, ("adapter={}", PENALTY): 0}
    assert 0 < copied < size_of(policy.parameters())


def test_replicas_hold_what_one_device_holds_and_plain_sgd_keeps_nothing(folder):
    shape, stage = read_shape(str(folder)), stage_of()
    alone, one_of_eight = (resident(estimate(shape, stage, "float32", ranks, Lengths())) for ranks in (1, 8))
    assert alone == one_of_eight
    for optimizer, moments in (({}, 0), ({"momentum": 0.9}, 1)):
        stage.optimizer = {"_target_": "torch.optim.SGD", **optimizer}
        found = resident(estimate(shape, stage, "float32", 1, Lengths()))
        assert found["optimizer state"] == moments * found["gradients"]


@pytest.fixture
def mesh(request):
    """Ranks whose messages go nowhere: what a rank holds does not depend on what it is told."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=request.param)
    yield init_device_mesh("cpu", (request.param,))
    dist.destroy_process_group()


def sharded(stage):
    stage.trainer.strategy = "fsdp2"
    return stage


@pytest.mark.parametrize("mesh", [2, 8], indirect=True)
@pytest.mark.parametrize("adapter", [False, True])
def test_shards_are_exact_but_for_their_padding(folder, mesh, adapter):
    stage = sharded(stage_of("adapter={r: 4}") if adapter else stage_of())
    _, policy = families.load("qwen2_5_omni", folder, dtype=torch.float32)
    if adapter:
        policy.adapt(AdapterSettings(r=4))
    sizes = [(parameter.shape[0], parameter[0].numel()) for parameter in policy.parameters()]
    Sharding().apply(policy, mesh, ALONE)
    measured = stepped(policy)
    found = resident(estimate(read_shape(str(folder)), stage, "float32", mesh.size(), Lengths()))
    padding = 4 * sum((-rows % mesh.size()) * row for rows, row in sizes)
    assert found["weights"] <= measured["weights"] <= found["weights"] + padding
    for part in ("gradients", "optimizer state"):
        assert measured[part] == pytest.approx(found[part], abs=2 * padding)
    alone = estimate(read_shape(str(folder)), stage_of(), "float32", mesh.size(), Lengths())
    assert measured["weights"] < 0.7 * alone.phases["optimizer step"]["weights"]


def peak_of(policy, batch):
    """Bytes alive at most while a batch is scored and differentiated, weights counted; there are no gradients yet."""
    with LiveBytes([local(tensor) for tensor in policy.parameters()]) as live:
        policy(batch).logprobs.sum().backward()
    return live.peak


def scored(found):
    """An estimate of the same: there is no optimizer."""
    parts = found.phases["backward"]
    return sum(parts.values()) - parts["optimizer state"]


# A CPU takes its time over bfloat16.
@pytest.mark.parametrize(("dtype", "words"), [("float32", 256), pytest.param("bfloat16", 48, marks=pytest.mark.slow)])
@pytest.mark.parametrize("adapter", [False, True])
def test_scoring_stays_below_the_estimate_and_near_it(text, dtype, words, adapter):
    encoder, policy = families.load("qwen2", text, dtype=getattr(torch, dtype))
    if adapter:
        policy.adapt(AdapterSettings())
    batch, length = scoring(encoder, words)
    stage = stage_of(*(["adapter={}"] if adapter else []))
    measured = peak_of(policy, batch)
    found = scored(estimate(read_shape(str(text)), stage, dtype, 1, Lengths(prompt=length)))
    assert measured <= found <= 1.15 * measured


def sft_stage(tokens, batch=8):
    """An SFT stage with microbatches of so many tokens."""
    keys = (f"data.batch_size={batch}", f"tokens_per_microbatch={tokens}")
    return compose([f"stages.cold_start.{key}" for key in keys]).stages["cold_start"]


@pytest.mark.parametrize("at_once", [1, 2, 8])
def test_microbatches_of_targets_stay_below_the_estimate_and_near_it(text, at_once):
    encoder, policy = families.load("qwen2", text, dtype=torch.float32)
    groups, length = scoring(encoder)
    whole = ScoringBatch(
        prompts=groups.prompts.select([0] * 8),
        completion_ids=groups.completion_ids,
        completion_mask=groups.completion_mask,
        group_size=1,
    )
    tokens = at_once * (length + ANSWER)
    with LiveBytes(list(policy.parameters())) as live:
        for part, _ in microbatches(whole, range(8), budget=Budget(tokens=tokens), ranks=ALONE):
            policy(part).logprobs.sum().backward()
    lengths = Lengths(prompt=length, answer=ANSWER)
    found = scored(estimate(read_shape(str(text)), sft_stage(tokens), "float32", 1, lengths))
    assert live.peak <= found <= 1.15 * live.peak


def test_microbatches_of_targets_pass_the_towers_with_their_own_media(folder):
    shape, lengths = read_shape(str(folder)), Lengths(prompt=96, answer=32)
    one, two, all_of_them = (
        estimate(shape, sft_stage(tokens), "float32", 1, lengths).phases for tokens in (1, 256, 16_384)
    )
    assert 2 * one["backward"]["activations"] == two["backward"]["activations"]
    assert 8 * one["backward"]["activations"] == all_of_them["backward"]["activations"]
    assert one["backward"]["media"] < two["backward"]["media"] < all_of_them["backward"]["media"]


@pytest.mark.parametrize("adapter", [False, True])
def test_recomputing_stays_below_the_estimate_and_near_it(text, adapter):
    encoder, policy = families.load("qwen2", text, dtype=torch.float32)
    if adapter:
        policy.adapt(AdapterSettings())
    recompute_activations(policy)
    batch, length = scoring(encoder)
    shape, lengths = read_shape(str(text)), Lengths(prompt=length)
    overrides = ["adapter={}"] if adapter else []
    stored = scored(estimate(shape, stage_of(*overrides), "float32", 1, lengths))
    again = stage_of("trainer.activation_checkpointing=true", *overrides)
    measured = peak_of(policy, batch)
    found = scored(estimate(shape, again, "float32", 1, lengths))
    assert measured <= found <= 1.3 * measured < 0.8 * stored


@pytest.mark.parametrize("mesh", [4], indirect=True)
def test_scoring_with_shards_stays_below_the_estimate_and_near_it(text, mesh):
    encoder, policy = families.load("qwen2", text, dtype=torch.float32)
    batch, length = scoring(encoder)
    Sharding().apply(policy, mesh, ALONE)
    measured = peak_of(policy, batch)
    stage = sharded(stage_of(batch=BATCH * mesh.size()))
    found = scored(estimate(read_shape(str(text)), stage, "float32", mesh.size(), Lengths(prompt=length)))
    assert measured <= found <= 1.3 * measured


@pytest.mark.parametrize("mesh", [4], indirect=True)
def test_a_sharded_reference_policy_scores_in_less_than_the_policy_trains_in(text, mesh):
    """The policy's own root is gathered meanwhile, as sampling has left it."""
    encoder, policy = families.load("qwen2", text, dtype=torch.float32)
    batch, length = scoring(encoder)
    sizes = [(parameter.shape[0], parameter[0].numel()) for parameter in policy.parameters()]
    reference = Reference(policy, Sharding())
    Sharding().apply(policy, mesh, ALONE)
    reference.place(mesh, ALONE)
    with reference.entered() as frozen:
        copied = [local(parameter) for parameter in frozen.parameters()]
    own = [local(parameter) for parameter in policy.parameters()]
    stage = sharded(stage_of(PENALTY, batch=BATCH * mesh.size()))
    found = estimate(read_shape(str(text)), stage, "float32", mesh.size(), Lengths(prompt=length))
    shards, padding = found.phases["backward"]["reference weights"], 4 * sum(-rows % 4 * row for rows, row in sizes)
    assert shards <= size_of(copied) <= shards + padding
    with LiveBytes([*own, *copied]) as live:
        policy.enter(lambda: None)
        gathered = live.peak
        with reference.entered() as frozen:
            frozen(batch)
    assert size_of([*own, *copied]) < gathered < live.peak <= scored(found)


def sampled(policy, batch):
    """Bytes alive at most while completions are sampled, of weights alone before."""
    engine = HFEngine(
        policy, decode=str, eos_token_ids=[], pad_token_id=0, sampling=SamplingSettings(max_new_tokens=ANSWER)
    )
    with LiveBytes([local(parameter) for parameter in policy.parameters()]) as live:
        engine.generate(batch.prompts, group_size=GROUP, seeds=[list(range(GROUP))] * BATCH)
    return live.peak


def sampling(found):
    """An estimate of the same: nothing was trained before."""
    parts = found.phases["generation"]
    return sum(parts.values()) - parts["optimizer state"]


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_sampling_stays_below_the_estimate_and_near_it(text, dtype):
    encoder, policy = families.load("qwen2", text, dtype=getattr(torch, dtype))
    batch, length = scoring(encoder)
    measured = sampled(policy, batch)
    found = sampling(estimate(read_shape(str(text)), stage_of(), dtype, 1, Lengths(prompt=length)))
    assert measured <= found <= 1.3 * measured


@pytest.mark.parametrize("mesh", [4], indirect=True)
def test_sampling_with_shards_holds_all_weights_once(text, mesh):
    encoder, policy = families.load("qwen2", text, dtype=torch.float32)
    batch, length = scoring(encoder)
    Sharding().apply(policy, mesh, ALONE)
    measured = sampled(policy, batch)
    shape, stage = read_shape(str(text)), sharded(stage_of(batch=BATCH * mesh.size()))
    found = estimate(shape, stage, "float32", mesh.size(), Lengths(prompt=length))
    assert measured <= sampling(found) <= 1.3 * measured
    assert sampling(found) - found.phases["generation"]["gathered weights"] < measured


@pytest.mark.slow
@torch.no_grad()
def test_keys_and_values_are_those_of_the_cache(text):
    encoder, policy = families.load("qwen2", text, dtype=torch.bfloat16)
    batch, length = scoring(encoder)
    rows = start_decoding(policy, batch.prompts, GROUP, max_tokens=ANSWER)
    for step in range(ANSWER - 1):
        rows.advance(batch.completion_ids[:, step])
    layers = [layer for bucket in rows._cache._prompts.buckets for layer in bucket.layers]
    measured = size_of([*layers, *rows._cache._own])
    shape, lengths = read_shape(str(text)), Lengths(prompt=length)
    found = estimate(shape, stage_of(), "bfloat16", 1, lengths).phases["generation"]["keys and values"]
    assert found == measured
    longer = Lengths(prompt=length + 1)
    assert estimate(shape, stage_of(), "bfloat16", 1, longer).phases["generation"]["keys and values"] > measured


def test_gradients_are_gone_before_the_next_rollout(text):
    """A stage frees them after each optimizer step, as tests of stages show."""
    phases = estimate(read_shape(str(text)), stage_of(), "float32", 1, Lengths()).phases
    assert {name for name, parts in phases.items() if "gradients" in parts} == {
        "backward",
        "reduction",
        "optimizer step",
    }


def test_frozen_towers_hold_one_chunk(folder):
    """A batch ten times as large takes more room for media, and none for the towers themselves."""
    shape, lengths = read_shape(str(folder)), Lengths(prompt=2000)
    small, large = (
        estimate(shape, stage_of("freeze=[vision,audio]", batch=batch), "float32", 1, lengths).phases["towers"]
        for batch in (5, 50)
    )
    assert large["media"] == 10 * small["media"]
    assert large["activations"] == small["activations"] > 0


def test_offloaded_shards_lie_in_host_memory(folder):
    shape, stage = read_shape(str(folder)), sharded(stage_of())
    on_device = estimate(shape, stage, "float32", 2, Lengths())
    stage.trainer.cpu_offload = True
    offloaded = estimate(shape, stage, "float32", 2, Lengths())
    assert on_device.host == 0
    assert offloaded.host == sum(resident(on_device).values())
    for phase, parts in offloaded.phases.items():
        assert {"weights", "gradients", "optimizer state"}.isdisjoint(parts), phase
    assert offloaded.peak < on_device.peak


def test_towers_that_learn_keep_their_graph_while_completions_are_sampled(folder):
    shape = read_shape(str(folder))
    kept = {
        how: estimate(shape, stage_of(*how), "float32", 1, Lengths(prompt=64)).phases
        for how in ((), ("freeze=[vision,audio]",), ("algorithm.update.num_epochs=2",))
    }
    assert kept[()]["generation"]["activations"] > 0
    assert kept[()]["towers"]["activations"] == 0
    assert kept["freeze=[vision,audio]",]["generation"]["activations"] == 0
    assert kept["freeze=[vision,audio]",]["towers"]["activations"] > 0
    assert kept["algorithm.update.num_epochs=2",]["generation"]["activations"] == 0


def test_more_ranks_and_smaller_microbatches_never_take_more(folder):
    shape = read_shape(str(folder))
    peaks = [estimate(shape, sharded(stage_of(batch=32)), "float32", ranks, Lengths()).peak for ranks in (1, 2, 4, 8)]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[0] > 2 * peaks[-1]
    budget = "algorithm.update.tokens_per_microbatch"
    sizes = [
        estimate(shape, stage_of(f"{budget}={tokens}", batch=32), "float32", 1, Lengths()).phases["backward"]
        for tokens in (3000, 30_000)
    ]
    assert sizes[0]["activations"] < sizes[1]["activations"]


def test_the_sizes_of_chunks_are_those_that_are_used():
    assert memory.TILE_ELEMENTS == logprobs.TILE_ELEMENTS
    assert (memory.PREFILL_TOKENS, memory.OWN_TOKENS) == (prefill.PREFILL_TOKENS, decode_cache.OWN_TOKENS)


def test_what_fits_includes_a_reserve():
    """10^9 bytes to a GB, a tenth of the tensors and the context on top."""
    room = int((24 * 10**9 - CONTEXT) / 1.1)
    assert Estimate(phases={"a": {"x": room - 1, "y": 1}, "b": {"x": 3}}).fits(24)
    tight = Estimate(phases={"a": {"x": room - 1, "y": 1}, "b": {"x": room, "z": 2}})
    assert not tight.fits(24)
    assert (tight.phase, tight.largest, tight.peak) == ("b", "x", room + 2)


def test_a_stage_of_pairs_has_a_reference_and_both_answers_of_a_pair(text):
    shape, lengths = read_shape(str(text)), Lengths(prompt=64, answer=32)
    assert shape is not None

    def parts(*overrides, kind="dpo"):
        keys = [f"stages.other.{each}" for each in ("data.batch_size=8", "tokens_per_microbatch=1", *overrides)]
        stage = compose([f"+stage@stages.other={kind}", "order=[other]", *keys]).stages["other"]
        found = estimate(shape, stage, "float32", 1, lengths)  # type: ignore[arg-type]
        return found.phases["backward"]

    single, pair = parts(kind="sft"), parts()
    assert single["reference weights"] == 0
    assert pair["reference weights"] == pair["weights"] == 4 * shape.parameters
    assert parts("adapter={}")["reference weights"] == 0
    # A microbatch holds the prompt and one answer, or the prompt and both; logits are of the answers alone.
    assert pair["logits"] == 2 * single["logits"]
    assert pair["activations"] > single["activations"]
