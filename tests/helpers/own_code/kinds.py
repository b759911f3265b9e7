"""A kind of stage of a user's own: takes the first samples of its manifest."""

from dataclasses import dataclass
from pathlib import Path

from lightning_mmrl.curriculum.graph import usual_inputs
from lightning_mmrl.settings.setting import setting
from lightning_mmrl.settings.stage import NodeSettings
from lightning_mmrl.types.records import Training


@dataclass
class TakeSettings(NodeSettings):
    """One stage that takes samples."""

    num: int = setting(1, at_least=1)
    """Samples to take."""


class TakeKind:
    """Implements `StageKind`."""

    settings = TakeSettings
    supervised = True

    def inputs(self, stage):
        return usual_inputs(stage)

    def outputs(self, stage):
        return {"taken": "manifest"}

    def describe(self, stage):
        return f"{stage.num} samples"

    def check(self, path, stage, config):
        pass

    def preflight(self, path, stage):
        pass

    def build(self, spec, inputs, directory, run, parts):
        (source,) = spec.settings.data.located(parts.config.data).values()
        return TakeJob(source.path, spec.settings.num)


class TakeJob:
    """Copies lines."""

    def __init__(self, manifest: Path, num: int):
        self.manifest, self.num = manifest, num

    def run(self):
        return Training(metrics={"taken": float(self.num)}, num_steps=1)

    def export(self, artifact, directory):
        lines = self.manifest.read_text().splitlines(keepends=True)[: self.num]
        (directory / "taken.jsonl").write_text("".join(lines))
        return {"manifest": "taken.jsonl", "media_root": str(self.manifest.parent), "counts": {"kept": len(lines)}}


KIND = TakeKind()
