"""Estimates the device memory of one rank of a stage from the configuration alone, without torch.

The estimate is the largest of the phases that a step or iteration goes through. In all of them a rank has weights,
optimizer state and the weights of a reference policy, and from the backward pass to the optimizer step also gradients.
Each phase adds:

- `towers`: one pass of the frozen towers, chunk by chunk, nothing kept: over the media of the rank's prompts in RL
  and with pairs of answers, of a microbatch in SFT;
- `generation`: under FSDP2 all weights once, keys and values of all rows at full length, one step's logits; or an
  engine beside the trainer;
- `backward`: under FSDP2 the root and two units, with their gradients; activations; one tile of logits;
- `reduction`: under FSDP2 the gradient of the root while it is summed;
- `optimizer step`: the copy that torch's foreach optimizers make of the trained parameters; on a CPU, and with
  `foreach: false`, two copies of the largest one; with `fused: true` none;
- `validation`, `evaluation`: the sampling of one greedy answer to each prompt, beside training and after it.

Lengths are assumed, since no data are read: see `Lengths`. Left out are attention scores of float32 models on a GPU,
and copies within operations. `needed` adds a reserve for memory that no tensor accounts for.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lightning_mmrl.planning.activations import SINGLE, Precision, computed_per_row, kept_per_row
from lightning_mmrl.planning.shapes import ModelShape
from lightning_mmrl.settings.lessons import answers_of, compares, lesson_of
from lightning_mmrl.settings.model import PROJECTOR, frozen_parts
from lightning_mmrl.settings.sft import microbatches_of
from lightning_mmrl.settings.stage import StageSettings

CONTEXT = 2**30
"""Bytes of a CUDA context, kernels and NCCL's buffers; a choice, not measured here."""
FRAGMENTATION = 0.1
"""Share of the tensors' bytes that the caching allocator holds in addition; a choice, not measured here."""

TILE_ELEMENTS = 2**26
"""Logits that are scored at once, as in `ops.logprobs`."""
PREFILL_TOKENS = 16_384
"""Prompt tokens that enter the decoder together, as in `models.prefill`."""
TOWER_ROWS = 8_192
"""Feature rows of the prompts that enter frozen towers together, as in `models.encoders`."""
OWN_TOKENS = 32
"""Room for a row's own keys at first; it doubles whenever it is full, up to the limit, as in `models.decode_cache`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Assumed lengths of prompts and answers, in tokens.

    Three quarters of a prompt are picture and an eighth is sound, as far as the model reads them: eight frames of
    640 x 360 and ten seconds of sound are about 1,450 tokens of Qwen2.5-Omni. Targets of SFT and answers of pairs are
    `answer` long, and completions of RL as long as they may get.
    """

    prompt: int = 2048
    answer: int = 512
    clip: int | None = None
    """Tokens of a prompt that are picture, where they are counted (`planning.clips`)."""

    def media(self, group: str) -> int:
        """Returns the number of feature rows of a prompt that come from a tower."""
        if group == "vision" and self.clip is not None:
            return min(self.clip, self.prompt)
        return self.prompt * {"vision": 6, "audio": 1}[group] // 8


