"""Step 8: an SFT step and an RL iteration of a tiny Omni from a folder in the hub's layout, by the product's loaders.

The folder is what a released Qwen2.5-Omni looks like: weights of thinker, talker and token2wav in sharded safetensors
under their prefixes, and a generation config that names no end of a sequence. Lightning is not needed.
"""

import json
from pathlib import Path

import numpy as np
import torch
from bench_models import SEED
from gpu_decoding import gaps_found
from gpu_record import Record, Setup
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen2_5OmniThinkerConfig

from lightning_mmrl.algorithms.advantages.group_normalized import GroupNormalized
from lightning_mmrl.algorithms.losses.aggregation import TokenMean
from lightning_mmrl.algorithms.losses.ppo_clip import PPOClip
from lightning_mmrl.data.collate import EncodedSample, collate_prompts, collate_targets
from lightning_mmrl.files import write_json
from lightning_mmrl.models.families.qwen2_5_omni import FAMILY, OmniEncoder, OmniThinker
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.models.tiny import build_tiny_omni
from lightning_mmrl.ops.masked import masked_mean
from lightning_mmrl.rollout.hf import HFEngine
from lightning_mmrl.settings.algorithm import SamplingSettings
from lightning_mmrl.types.batches import LossInputs, PromptBatch, Rollout, ScoringBatch
from lightning_mmrl.types.media import DecodedAudio, DecodedImage
from lightning_mmrl.types.records import Message, Sample

QUESTIONS = ("<image><audio>How does this person feel?", "<image>Is this person calm or angry?", "What is an emotion?")
ANSWERS = ("This person is calm.", "Angry.", "A feeling, such as joy.")
GROUP, TOKENS = 4, 16
BOUNDS = {torch.float32: (1e-4, 1e-3), torch.bfloat16: (0.02, 0.1)}
"""As in step 4."""
LEARNING_RATE = 1e-3


def run(setup: Setup, record: Record, *, named_end: bool = False) -> None:
    """Builds the folder, loads it, and trains by both losses; `named_end` leaves the generation config as it was."""
    folder = write_released(setup.folder / "omni", named_end=named_end)
    encoder = OmniEncoder.from_checkpoint(folder)
    wanted = encoder.tokenizer.convert_tokens_to_ids("<|im_end|>")
    record.figure("eos_token_ids", " ".join(map(str, encoder.eos_token_ids)))
    record.expect(wanted in encoder.eos_token_ids, f"completions end with {encoder.eos_token_ids}, not with {wanted}")
    backbone = OmniThinker.from_checkpoint(folder, dtype=torch.float32)
    policy = Policy(backbone, banned_token_ids=encoder.banned_token_ids()).to(setup.device)
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    _sft(setup, record, encoder, policy, optimizer)
    _iteration(setup, record, encoder, policy, optimizer)


