"""vLLM as a server: the same proof as in the process, and what may happen to a server meanwhile."""

import json
import os
import re
import shutil
import signal
import threading
import time

import families
import psutil
import pytest
import torch
from mlflow import MlflowClient
from ranks import free_port
from small_runs import SMALL_RL
from vllm_servers import Server

from lightning_mmrl.cli.main import main
from lightning_mmrl.errors import RolloutError
from lightning_mmrl.rollout.canary import Canary
from lightning_mmrl.rollout.vllm.engine import VLLMEngine
from lightning_mmrl.rollout.vllm.exchange import HostBuffer, write_files
from lightning_mmrl.rollout.vllm.keys import read_key, write_key
from lightning_mmrl.rollout.vllm.settings import VLLMServer, VLLMSettings
from lightning_mmrl.rollout.weights import PolicyWeights

BOUND = 1e-4
TIMEOUT_S = float(os.environ.get("STALL_S", "4"))
"""How long the server may stall."""
LIMIT = "rollout.settings.server.timeout_s"

# A server takes minutes to start where a run of all tests has both cores.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server for the tiny omni model, whose folder stands beside its log."""
    folder = tmp_path_factory.mktemp("server")
    families.build("qwen2_5_omni", folder / "model")
    server = Server(folder, ["experiment=quickstart", f"model.checkpoint={folder / 'model'}"]).start()
    try:
        yield server.wait()
    finally:
        server.kill()


@pytest.fixture
def connected(server):
    """A trainer that is connected to the server; every call makes one more."""
    from vllm_worlds import world

    engines = []

    def connect(**limits):
        settings = VLLMSettings(server=VLLMServer(url=server.url, key_file=str(server.key_file), **limits))
        made = world("qwen2_5_omni", server.log.parent / "model", 0.8, settings=settings)
        engines.append(made.engine)
        return made

    yield connect
    for engine in engines:
        engine.close()


def test_server_and_trainer_are_one_policy_before_and_after_pushes(connected):
    world = connected()
    for version in range(4):
        if version:
            world.move(version)
        world.engine.load_weights(world.policy, version)
        rollout = world.rollout(group_size=3)
        assert world.gap(rollout) < BOUND
        assert set(rollout.policy_version.tolist()) == {version}
        assert world.greedy() == world.own_greedy()
    assert len({tuple(row) for row in rollout.completion_ids.tolist()}) > len(world.batch.samples)
    # The negative control: the policy moves, and the server is not told.
    world.move(100)
    assert world.gap(world.rollout()) > 100 * BOUND


def test_no_route_answers_or_changes_anything_without_the_key(connected, server, tmp_path):
    world = connected()
    world.engine.load_weights(world.policy, 1)
    before, version = world.rollout(), server.get("/weight_info")
    weights = PolicyWeights(world.policy, world.encoder.engine_prefix)
    zeros = [(name, torch.zeros_like(tensor)) for name, tensor in weights.items()]
    write_files(zeros, tmp_path, HostBuffer([each.nbytes for _, each in zeros]))
    tmp_path.chmod(0o700)
    payload = {"new_version": "mallory", "method": "mmrl_load_files", "args": [str(tmp_path), os.getuid()]}
    routes = server.routes()
    assert {("POST", "/collective_rpc"), ("POST", "/update_weights"), ("GET", "/docs")} <= set(routes)
    assert len(routes) >= 60
    for method, path in [*routes, *(("OPTIONS", path) for _, path in routes)]:
        for shown in ({}, {"Authorization": "Bearer " + "x" * 43}, {"X-Forwarded-For": "127.0.0.1"}):
            assert server.ask(method, path, json.dumps(payload), **shown) == (401, ""), (method, path)
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "eA==",
    }
    assert server.ask("GET", "/v1/realtime", **upgrade)[0] in (400, 401, 403)
    assert server.get("/weight_info") == version
    assert not json.loads(server.get("/is_paused"))["is_paused"]
    assert torch.equal(world.rollout().completion_ids, before.completion_ids)
    # The same requests do what they say for whoever has the key.
    shown = {"Authorization": read_key(server.key_file).authorization}
    assert server.ask("POST", "/collective_rpc", json.dumps(payload), **shown)[0] == 200
    assert server.ask("POST", "/update_weight_version", json.dumps(payload), **shown)[0] == 200
    assert "mallory" in server.get("/weight_info")


