"""Answers a single question with a handoff, prompted as it was trained."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_mmrl.app.assembly import Assembly, quiet_libraries
from lightning_mmrl.curriculum.artifacts import SEAL
from lightning_mmrl.curriculum.facts import check_facts
from lightning_mmrl.curriculum.lineage import checked_handoff
from lightning_mmrl.data.collate import EncodedSample, collate_prompts
from lightning_mmrl.data.media.asked import Medium, check_read, chosen_media
from lightning_mmrl.data.pipeline import MediaPipeline
from lightning_mmrl.errors import ConfigError, StageError
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.prompts.scanner import scan
from lightning_mmrl.prompts.template import DEFAULT_QUESTION, question_about
from lightning_mmrl.protocols.tensors import PromptEncoder
from lightning_mmrl.registry.families import loaded_family
from lightning_mmrl.settings.data import DatasetMediaSettings, DataSettings, MediaSettings, PromptSettings
from lightning_mmrl.settings.model import ModelSettings
from lightning_mmrl.settings.run import EvaluationSettings, RunSettings
from lightning_mmrl.training.console import ConsoleProgress
from lightning_mmrl.types.records import Completion, Message, Sample
from lightning_mmrl.workers.pool import CallResult

_ROW = ("file", "audio", "question")
"""Columns of a table of questions."""


def answer_question(
    checkpoint: Path,
    files: Sequence[Path],
    *,
    question: str,
    sound: Path | None = None,
    hear: bool = True,
    max_new_tokens: int | None = None,
    deadline_s: float = 30.0,
    memory_mb: int = 1024,
) -> tuple[Completion, tuple[Medium, ...]]:
    """Returns the greedy answer of a handoff to a question about files, and the media that were found in the files.

    Args:
        checkpoint: A stage's handoff folder.
        files: Videos, pictures and sounds, in the order in which they are shown; none for a question about text alone.
        question: What to ask.
        sound: A file whose sound is heard in place of the videos' own.
        hear: False to leave out the sound of videos.
        max_new_tokens: Longest answer, at least 1; None takes the checkpoint's own limit.
        deadline_s: Seconds that decoding one medium may take.
        memory_mb: MiB that decoding one medium may take.

    Raises:
        StageError: The folder is not a complete handoff, or its facts are not as runs write them.
        MediaError: A file does not exist, cannot be decoded or encoded, or holds media that the model does not read.
        ConfigError: The question holds a media tag or a control token.
    """
    predictor = Predictor(checkpoint, limit_s=deadline_s, memory_mb=memory_mb)
    return predictor.answer(files, question, sound=sound, hear=hear, max_new_tokens=max_new_tokens)


class Predictor:
    """Answers questions with a handoff, which is loaded with the first question.

    Args:
        handoff: A stage's handoff folder.
        digest: The digest that the handoff must have; None takes any.
        limit_s: Seconds that decoding one medium may take.
        memory_mb: MiB that decoding one medium may take.

    Raises:
        StageError: The folder is not a complete handoff, its facts are not as runs write them, or its digest differs.
    """

    def __init__(
        self, handoff: Path, *, digest: str | None = None, limit_s: float = 30.0, memory_mb: int = 1024
    ) -> None:
        quiet_libraries()
        facts = checked_handoff(handoff)
        check_facts(facts, handoff / SEAL)
        if digest is not None and facts["digest"] != digest:
            raise StageError(
                f"{handoff} has the digest {facts['digest']}, and the logged one has {digest}; the stage ran again "
                "since: load the model of that run"
            )
        config = _config(facts, loaded_family(facts["family"], handoff / SEAL))
        config.data.media.decode_deadline_s, config.data.media.decode_memory_mb = limit_s, memory_mb
        self._handoff = handoff
        self._max_new_tokens: int = facts["max_new_tokens"]
        self._parts = Assembly(config=config, console=ConsoleProgress())

    @cached_property
    def _encoder(self) -> PromptEncoder:
        return self._parts.encoder(self._handoff)

    @cached_property
    def _policy(self) -> Policy:
        return self._parts.policy(self._handoff, self._encoder, 1.0)

    def answer(
        self,
        files: Sequence[Path],
        question: str,
        *,
        sound: Path | None = None,
        hear: bool = True,
        max_new_tokens: int | None = None,
    ) -> tuple[Completion, tuple[Medium, ...]]:
        """Returns the greedy answer to a question about files and the media that were found, see `answer_question`."""
        parts = self._parts
        media = chosen_media(files, parts.config.data.media, parts.decoder, sound=sound, hear=hear)
        messages = (Message(role="user", content=question_about([ref.kind for _, ref in media], question)),)
        encoder = self._encoder
        check_read(media, encoder)
        pipeline = parts.pipeline(encoder)
        encoded = _encoded(media, pipeline, parts.console)
        template = parts.template
        texts = template.settings
        prompt = encoder.encode_prompt(template.apply(messages), texts.prefill, encoded, texts.raw)
        sample = Sample(id="question", messages=messages, media=tuple(ref for _, ref in media))
        batch = collate_prompts([EncodedSample(sample=sample, prompt=prompt)], encoder.pad_token_id)
        engine = parts.engine(self._policy, encoder, max_new_tokens or self._max_new_tokens)
        rollout = engine.generate(batch, group_size=1, seeds=[[0]], greedy=True)
        return rollout.completions[0], media

    def asked(self, row: Mapping[str, Any]) -> dict[str, str]:
        """Answers one row of a table: `file`, `audio` in place of its sound, and `question`; each may be left out.

        Returns:
            The `answer`, the `reasoning`, each empty if the completion has none, and the whole `text`.

        Raises:
            ConfigError: The row asks nothing, or has a value that is no text.
        """
        given = {key: value for key, value in row.items() if value is not None and value == value and value != ""}
        odd = [key for key, value in given.items() if not isinstance(value, str) or key not in _ROW]
        if odd or not given:
            raise ConfigError(f"a row has the texts {', '.join(_ROW)}, at least one of them; found {dict(row)!r}")
        sound = Path(given["audio"]) if "audio" in given else None
        files = [Path(given["file"])] if "file" in given else []
        completion, _ = self.answer(files, given.get("question", DEFAULT_QUESTION), sound=sound)
        found = scan(completion.text)
        return {"answer": found.answer or "", "reasoning": found.think or "", "text": completion.text}


def _encoded(media: Sequence[Medium], pipeline: MediaPipeline, console: ConsoleProgress) -> list[dict[str, Tensor]]:
    """Decodes each medium in a worker, and returns it as training sees it; shows the decoders' warnings."""
    tasks = [pipeline.task(path, ref) for path, ref in media]
    outcomes: dict[int, CallResult] = {}
    pipeline.decoder.decode_all(tasks, outcomes.__setitem__)
    encoded = [pipeline.encode_file(task.path, outcomes[index]) for index, task in enumerate(tasks)]
    for index in range(len(tasks)):
        for warning in outcomes[index].value.warnings:
            console.say(f"warning: {warning}")
    return encoded


def _config(facts: dict, family: dict) -> RunSettings:
    known = facts["media"]
    media = {each.name: known[each.name] for each in fields(MediaSettings) if each.name in known}
    # A handoff without these facts was trained before there was a choice.
    rule, how = facts.get("position_rule", "transformers"), facts.get("audio_in_video", "separate")
    return RunSettings(
        run_name="predict",
        model=ModelSettings(checkpoint="", family=family, dtype=facts["dtype"], position_rule=rule, audio_in_video=how),
        data=DataSettings(root="", labels=facts["labels"], media=DatasetMediaSettings(**media, cache_dir="")),
        prompt=PromptSettings(**facts["prompt"]),
        evaluation=EvaluationSettings(sets={}, max_new_tokens=facts["max_new_tokens"]),
    )
