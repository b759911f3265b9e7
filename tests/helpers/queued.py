"""Engines that sample with earlier weights: in this process, in one of their own, and one after the other."""

import copy
from functools import partial

import omni
import torch

from lightning_mmrl.rollout.engine_process import EngineProcess
from lightning_mmrl.types.batches import TimedRollout


class InlineQueue:
    """A `QueuedEngine` that samples when it is asked, with a copy of the model."""

    def __init__(self, checkpoint, dtype):
        encoder, self.policy = omni.load(checkpoint, dtype=dtype)
        self.engine = omni.engine(encoder, self.policy, max_new_tokens=4)
        self.found, self.num_sampled = {}, 0

    def load_weights(self, policy, version):
        self.policy.load_state_dict(policy.state_dict())
        self.engine.load_weights(self.policy, version)

    def submit(self, order):
        self.policy.temperature = order.temperature
        self.num_sampled += 1
        self.found[self.num_sampled] = TimedRollout(
            rollout=self.engine.generate(order.prompts, **order.arguments), seconds=1.0
        )
        return self.num_sampled

    def wait(self, ticket, poll=lambda: None):
        poll()
        return self.found[ticket]

    def release(self, ticket):
        del self.found[ticket]

    def close(self):
        pass


def process_engine(checkpoint, dtype):
    """Built in another process: as `Stage` builds its own, with the single thread of all tests."""
    torch.set_num_threads(1)
    encoder, policy = omni.load(checkpoint, dtype=dtype)
    if dtype == torch.bfloat16:
        policy.keep_masters()
    return omni.engine(encoder, policy, max_new_tokens=4)


def in_process_of_its_own(checkpoint, dtype):
    return EngineProcess(partial(process_engine, checkpoint, dtype))


class Stale:
    """The oracle, a `RolloutEngine` without a lag: iteration j is sampled with version max(0, j - 1 - lag)."""

    reads_features = False

    def __init__(self, engine, lag):
        self._engine, self._lag = engine, lag
        self._kept = [copy.deepcopy(engine.policy.state_dict())]
        self._copy = copy.deepcopy(engine.policy)
        self._iteration = 0

    def load_weights(self, policy, version):
        assert version == len(self._kept)
        self._kept.append(copy.deepcopy(policy.state_dict()))

    def generate(self, prompts, **limits):
        self._iteration += 1
        live, self._engine.policy = self._engine.policy, self._copy
        version = max(0, self._iteration - 1 - self._lag)
        self._copy.load_state_dict(self._kept[version])
        self._copy.temperature = live.temperature
        self._engine.load_weights(self._copy, version)
        try:
            return self._engine.generate(prompts, **limits)
        finally:
            self._engine.policy = live

    def sleep(self):
        pass

    def close(self):
        pass
