"""Equal blocks of a model, and the linear layers in them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """A linear layer: the ending of its name, the kind that adapters know it by, its sizes and its input.

    `reads` names the input: the output of the block's `first` or `second` norm, of its `attention`, or of its
    activation function (`inner`).
    """

    name: str
    kind: str
    reads: str
    inputs: int
    outputs: int
    bias: bool = True

    @property
    def parameters(self) -> int:
        """Number of parameters of weight and bias together."""
        return (self.inputs + self.bias) * self.outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Equal blocks of one parameter group.

    `path` is where the blocks are. `queries` and `keys` are the widths of all query heads and of all key heads, which
    have norms of their own if `normed_heads`. `inner_copies` counts what the activation function of a block keeps for
    the backward pass, in units of `inner` values per row. `rest` is the number of the group's parameters outside of its
    blocks. `projector` lists the linear layers outside of the blocks, with their full names; its norms have
    `projector_norms` parameters. A feature row that a tower returns is made from `rows_per_token` of the tower's rows,
    and each of these from `input_values` numbers of `input_bytes` bytes, by `input_products` products with weights;
    none applies to the decoder. A feature row of
    a vision tower stands for a square with sides of `square` pixels; `sizes_clips` is True if the family's processor
    bounds the pixels of a whole clip and not of a frame.
    """

    path: str
    depth: int
    width: int
    inner: int
    heads: int
    queries: int
    keys: int
    linears: tuple[Linear, ...]
    norm_parameters: int
    rms_norms: bool
    inner_copies: int
    rest: int
    projector: tuple[Linear, ...] = ()
    projector_norms: int = 0
    normed_heads: bool = False
    rows_per_token: int = 1
    input_values: int = 0
    input_products: int = 0
    input_bytes: int = 4
    square: int = 0
    sizes_clips: bool = False

    @property
    def normalized(self) -> int:
        """Bytes of the float32 copy of a row's inputs that normalizing makes; zero for inputs that are float32."""
        return 4 * self.input_values if self.input_bytes == 1 else 0

    @property
    def block(self) -> int:
        """Parameters of one block."""
        return sum(linear.parameters for linear in self.linears) + self.norm_parameters

    @property
    def parameters(self) -> int:
        """Number of parameters of all blocks, plus `rest`."""
        return self.depth * self.block + self.rest

    @property
    def projector_parameters(self) -> int:
        """Parameters of a tower's projector, which are part of `rest`."""
        return sum(linear.parameters for linear in self.projector) + self.projector_norms

    def adapter_parameters(self, rank: int, targets: Iterable[str]) -> int:
        """Number of LoRA parameters in all layers that `targets` match, as in `models.adapters.chosen_layers`."""
        wanted = tuple(targets)
        layers = [(f"{self.path}.{i}.{each.name}", each) for i in range(self.depth) for each in self.linears]
        layers += [(each.name, each) for each in self.projector]
        return sum(rank * (each.inputs + each.outputs) for name, each in layers if _chosen(name, each.kind, wanted))

    def adapted(self, targets: Iterable[str]) -> tuple[Linear, ...]:
        """The linear layers of a block that `targets` match in at least one block."""
        wanted = tuple(targets)
        places = [f"{self.path}.{i}" for i in range(self.depth)]
        return tuple(
            each for each in self.linears if any(_chosen(f"{at}.{each.name}", each.kind, wanted) for at in places)
        )


def gated(width: int, inner: int, *, bias: bool) -> tuple[Linear, ...]:
    """The feed-forward layers of a block with gated linear units."""
    up, down = ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"
    first = [Linear(name=name, kind="mlp", reads="second", inputs=width, outputs=inner, bias=bias) for name in up]
    return (*first, Linear(name=down, kind="mlp", reads="inner", inputs=inner, outputs=width, bias=bias))


def _chosen(name: str, kind: str, targets: tuple[str, ...]) -> bool:
    plain = re.sub(r"\.\d+(?=\.|$)", "", name)
    return any(
        target in (ALL, kind) or f".{name}".endswith(f".{target}") or f".{plain}".endswith(f".{target}")
        for target in targets
    )
