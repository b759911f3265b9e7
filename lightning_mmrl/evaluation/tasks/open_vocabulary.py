"""The task of listing words of an open vocabulary, which are compared by their groups on an emotion wheel."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from lightning_mmrl.errors import DataError
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.tasks.task import VALID_FORMAT, Measure, Task
from lightning_mmrl.prompts.answers import question_of
from lightning_mmrl.prompts.reading import check_reading, find_answer
from lightning_mmrl.prompts.wheel import Wheel
from lightning_mmrl.prompts.word_lists import listed_words, named_groups
from lightning_mmrl.types.records import Completion, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenVocabulary(Task):
    """Precision |A & S| / |A|, recall |A & S| / |S| and F1 = 2 |A & S| / (|A| + |S|), each averaged over samples.

    A and S are the groups of the words that the answer and the solution list; the reward `EmotionSet` reads them in the
    same way. A word of the answer that is not on the wheel is a wrong group of its own. An answer that cannot be read
    gets 0 for all three. `wheel` is the path of a YAML or JSON file that maps words to groups; None is the built-in
    wheel of emotions. `reading` says where the answer is, see `prompts.reading`.

    **Deviations** from AffectGPT's metric (arXiv:2501.16566): F1 of each sample instead of mean precision and recall;
    one wheel; no language model extracts the labels; unknown words of the answer count as wrong.

    Raises:
        ConfigError: The reading is unknown, or the wheel is unusable; the latter is raised on first use.
    """

    wheel: str | None = None
    max_characters: int = 256
    reading: str = "tag"

    kind: ClassVar[str] = "multi-label-classification"
    title: ClassVar[str] = "Sets of words by stage"
    headline: ClassVar[str] = "f1"
    measures: ClassVar[Sequence[Measure]] = (
        Measure(name="f1", title="set F1", interval=True),
        Measure(name="precision", title="precision"),
        Measure(name="recall", title="recall"),
        VALID_FORMAT,
        Measure(name="unparseable", title="unparseable", validated=False, in_table=False, on_card=False),
    )

    def __post_init__(self) -> None:
        check_reading(self.reading)

    @cached_property
    def opened(self) -> Wheel:
        """The wheel."""
        return Wheel.built_in() if self.wheel is None else Wheel.read(self.wheel)

    @property
    def answer_reading(self) -> str:
        """The reading."""
        return self.reading

    def truth(self, sample: Sample) -> frozenset[str]:
        """The groups of the solution's words; words that are not on the wheel are ignored.

        Raises:
            DataError: The solution is missing or has no word of the wheel.
        """
        words = listed_words(sample.solution or "", self.opened)
        groups = frozenset[str]().union(*map(self.opened.groups_of, words))
        if not groups:
            raise DataError(
                f"sample {sample.id!r} has the solution {sample.solution!r}, of which the wheel has no word; "
                "correct the manifest or add its words to the wheel"
            )
        return groups

    def judge(self, sample: Sample, completion: Completion) -> Judgement:
        """Judges format and words."""
        truth, found = self.truth(sample), find_answer(completion, self.reading, question_of(sample))
        named = None
        if found.text is not None and len(found.text) <= self.max_characters:
            num_wanted = len(listed_words(sample.solution or "", self.opened))
            named = named_groups(listed_words(found.text, self.opened), self.opened, num_wanted)
        num_named, num_right = len(named or ()), len((named or frozenset()) & truth)
        return Judgement(
            sample_id=sample.id,
            speaker=sample.speaker,
            truth=", ".join(sorted(truth)),
            predicted=None if named is None else ", ".join(sorted(named)),
            valid_format=found.valid,
            text=completion.text,
            scores={
                "f1": 2 * num_right / (num_named + len(truth)),
                "precision": num_right / num_named if num_named else 0.0,
                "recall": num_right / len(truth),
                "unparseable": float(named is None),
            },
        )
