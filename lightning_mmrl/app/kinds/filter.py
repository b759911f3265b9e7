"""Keeps some rows: prompts of a rollout table, right answers of a table, or samples of manifests."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_mmrl.app.data_kinds import (
    KEPT,
    TABLE,
    check_each_once,
    check_media_root,
    check_no_model,
    check_unread,
    media_root,
    read_samples,
    table_inputs,
    write_dropped,
    write_samples,
)
from lightning_mmrl.config.checks.answers import check_answer_selection
from lightning_mmrl.config.checks.values import check_rewards
from lightning_mmrl.curriculum.graph import data_inputs
from lightning_mmrl.errors import ConfigError, StageError
from lightning_mmrl.protocols.plain import StageJob, TrackedRun
from lightning_mmrl.settings.data import SourceSettings
from lightning_mmrl.settings.filter import FilterSettings
from lightning_mmrl.settings.rules import require
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.settings.selection import SelectionSettings
from lightning_mmrl.types.records import ArtifactType, Completion, Edge, Sample, StageSpec, Training

if TYPE_CHECKING:
    from lightning_mmrl.app.assembly import Assembly
    from lightning_mmrl.data.rollout_table import RolloutRow

OF_TABLES = {"min_pass_rate": None, "max_pass_rate": None, "mixed": False, "min_judged": 1}
"""Keys that need a table, and the values that say nothing."""


class FilterKind:
    """Implements `StageKind`."""

    settings = FilterSettings
    supervised = False

    def inputs(self, stage: FilterSettings) -> Mapping[str, Edge]:
        """The table, or data that other stages made."""
        return {**table_inputs(stage.table), **data_inputs(stage)}

    def outputs(self, stage: FilterSettings) -> Mapping[str, ArtifactType]:
        """The rows that are kept."""
        return {KEPT: "manifest"}

    def describe(self, stage: FilterSettings) -> str:
        """Says in words what is kept."""
        if stage.table is None:
            what = "samples with a right target" if stage.right else "samples"
        else:
            what = "right answers" if stage.right else "prompts"
        low, high = stage.min_pass_rate or 0, 1 if stage.max_pass_rate is None else stage.max_pass_rate
        band = f" with a pass rate from {low:g} to {high:g}" if (low, high) != (0, 1) else ""
        mixed = ", solved sometimes" if stage.mixed else ""
        return f"keeps {what}{band}{mixed}{f', even by {stage.even.by}' if stage.even.by else ''}"

    def check(self, path: str, stage: FilterSettings, config: RunSettings) -> None:
        """Refuses two kinds of rows at once, keys that the rows do not have, and bounds that leave no room."""
        data, table = bool(stage.data.manifest or stage.data.sources), stage.table is not None
        if data and table:
            raise ConfigError(f"{path} has a table and data; filter the one or the other, and set {path}.table to null")
        for key, unset in OF_TABLES.items():
            value = getattr(stage, key)
            rule = f"{'null' if unset is None else str(unset).lower()} without {path}.table"
            require(table or value == unset, f"{path}.{key}", str(value).lower(), rule)
        low, high = stage.min_pass_rate, stage.max_pass_rate
        ordered = low is None or high is None or low <= high
        require(ordered, f"{path}.min_pass_rate", low, f"at most {path}.max_pass_rate, which is {high}, or null")
        check_answer_selection(f"{path}.keep", stage.keep)
        even, chosen = stage.even, stage.right and table
        fits = stage.debugging or not stage.keep.wrong
        require(fits, f"{path}.keep.wrong", "true", "false: right answers are kept")
        fits = stage.debugging or chosen or stage.keep == SelectionSettings()
        require(fits, f"{path}.keep", "set", f"as in stage/filter: only {path}.right of a table chooses answers")
        require(even.by or even.at_most is None, f"{path}.even.at_most", even.at_most, f"null without {path}.even.by")
        judged = stage.right and not table
        if judged and stage.rewards is None:
            raise ConfigError(f"{path}.rewards: is missing; they say whether a target is right")
        if stage.rewards is not None:
            require(judged, f"{path}.rewards", "set", f"null: only {path}.right without a table judges anything")
            check_rewards(f"{path}.rewards", stage.rewards)
        check_no_model(path, stage)
        if not stage.debugging:  # a debug run has limited the data
            check_unread(path, stage)
        check_each_once(path, stage)
        check_media_root(path, stage, config)

    def preflight(self, path: str, stage: FilterSettings) -> None:
        """Builds the rewards, if targets are judged."""
        from lightning_mmrl.app.preflight import preflight_rewards

        if stage.rewards is not None:
            preflight_rewards(path, stage.rewards)

    def build(
        self, spec: StageSpec, inputs: Mapping[str, Path], directory: Path, run: TrackedRun, parts: "Assembly"
    ) -> StageJob:
        """Returns the job; it reads nothing yet."""
        from lightning_mmrl.app.stages import data_sources, located_sources, made_table

        if TABLE in inputs:
            files, root = made_table(inputs[TABLE], parts.config)
            return FilterJob(spec=spec, files=files, media_folder=root, run_log=run, parts=parts)
        sources = data_sources(spec, inputs, parts.config)
        root = media_root(f"stages.{spec.name}", located_sources(spec, inputs, parts.config))
        return FilterJob(spec=spec, sources=sources, media_folder=root, run_log=run, parts=parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One row: its id, the sample that it would become, and why it is left out, if it is.

    A row of a manifest has the `place` of its sample among all, which is read again once it is kept. `value` is the
    row's value in the column that is made even.
    """

    id: str
    sample: Sample | None = None
    place: int | None = None
    reason: str | None = None
    value: Any = None
    pass_rate: float | None = None