def write_released(folder: Path, *, named_end: bool) -> Path:
    """A tiny thinker within a full Omni in two shards, as the hub has it."""
    build_tiny_omni(folder, text=(*QUESTIONS, *ANSWERS), seed=SEED)
    whole = FAMILY.engine_config(Qwen2_5OmniThinkerConfig.from_pretrained(folder))
    weights = {f"thinker.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    weights |= {f"{part}.head.weight": torch.ones(4, 4) for part in ("talker", "token2wav")}
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {f"model-0000{number}-of-00002.safetensors": names[number - 1 :: 2] for number in (1, 2)}
    for shard, own in shards.items():
        save_file({name: weights[name].contiguous() for name in own}, folder / shard, metadata={"format": "pt"})
    places = {name: shard for shard, own in shards.items() for name in own}
    size = sum(tensor.nbytes for tensor in weights.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": places})
    whole.save_pretrained(folder)
    if not named_end:
        path = folder / "generation_config.json"
        generation = json.loads(path.read_text(encoding="utf-8"))
        write_json(path, {key: value for key, value in generation.items() if key != "eos_token_id"})
    return folder


def _items(encoder: OmniEncoder) -> list[EncodedSample]:
    """Prompts of a picture with a sound, of a picture, and of text, each with its target."""
    generator = np.random.default_rng(SEED)
    items = []
    for question, answer in zip(QUESTIONS, ANSWERS, strict=True):
        media = []
        if "<image>" in question:
            pixels = generator.integers(0, 256, (56, 56, 3), dtype=np.uint8)
            media.append(encoder.encode_image(DecodedImage(pixels=pixels)))
        if "<audio>" in question:
            wave = generator.standard_normal(8000).astype(np.float32)
            media.append(encoder.encode_audio(DecodedAudio(waveform=wave, sample_rate_hz=16000)))
        messages = (Message(role="user", content=question),)
        prompt = encoder.encode_prompt(messages, "", media)
        target = tuple(encoder.encode_target(answer))
        items.append(EncodedSample(sample=Sample(id=answer, messages=messages), prompt=prompt, target_ids=target))
    return items


def _sft(setup: Setup, record: Record, encoder: OmniEncoder, policy: Policy, optimizer: torch.optim.Optimizer) -> None:
    """One step on targets, after which their loss is lower."""
    batch = collate_targets(_items(encoder), encoder.pad_token_id).to(setup.device)
    scoring = ScoringBatch(
        prompts=batch.prompts, completion_ids=batch.completion_ids, completion_mask=batch.completion_mask, group_size=1
    )

    def loss() -> Tensor:
        return -masked_mean(_logprobs(setup, policy, scoring), batch.completion_mask)

    before = loss()
    before.backward()
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        after = float(loss())
    record.figure("sft_loss_before", float(before.detach()))
    record.figure("sft_loss_after", after)
    record.expect(
        after < float(before.detach()), f"an SFT step takes the loss from {float(before.detach())} to {after}"
    )


def _logprobs(setup: Setup, policy: Policy, batch: ScoringBatch) -> Tensor:
    """Log-probabilities of float32 weights, on a GPU under autocast in bfloat16."""
    with torch.autocast(setup.device.type, torch.bfloat16, enabled=setup.on_gpu):
        return policy(batch).logprobs


def _iteration(
    setup: Setup, record: Record, encoder: OmniEncoder, policy: Policy, optimizer: torch.optim.Optimizer
) -> None:
    """Generation, scores, loss, backward pass and an AdamW step of one RL iteration."""
    prompts = collate_prompts(_items(encoder), encoder.pad_token_id).to(setup.device)
    engine = HFEngine.of(policy, encoder=encoder, sampling=SamplingSettings(max_new_tokens=TOKENS))
    seeds = [[100 * prompt + row for row in range(GROUP)] for prompt in range(len(QUESTIONS))]
    with torch.autocast(setup.device.type, torch.bfloat16, enabled=setup.on_gpu):
        rollout = engine.generate(prompts, group_size=GROUP, seeds=seeds)
    record.figure("sampled_tokens", int(rollout.completion_mask.sum()))
    loss = _rl_loss(setup, record, policy, prompts, rollout)
    loss.backward()
    before = [parameter.detach().clone() for group in optimizer.param_groups for parameter in group["params"]]
    optimizer.step()
    after = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moved = sum(int((old != new).sum()) for old, new in zip(before, after, strict=True))
    record.figure("rl_loss", float(loss.detach()))
    record.figure("rl_moved_weights", moved)
    record.expect(moved > 0, "the RL iteration moves no weight")
    record.expect(all(bool(each.isfinite().all()) for each in after), "weights are not finite after the RL iteration")


def _rl_loss(setup: Setup, record: Record, policy: Policy, prompts: PromptBatch, rollout: Rollout) -> Tensor:
    """The clipped loss of rewards that depend on the sampled tokens; scoring must agree with sampling."""
    ids, mask = rollout.completion_ids, rollout.completion_mask
    batch = ScoringBatch(prompts=prompts, completion_ids=ids, completion_mask=mask, group_size=GROUP)
    logprobs = _logprobs(setup, policy, batch)
    gaps = (logprobs.detach() - rollout.sampler_logprobs).abs()[mask].float()
    gaps_found(record, gaps, BOUNDS[torch.bfloat16 if setup.on_gpu else torch.float32])
    rewards = ((ids * mask).sum(-1) % 7).float().unflatten(0, (-1, GROUP))
    advantages = GroupNormalized()(rewards, torch.ones_like(rewards, dtype=torch.bool))
    inputs = LossInputs(
        logprobs=logprobs,
        old_logprobs=logprobs.detach(),
        advantages=advantages.reshape(-1, 1).expand_as(mask),
        completion_mask=mask,
    )
    aggregation = TokenMean()
    return aggregation.reduce(PPOClip()(inputs).token_losses, mask, aggregation.denominator(mask))
