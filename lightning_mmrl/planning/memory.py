"""How much memory of its device one rank of a stage takes, estimated from the configuration alone, without torch.

The estimate is the largest of the phases that a step or iteration goes through. In all of them a rank has weights,
gradients (kept until the next update), optimizer state and the weights of a reference policy; besides:

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
from dataclasses import dataclass, field

from lightning_mmrl.config.schema import StageConfig
from lightning_mmrl.planning.activations import SINGLE, Precision, computed_per_row, kept_per_row
from lightning_mmrl.planning.shapes import ModelShape, Stack

CONTEXT = 2**30
"""Bytes of a CUDA context, kernels and NCCL's buffers; a choice, not measured here."""
FRAGMENTATION = 0.1
"""Share of the tensors' bytes that the caching allocator holds besides; a choice, not measured here."""

TILE_ELEMENTS = 2**26
"""Logits that are scored at once, as in `ops.logprobs`."""
PREFILL_TOKENS = 16_384
"""Prompt tokens that enter the decoder together, as in `models.decoding`."""
OWN_TOKENS = 32
"""Room for a row's own keys, which doubles, as in `models.decoding`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """What the data are taken to be.

    A prompt of which three quarters are picture and an eighth is sound, as far as the model reads them: eight frames of
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
    """Bytes by phase and part, and what lies in host memory instead."""

    phases: Mapping[str, Mapping[str, int]]
    host: int = 0

    @property
    def phase(self) -> str:
        """The phase that takes most."""
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
        """True if a device with so many GB (10^9 bytes: what drivers show is less than its name says) is enough."""
        return self.needed <= gigabytes * 10**9


def estimate(shape: ModelShape, stage: StageConfig, dtype: str, ranks: int, lengths: Lengths) -> Estimate:
    """The memory of one of so many ranks; `dtype` is `model.dtype`, and the strategy is that of the stage's trainer."""
    return _Rank(shape, stage, dtype, ranks, lengths).estimate()


