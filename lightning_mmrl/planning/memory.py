"""How much memory of its device one rank of a stage takes, estimated from the configuration alone, without torch.

The estimate is the largest of the phases that a step or iteration goes through. In all of them a rank has weights,
gradients (kept until the next update), optimizer state and the weights of a reference policy. Each phase adds:

- `towers`: one pass of the frozen towers over all media of the rank's prompts, nothing kept;
- `generation`: under FSDP2 all weights once, keys and values of all rows at full length, one step's logits;
- `backward`: under FSDP2 the root and two units, with their gradients; activations; one tile of logits;
- `reduction`: under FSDP2 the gradient of the root while it is summed;
- `optimizer step`: the copy that torch's foreach optimizers make of what trains.

Lengths are assumed, since no data are read: see `Lengths`. Left out are evaluation, attention scores of float32 models
on a GPU, copies within single operations, and the reserve that `fits` adds for what no tensor accounts for.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lightning_mmrl.planning.activations import SINGLE, Precision, computed_per_row, kept_per_row
from lightning_mmrl.planning.shapes import ModelShape
from lightning_mmrl.settings.model import PROJECTOR, frozen_parts
from lightning_mmrl.settings.stage import StageSettings

CONTEXT = 2**30
"""Bytes of a CUDA context, kernels and NCCL's buffers; a choice, not measured here."""
FRAGMENTATION = 0.1
"""Share of the tensors' bytes that the caching allocator holds in addition; a choice, not measured here."""

TILE_ELEMENTS = 2**26
"""Logits that are scored at once, as in `ops.logprobs`."""
PREFILL_TOKENS = 16_384
"""Prompt tokens that enter the decoder together, as in `models.decoding`."""
OWN_TOKENS = 32
"""Room for a row's own keys, which doubles, as in `models.decoding`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Assumed lengths of prompts and answers, in tokens.

    Three quarters of a prompt are picture and an eighth is sound, as far as the model reads them: eight frames of
    640 x 360 and ten seconds of sound are about 1,450 tokens of Qwen2.5-Omni. Targets of SFT are `answer` long, and
    completions of RL as long as they may get.
    """

    prompt: int = 2048
    answer: int = 512

    def media(self, group: str) -> int:
        """Feature rows of a prompt that come from a tower."""
        return self.prompt * {"vision": 6, "audio": 1}[group] // 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Bytes on the device by phase and part, and bytes in host memory (`host`)."""

    phases: Mapping[str, Mapping[str, int]]
    host: int = 0

    @property
    def phase(self) -> str:
        """The phase that needs the most memory."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def peak(self) -> int:
        """Bytes of tensors in that phase."""
        return sum(self.phases[self.phase].values())

    @property
    def largest(self) -> str:
        """The largest part of that phase."""
        parts = self.phases[self.phase]
        return max(parts, key=lambda name: parts[name])

    @property
    def needed(self) -> int:
        """The peak and a reserve for what no tensor accounts for."""
        return math.ceil(self.peak * (1 + FRAGMENTATION)) + CONTEXT

    def fits(self, gigabytes: int) -> bool:
        """True if a device with so many GB of 10^9 bytes is enough; drivers show fewer than the device's name says."""
        return self.needed <= gigabytes * 10**9


def estimate(shape: ModelShape, stage: StageSettings, dtype: str, ranks: int, lengths: Lengths) -> Estimate:
    """The memory of one of `ranks` ranks; `dtype` is `model.dtype`, and the stage's trainer has the strategy."""
    return _Rank(shape, stage, dtype, ranks, lengths).estimate()


