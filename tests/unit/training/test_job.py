import sys

import pytest

from lightning_mmrl.errors import StageError
from lightning_mmrl.training.interruption import Interrupted
from lightning_mmrl.training.job import raising_interrupts


def exits_while_handling(error):
    """As in lightning.pytorch.trainer.call."""
    try:
        raise error
    except type(error):
        sys.exit(1)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), Interrupted(15)])
def test_the_interrupt_that_a_trainer_handled_is_raised(interrupt):
    with pytest.raises(KeyboardInterrupt) as caught, raising_interrupts():
        exits_while_handling(interrupt)
    assert caught.value is interrupt


@pytest.mark.parametrize("code", [None, 0, 3])
def test_an_exit_of_other_code_is_no_interrupt(code):
    sentence = rf"test_job\.py line \d+: sys\.exit\({code}\) would end the run; raise an exception there instead"
    with pytest.raises(StageError, match=sentence), raising_interrupts():
        sys.exit(code)


def test_an_exit_while_another_error_is_handled_is_no_interrupt():
    with pytest.raises(StageError, match=r"sys\.exit\(1\)"), raising_interrupts():
        exits_while_handling(ValueError())
