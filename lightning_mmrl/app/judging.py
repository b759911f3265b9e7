"""Has a language model judge the answers of a run's evaluations, and compares it with the rules of their tasks."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from lightning_mmrl.app.judges import FOLDER, Judges
from lightning_mmrl.data.manifest import Indexing
from lightning_mmrl.data.sources import load_source
from lightning_mmrl.errors import ConfigError, DataError, RewardError
from lightning_mmrl.evaluation.agreement import Agreement, AskedJudge, agreement, judged
from lightning_mmrl.evaluation.intervals import ClusterBootstrap, Interval
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.tasks.task import Task
from lightning_mmrl.files import write_json, write_whole
from lightning_mmrl.registry.tasks import task_of_result, task_outlines
from lightning_mmrl.rewards.llm_judge import LlmJudge
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.settings.stage import BASE
from lightning_mmrl.suggestions import did_you_mean
from lightning_mmrl.training.console import ConsoleProgress
from lightning_mmrl.types.records import Sample

VERDICTS = "verdicts"
"""Folder below `judges` with the verdicts of a command, by stage and set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which answers are judged: stages and sets by name, empty for all; and the `first` ones of each, None for all."""

    stages: Sequence[str] = ()
    sets: Sequence[str] = ()
    first: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedSet:
    """The verdicts of one stage on one set; `problems` maps a sample to the reason why it has none."""

    stage: str
    name: str
    num_answers: int
    intervals: dict[str, Interval]
    counts: Agreement
    problems: dict[str, str]
    folder: Path


def judge_run(
    run: Path, config: RunSettings, judge: LlmJudge, chosen: Selection, console: ConsoleProgress
) -> Iterator[JudgedSet]:
    """Judges the answers of a run's evaluations, and yields each set when it is done.

    For each stage and set, `judges/verdicts/STAGE/SET.json` holds the shares, their intervals and what the judge was
    told, and `SET.jsonl` a line for each answer. What the judge said is kept, so that the same command goes on.

    Args:
        run: Folder of the run.
        config: Its configuration.
        judge: The judge.
        chosen: Which answers are judged.
        console: Shows progress.

    Raises:
        ConfigError: A stage or set does not exist, or the judge cannot be asked.
        DataError: There are no answers, or a manifest is not the one of the run.
        StageError: The endpoint is down; what it said is kept.
    """
    tasks = task_outlines(config)
    found = _files(run, config, chosen, tasks)
    mark = sha256(json.dumps(judge.described(), sort_keys=True).encode()).hexdigest()[:8]
    samples: dict[str, dict[str, Sample]] = {}
    with ExitStack() as resources:

        def show(done: int, total: int, details: str) -> None:
            console.update(f"judging {where}", done, total, details)

        opener, where = Judges(folder=run / FOLDER, on_progress=show), ""
        expert = opener.opened(f"answers-{mark}", judge, "judge", resources)
        for stage, name, file in found:
            where = f"{stage} on {name}"
            lines = file.read_text(encoding="utf-8").splitlines()[: chosen.first]
            answers = [Judgement.from_json(line) for line in lines]
            if name not in samples:
                samples[name] = _samples(config, name)
            values, replies = _asked(judge, expert, answers, samples[name], file)
            rules = [task_of_result(name, tasks).is_right(each) for each in answers]
            yield _written(run / FOLDER / VERDICTS / stage, stage, name, judge, answers, rules, values, replies)


def _files(run: Path, config: RunSettings, chosen: Selection, tasks: Mapping[str, Task]) -> list[tuple[str, str, Path]]:
    """Stage, set and file of judged answers, in the order of the run; sets without right answers only if named."""
    known = [BASE, *config.trained]
    for flag, names, right in (("--stage", chosen.stages, known), ("--set", chosen.sets, list(config.sets()))):
        for name in names:
            if name not in right:
                raise ConfigError(f"{flag} {name} is none of the run{did_you_mean(name, right)}")
    found = []
    for stage in [each for each in known if not chosen.stages or each in chosen.stages]:
        pattern = stage if stage == BASE else f"stages/[0-9]*-{stage}"
        for name in chosen.sets or [each for each in config.sets() if task_of_result(each, tasks).has_truth]:
            found += [(stage, name, file) for file in sorted(run.glob(f"{pattern}/evaluation/{name}.jsonl"))]
    if not found:
        raise DataError(f"{run} has no evaluated answers of the stages and sets asked for; nothing to judge")
    return found


def _samples(config: RunSettings, name: str) -> dict[str, Sample]:
    """The samples of a set by id."""
    each = config.sets()[name]
    loaded = load_source(each.path, each.media_folder, each.format, Indexing(folder=Path(config.data.media.cache_dir)))
    return {sample.id: sample for sample in loaded.samples}


def _asked(
    judge: LlmJudge, expert: Any, answers: Sequence[Judgement], samples: dict[str, Sample], file: Path
) -> tuple[list[float | str], list[str | None]]:
    """The value of each answer, or the reason why it has none; and what the judge replied."""
    requests = []
    for each in answers:
        if each.sample_id not in samples:
            raise DataError(
                f"{file} answers sample {each.sample_id!r}, which the manifest no longer has; restore the manifest"
            )
        try:
            requests.append(judge.request(samples[each.sample_id], each.text))
        except RewardError as error:
            raise DataError(str(error)) from error
    replies = expert.ask(requests)
    values: list[float | str] = []
    for reply in replies:
        try:
            values.append(judge.value(reply))
        except RewardError as error:
            values.append(str(error))
    return values, [reply.text for reply in replies]


def _written(
    folder: Path,
    stage: str,
    name: str,
    judge: LlmJudge,
    answers: Sequence[Judgement],
    rules: Sequence[bool],
    values: Sequence[float | str],
    replies: Sequence[str | None],
) -> JudgedSet:
    pairs = list(zip(answers, values, rules, strict=True))
    done = [judged(answer, value, rule=rule) for answer, value, rule in pairs if not isinstance(value, str)]
    problems = {answer.sample_id: value for answer, value, _ in pairs if isinstance(value, str)}
    intervals = ClusterBootstrap().intervals(done, AskedJudge()) if done else {}
    counts = agreement(done)
    lines = []
    scores = {each.sample_id: each.scores for each in done}
    for answer, reply in zip(answers, replies, strict=True):
        verdict = scores.get(answer.sample_id, {"problem": problems.get(answer.sample_id)})
        lines.append(json.dumps({"sample_id": answer.sample_id, **verdict, "reply": reply}) + "\n")
    write_whole(folder / f"{name}.jsonl", "".join(lines))
    content = {
        **judge.described(),
        "num_answers": len(answers),
        "num_without_verdict": len(problems),
        "intervals": {key: asdict(interval) for key, interval in intervals.items()},
        "counts": asdict(counts),
        "kappa": counts.kappa if done else None,
    }
    write_json(folder / f"{name}.json", content)
    return JudgedSet(
        stage=stage,
        name=name,
        num_answers=len(answers),
        intervals=intervals,
        counts=counts,
        problems=problems,
        folder=folder,
    )
