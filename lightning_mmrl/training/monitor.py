"""Shows the progress of preparing data on the console, and writes down which samples are left out."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lightning_mmrl.data.prepared import Quarantined
from lightning_mmrl.files import dispensable
from lightning_mmrl.training.console import ConsoleProgress


@dataclass(frozen=True)
class ConsoleMonitor:
    """Implements `DataMonitor` on the console; left-out samples are also written to a file, if one is given.

    A notice that several stages would repeat is shown once.
    """

    console: ConsoleProgress
    path: Path | None
    told: set[tuple[str, ...]] = field(default_factory=set)

    def progress(self, description: str, done: int, total: int) -> None:
        """Shows how far the decoding has come."""
        self.console.update(description, done, total)

    def quarantine(self, manifest: str, num_usable: int, left_out: Sequence[Quarantined]) -> None:
        """Names the first samples that were left out, and writes each left-out sample down once for the whole run."""
        news = (manifest, *(item.sample_id for item in left_out))
        if self.path is None or news in self.told:
            return
        self.told.add(news)
        total = num_usable + len(left_out)
        self.console.say(f"{manifest}: {len(left_out)} of {total} samples left out, all named in {self.path}")
        for item in left_out[:3]:
            self.console.say(f"  {item.sample_id}: {item.reason}")
        rows = [json.dumps({"manifest": manifest, **asdict(item)}) for item in left_out]
        known = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        new = {row.partition(_REASON)[0]: row for row in rows}
        for old in known:
            new.pop(old.partition(_REASON)[0], None)
        with dispensable(f"lists of left-out samples ({self.path.name})", self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(row + "\n" for row in new.values())

    def warn(self, manifest: str, warnings: Sequence[str]) -> None:
        """Prints each oddity that decoders report once; if there are many, only the first ones."""
        new = [text for text in warnings if (text,) not in self.told]
        self.told.update((text,) for text in new)
        if self.path is None:
            return
        for text in new[:_MAX_WARNINGS]:
            self.console.say(f"{manifest}: warning: {text}")
        if len(new) > _MAX_WARNINGS:
            rest = len(new) - _MAX_WARNINGS
            self.console.say(f"{manifest}: {rest} more such warnings; mmrl data validate shows all")


_MAX_WARNINGS = 10
_REASON = ', "reason": '
"""Follows the part of a quarantine line that names manifest and sample; quotes within a text are escaped."""