def cached_bytes(shape: ModelShape, lengths: Lengths) -> int:
    """Bytes of the media of one prompt in the media cache, before they are compressed."""
    return sum(
        lengths.media(group) * stack.rows_per_token * stack.input_values * stack.input_bytes
        for group, stack in shape.stacks.items()
        if group != "text"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """Uses of a rank's device beside training.

    Attributes:
        engine: Bytes of an engine while it samples; 0: the policy samples.
        resting: Bytes of that engine at any other time.
        evaluated: Prompts that evaluations answer at once, of all ranks together; 0: none.
        answer: Tokens of the longest answer of an evaluation.
    """

    engine: int = 0
    resting: int = 0
    evaluated: int = 0
    answer: int = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Bytes on the device by phase and part, and bytes in host memory (`host`)."""

    phases: Mapping[str, Mapping[str, int]]
    host: int = 0

    @property
    def least(self) -> int:
        """Bytes of tensors that a step takes whatever the lengths are."""
        return sum(self.phases["optimizer step"].values())

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
        """True if a device with this many GB (10^9 bytes) is enough; drivers report less than a device's name says."""
        return self.needed <= gigabytes * 10**9


def estimate(
    shape: ModelShape, stage: StageSettings, dtype: str, ranks: int, lengths: Lengths, beside: Beside | None = None
) -> Estimate:
    """Estimates the memory of one of `ranks` ranks under the stage's strategy; `dtype` is `model.dtype`.

    Without `beside` the policy samples, and nothing is evaluated.
    """
    return _Rank(shape, stage, dtype, ranks, lengths).estimate(beside or Beside())


def generation_bytes(shape: ModelShape, stage: StageSettings, dtype: str, ranks: int, lengths: Lengths) -> int:
    """Bytes of an engine with whole weights of its own that samples the rollout of one rank (`rollout.lag`)."""
    rank = _Rank(shape, stage, dtype, ranks, lengths)
    frozen = (shape.parameters + rank.adapters - rank.trained) * rank.precision.stored
    trained = rank.trained * (rank.precision.adapter if rank.adapters else rank.precision.trained)
    sampling = rank.generation(rank.prompts, rank.group_size, rank.answer)
    return frozen + trained + rank.media(rank.prompts, rank.prompts) + sum(sampling.values())


class _Rank:
    """One rank's share of the work, and the memory that it takes.

    Attributes:
        prompts: Number of prompts of this rank in one step.
        answer: Tokens of the longest completion, or of a target.
        adapters: Parameters of LoRA layers.
        trains: Groups whose own weights train; a tower counts even if its projector is frozen.
        learns: Groups that train, by their own weights or by an adapter.
        trained: Parameters that have gradients.
        models: Number of models that learn: 2 with a critic, else 1.
        in_pairs: True if both answers of a pair are scored together.
        one_run: True if towers that learn run once per iteration; with several updates, and in SFT, they run in every
            microbatch.
    """

    def __init__(self, shape: ModelShape, stage: StageSettings, dtype: str, ranks: int, lengths: Lengths) -> None:
        self.shape, self.stage, self.ranks, self.lengths = shape, stage, ranks, lengths
        self.precision, self.sharded = Precision.of(stage.trainer, dtype), stage.trainer.shards
        algorithm, adapter, stacks = stage.algorithm, stage.adapter, shape.stacks
        self.prompts = -(-stage.data.batch_size // ranks)
        self.answer = lengths.answer if stage.sampling is None else stage.sampling.max_new_tokens
        self.group_size = answers_of(stage)
        self.in_pairs = lesson_of(stage) == "pair"
        self.adapted = [] if adapter is None else [group for group in adapter.groups if group in stacks]
        self.adapters = 0
        if adapter is not None:
            counts = [stacks[group].adapter_parameters(adapter.r, adapter.wanted) for group in self.adapted]
            self.adapters = sum(counts)
        frozen = frozen_parts(stage.freeze)
        learning = [group for group in stacks if adapter is None]
        self.trains = [group for group in learning if not {group, f"{group}_tower"} & frozen]
        self.learns = {*self.trains, *self.adapted}
        # A projector that trains on a frozen tower counts with its parameters; its activations are too few to count.
        own = {group: stacks[group].projector_parameters for group in learning}
        trained = [stacks[group].parameters - own[group] for group in self.trains]
        trained += [own[group] for group in learning if not {group, f"{group}_{PROJECTOR}"} & frozen]
        self.trained = sum(trained) + self.adapters
        self.models = 1 if algorithm is None or algorithm.critic is None else 2
        self.one_run = algorithm is not None and algorithm.update.on_policy

    def estimate(self, beside: Beside) -> Estimate:
        """Adds up the parts of all phases."""
        resident, offload = self.resident(), self.stage.trainer.cpu_offload
        kept = {} if offload else resident
        before = {part: size for part, size in kept.items() if part != "gradients"}
        media = {"media": self.media(self.prompts, self.encoded_at_once())}
        # One copy of what trains; it is larger than a bucket in which ddp sums gradients.
        size = self.precision.adapter if self.adapters else self.precision.trained
        # The largest block of a tower that learns nothing.
        frozen = [group for group in self.shape.stacks if group != "text" and group not in self.learns]
        stacks = {group: self.shape.stacks[group] for group in frozen}
        blocks = {
            group: stack.normalized + computed_per_row(stack, self.precision, trains=False)
            for group, stack in stacks.items()
        }
        block = max((self.tower_rows(group, self.chunk(group)) * size for group, size in blocks.items()), default=0)
        phases = {
            "towers": {**before, **media, "activations": block, "gathered weights": self.gathered()},
            "backward": {**kept, **media, **self.backward(resident["gradients"], offload=offload)},
            "reduction": {**kept, "gathered weights": self.reduction()},
            "optimizer step": {**kept, "copies": 0 if offload else self.copies(size)},
        }
        if self.stage.algorithm is not None and not beside.engine:
            graphs = self.tower_graph() if self.one_run else 0
            own = self.generation(self.prompts, self.group_size, self.answer)
            phases["generation"] = {**before, **media, **own, "activations": graphs}
        if beside.evaluated:
            answers = self.answering(beside)
            weights = self.split(self.shape.parameters * self.precision.stored)
            phases["evaluation"] = {"weights": 0 if offload else weights, **answers}
            phases |= {"validation": {**before, **answers}} if self.stage.validate_every is not None else {}
        if beside.engine:
            resting = {name: {**parts, "engine": beside.resting} for name, parts in phases.items()}
            phases = {**resting, "generation": {**before, **media, "engine": beside.engine}}
        return Estimate(phases=phases, host=sum(resident.values()) if offload else 0)

    def copies(self, size: int) -> int:
        """Bytes that the optimizer needs for its step, for numbers of `size` bytes."""
        optimizer, trainer = self.stage.optimizer, self.stage.trainer
        if optimizer.get("fused"):
            return 0
        if trainer.accelerator == "cpu" or optimizer.get("foreach") is False:
            largest = self.shape.vocabulary * self.shape.text.width if "text" in self.trains else 0
            return 2 * self.split(largest * size)
        return self.split(self.trained * size)

    def resident(self) -> dict[str, int]:
        """Bytes of weights, optimizer state and reference weights, and of the gradients while there are any."""
        precision, optimizer = self.precision, self.stage.optimizer
        size = precision.adapter if self.adapters else precision.trained
        trained = self.split(self.trained * size)
        frozen = self.shape.parameters + self.adapters - self.trained
        weights = self.split(frozen * precision.stored + self.trained * size)
        # Critic and reference policy share what does not train, unless weights are sharded. The head that a critic
        # lacks is counted nevertheless. With an adapter the reference policy has no weights of its own; shards of it
        # are kept in the type in which they are gathered.
        copied = weights if self.sharded else trained
        reference = self.split(self.shape.parameters * min(precision.computed, size)) if self.sharded else trained
        compared = compares(self.stage) and self.stage.adapter is None
        # Number of tensors of the parameters' size that an optimizer keeps; all but SGD are taken to be like Adam.
        moments = 2 + bool(optimizer.get("amsgrad"))
        if optimizer["_target_"].rpartition(".")[2] == "SGD":
            moments = int(bool(optimizer.get("momentum")))
        return {
            "weights": weights + (self.models - 1) * copied,
            "gradients": self.models * trained,
            "optimizer state": self.models * moments * trained,
            "reference weights": reference if compared else 0,
        }

    def split(self, size: int) -> int:
        """Returns a rank's share of a size if FSDP2 shards the weights, otherwise the whole size."""
        return -(-size // self.ranks) if self.sharded else size

    def gathered(self) -> int:
        """Bytes of weights that are gathered at once: the root, the unit in use and the next one."""
        return (self.shape.root + 2 * self.shape.largest_unit) * self.precision.computed if self.sharded else 0

    def cast(self) -> int:
        """Bytes of the copies of weights that autocast casts and a backward pass keeps: those in wider types."""
        precision = self.precision
        wide = self.shape.parameters + self.adapters if precision.stored > precision.computed else self.trained
        return wide * precision.computed

    def backward(self, gradients: int, *, offload: bool) -> dict[str, int]:
        """Memory of scoring and its backward pass.

        With one microbatch gradients appear while activations go, that of the head first.
        """
        precision = self.precision
        weights = self.cast() if precision.autocast else self.gathered()
        root = self.shape.root * precision.computed if "text" in self.trains and self.sharded else 0
        unit = self.shape.largest_unit * (2 * precision.computed + precision.reduced) if root else 0
        towers = (self.models if self.one_run else 1) * self.tower_graph()
        answers = self.group_size * self.answer
        scored = -(-self.tokens() * answers // (self.lengths.prompt + answers))
        tile = min(scored, max(1, TILE_ELEMENTS // self.shape.vocabulary)) * self.shape.vocabulary
        logits = tile * (precision.computed + self.wide_copies() * max(precision.computed, SINGLE))
        # The logits are gone before a block computes its gradients.
        computing = max(0, self.at_hand("text", self.tokens()) - logits)
        activations = self.kept("text", self.tokens()) + computing + towers
        if self.tokens() == self.total():
            first = self.split(self.shape.root * precision.trained) if "text" in self.trains else 0
            gradients = min(gradients, max(first, gradients - activations - logits))
        return {
            **({} if offload else {"gradients": gradients}),
            "gathered weights": weights + root + unit,
            "activations": activations,
            "logits": logits,
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
        """Number of decoder tokens of one microbatch; a completion or a pair beyond the budget is scored alone."""
        budget = microbatches_of(self.stage).tokens_per_microbatch
        together = self.group_size if self.in_pairs else 1
        return min(self.total(), max(budget, self.lengths.prompt + together * self.answer))

    def total(self) -> int:
        """Number of decoder tokens of a step."""
        return self.prompts * (self.lengths.prompt + self.group_size * self.answer)

    def prompts_at_once(self) -> int:
        """Number of prompts of one microbatch."""
        group = self.lengths.prompt + self.group_size * self.answer
        return min(self.prompts, max(1, self.tokens() // group))

    def tower_graph(self) -> int:
        """Bytes of activations of the towers that learn, for all prompts whose tower graphs are held at once."""
        prompts = self.prompts if self.one_run else self.prompts_at_once()
        towers = [group for group in self.shape.stacks if group != "text" and group in self.learns]
        rows = {group: self.tower_rows(group, prompts) for group in towers}
        return sum(
            self.kept(group, num) + self.at_hand(group, num) + num * self.shape.stacks[group].normalized
            for group, num in rows.items()
        )

    def chunk(self, group: str) -> int:
        """Number of prompts that enter a frozen tower together."""
        return min(self.encoded_at_once(), max(1, TOWER_ROWS // max(1, self.lengths.media(group))))

    def encoded_at_once(self) -> int:
        """Number of prompts whose features are held at once: of a microbatch in SFT, else all prompts of the rank."""
        return self.prompts_at_once() if self.stage.algorithm is None and not self.in_pairs else self.prompts

    def tower_rows(self, group: str, prompts: int) -> int:
        """Number of rows within a tower, for so many prompts."""
        return prompts * self.lengths.media(group) * self.shape.stacks[group].rows_per_token

    def kept(self, group: str, rows: int) -> int:
        """Bytes of a stack's activations; with checkpointing, the inputs of all blocks and one whole block."""
        stack, precision, adapter = self.shape.stacks[group], self.precision, self.stage.adapter
        adapted = stack.adapted(adapter.wanted) if adapter is not None and group in self.adapted else ()
        rank = 0 if adapter is None else adapter.r
        trains = group in self.trains
        block = kept_per_row(stack, precision, trains=trains, adapted=adapted, rank=rank)
        if self.stage.trainer.activation_checkpointing:
            return rows * (stack.depth * stack.width * precision.stream(trains=trains) + block)
        return rows * stack.depth * block

    def at_hand(self, group: str, rows: int) -> int:
        """Bytes that one block of a stack holds while it computes."""
        return rows * computed_per_row(self.shape.stacks[group], self.precision, trains=group in self.trains)

    def media(self, prompts: int, encoded: int) -> int:
        """Bytes of the towers' inputs for all prompts, and of their outputs for prompts encoded at once."""
        width = self.shape.text.width * self.precision.computed
        return sum(
            self.tower_rows(group, prompts) * stack.input_values * stack.input_bytes
            + encoded * self.lengths.media(group) * width
            for group, stack in self.shape.stacks.items()
            if group != "text"
        )

    def answering(self, beside: Beside) -> dict[str, int]:
        """Memory of the answers of an evaluation."""
        prompts = -(-beside.evaluated // self.ranks)
        return {"media": self.media(prompts, prompts), **self.generation(prompts, 1, beside.answer)}

    def generation(self, prompts: int, group_size: int, answer: int) -> dict[str, int]:
        """Memory of sampling at full length; in half precision, prompts of unlike lengths take up to a quarter more."""
        precision, text = self.precision, self.shape.text
        rows = prompts * group_size
        own = min(answer, OWN_TOKENS * 2 ** max(0, math.ceil(math.log2(max(1, answer - 1) / OWN_TOKENS))))
        held = prompts * self.lengths.prompt + rows * own
        prefill = min(prompts * self.lengths.prompt, max(PREFILL_TOKENS, self.lengths.prompt))
        # A float64 distribution, its sum, and float32 log-probabilities.
        logits = rows * self.shape.vocabulary * (max(precision.computed, SINGLE) + 16)
        weights = (self.shape.parameters + self.adapters) * precision.computed if self.sharded else 0
        if precision.autocast:
            weights = min(self.cast(), self.shape.root * precision.computed)  # one layer at a time, the head at most
        return {
            "gathered weights": weights,
            "keys and values": held * text.depth * 2 * text.keys * precision.computed,
            "logits": max(logits, prefill * computed_per_row(text, precision, trains="text" in self.trains)),
        }