@dataclass(kw_only=True)
class FilterJob:
    """Implements `StageJob`; it takes seconds, so an interrupted job starts anew.

    Attributes:
        spec: The stage.
        media_folder: Folder that paths of media are relative to.
        run_log: Gets the counts.
        parts: The parts of the run.
        files: The files of the table, none if it is empty; None for a stage without a table.
        sources: Where the samples are, if it has no table.
        rows: All rows, after `run`.
        samples: The samples of the sources, after `run`.
    """

    spec: StageSpec
    media_folder: str
    run_log: TrackedRun
    parts: "Assembly"
    files: Sequence[Path] | None = None
    sources: Mapping[str, SourceSettings] = field(default_factory=dict)
    rows: Sequence[Candidate] = ()
    samples: Sequence[Sample] = ()

    @property
    def stage(self) -> FilterSettings:
        """The settings of the stage."""
        assert isinstance(self.spec.settings, FilterSettings)
        return self.spec.settings

    def run(self) -> Training:
        """Looks at all rows on rank 0 while the other ranks wait, and returns the counts.

        Raises:
            DataError: The table or a manifest is wrong, two samples have one id, or no row has the column.
            RewardError: The rewards cannot judge the targets.
        """
        group, metrics = self.parts.group, {}
        with group.first():
            metrics = self._filtered() if group.leads else {}
        return Training(metrics=metrics, num_steps=1)

    def export(self, artifact: str, directory: Path) -> Mapping[str, Any]:
        """Writes the rows that are kept, and the reasons of the others.

        Raises:
            StageError: A row is neither kept nor left out.
        """
        if not self.parts.group.leads:
            return {}
        dropped = [row for row in self.rows if row.reason is not None]
        lines = ({"id": row.id, "reason": row.reason, "pass_rate": row.pass_rate} for row in dropped)
        write_dropped(directory, lines)
        num_kept = sum(row.reason is None and (row.sample, row.place) != (None, None) for row in self.rows)
        if num_kept + len(dropped) != len(self.rows):
            raise StageError(
                f"stages.{self.spec.name}: {num_kept} kept and {len(dropped)} left out of {len(self.rows)}"
            )
        reasons = Counter(str(row.reason) for row in dropped)
        return write_samples(directory, artifact, self._kept(), self.media_folder, reasons)

    def _kept(self) -> Iterator[Sample]:
        for row in self.rows:
            if row.reason is None and row.sample is not None:
                yield row.sample
            elif row.reason is None and row.place is not None:
                yield self.samples[row.place]

    def _filtered(self) -> dict[str, float]:
        self.rows = self._evened(list(self._of_manifests() if self.files is None else self._of_table(self.files)))
        kept = sum(row.reason is None for row in self.rows)
        metrics = {"data/kept": float(kept), "data/dropped": float(len(self.rows) - kept)}
        self.run_log.log_metrics({f"{self.spec.name}/{key}": value for key, value in metrics.items()}, 1)
        return metrics

    def _of_table(self, files: Sequence[Path]) -> Iterator[Candidate]:
        """The prompts of the table, or with `right` its answers."""
        from lightning_mmrl.data.answer_selection import select_answers
        from lightning_mmrl.data.filtering import prompt_reason
        from lightning_mmrl.data.rollout_table import iter_table

        rows = (row for path in files for row in iter_table(path))
        for selection in select_answers(rows, self.stage.keep):
            row, reason = selection.row, prompt_reason(selection.row, self.stage)
            common = {"value": self._value(row.sample, row), "pass_rate": row.pass_rate}
            if not self.stage.right:
                yield Candidate(id=row.sample.id, sample=row.sample, reason=reason, **common)
                continue
            for kept in selection.kept:
                yield Candidate(id=kept.sample.id, sample=kept.sample, reason=reason, **common)
            for left in selection.dropped:
                yield Candidate(id=f"{row.sample.id}#{left.place}", reason=reason or left.reason, **common)

    def _of_manifests(self) -> list[Candidate]:
        """The samples; with `right`, those with a wrong target have a reason."""
        self.samples = samples = read_samples(self.sources)
        samples.refuse_repeated(f"stages.{self.spec.name}")
        reasons = self._verdicts(self.samples) if self.stage.right else [None] * len(self.samples)
        return [
            Candidate(id=sample.id, place=place, reason=reason, value=self._value(sample))
            for place, (sample, reason) in enumerate(zip(self.samples, reasons, strict=True))
        ]

    def _verdicts(self, samples: Sequence[Sample]) -> list[str | None]:
        """Why the target of each sample is not right; None if it is."""
        from lightning_mmrl.app.experts import Judge

        assert self.stage.rewards is not None
        targets = [sample for sample in samples if sample.messages[-1].role == "assistant"]
        answers = [
            Completion(text=text, num_tokens=len(text.split()), truncated=False)
            for text in (sample.messages[-1].content for sample in targets)
        ]
        if not targets:
            return ["no_target"] * len(samples)
        with Judge.of(self.stage.rewards, f"stages.{self.spec.name}.rewards", self.parts) as judge:
            verdicts = [judge.verdict(score) for score in judge.scores(targets, answers)]
        found = dict(zip((sample.id for sample in targets), verdicts, strict=True))
        return [found.get(sample.id, "no_target") for sample in samples]

    def _value(self, sample: Sample, row: "RolloutRow | None" = None) -> Any:
        from lightning_mmrl.data.filtering import PASS_RATE, column_value

        column = self.stage.even.by
        if column is None:
            return None
        return row.pass_rate if column == PASS_RATE and row is not None else column_value(sample, column)

    def _evened(self, rows: list[Candidate]) -> list[Candidate]:
        """Gives rows a reason until each value of the column is equally frequent among those without one."""
        from lightning_mmrl.data.filtering import evened

        if self.stage.even.by is None:
            return rows
        left = [row for row in rows if row.reason is None]
        dropped = evened([row.id for row in left], [row.value for row in left], self.stage.even, self.spec.seed)
        return [replace(row, reason=dropped[row.id]) if row.id in dropped else row for row in rows]


KIND = FilterKind()
