"""`mmrl evaluate rollout=vllm`: one engine answers all sets, as the model itself does."""

import json
from pathlib import Path

import handoffs
import pytest

from lightning_mmrl.cli.main import main
from lightning_mmrl.rollout.vllm.process import ProcessHost

SETTINGS = (
    "experiment=quickstart",
    "+data.build.settings.scale=0.02",
    "evaluation.limit=6",
    "evaluation.batch_size=4",
    "evaluation.max_new_tokens=12",
    "evaluation.num_resamples=50",
    "evaluation.ablations=[]",
    "evaluation.sets.ood={manifest: ood.jsonl, prompt: {prefill: '<think>', suffix: ' Think.'}}",
    "trainer.num_threads=1",
    "tracking=none",
)
SETS = ("test", "ood")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workplace")
    handoffs.write("qwen2_5_omni", folder / "stage")
    return folder


def answers(run):
    folder = Path("runs") / run / "evaluations" / "stage"
    found = {name: (folder / f"{name}.jsonl").read_text().splitlines() for name in SETS}
    return {name: [json.loads(line) for line in lines] for name, lines in found.items()}


def test_both_engines_give_the_same_answers(workplace, monkeypatch, capsys):
    """Float32 on a CPU; a prefill is part of an answer with either engine."""
    monkeypatch.chdir(workplace)
    hosts, begin = [], ProcessHost.__init__

    def counting(self, *arguments):
        hosts.append(self)
        begin(self, *arguments)

    monkeypatch.setattr(ProcessHost, "__init__", counting)
    assert main(["evaluate", "stage/handoff", *SETTINGS, "run_name=hf"]) == 0
    assert hosts == []
    compared = ("--baseline", "runs/hf/evaluations/stage")
    assert main(["evaluate", "stage/handoff", *SETTINGS, "run_name=vllm", "rollout=vllm", *compared]) == 0
    assert len(hosts) == 1
    ours, theirs = answers("vllm"), answers("hf")
    assert ours == theirs
    assert all(len({each["text"] for each in ours[name]}) > 1 for name in SETS)
    assert all(each["text"].startswith("<think>") for each in ours["ood"])
    bound = json.loads(Path("runs/vllm/evaluations/stage/evaluated.json").read_text())["common"]
    assert bound["engine"]["_target_"] == "lightning_mmrl.rollout.vllm.engine.VLLMEngine"
    assert "vllm" in bound["code"]
    assert "gained over runs/hf/evaluations/stage" in capsys.readouterr().out
