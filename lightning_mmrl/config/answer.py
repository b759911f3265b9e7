"""Answers for a single clip, with everything a hand-over says about how it was trained."""

from pathlib import Path

from lightning_mmrl.config.assembly import Assembly, quiet_libraries
from lightning_mmrl.config.schema import (
    DataConfig,
    EvaluationConfig,
    MediaConfig,
    ModelConfig,
    PromptConfig,
    RootConfig,
)
from lightning_mmrl.curriculum.handoff import check_handoff
from lightning_mmrl.data.collate import EncodedSample, collate_prompts
from lightning_mmrl.data.media.guard import DecodeTask, decode
from lightning_mmrl.errors import MediaError
from lightning_mmrl.prompts.scanner import ScannedAnswer, scan
from lightning_mmrl.training.console import ConsoleProgress
from lightning_mmrl.types.records import MediaRef, Message, Sample


def answer_clip(
    checkpoint: Path, clip: Path, *, question: str, sound: Path | None, max_new_tokens: int | None
) -> ScannedAnswer:
    """The greedy answer of a hand-over to a question about one clip.

    Args:
        checkpoint: A stage's handoff folder.
        clip: A video file.
        question: What to ask.
        sound: The file whose sound is heard; None for no sound.
        max_new_tokens: Longest answer; None takes the checkpoint's own limit.

    Raises:
        StageError: The folder is not a complete hand-over.
        MediaError: The clip cannot be decoded.
    """
    quiet_libraries()
    facts = check_handoff(checkpoint)
    parts = Assembly(config=_config(facts), console=ConsoleProgress())
    refs = [(clip, MediaRef(kind="video", path=clip.name))]
    if sound is not None:
        refs.append((sound, MediaRef(kind="audio", path=sound.name)))
    for path, _ in refs:
        if not path.is_file():
            raise MediaError(f"{path} does not exist; name a video or sound file")
    encoder = parts.encoder(checkpoint)
    pipeline = parts.pipeline(encoder)
    media = [pipeline.encode(decode(DecodeTask(path=path, ref=ref, settings=pipeline.settings))) for path, ref in refs]
    tags = "".join(f"<{ref.kind}>" for _, ref in refs)
    messages = (Message(role="user", content=tags + question),)
    prompt = encoder.encode_prompt(parts.template.apply(messages), parts.template.prefill, media)
    sample = Sample(id=clip.name, messages=messages, media=tuple(ref for _, ref in refs))
    batch = collate_prompts([EncodedSample(sample=sample, prompt=prompt)], encoder.pad_token_id)
    policy = parts.policy(checkpoint, encoder, 1.0)
    engine = parts.engine(policy, encoder, max_new_tokens or facts["max_new_tokens"])
    rollout = engine.generate(batch, group_size=1, seeds=[[0]], greedy=True)
    return scan(rollout.completions[0].text)


def _config(facts: dict) -> RootConfig:
    media = facts["media"]
    return RootConfig(
        run_name="predict",
        model=ModelConfig(
            checkpoint="",
            family=facts["family"],
            dtype=facts["dtype"],
            # A hand-over that does not say was trained before there was a choice.
            position_rule=facts.get("position_rule", "transformers"),
            audio_in_video=facts.get("audio_in_video", "separate"),
        ),
        data=DataConfig(
            root="",
            labels=facts["labels"],
            media=MediaConfig(
                num_frames=media["num_frames"],
                max_duration_s=media["max_duration_s"],
                max_pixels=media["max_pixels"],
                max_bytes=media["max_bytes"],
                cache_dir="",
            ),
        ),
        prompt=PromptConfig(**facts["prompt"]),
        evaluation=EvaluationConfig(sets={}, max_new_tokens=facts["max_new_tokens"]),
    )