def test_the_key_is_in_no_log_and_no_argument(server):
    key, process = read_key(server.key_file).value, psutil.Process(server.pid)
    assert key not in server.log.read_text()
    commands = [" ".join(each.cmdline()) for each in (process, *process.children(recursive=True))]
    assert "lightning_mmrl.rollout.vllm.launch" in commands[0]
    assert not [command for command in commands if key in command]


def test_weights_of_a_folder_that_others_write_to_change_nothing(connected, server, tmp_path):
    world = connected()
    world.engine.load_weights(world.policy, 1)
    tmp_path.chmod(0o777)
    client = world.engine._host._client
    for folder, owner in ((tmp_path, os.getuid()), (server.log.parent, os.getuid() + 1), (tmp_path / "none", 0)):
        call = {"method": "mmrl_load_files", "args": [str(folder), owner]}
        (report,) = client.call("POST", "/collective_rpc", call)["results"]
        assert report["refused"].startswith(f"all: {folder} ")
    assert world.gap(world.rollout()) < BOUND


def test_a_clip_with_its_sound_within_it(connected):
    from vllm_worlds import interleaved

    world = connected()
    batch = interleaved(world)
    assert world.gap(world.rollout(batch), batch) < BOUND
    assert world.greedy(batch) == world.own_greedy(batch)


def test_the_canary_passes_and_finds_weights_that_stay_behind(connected):
    world = connected()
    world.engine._canary = Canary(every=1, num_prompts=6)
    world.engine.load_weights(world.policy, 1)
    world.rollout()
    world.engine.load_weights(world.policy, 2)
    world.move(10)
    with pytest.raises(RolloutError, match=r"nats from the trainer's, for sample"):
        world.rollout()


def test_a_server_takes_one_run(connected):
    first, second = connected(), connected()
    first.engine.load_weights(first.policy, 0)
    second.engine.load_weights(second.policy, 0)
    with pytest.raises(RolloutError, match="of this run; a server takes one run"):
        first.rollout()


def test_a_stall_ends_within_the_limit_and_a_shorter_one_is_survived(connected, server):
    world = connected(timeout_s=TIMEOUT_S)
    world.engine.load_weights(world.policy, 0)
    before = world.rollout()
    server.signal(signal.SIGSTOP)
    start = time.monotonic()
    with pytest.raises(RolloutError, match=rf"has not answered /weight_info for {TIMEOUT_S:g} s \({LIMIT}"):
        world.rollout()
    assert time.monotonic() - start < 3 * TIMEOUT_S
    threading.Timer(TIMEOUT_S / 4, server.signal, [signal.SIGCONT]).start()
    assert torch.equal(world.rollout().completion_ids, before.completion_ids)


def test_an_interruption_ends_a_rollout_at_once(connected, server):
    world = connected()
    world.engine.load_weights(world.policy, 0)
    begun = time.monotonic()

    def interrupt():
        if time.monotonic() - begun > 1:
            raise KeyboardInterrupt

    server.signal(signal.SIGSTOP)
    try:
        requests = world.engine._requests(world.batch, [(1,)] * 6, max_tokens=2)
        bodies = {0: world.engine._host._bodies(requests[0])[0]}
        with pytest.raises(KeyboardInterrupt):
            world.engine._host._client.gather(bodies, "/inference/v1/generate", {}, interrupt)
        assert time.monotonic() - begun < TIMEOUT_S
    finally:
        server.signal(signal.SIGCONT)
    assert world.gap(world.rollout()) < BOUND


def test_no_server_is_one_sentence(tmp_path):
    from vllm_worlds import world

    write_key(tmp_path / "key")
    node = VLLMServer(url=f"http://127.0.0.1:{free_port()}", key_file=str(tmp_path / "key"))
    settings = VLLMSettings(server=node)
    unanswered = world("qwen2", tmp_path / "model", settings=settings)
    with pytest.raises(RolloutError, match=r"does not answer: .*start it with mmrl serve"):
        unanswered.rollout()
    unanswered.engine.close()


OVERRIDES = (
    *SMALL_RL,
    "state.every_n_steps=1",
    "stages.reason.num_steps=4",
)
FAULT = 3
"""The sampling of an attempt before which something happens."""


