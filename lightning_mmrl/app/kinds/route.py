"""Sorts the prompts of a rollout table by pass rate, asks experts for those that are never solved, and makes pairs.

The stage makes five artifacts, each a manifest that a later stage may read: `own` (right answers of the model to
prompts that it sometimes solves), `expert` (verified answers of experts to prompts that it never solves), `solved` and
`unsolved` (prompts), and `pairs` (prompts with a right and a wrong answer).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_mmrl.app.data_kinds import (
    check_each_once,
    check_media_root,
    media_root,
    read_samples,
    table_inputs,
    write_dropped,
    write_samples,
)
from lightning_mmrl.config.checks.answers import check_answer_selection
from lightning_mmrl.config.checks.experts import check_expert
from lightning_mmrl.config.checks.values import check_rewards
from lightning_mmrl.curriculum.graph import data_inputs
from lightning_mmrl.errors import ConfigError, DataError, StageError
from lightning_mmrl.protocols.plain import StageJob, TrackedRun
from lightning_mmrl.settings.data import SourceSettings
from lightning_mmrl.settings.route import RouteSettings
from lightning_mmrl.settings.rules import require
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.types.records import ArtifactType, Edge, Sample, StageSpec, Training

if TYPE_CHECKING:
    from lightning_mmrl.app.assembly import Assembly
    from lightning_mmrl.app.experts import Consultation, Verified
    from lightning_mmrl.data.rollout_table import RolloutRow


class RouteKind:
    """Implements `StageKind`."""

    settings = RouteSettings
    supervised = True  # the stage's data are traces, which end with an answer

    def inputs(self, stage: RouteSettings) -> Mapping[str, Edge]:
        """The table, and traces that other stages made."""
        return {**table_inputs(stage.table), **data_inputs(stage)}

    def outputs(self, stage: RouteSettings) -> Mapping[str, ArtifactType]:
        """A manifest for each place that a prompt may go to, and the pairs."""
        from lightning_mmrl.data.routing import ARTIFACTS

        return dict.fromkeys(ARTIFACTS, "manifest")

    def describe(self, stage: RouteSettings) -> str:
        """Says in words which prompts go where."""
        experts = [*(["traces"] if _has_traces(stage) else []), *([stage.expert.model] if stage.expert else [])]
        low, high = f"{stage.unsolved_at_most:g}", f"{stage.solved_at_least:g}"
        return f"solved from {high}, never solved up to {low}; expert: {', '.join(experts) or 'none'}"

    def check(self, path: str, stage: RouteSettings, config: RunSettings) -> None:
        """Refuses a stage without a table, bounds that leave no room, wrong answers, and half an expert."""
        if stage.table is None:
            raise ConfigError(f"{path}.table: is missing; name the stage that sampled, such as {path}.table.stage=draw")
        low, high = stage.unsolved_at_most, stage.solved_at_least
        require(low < high, f"{path}.unsolved_at_most", low, f"below {path}.solved_at_least, which is {high:g}")
        check_answer_selection(f"{path}.keep", stage.keep)
        require(not stage.keep.wrong, f"{path}.keep.wrong", "true", "false: nothing wrong is learned")
        check_expert(path, stage.expert, stage.endpoint)
        for part, needed in (("rewards", _has_traces(stage) or stage.expert), ("sampling", stage.expert)):
            if needed and getattr(stage, part) is None:
                raise ConfigError(
                    f"{path}.{part}: is missing; a stage with an expert needs it, take it from stage/route"
                )
        if stage.rewards is not None:
            check_rewards(f"{path}.rewards", stage.rewards)
        check_each_once(path, stage)
        check_media_root(path, stage, config)

    def preflight(self, path: str, stage: RouteSettings) -> None:
        """Builds the rewards."""
        from lightning_mmrl.app.preflight import preflight_rewards

        if stage.rewards is not None:
            preflight_rewards(path, stage.rewards)

    def build(
        self, spec: StageSpec, inputs: Mapping[str, Path], directory: Path, run: TrackedRun, parts: "Assembly"
    ) -> StageJob:
        """Returns the job; it reads nothing yet."""
        from lightning_mmrl.app.data_kinds import TABLE
        from lightning_mmrl.app.stages import data_sources, located_sources, made_table

        files, root = made_table(inputs[TABLE], parts.config)
        traces, located = data_sources(spec, inputs, parts.config), located_sources(spec, inputs, parts.config)
        if located and Path(media_root(f"stages.{spec.name}", located)).resolve() != Path(root).resolve():
            raise ConfigError(
                f"stages.{spec.name}.data: the traces have media below {media_root('', located)}, and the table below "
                f"{root}; take the traces of this dataset"
            )
        return RouteJob(spec=spec, files=files, media_folder=root, traces=traces, run_log=run, parts=parts)


def _has_traces(stage: RouteSettings) -> bool:
    return bool(stage.data.manifest or stage.data.sources)


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """One prompt: its place in the rule, and for each artifact that it is not in, the reason."""

    id: str
    pass_rate: float | None
    standing: str
    absent: Mapping[str, str]


@dataclass(kw_only=True)
class RouteJob:
    """Implements `StageJob`. What an interrupted job was told by experts is on disk, and the rest takes seconds.

    Attributes:
        spec: The stage.
        files: The files of the table; none if it is empty.
        media_folder: Folder that paths of media are relative to.
        traces: Where known answers are.
        run_log: Gets the counts.
        parts: The parts of the run.
        routed: All prompts, after `run`.
        consultation: The answers of experts, after `run`; None if there is no expert.
        own: Counts of the model's answers by the reason why they are not kept, and `kept`.
    """

    spec: StageSpec
    files: Sequence[Path]
    media_folder: str
    traces: Mapping[str, SourceSettings]
    run_log: TrackedRun
    parts: "Assembly"
    routed: list[Routed] = field(default_factory=list)
    consultation: "Consultation | None" = None
    own: Counter[str] = field(default_factory=Counter)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def stage(self) -> RouteSettings:
        """The settings of the stage."""
        assert isinstance(self.spec.settings, RouteSettings)
        return self.spec.settings

    def run(self) -> Training:
        """Sorts all prompts on rank 0 while the other ranks wait, and returns the counts.

        Raises:
            DataError: The table is damaged, or the traces are of another dataset.
            StageError: The endpoint is down; its answers so far are kept.
            RewardError: The rewards cannot judge the answers.
        """
        group, metrics = self.parts.group, {}
        with group.first():
            metrics = self._sorted() if group.leads else {}
        return Training(metrics=metrics, num_steps=1)

    def export(self, artifact: str, directory: Path) -> Mapping[str, Any]:
        """Writes the samples of an artifact, and the reason of each prompt that is not among them.

        Raises:
            StageError: An answer that is not verified is about to be taught, or a prompt is lost.
        """
        if not self.parts.group.leads:
            return {}
        absent = {each.id: each for each in self.routed if artifact in each.absent}
        rows = (
            {"id": each.id, "reason": each.absent[artifact], "pass_rate": each.pass_rate} for each in absent.values()
        )
        write_dropped(directory, rows)
        reasons = Counter(each.absent[artifact] for each in absent.values())
        num_prompts = len(self.routed) - len(absent)
        written: set[str] = set()
        samples = self._samples(artifact, absent, written)
        facts = write_samples(directory, artifact, samples, self.media_folder, {"prompts": num_prompts, **reasons})
        if len(written) != num_prompts or num_prompts + reasons.total() != len(self.routed):
            raise StageError(
                f"stages.{self.spec.name}: artifact {artifact} has {len(written)} prompts and {reasons.total()} "
                f"without it, of {len(self.routed)}; the table changed meanwhile, run the stage again"
            )
        return {**facts, "routing": self.facts}

    def _sorted(self) -> dict[str, float]:
        """Sorts the prompts and asks experts; returns the metrics of the stage."""
        from lightning_mmrl.app.experts import share_metrics
        from lightning_mmrl.data.routing import standing_of

        never = [row.sample for row in self._rows() if standing_of(row.pass_rate, self.stage) == "never_solved"]
        cost = self._consult(never)
        self.routed = [self._route(row) for row in self._rows()]
        standings = Counter(each.standing for each in self.routed)
        verdicts = {} if self.consultation is None else self.consultation.verdicts
        self.facts = {
            "prompts": dict(sorted(standings.items())),
            "own_answers": dict(sorted(self.own.items())),
            "experts": {name: dict(sorted(counts.items())) for name, counts in verdicts.items()},
        }
        metrics = {f"data/{name}": float(number) for name, number in sorted(standings.items())}
        metrics |= share_metrics(verdicts) | cost
        self.run_log.log_metrics({f"{self.spec.name}/{key}": value for key, value in metrics.items()}, 1)
        return metrics

    def _rows(self) -> "Iterator[RolloutRow]":
        """Yields the rows of the table.

        Raises:
            DataError: A prompt has two rows, or a row is damaged.
        """
        from lightning_mmrl.data.rollout_table import iter_table

        seen: set[str] = set()
        for path in self.files:
            for row in iter_table(path):
                if row.sample.id in seen:
                    raise DataError(f"{path}: prompt {row.sample.id!r} has two rows; make the ids of prompts unique")
                seen.add(row.sample.id)
                yield row

    def _consult(self, prompts: Sequence[Sample]) -> dict[str, float]:
        """Asks the traces and then the endpoint, and returns the cost as metrics."""
        from lightning_mmrl.app.experts import Consultation, Judge, chat_endpoint
        from lightning_mmrl.curriculum.experts.traces import Traces

        stage, path, cost = self.stage, f"stages.{self.spec.name}", {}
        if stage.debugging or stage.rewards is None or not self.files or not (self.traces or stage.expert):
            return cost
        with Judge.of(stage.rewards, f"{path}.rewards") as judge:
            self.consultation = asking = Consultation(
                settings=stage, stage_seed=self.spec.seed, template=self.parts.template, judge=judge
            )
            if self.traces:
                traces = Traces(read_samples(self.traces), f"{path}.data")
                for row in self._rows():
                    traces.check(row.sample)
                traces.refuse_strangers()
                asking.consult(traces, prompts)
                cost["expert/unmatched_traces"] = float(traces.num_strangers)
            poll = self.parts.group.interruption.poll
            with chat_endpoint(self.spec, self.parts, Path(self.media_folder), poll, self._progress) as endpoint:
                if endpoint is not None:
                    asking.consult(endpoint, prompts)
                    cost["expert/requests"] = float(endpoint.ledger.num_requests)
                    cost["expert/tokens"] = float(endpoint.ledger.num_tokens)
                    self.parts.console.say(f"{self.parts.title(self.spec)}: asked {endpoint.name}: {endpoint.cost}")
        return cost

    def _progress(self, done: int, total: int, details: str) -> None:
        self.parts.console.update(f"{self.parts.title(self.spec)}: asking", done, total, details)

    def _route(self, row: "RolloutRow") -> Routed:
        """Sorts one prompt, now that its experts have answered."""
        from lightning_mmrl.app.experts import NO_EXPERT
        from lightning_mmrl.data.answer_selection import select_row
        from lightning_mmrl.data.routing import absences, pairs_of, standing_of

        selection, asked = select_row(row, self.stage.kept), self.consultation
        self.own.update(each.reason for each in selection.dropped)
        self.own["kept"] += len(selection.kept)
        no_answer = NO_EXPERT if asked is None else asked.problems.get(row.sample.id, NO_EXPERT)
        if self.stage.debugging:
            no_answer = None if selection.kept else "no_answer_kept"
        elif asked is not None and row.sample.id in asked.verified:
            no_answer = None
        standing = standing_of(row.pass_rate, self.stage)
        absent = absences(
            standing,
            self.stage,
            keeps_own=bool(selection.kept),
            no_pair=pairs_of(row, self.stage)[1],
            no_answer=no_answer,
        )
        return Routed(id=row.sample.id, pass_rate=row.pass_rate, standing=standing, absent=absent)

    def _samples(self, artifact: str, absent: Mapping[str, Routed], written: set[str]) -> Iterator[Sample]:
        """Yields the samples of an artifact, and adds the ids of their prompts to `written`."""
        for row in self._rows():
            if row.sample.id not in absent:
                written.add(row.sample.id)
                yield from self._made(artifact, row)

    def _made(self, artifact: str, row: "RolloutRow") -> Sequence[Sample]:
        """The samples that one prompt gives to an artifact."""
        from lightning_mmrl.data.answer_selection import select_row
        from lightning_mmrl.data.routing import EXPERT, OWN, PAIRS, pairs_of

        if artifact == PAIRS:
            return pairs_of(row, self.stage)[0]
        if artifact == OWN or (artifact == EXPERT and self.stage.debugging):
            kept = select_row(row, self.stage.kept).kept
            unverified = [each for each in kept if row.right[each.place] is not True and not self.stage.debugging]
            if unverified:
                raise StageError(f"stages.{self.spec.name}: answer {unverified[0].sample.id!r} is not verified")
            if artifact == OWN:
                return [each.sample for each in kept]
            return [replace(each.sample, id=f"{each.sample.id}-{EXPERT}") for each in kept[:1]]
        return [self._verified(row.sample).sample] if artifact == EXPERT else [row.sample]

    def _verified(self, prompt: Sample) -> "Verified":
        """Returns the expert's answer to a prompt.

        Raises:
            StageError: The rewards did not say that it is right.
        """
        assert self.consultation is not None
        found = self.consultation.verified[prompt.id]
        if self.consultation.judge.verdict(found.score) is not None:
            raise StageError(f"stages.{self.spec.name}: answer {found.sample.id!r} of {found.expert} is not verified")
        return found


KIND = RouteKind()
