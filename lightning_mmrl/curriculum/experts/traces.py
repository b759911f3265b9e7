"""An expert whose answers are known: samples with a target, such as the traces of another model in a file."""

from collections import defaultdict
from collections.abc import Sequence

from lightning_mmrl.data.formats.turns import quoted
from lightning_mmrl.data.routing import prompt_turns
from lightning_mmrl.errors import DataError
from lightning_mmrl.protocols.experts import ExpertAnswer, ExpertRequest
from lightning_mmrl.types.records import Sample


class Traces:
    """Implements `Expert`: gives the targets of samples that have the id of the prompt.

    The answers that a stage of kind sample selects have the id `PROMPT#PLACE`; they count as traces of PROMPT.

    Args:
        samples: The traces.
        key: The key that names them, for messages.

    Raises:
        DataError: A sample has no target.
    """

    name = "traces"

    def __init__(self, samples: Sequence[Sample], key: str) -> None:
        self._key = key
        self._of_prompt: dict[str, list[Sample]] = defaultdict(list)
        self._strangers = {sample.id for sample in samples}
        for sample in samples:
            if not sample.messages or sample.messages[-1].role != "assistant":
                raise DataError(f"{key}: trace {quoted(sample.id)} has no answer; let its last turn be the assistant's")
            for name in {sample.id, sample.id.rpartition("#")[0]} - {""}:
                self._of_prompt[name].append(sample)

    @property
    def num_strangers(self) -> int:
        """Number of traces whose id is that of no prompt that `check` has seen."""
        return len(self._strangers)

    def check(self, prompt: Sample) -> None:
        """Compares the traces of a prompt with it.

        Raises:
            DataError: A trace with its id asks something else, or has another solution: it is of another dataset.
        """
        for trace in self._of_prompt.get(prompt.id, ()):
            self._strangers.discard(trace.id)
            pairs = [("question", _question(trace), _question(prompt))]
            if trace.solution is not None and prompt.solution is not None:
                pairs.append(("solution", trace.solution, prompt.solution))
            for what, found, wanted in pairs:
                if found != wanted:
                    raise DataError(
                        f"{self._key}: trace {quoted(trace.id)} has the {what} {quoted(found)}, and the prompt of this "
                        f"id in the table {quoted(wanted)}; take the traces of this dataset"
                    )

    def refuse_strangers(self) -> None:
        """Refuses traces of another dataset, once `check` has seen all prompts.

        Raises:
            DataError: No trace has the id of a prompt.
        """
        known = {trace.id for traces in self._of_prompt.values() for trace in traces}
        if known and known == self._strangers:
            raise DataError(
                f"{self._key}: none of {len(known)} traces, such as {quoted(min(known))}, has the id of a prompt "
                "in the table; take the traces of this dataset"
            )

    def ask(self, requests: Sequence[ExpertRequest]) -> list[ExpertAnswer]:
        """Returns a trace for each request: another one for each draw, in their order."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: ExpertRequest) -> ExpertAnswer:
        traces = self._of_prompt.get(request.key, ())
        if request.draw >= len(traces):
            return ExpertAnswer(key=request.key, problem="no_trace", missing="not_asked")
        text = traces[request.draw].messages[-1].content
        return ExpertAnswer(key=request.key, text=text, num_tokens=len(text.split()))


def _question(sample: Sample) -> str:
    """The turns of the user, without regard to whitespace."""
    turns = prompt_turns(sample)
    return " ".join(word for turn in turns if turn.role == "user" for word in turn.content.split())
