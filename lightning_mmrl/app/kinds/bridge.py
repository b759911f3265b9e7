"""Two steps between a model that sees and one that reasons: descriptions become questions, and answers become traces.

see    (sample)  describes the media of each prompt
ask    (bridge)  makes `questions`: the description and the question, without media
think  (sample)  answers them, and its rewards judge
teach  (bridge)  makes `traces`: right answers that break no rule, reworded and judged again, with the media
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_mmrl.app.data_kinds import check_no_model, table_inputs, write_dropped, write_samples
from lightning_mmrl.config.checks.values import check_rewards
from lightning_mmrl.errors import ConfigError, DataError, StageError
from lightning_mmrl.protocols.plain import StageJob, TrackedRun
from lightning_mmrl.settings.bridge import DESCRIPTION, QUESTION, BridgeSettings
from lightning_mmrl.settings.rules import require
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.types.records import ArtifactType, Completion, Edge, Sample, StageSpec, Training

if TYPE_CHECKING:
    from lightning_mmrl.app.assembly import Assembly
    from lightning_mmrl.data.rollout_table import RolloutRow

QUESTIONS, TRACES = "questions", "traces"
DESCRIPTIONS, ANSWERS = "descriptions", "answers"
"""Names of the inputs."""
OF_QUESTIONS = ("wording",)
"""Keys of a stage that makes questions, which one that makes traces would ignore."""
OF_TRACES = ("fewest_characters", "most_characters", "forbid", "reword", "rewards")
"""Keys of a stage that makes traces, which one that makes questions would ignore."""


class BridgeKind:
    """Implements `StageKind`."""

    settings = BridgeSettings
    supervised = False

    def inputs(self, stage: BridgeSettings) -> Mapping[str, Edge]:
        """The tables."""
        return {**table_inputs(stage.descriptions, DESCRIPTIONS), **table_inputs(stage.answers, ANSWERS)}

    def outputs(self, stage: BridgeSettings) -> Mapping[str, ArtifactType]:
        """The questions; with answers to them, the traces."""
        return {QUESTIONS if stage.answers is None else TRACES: "manifest"}

    def describe(self, stage: BridgeSettings) -> str:
        """Says in words which step it is."""
        return "questions of descriptions" if stage.answers is None else "traces of right answers, with their media"

    def check(self, path: str, stage: BridgeSettings, config: RunSettings) -> None:
        """Refuses a step without its tables, keys of the other step, a wording without its parts, and blank phrases."""
        if stage.descriptions is None:
            raise ConfigError(f"{path}.descriptions: is missing; name the stage that described, such as {{stage: see}}")
        check_no_model(path, stage)
        if not stage.debugging:  # a debug run has limited the data
            _check_keys_of_the_step(path, stage)
        for part in (DESCRIPTION, QUESTION):
            require(stage.wording.count(part) == 1, f"{path}.wording", repr(stage.wording), f"a text with one {part}")
        ordered = stage.wording.index(DESCRIPTION) < stage.wording.index(QUESTION)
        require(ordered, f"{path}.wording", repr(stage.wording), f"a text with {DESCRIPTION} before {QUESTION}")
        most = stage.most_characters
        require(
            most is None or most >= stage.fewest_characters,
            f"{path}.most_characters",
            most,
            "at least fewest_characters",
        )
        empty = [phrase for phrase in (*stage.forbid, *stage.reword) if not phrase.strip()]
        require(not empty, f"{path}.forbid or {path}.reword", "''", "phrases that are not blank")
        if stage.answers is not None and stage.rewards is None:
            raise ConfigError(f"{path}.rewards: is missing; they judge each trace once it is reworded")
        if stage.rewards is not None:
            check_rewards(f"{path}.rewards", stage.rewards)

    def preflight(self, path: str, stage: BridgeSettings) -> None:
        """Builds the rewards."""
        from lightning_mmrl.app.preflight import preflight_rewards

        if stage.rewards is not None:
            preflight_rewards(path, stage.rewards)

    def build(
        self, spec: StageSpec, inputs: Mapping[str, Path], directory: Path, run: TrackedRun, parts: "Assembly"
    ) -> StageJob:
        """Returns the job; it reads nothing yet."""
        from lightning_mmrl.app.stages import made_table

        described, root = made_table(inputs[DESCRIPTIONS], parts.config)
        answered = made_table(inputs[ANSWERS], parts.config)[0] if ANSWERS in inputs else None
        return BridgeJob(spec=spec, described=described, answered=answered, media_folder=root, run_log=run, parts=parts)


def _check_keys_of_the_step(path: str, stage: BridgeSettings) -> None:
    """Refuses keys of the other step, and all keys of data, since the tables have the prompts."""
    unset = BridgeSettings(kind=stage.kind)
    makes, keys = ("questions", OF_TRACES) if stage.answers is None else ("traces", OF_QUESTIONS)
    for key in keys:
        value = getattr(stage, key)
        rule = f"as in stage/bridge {'without' if stage.answers is None else 'with'} {path}.answers: it makes {makes}"
        require(value == getattr(unset, key), f"{path}.{key}", "set" if key == "rewards" else value, rule)
    for each in fields(stage.data):
        value = getattr(stage.data, each.name)
        fits = each.name == "batch_size" or value == getattr(unset.data, each.name)
        require(fits, f"{path}.data.{each.name}", value, "left out: the tables have the prompts")


@dataclass(kw_only=True)
class BridgeJob:
    """Implements `StageJob`; it takes seconds, so an interrupted job starts anew.

    Attributes:
        spec: The stage.
        described: The files of the table of descriptions; none if it is empty.
        answered: The files of the table of answers, none if it is empty; None if the stage makes questions.
        media_folder: Folder that paths of media are relative to.
        run_log: Gets the counts.
        parts: The parts of the run.
        made: The samples, after `run`.
        dropped: Why a prompt has no sample, by its id.
    """

    spec: StageSpec
    described: Sequence[Path]
    answered: Sequence[Path] | None
    media_folder: str
    run_log: TrackedRun
    parts: "Assembly"
    made: list[Sample] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)

    @property
    def stage(self) -> BridgeSettings:
        """The settings of the stage."""
        assert isinstance(self.spec.settings, BridgeSettings)
        return self.spec.settings

    def run(self) -> Training:
        """Makes the samples on rank 0 while the other ranks wait, and returns the counts.

        Raises:
            DataError: A table is damaged, or the answers are those to other questions.
            RewardError: The rewards cannot judge the traces.
        """
        group, metrics = self.parts.group, {}
        with group.first():
            if group.leads:
                self._make_questions() if self.answered is None else self._make_traces(self.answered)
                metrics = {"data/kept": float(len(self.made)), "data/dropped": float(len(self.dropped))}
                self.run_log.log_metrics({f"{self.spec.name}/{key}": value for key, value in metrics.items()}, 1)
        return Training(metrics=metrics, num_steps=1)

    def export(self, artifact: str, directory: Path) -> Mapping[str, Any]:
        """Writes the samples, and the reasons of prompts without one."""
        if not self.parts.group.leads:
            return {}
        write_dropped(directory, ({"id": name, "reason": reason} for name, reason in self.dropped.items()))
        return write_samples(directory, artifact, self.made, self.media_folder, Counter(self.dropped.values()))

    def _rows(self, files: Sequence[Path]) -> "Iterator[RolloutRow]":
        from lightning_mmrl.data.rollout_table import iter_table

        return (row for path in files for row in iter_table(path))

    def _make_questions(self) -> None:
        from lightning_mmrl.data.bridging import text_question

        for row in self._rows(self.described):
            found = text_question(row, self.stage)
            self._take(row.sample.id, found)

    def _make_traces(self, answered: Sequence[Path]) -> None:
        """Takes the first right answer of each question that makes a right trace."""
        prompts = {row.sample.id: row.sample for row in self._rows(self.described)}
        candidates: dict[str, list[Sample]] = {}
        for row in self._rows(answered):
            prompt = prompts.get(row.sample.id)
            if prompt is None or prompt.solution != row.sample.solution:
                raise DataError(
                    f"stages.{self.spec.name}.answers: prompt {row.sample.id!r} is not that of the descriptions; name "
                    "the stage that answers their questions"
                )
            candidates[prompt.id] = self._candidates(prompt, row)
        self._judge(candidates)
        for name in prompts:
            if name not in candidates:
                self.dropped[name] = "not_answered"
        num_prompts = len(self.made) + len(self.dropped)
        if num_prompts != len(prompts):
            raise StageError(f"stages.{self.spec.name}: {num_prompts} of {len(prompts)} prompts are accounted for")

    def _candidates(self, prompt: Sample, row: "RolloutRow") -> list[Sample]:
        """The traces that right answers would make, and the reason if there is none."""
        from lightning_mmrl.data.bridging import trace_of

        found: list[Sample] = []
        reason = "no_right_answer"
        for right, completion in zip(row.right, row.completions, strict=True):
            if self.stage.debugging or (right and not completion.truncated):
                trace = trace_of(prompt, completion.text, self.stage)
                found += [trace] if isinstance(trace, Sample) else []
                reason = trace if isinstance(trace, str) else reason
        if not found:
            self.dropped[prompt.id] = reason
        return found

    def _judge(self, candidates: Mapping[str, Sequence[Sample]]) -> None:
        """Judges the reworded traces, and takes the first right one of each prompt."""
        from lightning_mmrl.app.experts import Judge

        assert self.stage.rewards is not None
        pairs = [(name, trace) for name, traces in candidates.items() for trace in traces]
        if not pairs:
            return
        texts = [trace.messages[-1].content for _, trace in pairs]
        answers = [Completion(text=text, num_tokens=len(text.split()), truncated=False) for text in texts]
        with Judge.of(self.stage.rewards, f"stages.{self.spec.name}.rewards", self.parts) as judge:
            verdicts = [judge.verdict(score) for score in judge.scores([trace for _, trace in pairs], answers)]
        taken: set[str] = set()
        for (name, trace), verdict in zip(pairs, verdicts, strict=True):
            if name not in taken and (verdict is None or self.stage.debugging):
                taken.add(name)
                self.made.append(trace)
        judged = {name: f"{verdict}_once_reworded" for (name, _), verdict in zip(pairs, verdicts, strict=True)}
        self.dropped |= {name: reason for name, reason in judged.items() if name not in taken}

    def _take(self, name: str, found: Sample | str) -> None:
        if isinstance(found, Sample):
            self.made.append(found)
        else:
            self.dropped[name] = found


KIND = BridgeKind()
