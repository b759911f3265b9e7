"""Tokens per second of an RL iteration on GPUs, on paper: counted operations and bytes over assumed rates."""

import math
from dataclasses import dataclass, replace

PEAK = 989e12
"""Dense bfloat16 operations a second of an H100 and an H200."""
FITTING = 0.6
"""Share of a GPU's bandwidth that decoding reaches with vLLM; what Python and launches take is in it."""
NVLINK, NETWORK = 300e9, 40e9
"""Bytes a second that a GPU exchanges with others of its machine, and of other machines."""
PER_MACHINE = 8
MICROBATCH, PATCHES = 16_384, 4
"""Tokens of a microbatch, as in the presets; patches of a media token in Qwen2.5-VL."""
SHORT_MEDIA = 1000
"""Tokens of the shortest prompt with media in the table of peers."""
PUSH_S, STEP_BYTES = 1.0, 28
"""Seconds of a weight push; bytes that an optimizer step moves for each weight in float32."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """Sizes of a released Qwen2.5 model: weights of layers, head and tower, and what attention needs."""

    name: str
    layers: int
    width: int
    keys: int
    body: float
    head: float
    tower: float = 0.63e9

    @property
    def cache(self) -> int:
        """Bytes of keys and values of a token in bfloat16."""
        return 2 * self.layers * self.keys * 2


@dataclass(frozen=True, kw_only=True)
class Load:
    """What one GPU does in an iteration: B prompts of P tokens, of media or not, G completions of C tokens each."""

    prompts: int = 32
    prompt: int = 3000
    group: int = 8
    completion: int = 200
    media: bool = True

    @property
    def rows(self) -> int:
        """Completions."""
        return self.prompts * self.group

    @property
    def tokens(self) -> int:
        """Tokens that are scored with one prompt for all its completions."""
        return self.prompts * (self.prompt + self.group * self.completion)

    @property
    def copied(self) -> int:
        """Tokens that are scored with a prompt for each completion."""
        return self.rows * (self.prompt + self.completion)


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How fast a trainer is: its share of the peak, and whether it scores a prompt once for all completions."""

    name: str
    share: float
    shares_prompts: bool
    recomputes: bool = True


SMALL = Model(name="3B", layers=36, width=2048, keys=256, body=2.77e9, head=0.311e9)
LARGE = Model(name="7B", layers=28, width=3584, keys=512, body=6.53e9, head=0.545e9)
OURS = Rates(name="ours", share=0.30, shares_prompts=True)
PEER = Rates(name="a trainer of copies", share=0.42, shares_prompts=False)


def forward(model: Model, load: Load, *, shared: bool) -> float:
    """Operations of scoring all completions once."""
    prompt, size, tokens = load.prompt, load.group, load.completion
    own = size * (tokens * prompt + tokens**2 / 2)
    pairs = load.prompts * (prompt**2 / 2 + own if shared else size * prompt**2 / 2 + own)
    linear = 2 * model.body * (load.tokens if shared else load.copied)
    return linear + 4 * model.layers * model.width * pairs + 2 * model.head * load.rows * tokens


def phases(model: Model, load: Load, gpus: int, rates: Rates, bandwidth: float) -> dict[str, float]:
    """Seconds of each phase of an iteration with a reference policy and one update, nothing overlapped."""
    flops = PEAK * rates.share
    scored = forward(model, load, shared=rates.shares_prompts)
    once = replace(load, completion=0)
    runs = 1 if rates.shares_prompts else 1 + 2 * load.group  # in vLLM; for every copy in reference and update
    tower = 2 * model.tower * PATCHES * load.prompts * load.prompt * runs * load.media
    gather = _gather_s(model, load, gpus, shared=rates.shares_prompts)
    update = (4 if rates.recomputes else 3) * scored / flops
    return {
        "towers": tower / flops,
        "prefill": forward(model, once, shared=True) / flops,
        "decode": decode_s(model, load, bandwidth),
        "reference": scored / flops,
        "update": update,
        "gathers left over": max(0.0, gather - (update + scored / flops)),
        "step": STEP_BYTES * (model.body + model.head) / gpus / bandwidth,
        "push": PUSH_S,
    }


def decode_s(model: Model, load: Load, bandwidth: float) -> float:
    """Seconds of decoding: each step reads the weights once, and the keys of prompt and answer for each completion."""
    weights = 2 * (model.body + model.head)
    keys = model.cache * load.rows * (load.prompt + load.completion / 2)
    return load.completion * (weights + keys) / (bandwidth * FITTING)


