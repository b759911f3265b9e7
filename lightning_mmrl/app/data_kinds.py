"""Shared code of stage kinds that make data: a kind that keeps some of its samples, checks, and a writer of samples."""

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate, chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_mmrl.curriculum.graph import data_inputs
from lightning_mmrl.errors import ConfigError, DataError, StageError
from lightning_mmrl.protocols.plain import StageJob, TrackedRun
from lightning_mmrl.settings.data import SourceSettings, TableSettings
from lightning_mmrl.settings.rules import require
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.settings.stage import NodeSettings
from lightning_mmrl.types.records import ArtifactType, Edge, Sample, StageSpec, Training

if TYPE_CHECKING:
    from lightning_mmrl.app.assembly import Assembly

KEPT = "kept"
"""Name of the artifact of a `SelectingKind`."""
DROPPED = "dropped.jsonl"
"""File in that artifact with the id of each sample that is not kept, and the reason."""
TABLE = "table"
"""Name of the input that is a rollout table."""

Select = Callable[[Any, Sequence[Sample]], Mapping[str, str]]
"""Takes the settings of the stage and all samples; maps the id of each sample that is not kept to the reason."""


@dataclass(frozen=True, kw_only=True)
class SelectingKind:
    """Implements `StageKind` for stages that keep some of their samples and read no weights.

        KIND = SelectingKind(settings=CutSettings, select=not_shortest)

    Attributes:
        settings: The keys of a stage, derived from `DataStageSettings`.
        select: Says which samples are not kept, and why.
    """

    settings: type[NodeSettings]
    select: Select
    supervised: bool = False

    def inputs(self, stage: NodeSettings) -> Mapping[str, Edge]:
        """Data that other stages made."""
        return data_inputs(stage)

    def outputs(self, stage: NodeSettings) -> Mapping[str, ArtifactType]:
        """The samples that are kept."""
        return {KEPT: "manifest"}

    def describe(self, stage: NodeSettings) -> str:
        """Says in words that the stage keeps some of its samples."""
        return "keeps some of its samples"

    def check(self, path: str, stage: NodeSettings, config: RunSettings) -> None:
        """Refuses sources with several media roots, and keys that the stage would ignore."""
        check_no_model(path, stage)
        check_each_once(path, stage)
        check_media_root(path, stage, config)

    def preflight(self, path: str, stage: NodeSettings) -> None:
        """Builds nothing."""

    def build(
        self, spec: StageSpec, inputs: Mapping[str, Path], directory: Path, run: TrackedRun, parts: "Assembly"
    ) -> StageJob:
        """Returns a job that reads the samples and applies `select`."""
        from lightning_mmrl.app.stages import data_sources, located_sources

        return SelectingJob(
            spec=spec,
            select=self.select,
            sources=data_sources(spec, inputs, parts.config),
            media_folder=media_root(f"stages.{spec.name}", located_sources(spec, inputs, parts.config)),
            run_log=run,
            leads=parts.group.leads,
        )


@dataclass(kw_only=True)
class SelectingJob:
    """Implements `StageJob` for a `SelectingKind`; it takes seconds, so an interrupted job starts anew.

    Attributes:
        spec: The stage.
        select: As in `SelectingKind`.
        sources: Where the samples are.
        media_folder: Folder that paths of media are relative to.
        run_log: Gets the counts.
        leads: Whether this process is rank 0, which alone reads and writes.
        samples: All samples, after `run`.
        dropped: Maps the id of each sample that is not kept to the reason, after `run`.
    """

    spec: StageSpec
    select: Select
    sources: Mapping[str, SourceSettings]
    media_folder: str
    run_log: TrackedRun
    leads: bool
    samples: Sequence[Sample] = ()
    dropped: Mapping[str, str] = field(default_factory=dict)

    def run(self) -> Training:
        """Selects samples, and returns the counts.

        Raises:
            DataError: A manifest is wrong, or two samples have one id.
            StageError: `select` names a sample that does not exist.
        """
        if not self.leads:
            return Training(metrics={}, num_steps=1)
        self.samples = samples = read_samples(self.sources)
        samples.refuse_repeated(f"stages.{self.spec.name}")
        reasons = self.select(self.spec.settings, self.samples) if self.samples else {}
        self.dropped = {sample.id: reasons[sample.id] for sample in self.samples if sample.id in reasons}
        for unknown in sorted(reasons.keys() - self.dropped.keys()):
            raise StageError(
                f"stages.{self.spec.name}: select of {self.spec.settings.kind} drops {unknown!r}, which is the id of "
                "no sample; correct it"
            )
        metrics = {"data/kept": float(len(self.samples) - len(self.dropped)), "data/dropped": float(len(self.dropped))}
        self.run_log.log_metrics({f"{self.spec.name}/{key}": value for key, value in metrics.items()}, 1)
        return Training(metrics=metrics, num_steps=1)

    def export(self, artifact: str, directory: Path) -> Mapping[str, Any]:
        """Writes the samples that are kept, and the reasons of the others."""
        if not self.leads:
            return {}
        kept = (sample for sample in self.samples if sample.id not in self.dropped)
        write_dropped(directory, ({"id": name, "reason": reason} for name, reason in self.dropped.items()))
        return write_samples(directory, artifact, kept, self.media_folder, Counter(self.dropped.values()))


