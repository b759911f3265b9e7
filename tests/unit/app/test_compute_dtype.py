"""One rule says in which type a stage computes; its policy and the run's server both follow it."""

import families
import pytest
import torch

from lightning_mmrl.app.assembly import Assembly
from lightning_mmrl.app.serve import served_dtype
from lightning_mmrl.config.compose import compose
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.settings.stage import TrainerSettings


@pytest.mark.parametrize(
    ("precision", "stored", "computed"),
    [
        ("32-true", "float32", "float32"),
        ("32-true", "bfloat16", "bfloat16"),
        ("bf16-mixed", "float32", "bfloat16"),
        ("bf16-mixed", "bfloat16", "bfloat16"),
        ("16-mixed", "float32", "float16"),
        ("64-true", "float32", "float64"),
    ],
)
def test_the_precision_says_the_type_and_else_the_weights_do(precision, stored, computed):
    assert TrainerSettings(precision=precision).computes(stored) == computed


def test_a_policy_has_float32_weights_and_the_type_of_its_stage(tmp_path):
    folder = families.build("qwen2", tmp_path / "qwen2")
    config = compose(["model=tiny_qwen2", "stages.reason.trainer.precision=bf16-mixed"])
    parts = Assembly(config=config, console=None)
    encoder = parts.encoder(folder)
    policy = parts.policy(folder, encoder, 1.0, config.stages["reason"].trainer)
    assert policy.compute_dtype == torch.bfloat16
    assert {each.dtype for each in policy.parameters()} == {torch.float32}
    assert parts.policy(folder, encoder, 1.0).compute_dtype == torch.float32


def test_a_server_computes_as_the_stages_that_sample_with_it():
    assert served_dtype(compose([])) == "float32"
    assert served_dtype(compose(["trainer.precision=bf16-mixed"])) == "bfloat16"
    # A stage that samples nothing has no say.
    assert served_dtype(compose(["stages.cold_start.trainer.precision=bf16-mixed"])) == "float32"


def test_stages_of_two_types_cannot_share_a_server():
    config = compose(["stages.reason.trainer.precision=bf16-mixed"])
    config.stages["again"] = compose([]).stages["reason"]
    config.order.append("again")
    with pytest.raises(ConfigError) as refused:
        served_dtype(config)
    assert str(refused.value) == (
        "stages.reason.trainer.precision is bf16-mixed, which computes in bfloat16, and stages.again.trainer.precision "
        "is 32-true, which computes in float32; one server has one type: give both stages the same precision"
    )
