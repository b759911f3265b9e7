"""Numbers that are not finite, put into every place of a small stage, and what must be true afterwards.

A fault strikes at step `AT`, over several ranks on the last of them alone. Then the stage goes on without it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import exact_cases
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from lightning_mmrl.algorithms.penalties.kl import KLPenalty
from lightning_mmrl.errors import MmrlError
from lightning_mmrl.models.export import export_policy
from lightning_mmrl.models.finite import not_finite
from lightning_mmrl.settings.algorithm import KLSettings
from lightning_mmrl.training.finite_states import check_finite
from lightning_mmrl.training.interruption import Interruption
from lightning_mmrl.training.state_store import StoredState

AT = 3
NAN, INF, HUGE = float("nan"), float("inf"), 1e39


class Poisoned(torch.autograd.Function):
    """The values as they are, and a gradient times a factor."""

    @staticmethod
    def forward(ctx, values, factor):
        ctx.factor = factor
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


class Stage(exact_cases.Stage):
    """A stage that knows its step, and that a fault can be put into."""

    now = 0

    def __init__(self, kind, checkpoint, folder, interruption, **options):
        super().__init__(kind, checkpoint, folder, interruption, **options)
        self.started_from = str(checkpoint)
        self.last_rank = options["trainer"].world_size - 1 if "trainer" in options else 0
        self.change(self.module, "training_step", before=self.count)

    def count(self, batch, batch_idx):
        """Notes the step."""
        self.now = batch_idx + 1
        return batch, batch_idx

    def export(self):
        """Writes the handoff as a run does."""
        job = replace(
            self.job,
            exporter=partial(
                export_policy,
                self.policy,
                self.encoder,
                started_from=self.started_from,
                ranks=self.job.group.ranks,
            ),
        )
        job.export("handoff", self.job.states.directory.with_name("handoff"))

    @property
    def struck(self):
        """Whether the fault is here and now."""
        return self.now == AT and self.trainer.global_rank == self.last_rank

    def change(self, owner, name, *, before=None, after=None):
        """Changes the arguments or the result of a call."""
        whole = getattr(owner, name)

        def call(*args, **kwargs):
            args = before(*args) if before else args
            result = whole(*args, **kwargs)
            return after(result) if after else result

        setattr(owner, name, call)

    def spoil(self, owner, name, change):
        """Changes the result of a call where the fault strikes."""
        self.change(owner, name, after=lambda result: change(result) if self.struck else result)

    def at_start(self, strike):
        """Does something as the step of the fault begins."""

        def before(batch, batch_idx):
            if batch_idx + 1 == AT:
                self.module.state_dict()  # on all ranks: shards what a forward pass has gathered
                if self.trainer.global_rank == self.last_rank:
                    strike()
            return batch, batch_idx

        self.change(self.module, "training_step", before=before)

    def fill_weights(self, value):
        """Puts a value into the first weight that trains."""
        first = next(each for each in self.policy.parameters() if each.requires_grad)
        local(first).view(-1)[:1] = value

    def fill_moments(self, key, value):
        """Puts a value into what the optimizer keeps."""
        optimizer = self.trainer.optimizers[0]
        for state in optimizer.state.values():
            local(state[key]).fill_(value)


def local(tensor):
    """This rank's part of a tensor."""
    data = tensor.detach()
    return data.to_local() if isinstance(data, DTensor) else data


def spoiled_media(stage):
    """Media of the batch."""

    def before(batch, batch_idx):
        if batch_idx + 1 != AT or stage.trainer.global_rank != stage.last_rank:
            return batch, batch_idx
        prompts = getattr(batch, "prompts", batch)
        tensors = {key: each * NAN if each.is_floating_point() else each for key, each in prompts.media.tensors.items()}
        prompts = replace(prompts, media=replace(prompts.media, tensors=tensors))
        return (prompts if prompts.__class__ is batch.__class__ else replace(batch, prompts=prompts)), batch_idx

    stage.change(stage.module, "training_step", before=before)


def spoiled_output(stage, change):
    stage.spoil(stage.policy, "forward", lambda output: replace(output, logprobs=change(output.logprobs)))


def spoiled_old(stage):
    """Log-probabilities before the first of several updates; log-probabilities of an update have a gradient."""
    stage.spoil(
        stage.policy,
        "forward",
        lambda output: output if torch.is_grad_enabled() else replace(output, logprobs=output.logprobs * NAN),
    )