@dataclass(frozen=True, slots=True)
class _Rank:
    """One rank's share of the work, and what it holds for it."""

    shape: ModelShape
    stage: StageConfig
    dtype: str
    ranks: int
    lengths: Lengths
    precision: Precision = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "precision", Precision.of(self.stage.trainer, self.dtype))

    def estimate(self) -> Estimate:
        """All phases."""
        resident, offload = self.resident(), self.stage.trainer.cpu_offload
        kept = {} if offload else resident
        media = {"media": self.media()}
        phases = {
            "towers": {**kept, **media, "activations": self.tower_pass(), "gathered weights": self.gathered()},
            "backward": {**kept, **media, **self.backward()},
            "reduction": {**kept, "gathered weights": self.reduction()},
            "optimizer step": {**kept, "copies": 0 if offload else self.step_copies()},
        }
        if self.stage.algorithm is not None:
            phases["generation"] = {**kept, **media, **self.generation()}
        return Estimate(phases=phases, host=sum(resident.values()) if offload else 0)

    def resident(self) -> dict[str, int]:
        """What is there all the time."""
        precision, adapters = self.precision, self.adapters()
        size = precision.adapter if adapters else precision.stored
        trained = self.split(self.trained() * size)
        weights = self.split(self.shape.parameters * precision.stored + adapters * precision.adapter)
        # Critic and reference policy share what does not train, unless weights are sharded. The head that a critic
        # lacks is counted nevertheless.
        copied = weights if self.sharded else trained
        return {
            "weights": weights + (self.models - 1) * copied,
            "gradients": self.models * trained,
            "optimizer state": self.models * self.moments() * trained,
            "reference weights": copied if self.compared else 0,
        }

    @property
    def compared(self) -> bool:
        """True if there is a reference policy with weights of its own, as a KL penalty without an adapter has."""
        algorithm = self.stage.algorithm
        return algorithm is not None and algorithm.kl.coefficient > 0 and self.stage.adapter is None

    @property
    def models(self) -> int:
        """The policy, and a critic if there is one."""
        return 1 if self.stage.algorithm is None or self.stage.algorithm.critic is None else 2

    @property
    def sharded(self) -> bool:
        return self.stage.trainer.strategy == "fsdp2"

    @property
    def prompts(self) -> int:
        """Of this rank in one step."""
        return -(-self.stage.data.batch_size // self.ranks)

    def split(self, size: int) -> int:
        """A rank's share of what FSDP2 shards."""
        return -(-size // self.ranks) if self.sharded else size

    def adapters(self) -> int:
        """Parameters of LoRA layers."""
        settings = self.stage.adapter
        if settings is None:
            return 0
        return sum(self.stack(group).adapter_parameters(settings.r, self.targets) for group in self.adapted_groups)

    @property
    def targets(self) -> list[str]:
        assert self.stage.adapter is not None
        targets = self.stage.adapter.targets
        return targets if isinstance(targets, list) else [targets]

    @property
    def adapted_groups(self) -> list[str]:
        groups = [] if self.stage.adapter is None else self.stage.adapter.groups
        return [group for group in groups if group in self.shape.stacks]

    def stack(self, group: str) -> Stack:
        """The stack of a parameter group."""
        return self.shape.stacks[group]

    def trains(self, group: str) -> bool:
        """True if the weights of a group train themselves."""
        return self.stage.adapter is None and group not in self.stage.freeze

    def learns(self, group: str) -> bool:
        """True if a group trains, itself or by an adapter."""
        return self.trains(group) or group in self.adapted_groups

    def trained(self) -> int:
        """Parameters that have gradients."""
        own = sum(stack.parameters for group, stack in self.shape.stacks.items() if self.trains(group))
        return own + self.adapters()

    def moments(self) -> int:
        """Tensors of the size of the parameters that an optimizer keeps; any but SGD is taken to be like Adam."""
        settings = self.stage.optimizer
        if settings["_target_"].rpartition(".")[2] == "SGD":
            return int(bool(settings.get("momentum")))
        return 2 + bool(settings.get("amsgrad"))

    def gathered(self) -> int:
        """The root and two units at most: the one in use, and the next."""
        return (self.shape.root + 2 * self.shape.largest_unit) * self.precision.computed if self.sharded else 0

    def backward(self) -> dict[str, int]:
        """What scoring and its backward pass take."""
        precision, sharded = self.precision, self.sharded
        weights = self.shape.parameters * precision.computed if precision.autocast else self.gathered()
        root = self.shape.root * precision.computed if self.trains("text") and sharded else 0
        unit = self.shape.largest_unit * (2 * precision.computed + precision.reduced) if root else 0
        return {
            "gathered weights": weights + root + unit,
            "activations": self.activations(),
            "logits": self.tile_of_logits(),
        }

    def reduction(self) -> int:
        """Weights and gradient of the root, and the copies that are sent and received."""
        if not self.sharded or not self.trains("text"):
            return 0
        sent = self.shape.root * self.precision.reduced
        return self.gathered() + self.shape.root * self.precision.computed + sent + sent // self.ranks

    def step_copies(self) -> int:
        """One copy of what trains, which is more than a bucket in which replicas sum their gradients."""
        size = self.precision.adapter if self.adapters() else self.precision.stored
        return self.split(self.trained() * size)

    def tokens(self) -> int:
        """Of the decoder that are scored at once; a completion that is longer than the budget stands alone."""
        algorithm, lengths = self.stage.algorithm, self.lengths
        if algorithm is None:
            return self.prompts * (lengths.prompt + lengths.answer)
        total = self.prompts * (lengths.prompt + algorithm.group_size * self.answer)
        return min(total, max(algorithm.update.tokens_per_microbatch, lengths.prompt + self.answer))

    @property
    def answer(self) -> int:
        """Tokens of the longest completion, or of a target."""
        return self.lengths.answer if self.stage.sampling is None else self.stage.sampling.max_new_tokens

    @property
    def group_size(self) -> int:
        return 1 if self.stage.algorithm is None else self.stage.algorithm.group_size

    @property
    def one_run(self) -> bool:
        """True if towers that learn run once per iteration; with several updates each microbatch runs them."""
        algorithm = self.stage.algorithm
        return algorithm is not None and algorithm.update.num_epochs * algorithm.update.num_minibatches == 1

    def scored_prompts(self) -> int:
        """Prompts whose towers have a graph at once."""
        if self.one_run or self.stage.algorithm is None:
            return self.prompts
        return max(1, self.tokens() // (self.lengths.prompt + self.group_size * self.answer))

    def activations(self) -> int:
        """What decoder and towers that learn keep."""
        return self.kept("text", self.tokens()) + (self.models if self.one_run else 1) * self.tower_graph()

    def tower_graph(self) -> int:
        """What towers that learn keep."""
        towers = [group for group in self.shape.stacks if group != "text" and self.learns(group)]
        return sum(self.kept(group, self.tower_rows(group, self.scored_prompts())) for group in towers)

    def tower_rows(self, group: str, prompts: int) -> int:
        """Rows within a tower."""
        return prompts * self.lengths.media(group) * self.stack(group).rows_per_token

    def kept(self, group: str, rows: int) -> int:
        """What a stack keeps; recomputing, the input of each block and all of the block at hand."""
        stack, precision = self.stack(group), self.precision
        adapted = stack.adapted(self.targets) if group in self.adapted_groups else ()
        rank = self.stage.adapter.r if self.stage.adapter is not None else 0
        block = kept_per_row(stack, precision, trains=self.trains(group), adapted=adapted, rank=rank)
        at_hand = computed_per_row(stack, precision)
        if self.stage.trainer.activation_checkpointing:
            return rows * (stack.depth * stack.width * precision.stream + block + at_hand)
        return rows * (stack.depth * block + at_hand)

    def tower_pass(self) -> int:
        """The largest block of a tower that learns nothing."""
        return max(
            (
                self.tower_rows(group, self.prompts) * computed_per_row(stack, self.precision)
                for group, stack in self.shape.stacks.items()
                if group != "text" and not self.learns(group)
            ),
            default=0,
        )

    def media(self) -> int:
        """Float32 inputs of the towers of all prompts, and their outputs."""
        width = self.shape.text.width * self.precision.computed
        return sum(
            self.tower_rows(group, self.prompts) * stack.input_values * SINGLE
            + self.prompts * self.lengths.media(group) * width
            for group, stack in self.shape.stacks.items()
            if group != "text"
        )

    def tile_of_logits(self) -> int:
        """Logits and five wider copies: scaled, log-softmax, and three for the entropy."""
        scored = self.prompts * self.answer
        if self.stage.algorithm is not None:
            share = self.group_size * self.answer / (self.lengths.prompt + self.group_size * self.answer)
            scored = math.ceil(self.tokens() * share)
        rows = min(scored, max(1, TILE_ELEMENTS // self.shape.vocabulary))
        wide = max(self.precision.computed, SINGLE)
        return rows * self.shape.vocabulary * (self.precision.computed + 5 * wide)

    def generation(self) -> dict[str, int]:
        """What sampling takes once all rows are as long as they may get."""
        precision, text = self.precision, self.shape.text
        rows = self.prompts * self.group_size
        own = OWN_TOKENS * 2 ** max(0, math.ceil(math.log2(max(1, self.answer - 1) / OWN_TOKENS)))
        held = self.prompts * self.lengths.prompt + rows * own
        prefill = min(self.prompts * self.lengths.prompt, max(PREFILL_TOKENS, self.lengths.prompt))
        # A float64 distribution, its sum, and float32 log-probabilities.
        logits = rows * self.shape.vocabulary * (max(precision.computed, SINGLE) + 16)
        weights = (self.shape.parameters + self.adapters()) * precision.computed if self.sharded else 0
        if precision.autocast:
            weights = self.trained() * precision.computed
        return {
            "gathered weights": weights,
            "keys and values": held * text.depth * 2 * text.keys * precision.stream,
            "logits": max(logits, prefill * computed_per_row(text, precision)),
            "activations": self.tower_graph() if self.one_run else 0,
        }
