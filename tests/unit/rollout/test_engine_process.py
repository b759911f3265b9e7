"""The process of an engine: it ends with its parent, however that ends, and tells why it failed."""

import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial

import pytest
import torch

from lightning_mmrl.errors import ConfigError, RolloutError
from lightning_mmrl.rollout.engine_process import EngineProcess, _bytes_of, _tensor_of

PARENT = """
import pickle, sys, time
from functools import partial
from lightning_mmrl.rollout.engine_process import _Child
if __name__ == "__main__":
    child = _Child(pickle.dumps(partial(time.sleep, 600)), "cpu")
    print(child._process.pid, flush=True)
    time.sleep(600)
"""


def refuse(reason):
    raise ConfigError(reason)


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
        time.sleep(8.0)  # the process has imported what watches its parent
        parent.send_signal(signum)
        parent.wait(20)
    deadline = time.monotonic() + 20
    while lives(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not lives(pid)


@pytest.mark.slow
def test_an_engine_that_cannot_be_built_says_why_in_one_sentence():
    class Policy(torch.nn.Linear):
        banned_ids = torch.zeros(1)

    engine = EngineProcess(partial(refuse, "model.checkpoint is gone; put it back"))
    engine.load_weights(Policy(2, 2), 0)
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
