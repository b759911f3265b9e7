"""The process of an engine: it ends with its parent, however that ends, and tells why it failed."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from multiprocessing import Pipe

import pytest
import torch

from lightning_mmrl.errors import ConfigError, RolloutError
from lightning_mmrl.rollout import engine_process
from lightning_mmrl.rollout.engine_process import SURVIVED, EngineProcess, _bytes_of, _tensor_of, serve_engine
from lightning_mmrl.settings.algorithm import PhaseSettings
from lightning_mmrl.types.batches import MediaInputs, PromptBatch, SamplingOrder

PARENT = """
import pickle, signal, sys, time
from functools import partial
from lightning_mmrl.rollout.engine_process import _Child
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell ignores it
    child = _Child(pickle.dumps(partial(exec, "import time; print('built', flush=True); time.sleep(600)")), "cpu")
    print(child._process.pid, flush=True)
    time.sleep(600)
"""


def refuse(reason):
    raise ConfigError(reason)


def refuse_and_stay(reason):
    """A failure in a process that a thread keeps from ending."""
    threading.Thread(target=time.sleep, args=(600,)).start()
    refuse(reason)


def odd():
    raise ValueError("odd")


class Unreadable:
    """Fails when it is received."""

    def __reduce__(self):
        return odd, ()

    def to(self, device):
        return self


class Policy(torch.nn.Linear):
    """What a push and an order need of a policy."""

    banned_ids, compute_dtype = torch.zeros(1), torch.float32


class Engine:
    """Answers every order with what a function returns."""

    def __init__(self, answer):
        self.answer, self.policy = answer, Policy(2, 2)

    def load_weights(self, policy, version):
        pass

    def generate(self, prompts, **limits):
        return self.answer()


def order():
    empty = torch.zeros(1, 0, dtype=torch.long)
    prompts = PromptBatch(
        samples=(),
        input_ids=empty,
        prompt_mask=empty.bool(),
        position_ids=empty.expand(3, 1, 0),
        next_position=torch.zeros(1, dtype=torch.long),
        media=MediaInputs(tensors={}, counts={}),
    )
    return SamplingOrder(prompts=prompts, seeds=[[1]], limits=PhaseSettings(after=0, group_size=1, temperature=1.0))


@pytest.fixture
def started():
    """Starts an engine process with weights."""
    engines = []

    def start(build):
        engines.append(EngineProcess(build))
        engines[-1].load_weights(Policy(2, 2), 0)
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


def lives(pid):
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_the_trainer(tmp_path, signum):
    script = tmp_path / "parent.py"
    script.write_text(PARENT, encoding="utf-8")
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert lives(pid)
        assert parent.stdout.readline() == b"built\n"  # so the process watches its parent by now
        parent.send_signal(signum)
        parent.wait(20)
    deadline = time.monotonic() + 20
    while lives(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not lives(pid)


@pytest.mark.slow
def test_signals_that_the_trainer_survives_do_not_end_the_engine(started):
    """Batch systems send them to every process, and the state needs the rollouts in flight."""
    engine = started(partial(Engine, partial(torch.ones, 2)))
    assert engine.wait(engine.submit(order())).rollout.tolist() == [1.0, 1.0]
    pid = engine._child._process.pid
    for signum in SURVIVED:
        os.kill(pid, signum)
    time.sleep(0.5)
    assert engine.wait(engine.submit(order())).rollout.tolist() == [1.0, 1.0]
    engine.close()
    assert not lives(pid)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_an_answer_that_cannot_be_read_ends_the_wait(started):
    engine = started(partial(Engine, Unreadable))
    with pytest.raises(RolloutError, match=r"failed: its answer cannot be read \(ValueError: odd\); the same command"):
        engine.wait(engine.submit(order()))


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_an_order_that_cannot_be_read_ends_the_wait(started):
    engine = started(partial(Engine, partial(torch.ones, 2)))
    engine._child.send(Unreadable())
    with pytest.raises(RolloutError, match=r"failed: what it was sent cannot be read \(ValueError: odd\); the same"):
        engine.wait(1)


def test_everything_of_a_rank_is_on_its_own_device(monkeypatch):
    """Also what names no device, from the building of the engine on."""
    chosen, (ours, theirs) = [], Pipe()
    monkeypatch.setattr(engine_process, "begin", lambda packages: None)
    monkeypatch.setattr(signal, "signal", lambda signum, handler: None)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    serve_engine(theirs, pickle.dumps(partial(refuse, "no")), "cuda:1", {})
    assert chosen == ["cuda:1"]
    assert pickle.loads(ours.recv_bytes()).reason == "no"
    serve_engine(theirs, pickle.dumps(partial(refuse, "no")), "cpu", {})
    assert chosen == ["cuda:1"]
    ours.close()


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("build", [refuse, refuse_and_stay])
def test_an_engine_that_cannot_be_built_says_why_in_one_sentence(started, build):
    """Also if its process does not end by itself."""
    engine = started(partial(build, "model.checkpoint is gone; put it back"))
    with pytest.raises(RolloutError) as caught:
        engine.wait(1)
    assert str(caught.value) == (
        "the engine process, which samples ahead (rollout.lag), failed: model.checkpoint is gone; put it back; the "
        "same command continues"
    )
    engine.close()
    engine.close()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_weights_pass_the_pipe_bit_for_bit(dtype, shape):
    sent = (torch.randn(shape) * 3).to(dtype).mT if len(shape) == 2 else (torch.randn(shape) * 3).to(dtype)
    received = _tensor_of(bytes(_bytes_of(sent)), tuple(sent.shape), dtype)
    assert received.dtype == dtype
    assert torch.equal(received, sent)
    assert pickle.loads(pickle.dumps(received)).shape == sent.shape