def overflow(stage):
    """An update that is too large for the type of the weights, made of finite gradients."""

    def grow(*_):
        if stage.struck:
            for parameter in stage.policy.parameters():
                local(parameter).mul_(3e38).mul_(3e38)

    def before(batch, batch_idx):
        if batch_idx == 0:
            stage.trainer.optimizers[0].register_step_post_hook(grow)
        return batch, batch_idx

    stage.change(stage.module, "training_step", before=before)


def spoiled_schedule(stage, factor):
    """The learning rate of the step, which is known when the step before it is done."""
    schedule = stage.module._optimizer.schedule
    wrong = partial(lambda step, num_steps: factor if step == AT - 1 else schedule(step, num_steps))
    stage.module._optimizer = replace(stage.module._optimizer, schedule=wrong)


def spoiled_answer(stage):
    """An answer of the validation after the step that follows: no step computes it."""
    last = stage.trainer.global_rank == stage.last_rank

    def validation(*args):
        stage.validates = last and stage.now == AT + 1
        return args

    def over(result):
        stage.validates = False
        return result

    stage.validates = False
    stage.change(stage.module, "validation_step", before=validation, after=over)
    stage.change(stage.policy, "next_logprobs", after=lambda rows: first_row(rows, NAN) if stage.validates else rows)


def spoiled_scores(stage, change):
    """Of the first completion of each group."""
    stage.spoil(stage.module.rewards, "score", lambda table: [[change(row[0]), *row[1:]] for row in table])


def first_row(rows, value):
    """The rows; the first one has a value everywhere."""
    rows = rows.clone()
    rows[:1] = value
    return rows


class OutOfMemoryError(RuntimeError):
    """Whatever ends a process."""


def old_state(stage):
    """A state that an earlier version saved, whose weights are not finite; the process then ends."""
    stage.job.saver._not_finite = lambda trainer: None
    commit = stage.store.commit
    stage.store.commit = lambda step, facts: commit(step, {"world_size": facts["world_size"]})

    def saves(trainer, module, outputs, batch, batch_idx):
        if stage.now == AT:  # on all ranks: the first one saves those of all replicas
            stage.fill_weights(NAN)
        return trainer, module, outputs, batch, batch_idx

    def ends(batch, batch_idx):
        if batch_idx == AT:
            raise OutOfMemoryError("no room")
        return batch, batch_idx

    stage.change(stage.job.saver, "on_train_batch_end", before=saves)
    stage.change(stage.module, "training_step", before=ends)