class Joined(Sequence[Sample]):
    """The samples of several sources, one source after the other; a row of a manifest is read when it is asked for.

    Args:
        parts: The samples of each source.
    """

    def __init__(self, parts: Iterable[Sequence[Sample]]) -> None:
        self._parts = [part for part in parts if len(part)]
        self._ends = list(accumulate(len(part) for part in self._parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[row] for row in range(*place.indices(len(self)))]
        row = range(len(self))[place]
        number = bisect_right(self._ends, row)
        return self._parts[number][row - self._ends[number]]

    def refuse_repeated(self, path: str) -> None:
        """Refuses an id in two sources, for stages that know samples by their ids; within a source ids differ anyway.

        Args:
            path: The key of the stage.

        Raises:
            DataError: Naming the id.
        """
        from lightning_mmrl.data.samples import samples_of

        seen: set[str] = set()
        for name in chain.from_iterable(samples_of(part).ids() for part in self._parts if len(self._parts) > 1):
            if name in seen:
                raise DataError(f"{path}.data.sources: two samples have the id {name!r}; rename one of them")
            seen.add(name)


def read_samples(sources: Mapping[str, SourceSettings]) -> Joined:
    """Returns the samples of all sources, in their order.

    Raises:
        DataError: A manifest is wrong.
    """
    from lightning_mmrl.data.sources import load_source

    return Joined(
        load_source(source.path, source.media_folder, source.format).samples[: source.limit]
        for source in sources.values()
    )


def write_samples(
    directory: Path, artifact: str, kept: Iterable[Sample], root: str, dropped: Mapping[str, int]
) -> dict[str, Any]:
    """Writes the manifest of an artifact, with or without samples, and returns the facts that its readers need.

    Args:
        directory: Folder of the artifact.
        artifact: Its name.
        kept: The samples.
        root: Folder that paths of media are relative to.
        dropped: Numbers of samples that are not kept, by reason.

    Raises:
        DataError: A sample cannot stand in a manifest, or an id repeats.
        DiskError: The disk refuses.
    """
    from lightning_mmrl.data.manifest_lines import write_manifest

    name = f"{artifact}.jsonl"
    number = write_manifest(directory / name, kept, may_be_empty=True)
    return {"artifact": artifact, "media_root": root, "manifest": name, "counts": {"kept": number, **dropped}}


def write_dropped(directory: Path, dropped: Iterable[Mapping[str, Any]]) -> None:
    """Writes the file with a line for each row that an artifact does not have, and the reason.

    Raises:
        DiskError: The disk refuses.
    """
    from lightning_mmrl.files import write_pieces

    write_pieces(directory / DROPPED, (f"{json.dumps(row)}\n".encode() for row in dropped))


def table_inputs(table: TableSettings | None, name: str = TABLE) -> dict[str, Edge]:
    """Returns the input of a stage that reads the rollout table of another one; `name` is the key of the table."""
    return {} if table is None else {name: Edge(table.stage, table.artifact, "table")}


def check_no_model(path: str, stage: NodeSettings) -> None:
    """Refuses keys that only a stage with a model uses: the texts around its prompts, and how it samples.

    Raises:
        ConfigError: Such a key is set.
    """
    require(stage.prompt is None, f"{path}.prompt", "set", "null: no prompt is built")
    require(stage.sampling is None, f"{path}.sampling", "set", "null: nothing is sampled")


def check_each_once(path: str, stage: NodeSettings) -> None:
    """Refuses keys that draw samples or leave media out: a stage that makes data reads each sample once and whole.

    Raises:
        ConfigError: Such a key is set.
    """
    key, data = f"{path}.data", stage.data
    require(data.balance is None, f"{key}.balance", data.balance, "null: each sample is read once")
    for name, rate in asdict(data.modality_dropout).items():
        require(rate == 0, f"{key}.modality_dropout.{name}", rate, "0: samples keep their media")
    for name, source in data.sources.items():
        once = source.weight in (None, 1)
        require(once, f"{key}.sources.{name}.weight", source.weight, "null: each sample is read once")


def check_unread(path: str, stage: NodeSettings) -> None:
    """Refuses keys of data that the stage would ignore, since it has neither manifest nor sources.

    The limit of a named dataset is left alone, since it comes from there.

    Raises:
        ConfigError: Such a key is set.
    """
    data, rule = stage.data, "null without manifest and sources: no samples are read"
    if not (data.manifest or data.sources):
        require(data.limit is None or data.dataset, f"{path}.data.limit", data.limit, rule)
        require(data.module is None, f"{path}.data.module", "set", rule)


def check_media_root(path: str, stage: NodeSettings, config: RunSettings) -> None:
    """Refuses several media roots among the sources that exist before the run.

    Raises:
        ConfigError: There are several.
    """
    located = stage.data.located(config.dataset(stage.data.dataset))
    media_root(path, {name: source for name, source in located.items() if source.stage is None})


def media_root(path: str, sources: Mapping[str, SourceSettings]) -> str:
    """Returns the folder that paths of media are relative to.

    Raises:
        ConfigError: The sources have several such folders.
    """
    roots = sorted({str(source.media_folder) for source in sources.values()})
    if len(roots) > 1:  # checked before the run, and again when another stage has made a source
        raise ConfigError(
            f"{path}.data.sources have media below {' and '.join(roots)}, and a stage that makes data has one media "
            "root; read the sources in several stages"
        )
    return next(iter(roots), "")
