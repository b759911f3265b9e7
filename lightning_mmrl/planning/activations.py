"""Counts the bytes that the blocks of a model keep of each row of activations until the backward pass.

The counts follow, module by module, what torch's autograd saves in transformers' blocks with this package's attention;
tests compare the sums with the saved tensors. Sizes: D is the width of the block, I the width of its feed-forward
layers, Q and K are the widths of all query and of all key heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_mmrl.planning.stacks import Linear, Stack
from lightning_mmrl.settings.stage import TrainerSettings

BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
SINGLE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """Bytes of one number: in stored weights and adapters, and in forward and backward passes.

    Attributes:
        stored: Bytes of a stored weight that does not train.
        trained: Bytes of a stored weight that trains, of its gradient and of each of its moments.
        adapter: The same of an adapter weight.
        adapting: Bytes of an adapter weight during a pass.
        computed: Bytes of an output of a linear layer.
        reduced: Bytes of a gradient while ranks sum it.
        autocast: True if torch casts weights and inputs in wider types, operation by operation.
    """

    stored: int
    trained: int
    adapter: int
    adapting: int
    computed: int
    reduced: int
    autocast: bool = False

    @classmethod
    def of(cls, trainer: TrainerSettings, dtype: str) -> "Precision":
        """The precision of a stage whose model is loaded in `dtype`."""
        computed = BYTES[trainer.computes(dtype)]
        stored = computed if trainer.precision == "64-true" else BYTES[dtype]
        single = max(stored, SINGLE)
        return cls(
            stored=stored,
            trained=single if trainer.mixed else stored,
            adapter=single,
            adapting=computed if trainer.mixed else single,
            computed=computed,
            reduced=single if trainer.mixed else stored,
            autocast=trainer.mixed and not trainer.shards,
        )

    def casts(self, *, trains: bool) -> bool:
        """True if weights of a stack are stored in a wider type than it computes in, and autocast casts them."""
        return self.autocast and (self.trained if trains else self.stored) > self.computed

    def stream(self, *, trains: bool) -> int:
        """Bytes of a number that runs through the decoder between its linear layers, in the type of its embeddings."""
        return self.trained if self.casts(trains=trains) else self.computed


def kept_per_row(stack: Stack, precision: Precision, *, trains: bool, adapted: Sequence[Linear], rank: int) -> int:
    """Returns the bytes that one block keeps of a row, if a gradient goes through the block.

    - An RMS norm keeps its input in float32 and, if it trains, the normalized states; a layer norm keeps its input.
      Both keep their float32 statistics.
    - Linear layers that train keep their input: one tensor for all layers with the same input, or one cast copy each.
    - An adapter keeps the input of A (a copy for each adapter, if it computes in another type) and the output of A.
    - Attention keeps queries, keys, values, output and the float32 log-sum-exp; in towers also the output in the order
      of the windows.
    - The activation function keeps I numbers for each factor that it needs.
    """
    computed, tower = precision.computed, bool(stack.input_values)
    # Under autocast a tower begins with a convolution in half precision, the decoder with float32 embeddings.
    stream = computed if tower else precision.stream(trains=trains)
    norms = 2 * stack.width * (SINGLE + stream * trains if stack.rms_norms else stream)
    norms += 2 * SINGLE * (1 if stack.rms_norms else 2)
    if stack.normed_heads:
        num_heads = stack.heads + stack.heads * stack.keys // stack.queries
        norms += (stack.queries + stack.keys) * (SINGLE + computed * trains) + SINGLE * num_heads
    attention = computed * 2 * (stack.queries + stack.keys) + SINGLE * stack.heads
    attention += computed * stack.queries * tower
    inputs = _inputs(stack, precision, adapted=adapted, trains=trains)
    ranks = precision.adapting * rank * len(adapted)
    return norms + attention + inputs + ranks + stack.inner_copies * stack.inner * computed


def computed_per_row(stack: Stack, precision: Precision, *, trains: bool) -> int:
    """Returns the most bytes per row that a block holds while it computes, if it keeps nothing for a backward pass."""
    stream = precision.stream(trains=trains)
    return 3 * stack.inner * precision.computed + stack.width * (2 * stream + precision.computed + SINGLE)


def _inputs(stack: Stack, precision: Precision, *, adapted: Sequence[Linear], trains: bool) -> int:
    """Bytes of the kept inputs of linear layers; attention already keeps the input of the layer after it."""
    readers = stack.linears if trains else adapted
    copied = precision.autocast or precision.adapting != precision.computed  # inputs of adapters
    if precision.casts(trains=trains) or (copied and not trains):
        size = precision.computed if precision.autocast else precision.adapting
        shared = ("inner", "attention") if trains else ()
        own = sum(linear.inputs for linear in readers if linear.reads not in shared)
        return size * own + (precision.computed * stack.inner if trains else 0)
    shared = {linear.reads: linear.inputs for linear in readers if linear.reads != "attention"}
    return precision.computed * sum(shared.values())
