"""A tiny model of a family with a vLLM engine and a batch of prompts, for tests/engine_vllm."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import families
import omni
import torch

from lightning_mmrl.data.collate import EncodedSample, collate_prompts
from lightning_mmrl.models.families.media_keys import VIDEO_SECONDS
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.rollout.engine_inputs import EnginePrompt, engine_prompts
from lightning_mmrl.rollout.vllm.engine import VLLMEngine
from lightning_mmrl.settings.algorithm import SamplingSettings
from lightning_mmrl.types.batches import PromptBatch, Rollout, ScoringBatch
from lightning_mmrl.types.media import DecodedVideo
from lightning_mmrl.types.records import Message, Sample

MAX_NEW_TOKENS = 8
INTERLEAVED = "<video><audio>Which emotion?"


@dataclass(frozen=True, kw_only=True)
class World:
    """A tiny model with its encoder, policy and engine, and prompts for it."""

    name: str
    checkpoint: Path
    encoder: Any
    policy: Policy
    engine: VLLMEngine
    batch: PromptBatch

    def move(self, seed: int, size: float = 0.02) -> None:
        """Changes every weight of the policy, towers and head included."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.policy.model.parameters():
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))

    def rollout(self, batch: PromptBatch | None = None, group_size: int = 2, **settings: Any) -> Rollout:
        """Completions of the engine, each row with a seed of its own."""
        batch = batch or self.batch
        seeds = [[100 * prompt + sample for sample in range(group_size)] for prompt in range(len(batch.samples))]
        return self.engine.generate(batch, group_size=group_size, seeds=seeds, **settings)

    def gap(self, rollout: Rollout, batch: PromptBatch | None = None) -> float:
        """The largest difference between the engine's log-probabilities and the trainer's, in nats."""
        scoring = ScoringBatch(
            prompts=batch or self.batch,
            completion_ids=rollout.completion_ids,
            completion_mask=rollout.completion_mask,
            group_size=rollout.group_size,
        )
        self.policy.eval()
        with torch.no_grad():
            return float((self.policy(scoring).logprobs - rollout.sampler_logprobs).abs().max())

    def own_greedy(self, batch: PromptBatch | None = None) -> list[list[int]]:
        """Greedy answers of the policy itself."""
        engine = omni.engine(self.encoder, self.policy, max_new_tokens=MAX_NEW_TOKENS)
        return answers(engine.generate(batch or self.batch, group_size=1, seeds=self.one_seed(batch), greedy=True))

    def greedy(self, batch: PromptBatch | None = None) -> list[list[int]]:
        """Greedy answers of the engine."""
        return answers(self.rollout(batch, 1, greedy=True))

    def one_seed(self, batch: PromptBatch | None = None) -> list[list[int]]:
        return [[0]] * len((batch or self.batch).samples)


def answers(rollout: Rollout) -> list[list[int]]:
    """Token ids of every row."""
    return [ids[mask].tolist() for ids, mask in zip(rollout.completion_ids, rollout.completion_mask, strict=True)]


def world(
    name: str,
    checkpoint: Path,
    temperature: float = 1.0,
    compute_dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> World:
    """A policy whose float32 weights are large enough for media and positions to matter, and its engine."""
    if not checkpoint.exists():
        families.build(name, checkpoint)
    encoder, policy = families.load(name, checkpoint, torch.float32, temperature)
    policy.compute_dtype = compute_dtype
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(2.0)
    engine = VLLMEngine(policy, encoder=encoder, sampling=SamplingSettings(max_new_tokens=MAX_NEW_TOKENS), **settings)
    batch = families.prompts(name, encoder)
    return World(name=name, checkpoint=checkpoint, encoder=encoder, policy=policy, engine=engine, batch=batch)


def interleaved(world: World) -> PromptBatch:
    """A clip whose sound lies within it."""
    encoder = type(world.encoder).from_checkpoint(world.checkpoint, audio_in_video="interleaved")
    return omni.prompts(encoder, [INTERLEAVED])


def own_positions(world: World, clip: DecodedVideo) -> tuple[EnginePrompt, torch.Tensor]:
    """A prompt with a clip, and its positions [3, P + 1] as vLLM's model finds them itself."""
    from vllm.multimodal.inputs import MultiModalFeatureSpec

    media = [world.encoder.encode_video(clip)]
    messages = (Message(role="user", content="<video>Which emotion?"),)
    encoded = EncodedSample(
        sample=Sample(id="clip", messages=messages, solution="angry"),
        prompt=world.encoder.encode_prompt(messages, "", media),
    )
    (prompt,) = engine_prompts(collate_prompts([encoded], world.encoder.pad_token_id), world.policy.media.backbone)
    # Qwen3-VL writes times into the text; the others' models ask for the seconds from one patch to the next.
    seconds = {"second_per_grid_ts": media[0][VIDEO_SECONDS]} if VIDEO_SECONDS in media[0] else {}
    timed = replace(prompt, tensors={**prompt.tensors, **seconds})
    request = world.engine._host._engine_input(timed)
    (item,), (place,) = request["mm_kwargs"]["video"], request["mm_placeholders"]["video"]
    if world.name == "qwen3_vl":  # whose clips begin with the marker of their first frame
        place = replace(place, offset=place.offset - 1, length=place.length + 1, is_embed=None)
    feature = MultiModalFeatureSpec(data=item, modality="video", identifier="clip", mm_position=place)
    (model,) = world.engine._host._llm.collective_rpc(lambda worker: worker.model_runner.get_model())
    positions, delta = type(model).get_mrope_input_positions(model, prompt.token_ids, [feature])
    following = torch.full((3, 1), len(prompt.token_ids) + delta)
    return prompt, torch.cat([positions, following], dim=1)
