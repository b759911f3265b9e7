"""An expert whose answers are known: samples with a target, such as the traces of another model in a file."""

from collections import defaultdict
from collections.abc import Collection, Sequence

from lightning_mmrl.data.formats.turns import quoted
from lightning_mmrl.data.routing import prompt_turns
from lightning_mmrl.errors import DataError
from lightning_mmrl.protocols.experts import ExpertAnswer, ExpertRequest
from lightning_mmrl.types.records import Sample


class Traces:
    """Implements `Expert`: gives the targets of samples that have the id of the prompt.

    The answers that stages select have the id `PROMPT#PLACE`; they count as traces of PROMPT. An id may hold `#` of its
    own: the prompt with the very id of a trace comes first. If there is such a prompt and one with the id before the
    last `#`, the trace belongs to the one whose question, media and solution it has. Call `check` with every prompt and
    then `settle`, before the first question.

    Args:
        samples: The traces.
        key: The key that names them, for messages.
        prompts: The ids of all prompts.

    Raises:
        DataError: A sample has no target.
    """

    name = "traces"

    def __init__(self, samples: Sequence[Sample], key: str, prompts: Collection[str]) -> None:
        self._key = key
        self._traces = list(samples)
        self._candidates: dict[str, list[int]] = defaultdict(list)
        self._owners: list[list[str]] = [[] for _ in samples]
        self._rivals: set[int] = set()
        self._of_prompt: dict[str, list[Sample]] = {}
        for place, sample in enumerate(samples):
            if not sample.messages or sample.messages[-1].role != "assistant":
                raise DataError(f"{key}: trace {quoted(sample.id)} has no answer; let its last turn be the assistant's")
            names = [name for name in (sample.id, sample.id.rpartition("#")[0]) if name in prompts]
            self._rivals |= {place} if len(names) > 1 else set()
            for name in names:
                self._candidates[name].append(place)

    @property
    def num_strangers(self) -> int:
        """Number of traces whose id is that of no prompt."""
        return sum(not owners for owners in self._owners)

    def check(self, prompt: Sample) -> None:
        """Compares the traces of a prompt with it.

        Raises:
            DataError: A trace with its id asks something else, or has another solution: it is of another dataset.
        """
        for place in self._candidates.get(prompt.id, ()):
            trace = self._traces[place]
            found = _difference(trace, prompt, media=place in self._rivals)
            if found is None:
                self._owners[place].append(prompt.id)
            elif place not in self._rivals:
                raise DataError(
                    f"{self._key}: trace {quoted(trace.id)} has the {found[0]} {quoted(found[1])}, and the prompt of "
                    f"this id in the table {quoted(found[2])}; take the traces of this dataset"
                )

    def settle(self, *, some: bool = False) -> None:
        """Gives each trace to its prompt, once `check` has seen all prompts.

        Args:
            some: Whether the prompts are a part of the dataset, so that perhaps none has a trace.

        Raises:
            DataError: No trace has the id of a prompt, or one may be of two prompts or of neither.
        """
        known = {self._traces[place].id for places in self._candidates.values() for place in places}
        if self._traces and not known and not some:
            names = [trace.id for trace in self._traces]
            raise DataError(
                f"{self._key}: none of {len(names)} traces, such as {quoted(min(names))}, has the id of a prompt "
                "in the table; take the traces of this dataset"
            )
        found: dict[str, list[Sample]] = defaultdict(list)
        for place, (trace, owners) in enumerate(zip(self._traces, self._owners, strict=True)):
            if place in self._rivals and len(owners) != 1:
                raise DataError(
                    f"{self._key}: trace {quoted(trace.id)} may be of prompt {quoted(trace.id)} or of prompt "
                    f"{quoted(trace.id.rpartition('#')[0])}, and it fits {'both' if owners else 'neither'}; rename the "
                    "prompts, or give the trace the media and the solution of its prompt"
                )
            for owner in owners:
                found[owner].append(trace)
        self._of_prompt = dict(found)

    def ask(self, requests: Sequence[ExpertRequest]) -> list[ExpertAnswer]:
        """Returns a trace for each request: another one for each draw, in their order."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: ExpertRequest) -> ExpertAnswer:
        traces = self._of_prompt.get(request.key, ())
        if request.draw >= len(traces):
            return ExpertAnswer(key=request.key, problem="no_trace", missing="not_asked")
        text = traces[request.draw].messages[-1].content
        return ExpertAnswer(key=request.key, text=text, num_tokens=len(text.split()))


def _difference(trace: Sample, prompt: Sample, *, media: bool) -> tuple[str, str, str] | None:
    """In what a trace differs from a prompt, with both texts; None if it is the trace of this prompt.

    Args:
        trace: The trace.
        prompt: The prompt.
        media: Whether media are compared, too, if the trace has any.
    """
    pairs = [("question", _question(trace), _question(prompt))]
    if trace.solution is not None and prompt.solution is not None:
        pairs.append(("solution", trace.solution, prompt.solution))
    if media and trace.media:
        pairs.append(("media", str(trace.media), str(prompt.media)))
    return next((pair for pair in pairs if pair[1] != pair[2]), None)


def _question(sample: Sample) -> str:
    """The turns of the user, without regard to whitespace."""
    turns = prompt_turns(sample)
    return " ".join(word for turn in turns if turn.role == "user" for word in turn.content.split())