class _Rank:
    """One rank's share of the work, and the memory that it takes.

    Attributes:
        prompts: Number of prompts of this rank in one step.
        answer: Tokens of the longest completion, or of a target.
        adapters: Parameters of LoRA layers.
        trains: Groups whose weights train themselves, towers with or without their projectors.
        learns: Groups that train, themselves or by an adapter.
        trained: Parameters that have gradients.
        models: Number of models that learn: 2 with a critic, else 1.
        one_run: True if towers that learn run once per iteration; with several updates each microbatch runs them.
    """

    def __init__(self, shape: ModelShape, stage: StageSettings, dtype: str, ranks: int, lengths: Lengths) -> None:
        self.shape, self.stage, self.ranks, self.lengths = shape, stage, ranks, lengths
        self.precision, self.sharded = Precision.of(stage.trainer, dtype), stage.trainer.shards
        algorithm, adapter, stacks = stage.algorithm, stage.adapter, shape.stacks
        self.prompts = -(-stage.data.batch_size // ranks)
        self.answer = lengths.answer if stage.sampling is None else stage.sampling.max_new_tokens
        self.group_size = 1 if algorithm is None else algorithm.group_size
        self.adapted = [] if adapter is None else [group for group in adapter.groups if group in stacks]
        self.adapters = 0
        if adapter is not None:
            counts = [stacks[group].adapter_parameters(adapter.r, adapter.wanted) for group in self.adapted]
            self.adapters = sum(counts)
        frozen = frozen_parts(stage.freeze)
        learning = [group for group in stacks if adapter is None]
        self.trains = [group for group in learning if not {group, f"{group}_tower"} & frozen]
        self.learns = {*self.trains, *self.adapted}
        # A projector that trains on top of a frozen tower has parameters, and activations too few to count.
        own = {group: stacks[group].projector_parameters for group in learning}
        trained = [stacks[group].parameters - own[group] for group in self.trains]
        trained += [own[group] for group in learning if not {group, f"{group}_{PROJECTOR}"} & frozen]
        self.trained = sum(trained) + self.adapters
        self.models = 1 if algorithm is None or algorithm.critic is None else 2
        self.one_run = algorithm is not None and algorithm.update.on_policy

    def estimate(self) -> Estimate:
        """Adds up the parts of all phases."""
        resident, offload = self.resident(), self.stage.trainer.cpu_offload
        kept = {} if offload else resident
        media = {"media": self.media()}
        # One copy of what trains, which is more than a bucket in which replicas sum their gradients.
        size = self.precision.adapter if self.adapters else self.precision.stored
        # The largest block of a tower that learns nothing.
        frozen = [group for group in self.shape.stacks if group != "text" and group not in self.learns]
        blocks = {group: computed_per_row(self.shape.stacks[group], self.precision) for group in frozen}
        block = max((self.tower_rows(group, self.prompts) * size for group, size in blocks.items()), default=0)
        phases = {
            "towers": {**kept, **media, "activations": block, "gathered weights": self.gathered()},
            "backward": {**kept, **media, **self.backward()},
            "reduction": {**kept, "gathered weights": self.reduction()},
            "optimizer step": {**kept, "copies": 0 if offload else self.split(self.trained * size)},
        }
        if self.stage.algorithm is not None:
            phases["generation"] = {**kept, **media, **self.generation()}
        return Estimate(phases=phases, host=sum(resident.values()) if offload else 0)

    def resident(self) -> dict[str, int]:
        """Bytes that stay in memory all the time: weights, gradients, optimizer state and reference weights."""
        precision, algorithm, optimizer = self.precision, self.stage.algorithm, self.stage.optimizer
        size = precision.adapter if self.adapters else precision.stored
        trained = self.split(self.trained * size)
        weights = self.split(self.shape.parameters * precision.stored + self.adapters * precision.adapter)
        # Critic and reference policy share what does not train, unless weights are sharded. The head that a critic
        # lacks is counted nevertheless. With an adapter the reference policy has no weights of its own.
        copied = weights if self.sharded else trained
        compared = algorithm is not None and algorithm.kl.coefficient > 0 and self.stage.adapter is None
        # Tensors of the size of the parameters that an optimizer keeps; any but SGD is taken to be like Adam.
        moments = 2 + bool(optimizer.get("amsgrad"))
        if optimizer["_target_"].rpartition(".")[2] == "SGD":
            moments = int(bool(optimizer.get("momentum")))
        return {
            "weights": weights + (self.models - 1) * copied,
            "gradients": self.models * trained,
            "optimizer state": self.models * moments * trained,
            "reference weights": copied if compared else 0,
        }

    def split(self, size: int) -> int:
        """A rank's share of what FSDP2 shards."""
        return -(-size // self.ranks) if self.sharded else size

    def gathered(self) -> int:
        """Bytes of weights that are gathered at once: the root, the unit in use and the next one."""
        return (self.shape.root + 2 * self.shape.largest_unit) * self.precision.computed if self.sharded else 0

    def backward(self) -> dict[str, int]:
        """Memory of scoring and its backward pass."""
        precision = self.precision
        weights = self.shape.parameters * precision.computed if precision.autocast else self.gathered()
        root = self.shape.root * precision.computed if "text" in self.trains and self.sharded else 0
        unit = self.shape.largest_unit * (2 * precision.computed + precision.reduced) if root else 0
        towers = (self.models if self.one_run else 1) * self.tower_graph()
        scored = self.prompts * self.answer
        if self.stage.algorithm is not None:
            share = self.group_size * self.answer / (self.lengths.prompt + self.group_size * self.answer)
            scored = math.ceil(self.tokens() * share)
        tile = min(scored, max(1, TILE_ELEMENTS // self.shape.vocabulary)) * self.shape.vocabulary
        return {
            "gathered weights": weights + root + unit,
            "activations": self.kept("text", self.tokens()) + towers,
            "logits": tile * (precision.computed + self.wide_copies() * max(precision.computed, SINGLE)),
        }

    def wide_copies(self) -> int:
        """Wider copies of a tile of logits: the scaled ones and their log-softmax, and one or three for the entropy."""
        algorithm = self.stage.algorithm
        return 5 if algorithm is not None and algorithm.entropy.coefficient else 3

    def reduction(self) -> int:
        """Weights and gradient of the root, and the copies that are sent and received."""
        if not self.sharded or "text" not in self.trains:
            return 0
        sent = self.shape.root * self.precision.reduced
        return self.gathered() + self.shape.root * self.precision.computed + sent + sent // self.ranks

    def tokens(self) -> int:
        """Number of decoder tokens that are scored at once; a completion longer than the budget is scored alone."""
        algorithm, lengths = self.stage.algorithm, self.lengths
        if algorithm is None:
            return self.prompts * (lengths.prompt + lengths.answer)
        total = self.prompts * (lengths.prompt + algorithm.group_size * self.answer)
        return min(total, max(algorithm.update.tokens_per_microbatch, lengths.prompt + self.answer))

    def tower_graph(self) -> int:
        """Bytes of activations of the towers that learn, for all prompts whose tower graphs are held at once."""
        prompts = self.prompts
        if not self.one_run and self.stage.algorithm is not None:
            prompts = max(1, self.tokens() // (self.lengths.prompt + self.group_size * self.answer))
        towers = [group for group in self.shape.stacks if group != "text" and group in self.learns]
        return sum(self.kept(group, self.tower_rows(group, prompts)) for group in towers)

    def tower_rows(self, group: str, prompts: int) -> int:
        """Number of rows within a tower, for so many prompts."""
        return prompts * self.lengths.media(group) * self.shape.stacks[group].rows_per_token

    def kept(self, group: str, rows: int) -> int:
        """Bytes of a stack's activations; with checkpointing, the inputs of all blocks and one whole block."""
        stack, precision, adapter = self.shape.stacks[group], self.precision, self.stage.adapter
        adapted = stack.adapted(adapter.wanted) if adapter is not None and group in self.adapted else ()
        rank = 0 if adapter is None else adapter.r
        block = kept_per_row(stack, precision, trains=group in self.trains, adapted=adapted, rank=rank)
        at_hand = computed_per_row(stack, precision)
        if self.stage.trainer.activation_checkpointing:
            return rows * (stack.depth * stack.width * precision.stream + block + at_hand)
        return rows * (stack.depth * block + at_hand)

    def media(self) -> int:
        """Float32 inputs of the towers of all prompts, and their outputs."""
        width = self.shape.text.width * self.precision.computed
        return sum(
            self.tower_rows(group, self.prompts) * stack.input_values * SINGLE
            + self.prompts * self.lengths.media(group) * width
            for group, stack in self.shape.stacks.items()
            if group != "text"
        )

    def generation(self) -> dict[str, int]:
        """Memory of sampling once all rows are as long as they may get."""
        precision, text = self.precision, self.shape.text
        rows = self.prompts * self.group_size
        own = OWN_TOKENS * 2 ** max(0, math.ceil(math.log2(max(1, self.answer - 1) / OWN_TOKENS)))
        held = self.prompts * self.lengths.prompt + rows * own
        prefill = min(self.prompts * self.lengths.prompt, max(PREFILL_TOKENS, self.lengths.prompt))
        # A float64 distribution, its sum, and float32 log-probabilities.
        logits = rows * self.shape.vocabulary * (max(precision.computed, SINGLE) + 16)
        weights = (self.shape.parameters + self.adapters) * precision.computed if self.sharded else 0
        if precision.autocast:
            weights = self.trained * precision.computed
        return {
            "gathered weights": weights,
            "keys and values": held * text.depth * 2 * text.keys * precision.stream,
            "logits": max(logits, prefill * computed_per_row(text, precision)),
            "activations": self.tower_graph() if self.one_run else 0,
        }
