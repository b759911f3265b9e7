"""A tracker of a user's own: lines in a file, in place of the calls of a service's client."""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class LinesRun:
    """One run; each call is a line."""

    id: str
    path: Path

    def note(self, what, **values):
        with self.path.open("a") as lines:
            lines.write(json.dumps({"run": self.id, "what": what, **values}) + "\n")

    def log_metrics(self, metrics, step, time_s=None):
        self.note("metrics", keys=sorted(metrics), step=step)

    def log_params(self, params):
        self.note("params", keys=sorted(params))

    def set_tags(self, tags):
        self.note("tags", keys=sorted(tags))

    def log_artifact(self, path, folder=None):
        self.note("artifact", name=path.name)

    def log_dataset(self, name, digest, source, context, profile):
        self.note("dataset", name=name)

    def finish(self, status):
        self.note("finish", status=status)


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Opens runs; a folder's lines are those of all of them."""

    project: str
    folder: Path

    def open_run(self, name, *, parent_id=None, run_id=None, tags=None):
        self.folder.mkdir(parents=True, exist_ok=True)
        run = LinesRun(id=f"{self.project}/{name}", path=self.folder / "lines.jsonl")
        run.note("open", parent=parent_id)
        return run

    def close(self):
        pass


@dataclass(frozen=True, kw_only=True)
class NoTracker:
    """Lacks the methods of a tracker."""

    folder: Path
