"""The GPU check at toy size on a CPU: its steps pass on a right product, fail on a wrong one, and hide nothing."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path

import gpu_attention
import gpu_check
import gpu_decoding
import gpu_layout
import gpu_microbatch
import gpu_precision
import gpu_towers
import gpu_worlds
import pytest
import torch
from gpu_record import Record, Setup, telling_errors
from packaging.requirements import Requirement
from replays import Recording, recorded

from lightning_mmrl.models.tower_attention import attend_windows

SHAPE = gpu_attention.Shape(16, 2, 64)


@pytest.fixture
def setup(tmp_path):
    return Setup(scale="toy", device=torch.device("cpu"), folder=tmp_path)


@pytest.fixture
def check(setup):
    """Runs a step as its process does, and returns its record."""

    def run(name):
        record = Record()
        gpu_check.run_step(name, setup, record)
        return record

    return run


def wrong_tiles(tiles):
    """By name, tiles with one fault each."""
    branch = tiles[-1]
    assert not branch.causal
    keys = branch.keys.clone()
    keys[:, 0] += 1
    return {
        "a completion without its prompt": tiles[:-1],
        "one key of a prompt twice": [*tiles[:-1], replace(branch, keys=keys, key_start=None)],
    }


def test_attention_is_within_the_error_of_torchs_own(check):
    record = check("attention")
    assert not record.failures
    worst = {name: value for name, value in record.figures.items() if name.endswith("_error_over_bound")}
    assert len(worst) == 8
    assert all(0 < value <= 1 for value in worst.values())
    assert "not measured" in record.not_measured[0]


@pytest.mark.parametrize("dtype", gpu_attention.DTYPES)
@pytest.mark.parametrize("fault", ["a completion without its prompt", "one key of a prompt twice"])
def test_a_wrong_tile_exceeds_the_bound(setup, fault, dtype):
    tree = gpu_attention.TOY_TREE
    tiles, seen = gpu_attention.tiles_of(setup, tree), gpu_attention.visible(tree)
    inputs = gpu_attention.inputs_of(setup, len(seen), SHAPE, dtype)
    assert max(gpu_attention.compare(tiles, seen, inputs)) <= 1
    assert min(gpu_attention.compare(wrong_tiles(tiles)[fault], seen, inputs)) > 3


def test_a_filler_that_counts_exceeds_the_bound(setup):
    tree = gpu_attention.TOY_TREE
    tiles, seen = gpu_attention.tiles_of(setup, tree), gpu_attention.visible(tree)
    faulty = [replace(tile, filler=None if tile.filler is None else torch.zeros_like(tile.filler)) for tile in tiles]
    inputs = gpu_attention.inputs_of(setup, len(seen), SHAPE, torch.float32)
    assert max(gpu_attention.compare(faulty, seen, inputs)) > 3


@pytest.mark.parametrize("dtype", gpu_attention.DTYPES)
def test_padding_that_decoding_sees_exceeds_the_bound(setup, dtype, monkeypatch):
    assert gpu_attention.decoding_ratio(setup, [9, 5], SHAPE, dtype) <= 1
    monkeypatch.setattr(gpu_attention, "padding_bias", lambda padding: None)
    assert gpu_attention.decoding_ratio(setup, [9, 5], SHAPE, dtype) > 3


def test_visible_tokens_are_those_of_the_tree():
    seen = gpu_attention.visible([(2, (1, 2))])
    assert seen.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 1, 1],
    ]


@pytest.mark.parametrize(("dtype", "least", "most"), [(torch.float32, 0.99, 1), (torch.bfloat16, 0.001, 0.05)])
def test_masters_move_and_bfloat16_weights_hardly(setup, dtype, least, most):
    policy = gpu_worlds.policy_of(setup, dtype=dtype, sizes=gpu_precision.TOY_SIZES)
    assert least <= gpu_precision.share_moved(setup, policy) <= most


def test_attention_gets_the_type_of_autocast(setup):
    policy = gpu_worlds.policy_of(setup, dtype=torch.float32, sizes=gpu_precision.TOY_SIZES)
    assert gpu_precision.attention_types(setup, policy) == {"bfloat16"}


def test_rounded_frequencies_are_found(setup):
    policy = gpu_worlds.policy_of(setup, dtype=torch.bfloat16, sizes=gpu_precision.TOY_SIZES)
    assert gpu_precision.rotation_error(policy) < 1e-3
    assert set(gpu_precision.frequency_types(policy).values()) == {torch.float32}
    policy.to(torch.bfloat16)
    assert gpu_precision.rotation_error(policy) > 0.5
    assert torch.bfloat16 in gpu_precision.frequency_types(policy).values()


def test_a_microbatch_is_the_same_with_recomputed_activations(check):
    record = check("microbatch")
    assert not record.failures
    assert record.figures["tokens"] == sum(gpu_microbatch.TOY_PROMPTS) + 3 * sum(gpu_microbatch.TOY_COMPLETIONS)
    assert any("waits" in line for line in record.not_measured)


def test_recomputation_that_changes_the_loss_fails(check, monkeypatch):
    loss_of, factors = gpu_microbatch.loss_of, iter(range(1, 100))
    monkeypatch.setattr(gpu_microbatch, "loss_of", lambda *given: next(factors) + loss_of(*given))
    assert any("recomputation changes the loss" in failure for failure in check("microbatch").failures)


def test_decoding_agrees_with_scoring(check):
    record = check("decoding")
    assert not record.failures
    assert record.figures["rows"] == 32
    assert record.figures["dispatches_per_step"] > 50
    assert record.not_measured == [
        "kernels per step: not measured, a CPU runs no kernels",
        "captured steps: not measured, a CPU captures none, and computes the same steps as they are",
    ]
    assert record.figures["ms_per_static_step"] > 0


@pytest.mark.parametrize("replays", [True, False])
def test_replays_that_sample_other_tokens_fail(setup, monkeypatch, replays):
    """Recordings stand for captures; the control's replays compute nothing."""
    policy = gpu_worlds.spread(setup, gpu_worlds.policy_of(setup, dtype=torch.float32))
    prompts, record = gpu_worlds.text_prompts(setup, policy, (9, 7)), Record()
    if not replays:
        monkeypatch.setattr(Recording, "repeat", lambda self: None)
    with recorded(monkeypatch):
        gpu_decoding.compare_captured(setup, record, policy, prompts, 2)
    assert record.figures["ms_per_captured_step"] > 0
    assert any("other tokens" in failure for failure in record.failures) == (not replays)


