"""The tests run with checked shapes; without that, an annotation would be a comment."""

import jaxtyping
import pytest
import torch

from lightning_mmrl.algorithms.advantages.leave_one_out import LeaveOneOut
from lightning_mmrl.ops.groups import group_mean
from lightning_mmrl.types.batches import LossOutput


@pytest.mark.parametrize(
    "call",
    [
        lambda: group_mean(torch.zeros(2, 3), torch.ones(2, 2, dtype=torch.bool)),
        lambda: LeaveOneOut()(torch.zeros(2, 3), torch.ones(2, 3)),
        lambda: LossOutput(
            token_losses=torch.zeros(2, 3), clipped=torch.zeros(3, 2, dtype=torch.bool), ratios=torch.ones(2, 3)
        ),
    ],
    ids=["ops", "algorithms", "types"],
)
def test_a_wrong_shape_or_dtype_is_refused(call):
    with pytest.raises(jaxtyping.TypeCheckError):
        call()
