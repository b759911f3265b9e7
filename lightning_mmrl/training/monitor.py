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

    def leave_out(self, manifest: str, num_samples: int, num_left_out: int, new: Sequence[Quarantined]) -> None:
        """Names the first samples of a manifest that are left out, and writes each down once for the whole run.

        After the first three, the count is said whenever it has doubled.
        """
        new = [item for item in new if (manifest, item.sample_id) not in self.told]
        if self.path is None or not new:
            return
        self.told.update((manifest, item.sample_id) for item in new)
        before = num_left_out - len(new)
        for item in new[: max(0, 3 - before)]:
            self.console.say(f"{manifest}: left out {item.sample_id}: {item.reason}")
        if num_left_out > 3 and num_left_out.bit_length() > max(3, before).bit_length():
            found = f"{num_left_out} of {num_samples} samples left out so far"
            self.console.say(f"{manifest}: {found}, all named in {self.path}")
        self._write_down(manifest, new)

    def _write_down(self, manifest: str, left_out: Sequence[Quarantined]) -> None:
        assert self.path is not None
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