def test_a_wrong_position_shows_in_the_log_probabilities(setup):
    policy = gpu_worlds.spread(setup, gpu_worlds.policy_of(setup, dtype=torch.float32))
    prompts = gpu_worlds.text_prompts(setup, policy, (9, 7))
    clock = gpu_decoding.Clock(setup)
    rollout = gpu_decoding.sample(policy, prompts, 2, clock)
    bounds = gpu_decoding.BOUNDS[torch.float32]
    right, wrong = Record(), Record()
    gpu_decoding.compare(right, policy, prompts, rollout, bounds)
    gpu_decoding.compare(wrong, policy, replace(prompts, next_position=prompts.next_position + 5), rollout, bounds)
    assert not right.failures
    assert len(wrong.failures) == 2


def test_towers_encode_each_clip_as_if_alone(check, monkeypatch):
    record = check("towers")
    assert not record.failures
    assert {f"patches_{count * 128}_seconds" for count in gpu_towers.TOY_CLIPS} <= record.figures.keys()

    def leaking(query, key, value, boundaries, scale):
        return attend_windows(query, key, value, torch.tensor([0, len(query)]), scale)

    monkeypatch.setattr("lightning_mmrl.models.tower_attention.attend_windows", leaking)
    leaked = check("towers")
    assert any("other features alone" in failure for failure in leaked.failures), leaked.figures


def test_a_folder_in_the_hubs_layout_trains(setup):
    record = Record()
    gpu_layout.run(setup, record, named_end=True)
    assert not record.failures
    assert record.figures["rl_moved_weights"] > 0


def test_a_folder_without_an_end_trains(check):
    assert not check("layout").failures


@pytest.mark.slow
def test_ended_stages_hold_nothing(check):
    record = check("stages")
    assert len([name for name in record.figures if name.startswith("held_before")]) == 5
    assert not record.failures


def test_the_count_of_held_bytes_sees_a_tensor_come_and_go(setup):
    gpu_stages = pytest.importorskip("gpu_stages")
    before = gpu_stages.held_bytes(setup)
    kept = [torch.zeros(1000), torch.nn.Parameter(torch.zeros(1000))]
    kept.append(kept[0].view(10, 100))  # the same storage
    assert gpu_stages.held_bytes(setup) - before == 8000
    del kept
    assert gpu_stages.held_bytes(setup) == before


def test_an_exception_fails_its_step_with_its_first_line():
    record = Record()
    with telling_errors(record):
        raise ValueError("no kernel\nfor this device")
    assert record.plain()["failures"] == ["ValueError: no kernel"]
    assert record.status == "FAIL"


def test_steps_are_chosen_by_name_and_number():
    assert [step.name for step in gpu_check.parse(["--only", "layout, 1,attention"]).only] == ["attention", "layout"]
    assert len(gpu_check.parse([]).only) == 8


def test_an_unknown_step_is_named(capsys):
    with pytest.raises(SystemExit):
        gpu_check.parse(["--only", "9,towers"])
    assert "there is no step 9; choose from 1 attention, 2 precision" in capsys.readouterr().err


