"""Finds samples that training would leave out or refuse: prepares them as training does, and does not train."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from lightning_mmrl.app.assembly import Assembly, quiet_libraries
from lightning_mmrl.app.data_checks import uses
from lightning_mmrl.app.run import check_all_targets
from lightning_mmrl.data.inspection import Inventory
from lightning_mmrl.data.prepared import PreparedSet
from lightning_mmrl.data.schema import Entry, Problem
from lightning_mmrl.data.written_targets import with_targets
from lightning_mmrl.errors import DataError
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.settings.data import PromptSettings
from lightning_mmrl.settings.lessons import Lesson
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.training.console import ConsoleProgress
from lightning_mmrl.training.monitor import ConsoleMonitor
from lightning_mmrl.types.media import MediaSettings
from lightning_mmrl.types.records import Sample

UNUSABLE = "cannot be used"
UNENCODABLE = "cannot be encoded"


class EncodingCheck:
    """Checks samples as an experiment does, by its stages' checks and its model's processor, prompt and positions.

    Encoded media are kept in data.media.cache_dir, where training finds them.

    Attributes:
        own_sizes: The sizes of the model's own processor.

    Args:
        config: The experiment.
        media_root: Folder that media paths are relative to.
        console: Shows progress.

    Raises:
        MmrlError: The experiment or the processor of its model cannot be loaded.
    """

    def __init__(self, config: RunSettings, media_root: Path, console: ConsoleProgress) -> None:
        quiet_libraries()
        check_all_targets(config)
        self.parts = Assembly(config=config, console=console)
        self._uses = uses(config)
        self._media_root = media_root
        encoder = self.parts.encoder(self.parts.base_checkpoint())
        self._pipeline, self.own_sizes = self.parts.pipeline(encoder), encoder.own_sizes

    def note(self, manifests: Sequence[Path]) -> str:
        """Returns a line that says what was checked."""
        model = self.parts.config.model.checkpoint
        used = {use.source.path.resolve() for use in self._uses}
        unused = [path.name for path in manifests if path.resolve() not in used]
        rest = f"; the experiment does not use {', '.join(unused)}, tried as prompts" if unused else ""
        return f"encoding checked with the processor of {model}{rest}"

    def run(self, inventory: Inventory) -> Inventory:
        """Turns each line that training would refuse or leave out into a problem of the inventory."""
        entries, problems = [], list(inventory.problems)
        for path in inventory.manifests:
            own = [entry for entry in inventory.entries if entry.file == str(path)]
            found = self._problems(path, own)
            entries += [entry for entry in own if entry.line not in found]
            problems += found.values()
        return replace(inventory, entries=tuple(entries), problems=tuple(problems))

    def _problems(self, path: Path, entries: Sequence[Entry]) -> dict[int, Problem]:
        own = [use for use in self._uses if use.source.path.resolve() == path.resolve()]
        has_targets = all(entry.sample.messages[-1].role == "assistant" for entry in entries)
        config = self.parts.config
        ways: list[tuple[bool, Lesson, str | None, PromptSettings, MediaSettings]] = [
            (use.supervised, use.lesson, use.target, use.seen.prompt, use.seen.data.media) for use in own
        ]
        ways = ways or [(has_targets, "turns", None, config.prompt, config.data.media)]
        differing = [way for number, way in enumerate(ways) if way not in ways[:number]]
        makers = [self._maker(*way) for way in differing]
        found: dict[int, Problem] = {}
        for entry in entries:
            try:
                for prepared in makers:
                    prepared([entry.sample]).check(path.name)
                for use in own:
                    samples = with_targets([entry.sample], use.target)
                    for check in use.checks:
                        check(use.source.manifest, samples)
            except DataError as error:
                reason = str(error).removeprefix(f"{path.name}: ")
                found.setdefault(entry.line, entry.problem(UNUSABLE, reason))
        for prepared in makers:
            rest = [entry for entry in entries if entry.line not in found]
            faults = prepared([entry.sample for entry in rest]).faults(
                path.name, ConsoleMonitor(self.parts.console, None)
            )
            for entry in rest:
                if entry.sample.id in faults:
                    found[entry.line] = entry.problem(UNENCODABLE, faults[entry.sample.id])
        return found

    def _maker(
        self, supervised: bool, lesson: Lesson, target: str | None, prompt: PromptSettings, media: MediaSettings
    ) -> Callable[[Sequence[Sample]], PreparedSet]:
        """Returns a function that prepares samples as one use of a manifest does."""
        made = partial(
            PreparedSet,
            media_root=self._media_root,
            pipeline=replace(self._pipeline, settings=media),
            template=PromptTemplate(prompt),
            supervised=supervised,
            lesson=lesson,
        )
        return lambda samples: made(with_targets(samples, target))
