"""The processes of a job, as the layers above the tensor code see them."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")


class Ranks(Protocol):
    """The W processes that train one model, and the values that they exchange.

    Every method but the properties is a collective: all ranks call it, in the same order. Each rank gets the same
    answer. `lockstep` is True if forward and backward passes are collectives as well, as they are with sharded weights:
    a rank with less data then joins the others with passes that do not count.
    """

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    @property
    def lockstep(self) -> bool: ...

    def sum(self, values: "Tensor") -> "Tensor":
        """Element-wise sum over the ranks."""
        ...

    def max(self, value: int) -> int:
        """The largest value of any rank."""
        ...

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """For each flag, whether it is True on any rank; all ranks pass equally many flags."""
        ...

    def gather(self, item: T) -> list[T]:
        """The items of all ranks, in the order of the ranks."""
        ...

    def sum_gradients(self, parameters: "Iterable[nn.Parameter]") -> None:
        """Makes every gradient the sum over the ranks, unless the backward pass has done so already.

        If no rank has a gradient for a parameter, the parameter stays without one, as in a single process.
        """
        ...


class Alone:
    """The only process of a job; implements `Ranks`.

    >>> Alone().gather("mine"), Alone().max(3)
    (['mine'], 3)
    """

    rank = 0
    world_size = 1
    lockstep = False

    def sum(self, values: "Tensor") -> "Tensor":
        """The values."""
        return values

    def max(self, value: int) -> int:
        """The value."""
        return value

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """The flags."""
        return list(flags)

    def gather(self, item: T) -> list[T]:
        """The item."""
        return [item]

    def sum_gradients(self, parameters: "Iterable[nn.Parameter]") -> None:
        """Does nothing, because no other process has gradients."""


ALONE = Alone()
