"""Evaluation of a checkpoint: greedy answers on named sets, metrics with intervals, predictions and figures on disk."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning

from lightning_mmrl.evaluation.breakdown import breakdown
from lightning_mmrl.evaluation.intervals import ClusterBootstrap, Interval
from lightning_mmrl.evaluation.modality import MODALITY, Answered, modality_report
from lightning_mmrl.evaluation.records import COUNTED_WRONG, Judgement
from lightning_mmrl.evaluation.speakers import speaker_spread
from lightning_mmrl.evaluation.tasks.task import Task
from lightning_mmrl.evaluation.thinking import thinking_gain
from lightning_mmrl.files import write_json, write_whole, writing
from lightning_mmrl.models.parallelize import Sharding
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.protocols.ranks import ALONE, Ranks
from lightning_mmrl.stages.answers import AnswerEvaluator, all_predictions, require_all
from lightning_mmrl.stages.context import place
from lightning_mmrl.stages.judged import JudgedBatches
from lightning_mmrl.stages.sampled_answers import SampledEvaluator
from lightning_mmrl.types.batches import PromptBatch
from lightning_mmrl.types.records import Sample

SUMMARY = "evaluation.json"
BOUND = "evaluated.json"
"""Says what the results beside it are results of: checkpoint, settings, data and code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedSet:
    """The content of a test loader, and its judge.

    Attributes:
        name: Name of the set.
        num_samples: Number of samples, also of samples that are left out.
        evaluator: Answers the prompts and judges the answers.
        thinks_in: The set with the same samples whose answers have a thought, if these answers were denied one.
        left_out: Gives the samples that are left out, with their reasons; asked when the loader was read to its end.
        kept: The judgements of the first batches, which the loader leaves out.
        has_loader: False if all batches are kept, so that there is no loader.
        whole: Name of the set that this one is a variant of; its own name, or empty, if it is none.
        shuffled: Gives the numbers of samples that a variant mixed; asked when the loader was read to its end.
    """

    name: str
    num_samples: int
    evaluator: AnswerEvaluator | SampledEvaluator
    thinks_in: str | None = None
    left_out: Callable[[], Sequence[tuple[Sample, str]]] = tuple
    kept: Sequence[Sequence[Judgement]] = ()
    has_loader: bool = True
    whole: str = ""
    shuffled: Callable[[], Mapping[str, int]] = dict


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """Where judged batches are kept until the results are written, and what they are judgements of."""

    batches: JudgedBatches
    bound: Mapping[str, Any] = field(default_factory=dict)


