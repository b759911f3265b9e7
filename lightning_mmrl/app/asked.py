"""The evaluations of a checkpoint: one for each set, and one for each variant of a set."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_mmrl.app.assembly import Assembly
from lightning_mmrl.data.in_order import Shown
from lightning_mmrl.data.shuffling import Shuffle
from lightning_mmrl.data.stream import StreamedSets
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.evaluation.sampled import SAMPLED
from lightning_mmrl.evaluation.tasks.task import Task
from lightning_mmrl.evaluation.thinking import NO_THINK
from lightning_mmrl.prompts.no_think import without_thought
from lightning_mmrl.registry.tasks import task_of_result
from lightning_mmrl.settings.data import ABLATIONS, PromptSettings
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.settings.stage import StageSettings

FULL = "full"
"""The variant that is the set itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is asked for one result: the set `whole`, in full or in a variant; `parts` has the prompt."""

    whole: str
    variant: str
    task: Task
    parts: Assembly

    @property
    def media_variant(self) -> str:
        """Which media the samples have."""
        return self.variant if self.variant in ABLATIONS else FULL

    @property
    def batch_size(self) -> int:
        """Prompts that are answered at once."""
        settings = self.parts.config.evaluation
        return max(1, settings.batch_size // settings.samples) if self.variant == SAMPLED else settings.batch_size

    def decisive(self) -> dict[str, Any]:
        """What decides the answers of this variant, and not those of the set itself."""
        settings = self.parts.config.evaluation
        if self.variant == SAMPLED:
            more = {"samples": settings.samples, "temperature": settings.temperature, "top_p": settings.top_p}
            return {"variant": SAMPLED, "batch_size": self.batch_size, **more}
        return {"variant": self.variant}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One result with its samples, which a shuffle may mix."""

    asked: Asked
    samples: StreamedSets
    shuffle: Shuffle | None

    @property
    def shown(self) -> Shown:
        """Which media the samples have."""
        return Shown(variant=self.asked.media_variant, partners=self.shuffle)  # type: ignore[arg-type]

    def shuffled(self) -> Mapping[str, int]:
        """The numbers of samples that the variant mixed."""
        if self.shuffle is None:
            return {}
        left_out = self.samples.reasons
        self.shuffle([index for index in range(len(self.samples)) if index not in left_out])
        return self.shuffle.counted()


def all_asked(assembly: Assembly, prompted: Mapping[str, Assembly], *, further: bool) -> dict[str, Asked]:
    """What is asked, by the name of the result, such as `test` and `test-silent`.

    Args:
        assembly: The parts of the run.
        prompted: The parts of each set, with its prompt.
        further: Whether variants are asked for, too.
    """
    settings, found = assembly.config.evaluation, {}
    for whole, parts in prompted.items():
        task = task_of_result(whole, assembly.tasks)
        found[whole] = Asked(whole=whole, variant=FULL, task=task, parts=parts)
        for variant in settings.ablations if further and task.ablated else ():
            found[f"{whole}-{variant}"] = Asked(whole=whole, variant=variant, task=task, parts=parts)
    for whole, parts in prompted.items() if further else ():
        task = task_of_result(whole, assembly.tasks)
        if not task.has_truth:
            continue
        if settings.no_think:
            denied = parts.with_prompt(denied_prompt(whole, task, parts.config.prompt))
            found[f"{whole}-{NO_THINK}"] = Asked(whole=whole, variant=NO_THINK, task=task, parts=denied)
        if settings.samples:
            name = f"{whole}-{SAMPLED}"
            several = task_of_result(name, assembly.tasks)
            found[name] = Asked(whole=whole, variant=SAMPLED, task=several, parts=parts)
    return found


def denied_prompt(whole: str, task: Task, prompt: PromptSettings) -> PromptSettings:
    """The prompt of a set that forces an answer without a thought.

    Raises:
        ConfigError: The prompt asks for no thought.
    """
    try:
        return without_thought(prompt, task.answer_reading)
    except ConfigError as error:
        raise ConfigError(f"evaluation of set {whole}: {error}") from error


def check_thoughts(config: RunSettings, tasks: Mapping[str, Task], stage: StageSettings | None) -> None:
    """Refuses sets whose prompts ask for no thought, if answers without one are asked for.

    Args:
        config: The configuration.
        tasks: The tasks by set.
        stage: The stage whose sets and prompts count; None outside of a run.

    Raises:
        ConfigError: Naming the set.
    """
    for name, each in config.sets(None if stage is None else stage.evaluation_sets).items():
        if (task := task_of_result(name, tasks)).has_truth:
            denied_prompt(name, task, config.prompt_of(each, stage))
