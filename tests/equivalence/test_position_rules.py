"""Long clips of small frames, and clips with their sound in turns: scored as the stock models score them."""

import families
import omni
import pytest
import torch

from lightning_mmrl.data.collate import EncodedSample, collate_prompts
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.types.batches import ScoringBatch
from lightning_mmrl.types.records import Message, Sample

GROUP = 2
EXACT = 1e-9


def loaded(name, folder, **how):
    """Encoders by rule, and the policy."""
    family = families.FAMILIES[name]
    encoders = {
        rule: family.encoder.from_checkpoint(folder, position_rule=rule, **how)
        for rule in ("previous_maximum", "transformers")
    }
    backbone = family.backbone.from_checkpoint(folder, dtype=torch.float64)
    families.exact(backbone.model)
    omni.spread(backbone.model)
    return encoders, Policy(backbone, banned_token_ids=encoders["transformers"].banned_token_ids())


def scoring(encoder, content, media):
    """One prompt and two completions."""
    messages = (Message(role="user", content=content),)
    sample = Sample(id="long", messages=messages, solution="angry")
    prompt = EncodedSample(sample=sample, prompt=encoder.encode_prompt(messages, "", media))
    tokens, mask = omni.ragged_completions(encoder, GROUP)
    return ScoringBatch(
        prompts=collate_prompts([prompt], encoder.pad_token_id),
        completion_ids=tokens,
        completion_mask=mask,
        group_size=GROUP,
    )


def stock_logprobs(policy, batch, more):
    """Each completion after the prompt in the stock model, which finds its own positions."""
    rows = []
    for tokens, mask in zip(batch.completion_ids, batch.completion_mask, strict=True):
        ids = torch.cat([batch.prompts.input_ids[0], tokens[mask]])[None]
        media = policy.media.backbone.model_inputs(batch.prompts.media)
        logits = policy.model(input_ids=ids, attention_mask=torch.ones_like(ids), **media, **more(ids)).logits
        logits = logits[0, batch.prompts.input_ids.shape[1] - 1 : -1].masked_fill(policy.banned, -torch.inf)
        logprobs = logits.log_softmax(-1).gather(-1, tokens[mask][:, None])[:, 0]
        rows.append(torch.nn.functional.pad(logprobs, (0, len(mask) - len(logprobs))))
    return torch.stack(rows)


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
def test_behind_a_long_clip_of_small_frames_only_their_rule_scores_as_transformers(name, tmp_path):
    encoders, policy = loaded(name, families.build(name, tmp_path))
    # 16 temporal patches of 2x2 rows, 1 s apart: time comes to 15 or 30, height and width to 1.
    clip = encoders["transformers"].encode_video(omni.noise_video(0, num_frames=32, duration_s=16.0))
    scored = {rule: scoring(encoder, "<video>Which emotion?", [clip]) for rule, encoder in encoders.items()}

    def more(ids):
        types = 2 * (ids == encoders["transformers"].config.video_token_id).int()
        return {"mm_token_type_ids": types, "second_per_grid_ts": clip["video_second_per_grid"]}

    stock = stock_logprobs(policy, scored["transformers"], more)
    torch.testing.assert_close(policy(scored["transformers"]).logprobs, stock, rtol=0, atol=EXACT)
    assert (policy(scored["previous_maximum"]).logprobs - stock).abs().max() > 0.01


@torch.no_grad()
def test_a_clip_and_its_sound_in_turns_score_as_in_the_stock_thinker(tmp_path):
    folder = families.build("qwen2_5_omni", tmp_path)
    encoders, policy = loaded("qwen2_5_omni", folder, audio_in_video="interleaved")
    encoder = encoders["transformers"]
    media = [
        encoder.encode_video(omni.noise_video(0, num_frames=8, duration_s=6.0)),
        encoder.encode_audio(omni.noise_audio(0)),
    ]
    batch = scoring(encoder, "<video><audio>Which emotion?", media)
    more = {"video_second_per_grid": media[0]["video_second_per_grid"], "use_audio_in_video": True}
    stock = stock_logprobs(policy, batch, lambda ids: more)
    torch.testing.assert_close(policy(batch).logprobs, stock, rtol=0, atol=EXACT)
    separate = families.FAMILIES["qwen2_5_omni"].encoder.from_checkpoint(folder, position_rule="transformers")
    other = policy(scoring(separate, "<video><audio>Which emotion?", media)).logprobs
    assert (other - stock).abs().max() > 0.01
