"""Every benchmark at toy size: it passes its gate, counts what was claimed, prints a table."""

import json
import runpy
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools" / "bench"
PATCHES = 256  # of the one picture in a prompt of 160 tokens

# On a machine that is busy with other tests, a toy run takes minutes.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("bench")


@pytest.fixture
def run(work, tmp_path, monkeypatch, capfd):
    """Runs a tool and returns its cases and what it printed; its workers are processes of their own, as ever."""
    monkeypatch.syspath_prepend(TOOLS)

    def command(tool, *options):
        script, out = TOOLS / f"{tool}.py", tmp_path / "report.json"
        places = ["--work", str(work), "--out", str(out)]
        monkeypatch.setattr(sys, "argv", [str(script), "--quick", "--repeats", "1", *places, *options])
        runpy.run_path(str(script), run_name="__main__")
        return json.loads(out.read_text())["cases"], capfd.readouterr().out

    return command


def test_a_training_step_beside_trl(run):
    cases, table = run("bench_step")
    [case] = cases.values()
    trl, ours = (case["variants"][name]["counters"] for name in ("trl", "ours"))
    assert case["parity"]["ours_logprob"] < 1e-4
    assert (trl["lm_tokens"], ours["lm_tokens"]) == (8 * (160 + 4), 160 + 8 * 4)
    assert (trl["tower_patches"], ours["tower_patches"]) == (8 * PATCHES, PATCHES)
    assert "| train P=160 C=4 G=8 | trl |" in table


def test_an_iteration_beside_trl(run):
    cases, table = run("bench_step", "--iteration")
    [case] = cases.values()
    trl, ours = (case["variants"][name]["counters"] for name in ("trl", "ours"))
    assert (trl["prefills"], ours["prefills"]) == (8, 1)
    assert (ours["tower_runs"], ours["tower_patches"]) == (1, PATCHES)
    assert trl["tower_patches"] == 2 * 8 * PATCHES
    assert trl["decode_steps"] == ours["decode_steps"] == 3
    assert "| iteration P=160 C=4 G=8 | ours |" in table


def test_generation_beside_transformers(run):
    cases, table = run("bench_generate")
    [case] = cases.values()
    assert case["parity"] == {"equal_greedy_tokens": 8}
    counters = {name: variant["counters"] for name, variant in case["variants"].items()}
    assert (counters["transformers"]["prefills"], counters["ours"]["prefills"]) == (8, 1)
    assert "tokens/s" in table


def test_lightning_beside_a_bare_loop(run):
    cases, table = run("bench_overhead")
    assert len(cases) == 2
    for case in cases.values():
        assert case["parity"]["weight_difference"] < 1e-8 < case["parity"]["weight_moved"]
        lightning, bare = (case["variants"][name]["counters"] for name in ("lightning", "bare"))
        assert lightning == bare
    assert "lightning / bare" in table