class Run:
    """A small run of the command line on the server's model, tracked in a database of its own."""

    def __init__(self, folder, server):
        self.server, self.folder = server, folder
        self._places = (
            f"model.checkpoint={server.log.parent / 'model'}",
            f"output_dir={folder}/runs",
            f"data.root={folder}/clips",
            "run_name=run",
            f"tracking.uri=sqlite:///{folder}/mlflow.db",
            f"rollout.settings.server.url={server.url}",
            f"rollout.settings.server.key_file={server.key_file}",
        )

    def train(self, rollout, *more):
        """The exit code of `mmrl train`."""
        places = self._places if rollout == "vllm_server" else self._places[:-2]
        return main(["train", *OVERRIDES, *places, f"rollout={rollout}", *more])

    def states(self):
        """The stage's saved states, with the bytes of each file."""
        state = self.folder / "runs" / "run" / "stages" / "00-reason" / "state"
        return {str(path.relative_to(state)): path.read_bytes() for path in state.rglob("*") if path.is_file()}

    def last_status(self):
        """MLflow's record of the youngest run of the stage."""
        client = MlflowClient(f"sqlite:///{self.folder}/mlflow.db")
        runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
        return max(runs, key=lambda run: run.info.start_time).info.status


def at_sampling(monkeypatch, number, happens):
    """Has something happen before a sampling of the engine, the canary's not counted."""
    generate, calls = VLLMEngine.generate, []

    def watched(engine, *args, **kwargs):
        calls.append(True)
        if len(calls) == number:
            happens()
        return generate(engine, *args, **kwargs)

    monkeypatch.setattr(VLLMEngine, "generate", watched)


def test_a_run_whose_server_fails_is_failed_keeps_its_state_and_goes_on_with_either_engine(
    server, connected, tmp_path, monkeypatch, capsys
):
    """One restart serves all: it takes as long as the rest together."""
    run, patient = Run(tmp_path, server), connected(restart_s=240.0)
    patient.engine.load_weights(patient.policy, 5)
    before = patient.rollout()

    def failed(message):
        assert re.search(message, capsys.readouterr().err, re.MULTILINE)
        assert run.last_status() == "FAILED"

    def die():
        """In the middle of an answer."""
        server.signal(signal.SIGSTOP)
        threading.Timer(1.0, server.kill).start()

    # The server is killed, and is not back in time.
    with monkeypatch.context() as patch:
        at_sampling(patch, FAULT, die)
        code = run.train("vllm_server", "rollout.canary=null", "rollout.settings.server.restart_s=1")
    server.start()
    assert code == 2
    failed(r"^mmrl train: the vLLM server at .* went away and was not back within 1 s .*the same command continues")
    saved = run.states()
    # The engine of this process has no memory for its cache.
    assert run.train("vllm", "rollout.settings.kv_cache_gib=0.0001") == 2
    failed(r"^mmrl train: rollout.settings.kv_cache_gib is 0.0001, .*; raise rollout.settings.kv_cache_gib to at least")
    assert run.states() == saved
    # A run that waits longer finds the server again, gives it the weights, and goes on as if nothing had been.
    after = patient.rollout()
    assert torch.equal(after.completion_ids, before.completion_ids)
    assert patient.gap(after) < BOUND
    # The state was saved at the last step before; both engines go on from there.
    shutil.copytree(tmp_path / "runs", tmp_path / "saved")
    assert run.train("hf") == 0
    assert f"continuing after step {FAULT - 1}" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "runs")
    shutil.copytree(tmp_path / "saved", tmp_path / "runs")
    # The server stalls for longer than it may.
    with monkeypatch.context() as patch:
        at_sampling(patch, 2, lambda: server.signal(signal.SIGSTOP))
        code = run.train("vllm_server", "rollout.canary=null", f"{LIMIT}={TIMEOUT_S}")
    server.signal(signal.SIGCONT)
    assert code == 2
    failed(rf"^mmrl train: the vLLM server at .* has not answered /\w+ for {TIMEOUT_S:g} s \({LIMIT}\)")
    # A weight has the wrong shape: what is half replaced has no version, so nothing is sampled with it.
    name, items = "thinker.model.layers.0.mlp.up_proj.weight", PolicyWeights.items
    with monkeypatch.context() as patch:
        patch.setattr(
            PolicyWeights,
            "items",
            lambda weights: ((key, tensor[:, :-1] if key == name else tensor) for key, tensor in items(weights)),
        )
        assert run.train("vllm_server") == 2
    failed(rf"^mmrl train: vLLM does not take the policy.s weights at {re.escape(name)} \(192, 63\)")
    assert "is being pushed" in server.get("/weight_info")
    # The engine of this process finishes the run.
    assert run.train("vllm") == 0
    assert run.last_status() == "FINISHED"
