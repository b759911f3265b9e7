"""Greedy answers to evaluation prompts, and their judgement: the part that validation and evaluation share."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import zip_longest

from lightning_mmrl.errors import RolloutError, StageError
from lightning_mmrl.evaluation.consistency import CueLexicon
from lightning_mmrl.evaluation.emotion import EmotionMetrics
from lightning_mmrl.evaluation.records import Prediction, judge
from lightning_mmrl.prompts.labels import LabelMatcher
from lightning_mmrl.protocols.ranks import ALONE, Ranks
from lightning_mmrl.protocols.tensors import RolloutEngine
from lightning_mmrl.types.batches import PromptBatch
from lightning_mmrl.types.records import Completion, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Examiner:
    """Asks an engine for its greedy answer to each prompt and judges it.

    Attributes:
        engine: Generates.
        matcher: The closed label set.
        lexicon: Cue phrases, if there are any.
        apart: Entered around each batch, in which no rank waits for another.
    """

    engine: RolloutEngine
    matcher: LabelMatcher
    lexicon: CueLexicon | None = None
    apart: Callable[[], AbstractContextManager[None]] = nullcontext

    def examine(self, prompts: PromptBatch, ranks: Ranks = ALONE) -> list[Prediction]:
        """One prediction per prompt; all ranks call it.

        Raises:
            RolloutError: The engine has no answers for some rank; raised on all of them.
        """
        seeds, completions, problem = [[0]] * len(prompts.samples), (), None
        with self.apart():
            try:
                completions = self.engine.generate(prompts, group_size=1, seeds=seeds, greedy=True).completions
            except RolloutError as error:  # raised below: here the others would wait for this rank
                problem = error
        problems = [each for each in ranks.gather(None if problem is None else str(problem)) if each is not None]
        if problems:
            raise problem or RolloutError(problems[0])
        return [
            judge(sample, completion, self.matcher, self.lexicon)
            for sample, completion in zip(prompts.samples, completions, strict=True)
        ]

    def unanswered(self, sample: Sample) -> Prediction:
        """The verdict on a sample that could not be asked: an empty answer, which is wrong."""
        return judge(sample, Completion(text="", num_tokens=0, truncated=False), self.matcher, self.lexicon)

    def new_metrics(self) -> EmotionMetrics:
        """An empty metric over the matcher's labels; it counts what it is given, on whatever rank it was judged."""
        metrics = EmotionMetrics(self.matcher.labels)
        metrics.sync_on_compute = False
        return metrics


class Validation:
    """Metrics over one walk of all ranks through the validation prompts; every rank gets the same values.

    Args:
        examiner: Asks and judges.
        ranks: The processes that share the prompts.
        num_samples: Says how many samples all ranks have together; None if that is not known.
    """

    def __init__(self, examiner: Examiner, ranks: Ranks = ALONE, num_samples: Callable[[], int] | None = None) -> None:
        self._examiner = examiner
        self._ranks = ranks
        self._num_samples = num_samples
        self._judged: list[list[Prediction]] = []

    def step(self, prompts: PromptBatch) -> None:
        """Examines this rank's share of one batch."""
        self._judged.append(self._examiner.examine(prompts, self._ranks))

    def finish(self) -> dict[str, float]:
        """The metrics, and a fresh start.

        Raises:
            StageError: Fewer samples were judged than there are.
        """
        metrics = self._examiner.new_metrics()
        predictions = all_predictions(self._judged, self._ranks)
        if self._num_samples is not None:
            require_all("the validation", predictions, self._num_samples())
        metrics.update(predictions)
        self._judged = []
        return metrics.compute()


def all_predictions(judged: Sequence[Sequence[Prediction]], ranks: Ranks) -> list[Prediction]:
    """The predictions of all ranks, batch by batch in the order of the manifest, each sample once.

    A rank whose share of a batch would be empty repeats a sample of another (`data.datamodules.eval_loader`).
    """
    found: dict[str, Prediction] = {}
    for batch in zip_longest(*ranks.gather(judged), fillvalue=()):  # a loop that was cut short has fewer
        for share in batch:
            for prediction in share:
                found.setdefault(prediction.sample_id, prediction)
    return list(found.values())


def require_all(what: str, predictions: Sequence[Prediction], num_samples: int) -> None:
    """Holds the number of judged samples against that of the set, so that no walk ends early without a word.

    Raises:
        StageError: They differ.
    """
    if len(predictions) != num_samples:
        last = f" after sample {predictions[-1].sample_id}" if predictions else ""
        raise StageError(
            f"{what} judged {len(predictions)} of {num_samples} samples: its loop ended early{last}; nothing was "
            "written, because metrics of a part would pass for metrics of the whole"
        )


HEADLINE = ("war", "uar", "valid_format", "consistency", "grounded")


def headline(values: dict[str, float], keys: Sequence[str] = HEADLINE) -> dict[str, float]:
    """The few metrics worth a curve."""
    return {key: values[key] for key in keys if key in values}
