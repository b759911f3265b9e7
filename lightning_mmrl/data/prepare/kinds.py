"""Opens the files of a set, each once, and finds the media of a row: picture and sound, or one of them alone."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from lightning_mmrl.data.media.examine import Guard, fault, held_kinds
from lightning_mmrl.data.media_files import resolve_media
from lightning_mmrl.data.prepare.rows import PrepareRequest, Row
from lightning_mmrl.data.schema import LineError, Problem
from lightning_mmrl.errors import DataError
from lightning_mmrl.types.records import MediaKind, MediaRef

BOTH, AUDIO_ONLY, VIDEO_ONLY = "", "audio_only", "video_only"

Media = Mapping[MediaKind, str]
Progress = Callable[[int, int], None]


class MediaKinds:
    """The kinds of media that files hold, each opened once; files that cannot be opened become problems."""

    def __init__(self, request: PrepareRequest, guard: Guard, on_progress: Progress, problems: list[Problem]) -> None:
        self._root, self._guard, self._on_progress, self._problems = request.root, guard, on_progress, problems
        self._kinds: dict[str, Sequence[MediaKind]] = {}
        self.used: list[Row] = []
        self.notes: list[str] = []

    def look(self, paths: Iterable[str | None]) -> None:
        """Opens the files that are not known yet."""
        media: list[tuple[Path, MediaRef]] = []
        for path in dict.fromkeys(path for path in paths if path is not None and path not in self._kinds):
            self._kinds[path] = ()
            try:
                media.append((resolve_media(path, self._root, path), MediaRef(kind="video", path=path)))
            except LineError as error:
                self._problems.append(Problem(file=path, line=0, group=error.group, reason=error.reason))
        if not media:
            return
        for (_, ref), outcome in zip(
            media, self._guard.run(held_kinds, media, self._root, self._on_progress), strict=True
        ):
            if outcome.error is None:
                self._kinds[ref.path] = outcome.value
            else:
                problem = Problem(file=ref.path, line=0, group=fault(outcome.error), reason=outcome.error)
                self._problems.append(problem)

    def open_rows(self, rows: Sequence[Row], asked: Sequence[str]) -> list[str]:
        """Opens the files of the rows and returns the copies that can be written: `BOTH` first, then those asked for.

        Sets `used`, the rows that have the media of the first copy; names the others as problems.

        Raises:
            DataError: No row has a file of picture and sound, and no copy is asked for.
        """
        copies = [BOTH, *asked]
        if not any(row.clip for row in rows):
            if not asked:
                problems = self._problems
                first = f"; the first of {len(problems)} problems: {problems[0]}" if problems else ""
                raise DataError(
                    f"none of {len(rows)} clips has a file with picture and sound in {self._root}, such as that of "
                    f"{rows[0].where}; complete the download, or give --audio-only or --video-only for files of one "
                    f"medium{first}"
                )
            copies = list(asked)
            self.notes.append(f"no file has picture and sound: only {' and '.join(copies)} is written")
        self.look(row.clip for row in rows)
        self.look(row.sound for row in rows if not self.holds(row.clip, "audio"))
        self.look(row.picture for row in rows if VIDEO_ONLY in copies and not self.holds(row.clip, "video"))
        failed: dict[str, Row] = {}
        for row in rows:
            if self.media(row, copies[0]) is None:
                failed.setdefault(row.name, row)
            else:
                self.used.append(row)
        for row in failed.values():
            self._name(row, copies[0])
        distinct = {row.name: row for row in self.used}.values()
        for copy in copies:
            lacking = [row.name for row in distinct if not self._complete(row, copy)]
            if lacking:
                what = "clips without sound" if copy == BOTH else f"clips that {copy} has not"
                shown = ", ".join(lacking[:5]) + (", ..." if len(lacking) > 5 else "")
                self.notes.append(f"{what}: {len(lacking)} ({shown})")
        if left_out := sum(row.label is None for row in distinct):
            self.notes.append(f"clips that are counted but left out of the manifests: {left_out}")
        return copies

    def _complete(self, row: Row, copy: str) -> bool:
        media = self.media(row, copy)
        return media is not None and (copy != BOTH or "audio" in media)

    def _name(self, row: Row, copy: str) -> None:
        """Names a row without the copy's media; a file that does not open has been named already."""
        given = {BOTH: (row.clip,), AUDIO_ONLY: (row.clip, row.sound), VIDEO_ONLY: (row.clip, row.picture)}[copy]
        what = {BOTH: "picture", AUDIO_ONLY: "sound", VIDEO_ONLY: "picture"}[copy]
        if not any(given):
            what = "file with picture and sound" if copy == BOTH else f"file with {what}"
            reason = f"clip {row.name} has no {what}; complete the download, or accept the loss by --allow-missing"
            self._problems.append(row.problem("missing file", reason))
        elif any(path and self._kinds[path] for path in given):
            reason = f"{' and '.join(filter(None, given))} has no {what}; download it again"
            self._problems.append(row.problem("no track", reason))

    def holds(self, path: str | None, kind: MediaKind) -> bool:
        return path is not None and kind in self._kinds.get(path, ())

    def media(self, row: Row, copy: str) -> Media | None:
        """The files of a row's media for a copy; None if it has none."""
        if copy == AUDIO_ONLY:
            path = next((path for path in (row.clip, row.sound) if self.holds(path, "audio")), None)
            return None if path is None else {"audio": path}
        path = next((path for path in (row.clip, row.picture) if self.holds(path, "video")), None)
        if copy == VIDEO_ONLY or path is None:
            return None if path is None else {"video": path}
        if row.clip is None:
            return None
        heard = next((path for path in (row.clip, row.sound) if self.holds(path, "audio")), None)
        return {"video": path} if heard is None else {"video": path, "audio": heard}
