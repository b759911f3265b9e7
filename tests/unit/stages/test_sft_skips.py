"""Which steps of SFT are skipped: a loss scaler may skip a few in a row by itself, and not the whole stage."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.plugins.precision.amp import MixedPrecision
from torch import nn

from lightning_mmrl.errors import StageError
from lightning_mmrl.settings.stage import StageSettings
from lightning_mmrl.stages.accumulating import SCALINGS, _Step
from lightning_mmrl.stages.context import OptimizerSettings, StageContext
from lightning_mmrl.stages.sft import SFTModule

NAN, INF = float("nan"), float("inf")
BORNE = 2


class Scaled(MixedPrecision):
    """A plugin with a scaler, as precision 16-mixed has on a GPU."""

    def __init__(self, scaler):
        self.scaler = scaler


@pytest.fixture
def stage(tmp_path):
    """A stage of one weight, and what takes its next step with a loss and a gradient."""

    def made(scaler):
        module = SFTModule(
            nn.Linear(1, 1, bias=False),  # type: ignore[arg-type]
            optimizer=OptimizerSettings(factory=torch.optim.SGD, schedule=lambda step, num_steps: 1.0),
            context=StageContext(
                name="stage", settings=StageSettings(num_steps=100, max_bad_steps=BORNE), seed=0, directory=tmp_path
            ),
        )
        trainer = SimpleNamespace(precision_plugin=Scaled(scaler), loggers=[], global_rank=0)
        module._trainer = trainer  # type: ignore[assignment]
        optimizer, numbers = torch.optim.SGD(module.parameters(), lr=1.0), iter(range(1, 100))

        def takes(loss, gradient):
            module.policy.weight.grad = torch.full((1, 1), gradient)
            module._step = _Step(number=next(numbers), loss=loss, samples=())
            module.configure_gradient_clipping(optimizer, 1.0)
            return module.policy.weight.grad is not None

        return module, takes

    return made


def test_a_scaler_skips_some_steps_in_a_row_by_itself_and_not_for_ever(stage):
    module, takes = stage(object())
    assert [takes(1.0, NAN) for _ in range(SCALINGS)] == [False] * SCALINGS
    assert len(module._bad_steps) == 0
    assert [takes(1.0, INF) for _ in range(BORNE)] == [False] * BORNE
    assert module._bad_steps.state_dict() == [SCALINGS + 1, SCALINGS + 2]
    with pytest.raises(StageError, match=r"gradient norm is not finite .* stages.stage.max_bad_steps 2 allows"):
        takes(1.0, NAN)


def test_a_finite_gradient_between_them_begins_anew(stage):
    module, takes = stage(object())
    for _ in range(3):
        assert [takes(1.0, INF) for _ in range(SCALINGS)] == [False] * SCALINGS
        assert takes(1.0, 0.5)
    assert len(module._bad_steps) == 0


def test_a_stage_that_goes_on_counts_on(stage):
    first, takes = stage(object())
    for _ in range(SCALINGS):
        takes(1.0, NAN)
    second, goes_on = stage(object())
    second.load_stage_state(first.stage_state())
    goes_on(1.0, NAN)
    assert len(second._bad_steps) == 1
    state = first.stage_state()
    del state["scalings"]
    second.load_stage_state(state)
    goes_on(1.0, NAN)
    assert len(second._bad_steps) == 0


@pytest.mark.parametrize(("scaler", "loss"), [(None, 1.0), (object(), NAN)])
def test_without_a_scaler_or_without_a_finite_loss_the_first_one_counts(stage, scaler, loss):
    module, takes = stage(scaler)
    assert not takes(loss, NAN)
    assert len(module._bad_steps) == 1
    assert module._skips
    assert takes(1.0, 0.5)
    assert not module._skips
