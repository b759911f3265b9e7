"""Which sample comes when: permutations of the data, a fixed number of batches, and a draw that knows its place."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch.utils.data import Sampler

Variant = Literal["full", "silent", "blank"]
"""What a model gets to see of a sample: everything, no sound, or no picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """The `serial`-th sample a stage consumes is dataset row `index`, seen as `variant`."""

    index: int
    serial: int
    variant: Variant = "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModalityDropout:
    """How often a training sample loses a modality, so that a missing one is not out of distribution.

    Attributes:
        silent: Probability that the sound is replaced by silence.
        blank: Probability that every frame is replaced by grey; never together with silence.
    """

    silent: float = 0.0
    blank: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.silent + self.blank <= 1 or min(self.silent, self.blank) < 0:
            raise ValueError(
                f"silent={self.silent} and blank={self.blank} must be probabilities that add up to at most 1"
            )

    def variant(self, seed: int, serial: int) -> Variant:
        """The variant of the `serial`-th draw of a run."""
        digest = hashlib.blake2b(f"{seed}/{serial}/modality".encode(), digest_size=8).digest()
        number = int.from_bytes(digest, "little") / 2**64
        if number < self.silent:
            return "silent"
        return "blank" if number < self.silent + self.blank else "full"


class PassSampler(Sampler[list[Draw]]):
    """A sized sequence of batches that walks through one seeded permutation of the data after another.

    Args:
        num_samples: Rows of the dataset.
        batch_size: Draws per batch.
        num_batches: Batches of the whole stage.
        seed: Seed of the permutations and of the modality dropout.
        dropout: Modality dropout.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        batch_size: int,
        num_batches: int,
        seed: int,
        dropout: ModalityDropout | None = None,
    ) -> None:
        self._num_samples = num_samples
        self._batch_size = batch_size
        self._num_batches = num_batches
        self._seed = seed
        self._dropout = dropout or ModalityDropout()

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[list[Draw]]:
        order, current_pass = np.arange(0), -1
        for batch in range(self._num_batches):
            draws = []
            for serial in range(batch * self._batch_size, (batch + 1) * self._batch_size):
                wanted_pass, place = divmod(serial, self._num_samples)
                if wanted_pass != current_pass:
                    order, current_pass = self._permutation(wanted_pass), wanted_pass
                variant = self._dropout.variant(self._seed, serial)
                draws.append(Draw(index=int(order[place]), serial=serial, variant=variant))
            yield draws

    def _permutation(self, number: int) -> np.ndarray:
        return np.random.default_rng([self._seed, number]).permutation(self._num_samples)
