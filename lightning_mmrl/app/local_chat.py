"""Answers text questions with a checkpoint on this machine, greedily."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lightning_mmrl.app.assembly import Assembly
from lightning_mmrl.curriculum.artifacts import SEAL
from lightning_mmrl.curriculum.lineage import facts_if_sealed
from lightning_mmrl.data.collate import EncodedSample, collate_prompts
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.files import read_json
from lightning_mmrl.protocols.experts import ExpertRequest
from lightning_mmrl.registry.families import loaded_family
from lightning_mmrl.registry.names import FAMILIES
from lightning_mmrl.settings.data import DatasetMediaSettings, DataSettings, PromptSettings
from lightning_mmrl.settings.model import ModelSettings
from lightning_mmrl.settings.run import EvaluationSettings, RunSettings
from lightning_mmrl.training.console import ConsoleProgress
from lightning_mmrl.types.records import Completion, Sample

AT_ONCE = 16
"""Questions answered together."""


class LocalChat:
    """A checkpoint that is asked questions about text.

    Args:
        folder: A handoff, or a Hugging Face folder of a family of this package.
        most_tokens: Tokens of the longest reply.
        poll: Called while it generates; raises to end that.
    """

    def __init__(self, folder: Path, most_tokens: int, poll: Callable[[], None]) -> None:
        self.name = str(folder)
        self._checkpoint = folder
        self._limit = most_tokens
        self._poll = poll

    def replies(
        self, requests: Sequence[ExpertRequest], places: Sequence[int]
    ) -> Iterator[tuple[Sequence[int], Sequence[Completion]]]:
        """Yields replies to the requests at some places, a batch at a time: the places, and their completions."""
        for start in range(0, len(places), AT_ONCE):
            batch = places[start : start + AT_ONCE]
            self._poll()
            yield batch, self._generated([requests[place] for place in batch])

    def _generated(self, requests: Sequence[ExpertRequest]) -> Sequence[Completion]:
        encoder, engine, device = self._loaded
        samples = [Sample(id=request.key, messages=request.turns) for request in requests]
        prompts = [
            EncodedSample(sample=sample, prompt=encoder.encode_prompt(sample.messages, "", [], None))
            for sample in samples
        ]
        batch = collate_prompts(prompts, encoder.pad_token_id).to(device)
        return engine.generate(batch, group_size=1, seeds=[[0]] * len(samples), greedy=True).completions

    @cached_property
    def _loaded(self) -> tuple[Any, Any, torch.device]:
        """The encoder, the engine and the device; loaded when the first question is asked."""
        parts = Assembly(config=_config(self._checkpoint), console=ConsoleProgress())
        encoder = parts.encoder(self._checkpoint)
        policy = parts.policy(self._checkpoint, encoder, 1.0)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        policy.to(device)
        return encoder, parts.engine(policy, encoder, self._limit), device


def _config(checkpoint: Path) -> RunSettings:
    """The configuration with which a checkpoint of any family is loaded.

    Raises:
        ConfigError: The checkpoint is of a family that this program does not have.
        StageError: The checkpoint is a handoff with missing or changed files.
    """
    facts = facts_if_sealed(checkpoint)
    if facts is not None:
        family, dtype = loaded_family(facts["family"], checkpoint / SEAL), facts["dtype"]
    else:
        config = read_json(checkpoint / "config.json", "it describes the judge: restore it")
        name = config.get("model_type")
        if name not in FAMILIES:
            raise ConfigError(f"checkpoint {checkpoint} is a {name} model; a judge is one of {', '.join(FAMILIES)}")
        family = loaded_family(name, checkpoint)
        dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    return RunSettings(
        run_name="judge",
        model=ModelSettings(checkpoint=str(checkpoint), family=family, dtype=dtype),
        data=DataSettings(root="", labels=[], media=DatasetMediaSettings(cache_dir="")),
        prompt=PromptSettings(),
        evaluation=EvaluationSettings(sets={}),
    )
