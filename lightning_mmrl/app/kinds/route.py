"""Sorts the prompts of a rollout table by pass rate, asks experts for those that are never solved, and makes pairs.

With a table, the stage makes five artifacts, each a manifest that a later stage may read: `own` (right answers of the
model to prompts that it sometimes solves), `expert` (verified answers of experts to prompts that it never solves),
`solved` and `unsolved` (prompts), and `pairs` (prompts with a right and a wrong answer). With prompts that no model has
answered, it makes `expert`, `unsolved` and `answers`, a table of the verified answers.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_mmrl.app.data_kinds import (
    check_each_once,
    check_media_root,
    check_unread,
    media_root,
    read_samples,
    table_inputs,
    write_dropped,
    write_samples,
)
from lightning_mmrl.config.checks.answers import check_answer_selection
from lightning_mmrl.config.checks.experts import check_expert, check_source, check_unasked
from lightning_mmrl.config.checks.values import check_rewards
from lightning_mmrl.curriculum.graph import data_inputs
from lightning_mmrl.errors import ConfigError, DataError, StageError
from lightning_mmrl.protocols.plain import StageJob, TrackedRun
from lightning_mmrl.settings.data import SourceSettings
from lightning_mmrl.settings.route import RouteSettings
from lightning_mmrl.settings.rules import require
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.types.records import ArtifactType, Completion, Edge, Sample, Score, StageSpec, Training

if TYPE_CHECKING:
    from lightning_mmrl.app.assembly import Assembly
    from lightning_mmrl.app.experts import Consultation, Verified
    from lightning_mmrl.data.rollout_table import RolloutRow
    from lightning_mmrl.data.routing import Standing

PROMPTS = "prompts"
"""Name of the input that is a manifest of prompts."""


class RouteKind:
    """Implements `StageKind`."""

    settings = RouteSettings
    supervised = True  # the stage's data are traces, which end with an answer

    def inputs(self, stage: RouteSettings) -> Mapping[str, Edge]:
        """The table or the prompts, and traces that other stages made."""
        prompts = {} if stage.prompts is None else {PROMPTS: Edge(stage.prompts.stage, stage.prompts.artifact)}
        return {**table_inputs(stage.table), **prompts, **data_inputs(stage)}

    def outputs(self, stage: RouteSettings) -> Mapping[str, ArtifactType]:
        """A manifest for each place that a prompt may go to, and the pairs; of prompts without answers, their table."""
        from lightning_mmrl.data.routing import ANSWERS, ARTIFACTS, EXPERT, UNSOLVED

        if stage.prompts is not None:
            return {EXPERT: "manifest", UNSOLVED: "manifest", ANSWERS: "table"}
        return dict.fromkeys(ARTIFACTS, "manifest")

    def describe(self, stage: RouteSettings) -> str:
        """Says in words which prompts go where."""
        experts = [*(["traces"] if _has_traces(stage) else []), *([stage.expert.model] if stage.expert else [])]
        if stage.prompts is not None:
            return f"asks for all prompts; expert: {', '.join(experts)}"
        low, high = f"{stage.unsolved_at_most:g}", f"{stage.solved_at_least:g}"
        return f"solved from {high}, never solved up to {low}; expert: {', '.join(experts) or 'none'}"

    def check(self, path: str, stage: RouteSettings, config: RunSettings) -> None:
        """Refuses a stage without prompts, bounds that leave no room, wrong answers, and half an expert."""
        check_source(path, stage, has_traces=_has_traces(stage))
        low, high = stage.unsolved_at_most, stage.solved_at_least
        require(low < high, f"{path}.unsolved_at_most", low, f"below {path}.solved_at_least, which is {high:g}")
        check_answer_selection(f"{path}.keep", stage.keep)
        require(not stage.keep.wrong, f"{path}.keep.wrong", "true", "false: nothing wrong is learned")
        check_expert(path, stage.expert, stage.endpoint)
        if not stage.debugging:  # a debug run has limited the data and asks nobody
            check_unasked(path, stage, has_traces=_has_traces(stage))
            check_unread(path, stage)
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
        from lightning_mmrl.app.stages import (
            data_facts,
            data_sources,
            is_empty,
            located_sources,
            made_manifest,
            made_table,
        )

        made = {PROMPTS: made_manifest(inputs[PROMPTS], parts.config)} if PROMPTS in inputs else {}
        prompts = {} if made and is_empty(data_facts(inputs[PROMPTS], parts.config)) else made
        files, root = made_table(inputs[TABLE], parts.config) if TABLE in inputs else ([], media_root("", made))
        traces, located = data_sources(spec, inputs, parts.config), located_sources(spec, inputs, parts.config)
        if located and Path(media_root(f"stages.{spec.name}", located)).resolve() != Path(root).resolve():
            raise ConfigError(
                f"stages.{spec.name}.data: the traces have media below {media_root('', located)}, and the prompts "
                f"below {root}; take the traces of this dataset"
            )
        return RouteJob(
            spec=spec, media_folder=root, run_log=run, parts=parts, files=files, prompts=prompts, traces=traces
        )


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
        files: The files of the table, none if it is empty or the stage has prompts.
        prompts: Where the prompts are, if the stage has no table and there are any.
        media_folder: Folder that paths of media are relative to.
        traces: Where known answers are.
        run_log: Gets the counts.
        parts: The parts of the run.
        routed: All prompts, after `run`.
        consultation: The answers of experts, after `run`; None if there is no expert.
        own: Counts of the model's answers by the reason why they are not kept, and `kept`.
    """

    spec: StageSpec
    media_folder: str
    run_log: TrackedRun
    parts: "Assembly"
    files: Sequence[Path] = ()
    prompts: Mapping[str, SourceSettings] = field(default_factory=dict)
    traces: Mapping[str, SourceSettings] = field(default_factory=dict)
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
        from lightning_mmrl.data.routing import ANSWERS

        absent = {each.id: each for each in self.routed if artifact in each.absent}
        if artifact == ANSWERS:
            return self._export_answers(artifact, absent, directory)
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

    def _export_answers(self, artifact: str, absent: Mapping[str, Routed], directory: Path) -> Mapping[str, Any]:
        """Writes the table of verified answers; the artifact `expert` has the reasons of the prompts without one."""
        from lightning_mmrl.data.rollout_table import write_table

        rows = [self._answered(row) for row in self._rows() if row.sample.id not in absent]
        reasons = Counter(each.absent[artifact] for each in absent.values())
        write_table(directory / "part-000000.jsonl", rows)
        return {"artifact": artifact, "media_root": self.media_folder, "counts": {"kept": len(rows), **reasons}}

    def _sorted(self) -> dict[str, float]:
        """Sorts the prompts and asks experts; returns the metrics of the stage."""
        from lightning_mmrl.app.experts import answer_metrics

        never = [row.sample for row in self._rows() if self._standing(row) == "never_solved"]
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
        metrics |= answer_metrics(self.consultation) | cost
        self.run_log.log_metrics({f"{self.spec.name}/{key}": value for key, value in metrics.items()}, 1)
        return metrics

    def _rows(self) -> "Iterator[RolloutRow]":
        """Yields the rows of the table, or a row without answers for each prompt.

        Raises:
            DataError: A prompt has two rows, or a row is damaged.
        """
        from lightning_mmrl.data.rollout_table import iter_table

        asked = (("the prompts", self._unanswered(sample)) for sample in read_samples(self.prompts))
        sampled = ((path, row) for path in self.files for row in iter_table(path))
        seen: set[str] = set()
        for place, row in chain(asked, sampled):
            if row.sample.id in seen:
                raise DataError(f"{place}: prompt {row.sample.id!r} has two rows; make the ids of prompts unique")
            seen.add(row.sample.id)
            yield row

    def _unanswered(self, sample: Sample) -> "RolloutRow":
        """The row of a prompt that no model has answered; in a debug run it has an answer, a wrong one."""
        from lightning_mmrl.data.rollout_table import RolloutRow

        if not self.stage.debugging:
            return RolloutRow(sample=sample, completions=(), scores=(), policy_version=0)
        answer = Completion(text=f"{self.parts.template.settings.prefill}?", num_tokens=1, truncated=False)
        wrong = Score(total=0.0, components={})
        return RolloutRow(sample=sample, completions=(answer,), scores=(wrong,), policy_version=0)

    def _standing(self, row: "RolloutRow") -> "Standing":
        """Where a prompt stands; one that no model has answered is never solved."""
        from lightning_mmrl.data.routing import standing_of

        return "never_solved" if self.prompts else standing_of(row.pass_rate, self.stage)

    def _consult(self, prompts: Sequence[Sample]) -> dict[str, float]:
        """Asks the traces and then the endpoint, and returns the cost as metrics."""
        from lightning_mmrl.app.experts import Consultation, Judge, chat_endpoint
        from lightning_mmrl.curriculum.experts.traces import Traces

        stage, path, cost = self.stage, f"stages.{self.spec.name}", {}
        asked = bool(self.files or self.prompts) and bool(self.traces or stage.expert)
        if stage.debugging or stage.rewards is None or not asked:
            return cost
        with Judge.of(stage.rewards, f"{path}.rewards", self.parts) as judge:
            self.consultation = asking = Consultation(
                settings=stage, stage_seed=self.spec.seed, template=self.parts.template, judge=judge
            )
            if self.traces:
                ids = {row.sample.id for row in self._rows()}
                traces = Traces(read_samples(self.traces), f"{path}.data", ids)
                for row in self._rows():
                    traces.check(row.sample)
                traces.settle(some=bool(self.prompts))
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
        from lightning_mmrl.data.routing import ANSWERS, EXPERT, absences, pairs_of

        selection, asked = select_row(row, self.stage.kept), self.consultation
        self.own.update(each.reason for each in selection.dropped)
        self.own["kept"] += len(selection.kept)
        no_answer = NO_EXPERT if asked is None else asked.problems.get(row.sample.id, NO_EXPERT)
        if self.stage.debugging:
            no_answer = None if selection.kept else "no_answer_kept"
        elif asked is not None and row.sample.id in asked.verified:
            no_answer = None
        standing = self._standing(row)
        absent = absences(
            standing,
            self.stage,
            keeps_own=bool(selection.kept),
            no_pair=pairs_of(row, self.stage)[1],
            no_answer=no_answer,
        )
        if self.prompts and EXPERT in absent:
            absent = {**absent, ANSWERS: absent[EXPERT]}
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

    def _answered(self, row: "RolloutRow") -> "RolloutRow":
        """The row of a prompt with its verified answer."""
        if self.stage.debugging or self.stage.rewards is None:
            return row
        found = self._verified(row.sample)
        decides = self.stage.rewards.pass_component
        return replace(row, completions=(found.completion,), scores=(found.score,), pass_component=decides)

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