def _gather_s(model: Model, load: Load, gpus: int, *, shared: bool) -> float:
    """Seconds in which sharded weights are gathered for reference and update, and gradients are summed."""
    if gpus == 1:
        return 0.0
    passes = math.ceil((load.tokens if shared else load.copied) / MICROBATCH)
    weights = 2 * (model.body + model.head)
    bandwidth = NVLINK if gpus <= PER_MACHINE else NETWORK
    # Reference once, update forward and recomputation; gradients in float32.
    return passes * (3 * weights + 2 * weights) * (gpus - 1) / gpus / bandwidth


def tables() -> str:
    """The tables of docs/scaling.md."""
    return "\n\n".join([_worlds(), _lag(), _peers()])


def _worlds() -> str:
    lines = [
        "| model | GPUs | prompts: all, of a GPU | towers | prefill | decode | reference | update | gathers left "
        "over | push, step | iteration | scored tokens/s: of a GPU, all | completion tokens/s, all |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for model in (SMALL, LARGE):
        for gpus, prompts in ((1, 32), (8, 16), (64, 8)):
            load = Load(prompts=prompts)
            found = phases(model, load, gpus, OURS, 3.35e12 if gpus > 1 else 4.8e12)
            total = sum(found.values())
            ends = found["push"] + found["step"]
            times = [f"{found[name]:.1f}" for name in ("towers", "prefill", "decode", "reference", "update")]
            lines.append(
                f"| {model.name} | {gpus} | {prompts * gpus}, {prompts} | {' | '.join(times)} | "
                f"{found['gathers left over']:.1f} | {ends:.1f} | **{total:.1f} s** | {load.tokens / total:,.0f}, "
                f"**{gpus * load.tokens / total:,.0f}** | {gpus * load.rows * load.completion / total:,.0f} |"
            )
    return "\n".join(lines)


def split_s(model: Model, load: Load, gpus: int, samplers: int) -> float:
    """Seconds of an iteration if some GPUs sample the next batch while the others train on this one."""
    trainers = gpus - samplers
    train = replace(load, prompts=math.ceil(load.prompts * gpus / trainers))
    sample = replace(load, prompts=math.ceil(load.prompts * gpus / samplers))
    own = phases(model, train, trainers, OURS, 3.35e12)
    other = phases(model, sample, samplers, OURS, 3.35e12)
    names = ("towers", "reference", "update", "gathers left over", "step", "push")
    return max(sum(own[name] for name in names), sum(other[name] for name in ("towers", "prefill", "decode", "push")))


def _lag() -> str:
    lines = [
        "| model | GPUs | C | one after the other | lag 1, GPUs that sample | gain |",
        "|---|---|---|---|---|---|",
    ]
    for model in (SMALL, LARGE):
        for gpus, prompts in ((8, 16), (64, 8)):
            for completion in (200, 2000):
                load = Load(prompts=prompts, completion=completion)
                alone = sum(phases(model, load, gpus, OURS, 3.35e12).values())
                best, samplers = min((split_s(model, load, gpus, each), each) for each in range(1, gpus))
                lines.append(
                    f"| {model.name} | {gpus} | {completion} | {alone:.1f} s | {best:.1f} s, {samplers} | "
                    f"{alone / best:.2f} |"
                )
    return "\n".join(lines)


def _peers() -> str:
    lines = [
        "| P | C | G | tokens of copies over shared | ours, s | copies at 42 % of the peak, s | ours faster by | "
        "by tokens alone |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for prompt, completion, size in (
        (3000, 50, 8),
        (3000, 200, 8),
        (3000, 200, 16),
        (1000, 500, 8),
        (500, 500, 8),
        (200, 1000, 8),
        (200, 4000, 8),
        (3000, 8000, 8),
    ):
        load = Load(prompts=16, prompt=prompt, completion=completion, group=size, media=prompt >= SHORT_MEDIA)
        ours = sum(phases(LARGE, load, 8, OURS, 3.35e12).values())
        theirs = sum(phases(LARGE, load, 8, PEER, 3.35e12).values())
        ratio = load.copied / load.tokens
        lines.append(
            f"| {prompt} | {completion} | {size} | {ratio:.2f} | {ours:.1f} | {theirs:.1f} | {theirs / ours:.2f} | "
            f"{ratio * OURS.share / PEER.share:.2f} |"
        )
    return "\n".join(lines)