def test_a_missing_package_is_one_sentence(monkeypatch, capsys):
    def without_jaxtyping(name):
        if name == "jaxtyping":
            raise PackageNotFoundError(name)
        return "2.11.0" if name != "transformers" else "5.17.0"

    monkeypatch.setattr(gpu_check, "version", without_jaxtyping)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert gpu_check.main() == 2
    sentence = "gpu_check: the package jaxtyping is not installed; install it with: pip install 'jaxtyping>=0.3'\n"
    assert capsys.readouterr().err == sentence


def test_an_old_version_is_refused(monkeypatch):
    monkeypatch.setattr(gpu_check, "version", lambda name: "2.10.1+cu128")
    assert gpu_check.cannot_run().startswith("torch is 2.10.1+cu128, and this check needs 2.11 or newer")


@pytest.fixture
def own_steps(tmp_path, monkeypatch):
    """Steps of these tests, each a module that the steps' processes find."""
    codes = {
        "dies": "import os\n\ndef run(setup, record):\n    record.figure('seen', 1)\n    os._exit(7)\n",
        "hangs": "import time\n\ndef run(setup, record):\n    time.sleep(600)\n",
        "raises": "def run(setup, record):\n    raise RuntimeError('CUDA error: misaligned address\\nmore')\n",
        "works": "def run(setup, record):\n    record.figure('device', str(setup.device))\n",
    }
    for name, code in codes.items():
        (tmp_path / f"gpu_{name}.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    steps = [gpu_check.Step(name=name, about="a test") for name in codes]
    steps.insert(2, gpu_check.Step(name="asks", about="a test", needs=("PIL", "no_such_package")))
    monkeypatch.setattr(gpu_check, "STEPS", tuple(steps))
    return steps


@pytest.mark.slow
def test_no_step_hides_the_next(own_steps, tmp_path, capsys):
    out = tmp_path / "report.json"
    options = gpu_check.parse(["--scale", "toy", "--json", str(out), "--only", "dies,asks,raises,works"])
    assert gpu_check.check(options) == 1
    report = json.loads(out.read_text())
    found = {step["name"]: step for step in report["steps"]}
    assert {name: step["status"] for name, step in found.items()} == {
        "dies": "FAIL",
        "asks": "NEEDS",
        "raises": "FAIL",
        "works": "PASS",
    }
    assert found["dies"]["figures"] == {"seen": 1}
    assert found["dies"]["failures"] == ["its process ended with exit code 7"]
    assert found["asks"]["needs"] == ["no_such_package"]
    assert found["raises"]["failures"] == ["RuntimeError: CUDA error: misaligned address"]
    assert found["works"]["figures"] == {"device": "cpu"}
    assert report["scale"] == "toy"
    assert report["machine"]["gpu"] is None
    printed = capsys.readouterr().out
    assert "NEEDS asks no_such_package" in printed
    assert "1 PASS, 2 FAIL, 1 NEEDS" in printed


def test_a_step_that_hangs_is_ended(own_steps):
    outcome = gpu_check.run_apart(own_steps[1], "toy", False, 0.5)
    assert (outcome["status"], outcome["failures"]) == ("FAIL", ["it took longer than 0.5 s and was ended"])


@pytest.mark.slow
def test_four_packages_are_enough(tmp_path):
    """In an interpreter that finds these packages and what they require, and nothing else."""
    site = tmp_path / "site"
    site.mkdir()
    for name in closure(["torch", "transformers", "numpy", "jaxtyping"]):
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or () if file.parts[0] != ".."}:
            if not (site / top).exists():
                (site / top).symlink_to(found.locate_file(top))
    script, out = Path(gpu_check.__file__), tmp_path / "report.json"
    command = [sys.executable, "-S", "-B", str(script), "--scale", "toy", "--json", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    chosen = ["--only", "attention,microbatch,decoding,towers,stages,vllm,layout"]
    done = subprocess.run([*command, *chosen], env=environment, capture_output=True, text=True, check=False)
    steps = {step["name"]: step for step in json.loads(out.read_text())["steps"]}
    assert [step["failures"] for step in steps.values() if step["status"] == "FAIL"] == [], done.stdout + done.stderr
    assert steps["layout"]["needs"] == ["torchvision", "pillow"]
    assert "lightning" in steps["stages"]["needs"]
    assert "vllm" in steps["vllm"]["needs"]
    assert done.returncode == 0


def closure(names):
    """Distributions by name, and all that they require here."""
    found, waiting = set(), list(names)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found:
            continue
        found.add(name)
        for line in requires(name) or ():
            wanted = Requirement(line)
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                waiting.append(wanted.name)
    return found


@pytest.mark.gpu
def test_the_check_passes_on_this_gpu(tmp_path):
    out = tmp_path / "report.json"
    assert gpu_check.check(gpu_check.parse(["--json", str(out)])) == 0
    assert json.loads(out.read_text())["seconds"] < 240
