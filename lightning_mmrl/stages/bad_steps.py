"""Skips updates whose numbers are not finite, on all ranks together; counts, records and bounds such steps."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lightning_mmrl.errors import StageError
from lightning_mmrl.files import dispensable
from lightning_mmrl.models.finite import all_finite, not_finite
from lightning_mmrl.stages.context import StageContext
from lightning_mmrl.stages.experience import Experience
from lightning_mmrl.types.records import Sample

FILE = "bad_steps.jsonl"
"""In the stage's folder: a line for each skipped update with `step`, `not_finite` and the `samples` of all ranks."""


Numbers = Mapping[str, Sequence[Tensor | float]]
"""Numbers that a step computed, by the name shown to the user."""


class NotFiniteError(Exception):
    """Ends an iteration before its update; raised on all ranks."""


class BadSteps:
    """Decides with all ranks whether an update is skipped, and ends the stage after too many.

    A step with a skipped update is a skipped step, even if another update of it moved the weights. A step that is
    repeated after an interruption counts once.

    The stage ends in an error

    - at once if the weights themselves are not finite: no further step could mend them;
    - once more than `max_bad_steps` steps, or more than half of the stage's steps, were skipped; under a budget, of the
      steps that the stage is expected to make, by the costs of the steps before, and at its end of those that it made;
    - at its end if its last two steps were skipped.

    Args:
        context: The stage's name, bound, folder and ranks.
        weights: The parameters by name.
        expected_steps: How many steps the stage will have made after all, once it has made so many.
    """

    def __init__(
        self,
        context: StageContext,
        weights: Callable[[], Mapping[str, Tensor]],
        expected_steps: Callable[[int], int],
    ) -> None:
        self._context = context
        self._weights = weights
        self._expected_steps = expected_steps
        self._steps: set[int] = set()

    def found(
        self, step: int, numbers: Numbers, samples: Sequence[Sample], *, update: tuple[int, int] = (1, 1)
    ) -> bool:
        """Whether any of the numbers is not finite on any rank, in which case the step is noted; a collective.

        Args:
            step: The step of the stage, from 1.
            numbers: Numbers that the step computed, by the name shown to the user; all ranks have the same names.
            samples: This rank's samples that the numbers were computed from.
            update: The number of the update within the step, from 1, and how many updates there are.

        Raises:
            StageError: The weights are not finite, or too many steps were skipped.
        """
        flags = self._context.ranks.any([not finite for finite in _read(numbers.values())])
        wrong = [name for name, flag in zip(numbers, flags, strict=True) if flag]
        if wrong:
            self._steps.add(step)
            self._write(step, wrong, samples)
            self._refuse(step, wrong)
            number, count = update
            subject = f"step {step}" if count == 1 else f"update {number} of {count} in step {step}"
            self._context.say(f"{subject} is skipped: {_are(wrong)} not finite; {self._file} names its samples")
        return bool(wrong)

    def require(self, step: int, numbers: Numbers, samples: Sequence[Sample]) -> None:
        """As `found`, for numbers that an update needs: without them the whole iteration is skipped.

        Raises:
            NotFiniteError: One is not finite on some rank; raised on all of them.
            StageError: As in `found`.
        """
        if self.found(step, numbers, samples):
            raise NotFiniteError

    def number(self, step: int) -> int:
        """How many of the first `step` steps were skipped, whole or in one update."""
        return sum(each <= step for each in self._steps)

    def __len__(self) -> int:
        """How many steps were skipped."""
        return len(self._steps)

    def reported(self, step: int) -> dict[str, float]:
        """The metric of a skipped step; empty for any other step."""
        return {"train/skipped_steps": float(self.number(step))} if step in self._steps else {}

    def state_dict(self) -> list[int]:
        """The skipped steps."""
        return sorted(self._steps)

    def load_state_dict(self, state: Sequence[int]) -> None:
        """Restores the state that `state_dict` returned."""
        self._steps = set(state)

    @property
    def _file(self) -> Path:
        return self._context.directory / FILE

    def refuse_end(self, num_steps: int) -> None:
        """Refuses a stage whose weights no longer give finite numbers, or gave them in too few steps.

        Raises:
            StageError: The last two steps, or more than half of all, were skipped.
        """
        ends_so = {num_steps - 1, num_steps} <= self._steps
        if ends_so or len(self) > self._expected_steps(num_steps) // 2:
            name, which = self._context.name, "its last steps" if ends_so else "most of its steps"
            raise StageError(
                f"stages.{name}: {which} were skipped, {len(self)} of {num_steps} in all, so its weights are "
                f"not written as the handoff; {self._file} names their samples: leave these out, or lower "
                f"stages.{name}.optimizer.lr, and train the stage with --from-stage {name}"
            )

    def _write(self, step: int, wrong: Sequence[str], samples: Sequence[Sample]) -> None:
        ids = [each for part in self._context.ranks.gather([sample.id for sample in samples]) for each in part]
        if self._context.ranks.rank != 0:
            return
        line = json.dumps({"step": step, "not_finite": list(wrong), "samples": ids})
        known = self._file.read_text(encoding="utf-8").splitlines() if self._file.exists() else []
        if line not in known:  # a stage that is continued repeats the step
            with dispensable(f"lines of {FILE}", self._file.parent):
                self._file.parent.mkdir(parents=True, exist_ok=True)
                with self._file.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")

    def _refuse(self, step: int, wrong: Sequence[str]) -> None:
        weights = [name for part in self._context.ranks.gather(not_finite(self._weights())) for name in part]
        if weights:
            name = self._context.name
            raise StageError(
                f"stages.{name}: at step {step} the weights are not finite ({weights[0]} is the first); look at the "
                f"checkpoint that the stage started from, or lower stages.{name}.optimizer.lr and train the stage with "
                f"--from-stage {name}"
            )
        context, number, num_steps = self._context, self.number(step), self._expected_steps(step - 1)
        if number <= min(context.settings.max_bad_steps, num_steps // 2):
            return
        key = f"stages.{context.name}.max_bad_steps"
        bound, other = f"{key} {context.settings.max_bad_steps} allows", f", or raise {key} and go on"
        if number <= context.settings.max_bad_steps:
            bound, other = f"half of its {num_steps} steps", ""
        raise StageError(
            f"stages.{context.name}: {_are(wrong)} not finite in step {step}; that makes {number} skipped steps, more "
            f"than {bound}; {self._file} names their samples: leave these out or lower "
            f"stages.{context.name}.optimizer.lr and train the stage with --from-stage {context.name}{other}"
        )


def estimates(experience: Experience) -> Numbers:
    """The numbers that an update is computed from, of the completions that count."""
    found = {
        "reference log-probabilities": experience.reference_logprobs,
        "log-probabilities": experience.old_logprobs,
        "values": experience.old_values,
        "returns": experience.returns,
        "advantages": experience.advantages.where(experience.trainable.reshape(-1, 1), 0.0),
    }
    return {name: [] if tensor is None else [tensor] for name, tensor in found.items()}


def step_numbers(step: Mapping[str, float]) -> dict[str, Sequence[float]]:
    """The numbers of an optimizer step that must be finite, by the name that the user reads."""
    names = {
        "loss": "loss",
        "loss of targets": "sft_loss",
        "gradient norm": "grad_norm",
        "critic's loss": "value_loss",
        "critic's gradient norm": "critic_grad_norm",
    }
    return {told: [step[name]] for told, name in names.items() if name in step}


def _read(numbers: Iterable[Sequence[Tensor | float]]) -> list[bool]:
    """Whether all numbers under each name are finite; synchronizes with a device once."""
    # Floats become float64: torch's default type is float16 under precision 16-true, where 70,000 is infinite.
    tensors = (
        [value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64) for value in values]
        for values in numbers
    )
    flags = [all_finite(each) for each in tensors]
    device = next((flag.device for flag in flags if flag.device.type != "cpu"), torch.device("cpu"))
    return torch.stack([flag.to(device, non_blocking=True) for flag in flags]).tolist()


def _are(names: Sequence[str]) -> str:
    """Joins names into the subject of a sentence, followed by its verb."""
    plural = len(names) > 1 or (names[0].endswith("s") and not names[0].endswith("ss"))
    return f"{' and '.join(names)} {'are' if plural else 'is'}"