class EvaluationModule(lightning.LightningModule):
    """Evaluates every set of the trainer's test loaders and writes the results below `directory`.

    For each set: `<set>.jsonl` with one prediction per line, and `<set>.png` if its task draws a figure.
    `modality.json` compares the variants of sets (`evaluation.modality`), if there are any or a set of conflicts.
    `evaluation.json`, written last, holds the metrics, the intervals and the `breakdown` of all sets, and names the
    samples that were left out. If there are any, the metrics of a validation come twice: without these samples, and
    with each counted as wrong. With `keeping`, each judged batch is kept at once, and `evaluated.json` says what was
    evaluated.

    Args:
        policy: The model, so that the trainer moves it to its device.
        sets: The sets, in the order of their test loaders; each has its own evaluator.
        directory: Folder of the results.
        bootstrap: Interval estimator.
        ranks: The processes that share the sets; rank 0 writes.
        sharding: How weights are spread over the ranks; None if each rank has all of them.
        keeping: Where judged batches are kept; None keeps none.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        sets: Sequence[EvaluatedSet],
        directory: Path,
        bootstrap: ClusterBootstrap,
        ranks: Ranks = ALONE,
        sharding: Sharding | None = None,
        keeping: Keeping | None = None,
    ) -> None:
        super().__init__()
        self.policy = policy
        self.results: dict[str, dict[str, Any]] = {}
        self._sets = list(sets)
        self._loaded = [each for each in sets if each.has_loader]
        self._directory = directory
        self._bootstrap = bootstrap
        self._ranks = ranks
        self._sharding = sharding
        self._keeping = keeping
        self._judged = {each.name: [*each.kept] for each in sets}

    def configure_model(self) -> None:
        """Spreads the policy over the ranks."""
        place(self, self.policy, self._ranks, self._sharding)

    def test_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Evaluates one batch of one set."""
        evaluated = self._loaded[dataloader_idx]
        judged = all_predictions([evaluated.evaluator.evaluate(batch, self._ranks)], self._ranks)
        self._judged[evaluated.name].append(judged)
        if self._keeping is not None and self._ranks.rank == 0:
            self._keeping.batches.keep(evaluated.name, judged)

    def on_test_epoch_end(self) -> None:
        """Computes and writes the results of all sets, also of sets whose batches are all kept.

        Raises:
            StageError: Fewer samples were judged than a set holds.
        """
        found = {name: [one for batch in batches for one in batch] for name, batches in self._judged.items()}
        for each in self._sets:
            num_usable = each.num_samples - len(each.left_out())
            require_all(f"the evaluation on {each.name}", found[each.name], num_usable)
        self.results = {each.name: self._summarize(each, found[each.name]) for each in self._sets}
        for each in self._sets:
            if each.thinks_in is not None:
                gain = thinking_gain(found[each.thinks_in], found[each.name], each.evaluator.task, self._bootstrap)
                self.results[each.name]["thinking"] = {"over": each.thinks_in, **gain}
        if self._ranks.rank != 0:
            return
        (self._directory / BOUND).unlink(missing_ok=True)  # it speaks for the results that are now replaced
        for each in self._sets:
            self._write(each, found[each.name])
        self._write_modality(found)
        write_whole(self._directory / SUMMARY, json.dumps(self.results, indent=2) + "\n")
        if self._keeping is not None:
            write_json(self._directory / BOUND, self._keeping.bound)
            self._keeping.batches.end()

    def _write_modality(self, found: Mapping[str, list[Judgement]]) -> None:
        """Writes what the variants of the sets and the sets of conflicts say about the use of sound and picture."""
        answered = [
            Answered(
                name=each.name,
                whole=each.whole or each.name,
                task=each.evaluator.task,
                judgements=found[each.name],
                result=self.results[each.name],
            )
            for each in self._sets
        ]
        report = modality_report(answered, self._bootstrap)
        path = self._directory / MODALITY
        if report is None:
            path.unlink(missing_ok=True)  # of an earlier evaluation
        else:
            write_whole(path, json.dumps(report, indent=2) + "\n")

    def _summarize(self, evaluated: EvaluatedSet, predictions: list[Judgement]) -> dict[str, Any]:
        task, left_out = evaluated.evaluator.task, evaluated.left_out()
        values, intervals = self._measured(task, predictions)
        if left_out:
            wrong = [task.unanswered(sample) for sample, _ in left_out]
            more, wider = self._measured(task, [*predictions, *wrong])
            values |= {f"{key}{COUNTED_WRONG}": more[key] for key in task.validated_names() if key in more}
            intervals |= {f"{key}{COUNTED_WRONG}": interval for key, interval in wider.items()}
        spread = speaker_spread(predictions, task) if predictions and task.names_speakers else None
        parts = breakdown(predictions, [task.is_right(each) for each in predictions]) if task.has_truth else {}
        return {
            **task.described(),
            "num_samples": len(predictions),
            "left_out": [{"sample_id": sample.id, "reason": reason} for sample, reason in left_out],
            "metrics": values,
            "intervals": {key: asdict(interval) for key, interval in intervals.items()},
            **({} if spread is None else {"speakers": spread.plain()}),
            **({"shuffled": dict(shuffled)} if (shuffled := evaluated.shuffled()) else {}),
            **parts,
        }

    def _measured(self, task: Task, predictions: list[Judgement]) -> tuple[dict[str, float], dict[str, Interval]]:
        return task.metrics(predictions), self._bootstrap.intervals(predictions, task)

    def _write(self, evaluated: EvaluatedSet, predictions: list[Judgement]) -> None:
        lines = "".join(prediction.to_json() + "\n" for prediction in predictions)
        write_whole(self._directory / f"{evaluated.name}.jsonl", lines)
        figure = self._directory / f"{evaluated.name}.png"
        with writing(figure):
            evaluated.evaluator.task.save_figure(predictions, figure, evaluated.name)
