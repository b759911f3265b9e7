"""Answers to a single question, with everything a hand-over says about how it was trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
from lightning_mmrl.data.media.examine import media_kinds
from lightning_mmrl.data.media.guard import DecodeTask, decode
from lightning_mmrl.errors import MediaError
from lightning_mmrl.prompts.template import question_about
from lightning_mmrl.training.console import ConsoleProgress
from lightning_mmrl.types.media import MediaSettings
from lightning_mmrl.types.records import Completion, MediaRef, Message, Sample

Medium = tuple[Path, MediaRef]
"""A file, and which of its tracks is asked about."""


def answer_question(
    checkpoint: Path,
    files: Sequence[Path],
    *,
    question: str,
    sound: Path | None = None,
    hear: bool = True,
    max_new_tokens: int | None = None,
) -> tuple[Completion, tuple[Medium, ...]]:
    """The greedy answer of a hand-over to a question about what some files hold, and what that was.

    Args:
        checkpoint: A stage's handoff folder.
        files: Videos, pictures and sounds, in the order in which they are shown; none for a question about text alone.
        question: What to ask.
        sound: A file whose sound is heard in place of the videos' own.
        hear: False to leave out the sound of videos.
        max_new_tokens: Longest answer; None takes the checkpoint's own limit.

    Raises:
        StageError: The folder is not a complete hand-over.
        MediaError: A file does not exist, cannot be decoded, or holds what the model does not read.
        ConfigError: The question holds a media tag or a control token.
    """
    quiet_libraries()
    facts = check_handoff(checkpoint)
    parts = Assembly(config=_config(facts), console=ConsoleProgress())
    media = chosen_media(files, parts.media_settings, sound=sound, hear=hear)
    messages = (Message(role="user", content=question_about([ref.kind for _, ref in media], question)),)
    encoder = parts.encoder(checkpoint)
    _check_kinds(media, encoder)
    pipeline = parts.pipeline(encoder)
    encoded = []
    for path, ref in media:
        decoded = decode(DecodeTask(path=path, ref=ref, settings=pipeline.settings))
        for warning in decoded.warnings:
            parts.console.say(f"warning: {warning}")
        encoded.append(pipeline.encode(decoded))
    prompt = encoder.encode_prompt(parts.template.apply(messages), parts.template.prefill, encoded)
    sample = Sample(id="question", messages=messages, media=tuple(ref for _, ref in media))
    batch = collate_prompts([EncodedSample(sample=sample, prompt=prompt)], encoder.pad_token_id)
    policy = parts.policy(checkpoint, encoder, 1.0)
    engine = parts.engine(policy, encoder, max_new_tokens or facts["max_new_tokens"])
    rollout = engine.generate(batch, group_size=1, seeds=[[0]], greedy=True)
    return rollout.completions[0], media


def chosen_media(
    files: Sequence[Path], settings: MediaSettings, *, sound: Path | None, hear: bool
) -> tuple[Medium, ...]:
    """What is asked about: all tracks of each file by its content; a separate sound comes last.

    Raises:
        MediaError: A file does not exist or holds nothing of use.
    """
    for path in (*files, *([] if sound is None else [sound])):
        if not path.is_file():
            raise MediaError(f"{path} does not exist; name a video, picture or sound file")
    media: list[Medium] = []
    for path in files:
        kinds = media_kinds(path, settings)
        drops_sound = "video" in kinds and (sound is not None or not hear)
        media += [
            (path, MediaRef(kind=kind, path=path.name)) for kind in kinds if not (kind == "audio" and drops_sound)
        ]
    return (*media, *([] if sound is None else [(sound, MediaRef(kind="audio", path=sound.name))]))


def _check_kinds(media: Sequence[Medium], encoder: Any) -> None:
    for path, ref in media:
        if ref.kind not in encoder.media_kinds:
            reads = ", ".join(["text", *sorted(encoder.media_kinds)]) if encoder.media_kinds else "text alone"
            is_of_video = ref.kind == "audio" and any(other == path and each.kind == "video" for other, each in media)
            fix = "give --no-audio" if is_of_video else "name another file, or a model that reads it"
            raise MediaError(f"{path} holds {ref.kind}, and {encoder.family} reads {reads}; {fix}")


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
