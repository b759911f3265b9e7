"""The plan against the bytes of tensors of real stages; tools/bench/bench_memory.py measures a larger model too."""

import bench_memory
import pytest


@pytest.mark.slow
@pytest.mark.parametrize("case", ["tiny_text", "tiny_image"])
def test_stages_of_a_tiny_model_take_the_planned_bytes(case, tmp_path):
    rows = bench_memory.measure(case, tmp_path)
    assert [row["stage"] for row in rows] == ["cold_start", "reason"]
    for row in rows:
        assert row["measured"] <= row["planned"] <= 1.15 * row["measured"], row["stage"]
        assert row["planned"] > 2 * sum(row["parts"][part] for part in ("weights", "optimizer state"))
