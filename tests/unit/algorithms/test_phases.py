"""PTST: which limits hold in which iteration."""

import pytest

from lightning_mmrl.algorithms.phases import Phases
from lightning_mmrl.settings.algorithm import PhaseSettings

FIRST = PhaseSettings(after=0, group_size=16, max_new_tokens=4096, temperature=1.0)


def test_the_published_schedule():
    """Vision-R1: 4K x 16 for 100 iterations, then 8K x 8 for 100, then 16K x 4."""
    phases = Phases(
        first=FIRST,
        later=[
            PhaseSettings(after=100, group_size=8, max_new_tokens=8192),
            PhaseSettings(after=200, group_size=4, max_new_tokens=16384),
        ],
    )
    found = [(phases.at(step).group_size, phases.at(step).max_new_tokens) for step in (0, 99, 100, 199, 200, 299)]
    assert found == [(16, 4096), (16, 4096), (8, 8192), (8, 8192), (4, 16384), (4, 16384)]


def test_what_a_phase_does_not_name_stays_as_it_was():
    later = [PhaseSettings(after=1, temperature=0.5), PhaseSettings(after=2, group_size=2)]
    assert Phases(first=FIRST, later=later).at(2) == PhaseSettings(
        after=2, group_size=2, max_new_tokens=4096, temperature=0.5
    )


@pytest.mark.parametrize("starts", [(0,), (0, 5), (5, 5), (5, 3)])
def test_phases_come_one_after_the_other(starts):
    with pytest.raises(ValueError, match="each must begin later than the one before it"):
        Phases(first=FIRST, later=[PhaseSettings(after=start) for start in starts])
