"""Says which key would change what a profile measured; every sentence follows from its numbers by one rule."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lightning_mmrl.rollout.vllm.readiness import is_vllm
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.settings.sample import SampleSettings
from lightning_mmrl.settings.sft import microbatches_of
from lightning_mmrl.settings.stage import NodeSettings, StageSettings
from lightning_mmrl.types.costs import OPTIMIZE, WAIT
from lightning_mmrl.types.profile import StageProfile

LARGE = 0.1
"""Share of a step from which a phase is worth a change."""
LARGEST = 0.4
"""Share of a step from which sampling is: it takes the most time of most iterations anyway."""
PADDED = 0.15
"""Share of computed positions without a logical token from which padding and copies are worth a change."""
UNUSED = 0.5
"""Share of a device's memory below which microbatches can be larger, or activations be kept."""
CUT_OFF = 0.3
"""Share of completions that the length limit ends from which the limit decides the time of sampling."""
STATES = 0.05
"""Share of the time from which states are written too often."""
UNEVEN = 0.1
"""Difference of two ranks' shares of waiting from which one of them holds the others up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A profile of a stage, with the keys that the stage had."""

    profile: StageProfile
    stage: NodeSettings
    config: RunSettings

    @property
    def path(self) -> str:
        """The key of the stage."""
        return f"stages.{self.profile.stage}"

    def share(self, phase: str) -> float:
        """The share of a step that a phase takes."""
        costs = self.profile.costs
        return costs.seconds.get(phase, 0.0) / costs.total_s if costs.total_s else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """A measured cost, as a share of the time of a step, and the keys that would change it."""

    share: float
    text: str


def advice(profile: StageProfile, stage: NodeSettings, config: RunSettings) -> list[Advice]:
    """Returns what the numbers of a profile say, the largest share first; empty if no rule applies."""
    case = Case(profile=profile, stage=stage, config=config)
    found = [each for rule in RULES for each in rule(case)]
    return sorted(found, key=lambda each: -each.share)


def _data(case: Case) -> Iterator[Advice]:
    share, media = case.share("data"), case.config.data.media
    if share < LARGE:
        return
    more = f"data.media.decode_workers (now {media.decode_workers})"
    if not media.prefetch_samples:
        text = f"set data.media.prefetch_samples (now 0), so that samples are read while the model works, and {more}"
    else:
        text = (
            f"raise {more}; if the workers are idle, raise data.media.prefetch_samples (now {media.prefetch_samples}) "
            f"or prefetch_mb (now {media.prefetch_mb}); a second pass over the data reads encoded media from "
            f"{media.cache_dir}"
        )
    yield Advice(share=share, text=f"waits for data: {text}")


def _generate(case: Case) -> Iterator[Advice]:
    share, stage = case.share("generate"), case.stage
    if share < LARGEST or stage.sampling is None:
        return
    key, engine = "rollout", case.config.rollout
    if isinstance(stage, SampleSettings) and stage.rollout is not None:
        key, engine = f"{case.path}.rollout", stage.rollout
    limit = f"{case.path}.sampling.max_new_tokens (now {stage.sampling.max_new_tokens})"
    changes = [] if is_vllm(engine) else [f"sample with vLLM on a GPU: {key}=vllm in place of the policy itself"]
    truncated = case.profile.truncated
    if truncated is not None and truncated >= CUT_OFF:
        changes.append(f"lower {limit}, which ends {truncated:.0%} of the completions")
    if not changes:
        changes.append(f"few completions reach {limit}, so fewer prompts or completions are what is left to lower")
    yield Advice(share=share, text=f"samples: {'; '.join(changes)}")


def _score(case: Case) -> Iterator[Advice]:
    share, rewards = case.share("score"), case.stage.rewards
    if share >= LARGE and rewards is not None:
        key = f"{case.path}.rewards.num_workers (now {rewards.num_workers})"
        yield Advice(share=share, text=f"computes rewards: raise {key}, which score side by side")


def _encode(case: Case) -> Iterator[Advice]:
    share, model = case.share("encode"), case.config.model
    if share < LARGE:
        return
    text = "runs the media towers: lower data.media.num_frames or the pixels of a picture (data.media.max_*_pixels)"
    frozen = isinstance(case.stage, StageSettings) and {"vision", "audio"} & set(case.stage.freeze)
    if frozen and model.feature_cache is None:
        text += "; set model.feature_cache, so that later passes read the features of the frozen towers"
    yield Advice(share=share, text=text)


def _reference(case: Case) -> Iterator[Advice]:
    share, stage = case.share("reference"), case.stage
    if share < LARGE or not isinstance(stage, StageSettings) or stage.algorithm is None:
        return
    key = f"{case.path}.algorithm.kl.coefficient (now {stage.algorithm.kl.coefficient:g})"
    yield Advice(share=share, text=f"scores with the reference policy: 0 for {key} needs none, but trains otherwise")


