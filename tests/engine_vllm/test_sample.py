"""A sample stage whose completions are vLLM's: the same table in parts as with the policy itself, but for its noise."""

import json
from pathlib import Path

from lightning_mmrl.cli.main import main
from lightning_mmrl.curriculum.handoff import check_handoff
from lightning_mmrl.curriculum.manifest import Manifest
from lightning_mmrl.data.rollout_table import iter_table, table_files

PROMPTS, K, BATCH = 12, 4, 5
OVERRIDES = (
    "experiment=task_arithmetic",
    "rollout=vllm",
    "order=[cold_start,draw]",
    "+stage@stages.draw=sample",
    "+data.build.scale=0.05",
    "data.validation=null",
    "trainer.num_threads=1",
    "tracking=none",
    "evaluation.base=false",
    "evaluation.limit=4",
    "evaluation.num_resamples=50",
    "stages.cold_start.start_from=base",
    "stages.cold_start.num_steps=2",
    "stages.cold_start.stop_when=null",
    "stages.cold_start.validate_every=null",
    f"stages.draw.num_completions={K}",
    f"stages.draw.data.limit={PROMPTS}",
    f"stages.draw.data.batch_size={BATCH}",
    "stages.draw.sampling.max_new_tokens=6",
)


def test_a_stage_samples_with_vllm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *OVERRIDES, "run_name=sums"]) == 0
    run = Path("runs") / "sums"
    artifacts = Manifest.read(run).stages["draw"].result.artifacts
    files = table_files(run / artifacts["rollouts"].path)
    assert len(files) == -(-PROMPTS // BATCH)
    rows = [row for file in files for row in iter_table(file)]
    manifest = Path("data/arithmetic/train.jsonl").read_text().splitlines()[:PROMPTS]
    assert [row.sample.id for row in rows] == [json.loads(line)["id"] for line in manifest]
    assert {len(row.completions) for row in rows} == {K}
    assert any(len({each.text for each in row.completions}) > 1 for row in rows)
    assert check_handoff(run / Manifest.read(run).stages["cold_start"].result.artifacts["handoff"].path)