def spoiled_handoff(stage):
    """A weight, when training is done."""
    stage.change(
        stage.trainer,
        "fit",
        after=lambda result: stage.fill_weights(INF) if stage.trainer.global_rank == stage.last_rank else None,
    )


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Where a number is not finite, and what comes of it: the step is skipped, or the stage ends.

    `last` is the step that the same command goes on after; None if the stage did not end.
    """

    put: Callable[[Stage], None]
    last: int | None = None
    skipped: int = 1
    options: tuple = ()


SHARED = {
    "media": Fault(put=spoiled_media),
    "towers": Fault(
        put=lambda stage: stage.spoil(
            stage.policy.media.backbone,
            "media_features",
            lambda found: {kind: rows * NAN for kind, rows in found.items()},
        )
    ),
    "loss": Fault(put=lambda stage: spoiled_output(stage, lambda logprobs: logprobs * NAN)),
    "gradient": Fault(put=lambda stage: spoiled_output(stage, lambda logprobs: Poisoned.apply(logprobs, NAN))),
    "gradient norm": Fault(put=lambda stage: spoiled_output(stage, lambda logprobs: Poisoned.apply(logprobs, 3e38))),
    "update": Fault(put=overflow, last=AT - 1, skipped=0),
    "schedule": Fault(put=lambda stage: spoiled_schedule(stage, NAN), last=AT - 2, skipped=0),
    "weights": Fault(put=lambda stage: stage.at_start(lambda: stage.fill_weights(NAN)), last=AT - 1, skipped=0),
    "moments": Fault(
        put=lambda stage: stage.at_start(lambda: stage.fill_moments("exp_avg", NAN)), last=AT - 1, skipped=0
    ),
    "moments without an update": Fault(
        put=lambda stage: stage.at_start(lambda: stage.fill_moments("exp_avg_sq", INF)), last=AT - 1, skipped=0
    ),
    "state of an earlier version": Fault(put=old_state, last=AT - 1, skipped=0),
    "answer": Fault(put=spoiled_answer, last=AT + 1, skipped=0),
    "handoff": Fault(put=spoiled_handoff, last=exact_cases.STEPS, skipped=0),
}

SFT = {
    **SHARED,
    "hidden states": Fault(put=lambda stage: stage.spoil(stage.policy, "text_states", lambda states: states * INF)),
    "loss of float32": Fault(put=lambda stage: spoiled_output(stage, lambda logprobs: logprobs * HUGE)),
}

KL = ("kl", KLPenalty(KLSettings(coefficient=0.3, estimator="k3")))

GRPO = {
    **SHARED,
    "distribution": Fault(
        put=lambda stage: stage.spoil(stage.policy, "next_logprobs", lambda rows: first_row(rows, NAN))
    ),
    "sampler": Fault(
        put=lambda stage: stage.spoil(
            stage.engine,
            "generate",
            lambda rollout: replace(rollout, sampler_logprobs=first_row(rollout.sampler_logprobs, NAN)),
        )
    ),
    "old log-probabilities": Fault(put=spoiled_old),
    "reference": Fault(
        put=lambda stage: stage.spoil(
            stage.module,
            "compare",
            lambda found: replace(found, reference_logprobs=first_row(found.reference_logprobs, INF)),
        ),
        options=(KL,),
    ),
    "advantages": Fault(put=lambda stage: stage.spoil(stage.module, "advantages", lambda rows: first_row(rows, NAN))),
    # A verifier that failed: its completions leave their groups, and the step is taken.
    "reward": Fault(put=lambda stage: spoiled_scores(stage, lambda score: replace(score, total=HUGE)), skipped=0),
    "component": Fault(
        put=lambda stage: spoiled_scores(stage, lambda score: replace(score, components={"length": -HUGE})), skipped=0
    ),
}

PPO = {
    "values": Fault(put=lambda stage: stage.spoil(stage.module.critic, "forward", lambda values: values * NAN)),
    "critic's gradient": Fault(
        put=lambda stage: stage.spoil(
            stage.module.critic,
            "forward",
            lambda values: Poisoned.apply(values, NAN) if values.requires_grad else values,
        )
    ),
    "critic's weights": Fault(
        put=lambda stage: stage.at_start(lambda: local(next(stage.module.critic.parameters())).fill_(NAN)),
        last=AT - 1,
        skipped=0,
    ),
}

FAULTS = {"sft": SFT, "grpo": GRPO, "ppo": PPO}


def strike(kind, name, checkpoint, folder, interruption=None, **options):
    """Trains with a fault and again without it.

    Returns:
        `problems`: what is wrong, in words; `error`: the sentence that ended the first training, if one did; `said`:
        what the user was told meanwhile.
    """
    fault, interruption = FAULTS[kind][name], interruption or Interruption()
    options |= dict(fault.options)
    stage = Stage(kind, checkpoint, folder, interruption, **options)
    # A patch would outlive the stage otherwise: all it changes are its own objects.
    fault.put(stage)
    ended = error = None
    try:
        came_to = stage.job.run()
        stage.export()
    except (MmrlError, OutOfMemoryError) as error_:
        ended, error = type(error_).__name__, str(error_)
    first = stage.trainer.global_rank == 0
    problems = _wrong_states(folder) if first and name != "state of an earlier version" else []
    if (ended is not None) != (fault.last is not None):
        problems.append(f"ended by {ended}: {error}")
    if ended is None and came_to.num_skipped != fault.skipped:
        problems.append(f"{came_to.num_skipped} steps were skipped")
    noted = (folder / "bad_steps.jsonl").read_text().splitlines() if (folder / "bad_steps.jsonl").exists() else []
    if len(noted) < fault.skipped:
        problems.append(f"bad_steps.jsonl has {noted}")
    if first and ended is None:
        problems += _wrong_handoff(folder)
    again = Stage(kind, checkpoint, folder, interruption, **options)
    again.job.run()
    again.export()
    last = exact_cases.STEPS if fault.last is None else fault.last
    if again.said[0] != f"continuing after step {last}":
        problems.append(f"expected to continue after step {last}: {again.said[0]}")
    if first:
        problems += [*_wrong_states(folder), *_wrong_handoff(folder)]
    return {"problems": problems, "error": error or "", "said": stage.said}


def _wrong_handoff(folder):
    """Weights of the handoff that are not finite."""
    return [f"{name} of the handoff" for name in not_finite(load_file(folder / "handoff" / "model.safetensors"))]


def _wrong_states(folder):
    """States on the disk that are not finite, whatever they say of themselves."""
    found = []
    for place in (folder / "state").glob("step-????????"):
        try:
            check_finite(StoredState(step=int(place.name[5:]), folder=place, facts={}))
        except ValueError as error:
            found.append(f"{place.name}: {error}")
    return found