def _microbatches(case: Case) -> Iterator[Advice]:
    profile, stage = case.profile, case.stage
    if case.share(OPTIMIZE) < LARGE or not isinstance(stage, StageSettings):
        return
    parts = sum(rank.num_microbatches for rank in profile.costs.ranks) / len(profile.costs.ranks)
    each = parts / max(1, profile.costs.num_steps)
    path = f"{case.path}.algorithm.update" if stage.algorithm is not None else case.path
    key = f"{path}.tokens_per_microbatch (now {microbatches_of(stage).tokens_per_microbatch})"
    if profile.memory_share is not None and profile.memory_share < UNUSED:
        used = f"{profile.memory_share:.0%} of the device's memory is used"
        if each > 1:
            text = f"updates in {each:.1f} microbatches of a rank, and {used}: raise {key}"
            yield Advice(share=case.share(OPTIMIZE), text=text)
        if stage.trainer.activation_checkpointing:
            text = (
                f"updates, computing activations twice, and {used}: {case.path}.trainer.activation_checkpointing=false"
            )
            yield Advice(share=case.share(OPTIMIZE), text=text)


def _precision(case: Case) -> Iterator[Advice]:
    share, stage = case.share(OPTIMIZE), case.stage
    if share < LARGEST or case.profile.memory_share is None:
        return
    if stage.trainer.computes(case.config.model.dtype) in ("float32", "float64"):
        now = f"{case.path}.trainer.precision (now {stage.trainer.precision})"
        yield Advice(
            share=share,
            text=f"updates in {stage.trainer.computes(case.config.model.dtype)} on a GPU: set {now} to bf16-mixed",
        )


def _padding(case: Case) -> Iterator[Advice]:
    ranks, stage = case.profile.costs.ranks, case.stage
    positions, logical = sum(rank.positions for rank in ranks), sum(rank.logical for rank in ranks)
    if not positions or not isinstance(stage, StageSettings):
        return
    padded = 1 - logical / positions
    share = padded * case.share(OPTIMIZE)
    if padded < PADDED or case.share(OPTIMIZE) < LARGE:
        return
    path = f"{case.path}.algorithm.update" if stage.algorithm is not None else case.path
    tokens = microbatches_of(stage).tokens_per_microbatch
    key = (
        f"raise {path}.tokens_per_microbatch (now {tokens}), so that fewer groups are split and read their prompt again"
    )
    if not case.config.model.sharing:
        key = "set model.sharing=true, so that the completions of a prompt share it"
    yield Advice(
        share=share, text=f"computes padding or copies of prompts, {padded:.0%} of all positions of an update: {key}"
    )


def _push(case: Case) -> Iterator[Advice]:
    share = case.share("push")
    if share < LARGE:
        return
    text = "gives the engine the weights: more prompts per iteration "
    text += f"({case.path}.data.batch_size, now {case.stage.data.batch_size}) need fewer pushes"
    server = (case.config.rollout.get("settings") or {}).get("server")
    if server is not None and server.get("transfer") == "files":
        text += "; rollout.settings.server.transfer=nccl goes without files"
    yield Advice(share=share, text=text)


def _states(case: Case) -> Iterator[Advice]:
    if not isinstance(case.stage, StageSettings) or not case.profile.step_s:
        return
    state, own = case.config.state, case.profile.state_s
    per_step = own / state.every_n_steps
    share = per_step / (case.profile.step_s + per_step)
    if share < STATES:
        return
    background = "" if state.in_background else ", or set state.in_background=true"
    text = f"writes states, {own:.1f} s each: raise state.every_n_steps (now {state.every_n_steps}){background}"
    yield Advice(share=share, text=text)


def _waits(case: Case) -> Iterator[Advice]:
    costs = case.profile.costs
    shares = [rank.wait_share for rank in costs.ranks]
    if len(shares) < 2 or case.share(WAIT) < LARGE:
        return
    if max(shares) - min(shares) < UNEVEN:
        yield Advice(
            share=case.share(WAIT),
            text=f"exchanges with other ranks, all alike: more tokens per step ({case.path}.data.batch_size, now "
            f"{case.stage.data.batch_size}) need fewer exchanges",
        )
        return
    slowest = shares.index(min(shares))
    means = costs.seconds
    own = costs.ranks[slowest].seconds
    longer = {phase: own.get(phase, 0.0) - mean for phase, mean in means.items() if phase != WAIT}
    phase = max(longer, key=lambda name: longer[name])
    keys = {
        "data": f"data.media.decode_workers (now {case.config.data.media.decode_workers})",
        "generate": f"{case.path}.sampling.max_new_tokens, since its longest completion holds all up",
        "score": f"{case.path}.rewards.num_workers",
    }
    key = keys.get(phase, "its device, or what else runs on its machine")
    yield Advice(
        share=case.share(WAIT), text=f"waits for rank {slowest}, which takes longer in the phase {phase}: look at {key}"
    )


RULES: tuple[Callable[[Case], Iterator[Advice]], ...] = (
    *(_data, _generate, _score, _encode, _reference),
    *(_microbatches, _precision, _padding, _push, _states, _waits),
)
