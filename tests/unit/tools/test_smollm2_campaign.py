"""The campaign of SmolLM2 shows the accuracy of each order by seed."""

import seed_runs
import smollm2_campaign as campaign
from judged_runs import judged, write_answers


def test_accuracies_are_by_seed(tmp_path):
    folders = {seed: tmp_path / f"run{seed}" for seed in (0, 2)}
    for seed, folder in folders.items():
        write_answers(folder, "stages/02-reason", [judged("test-0", True), judged("test-1", seed == 0)])
    lines = campaign._accuracies({"RL": seed_runs.pooled(folders, "reason")}, [0, 2])
    assert lines[-1] == "| RL | 100.0 | 50.0 | 75.0 | 100.0 |"
