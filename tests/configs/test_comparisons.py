"""Every shipped comparison composes and can be planned; a newcomer's file is tested without writing a test."""

from dataclasses import replace

import pytest

from lightning_mmrl.app.arms import planned
from lightning_mmrl.app.shared_stages import segments
from lightning_mmrl.config.comparisons import read_comparison
from lightning_mmrl.config.compose import compose
from lightning_mmrl.config.folders import COMPARE, options


@pytest.mark.parametrize("name", options(COMPARE))
def test_a_comparison_composes_and_shares_what_it_can(name):
    settings = read_comparison(name)
    assert settings.question
    assert len(settings.seeds) > 0
    settings = replace(settings, seeds=settings.seeds[:1])
    runs = planned(settings, [], name, {None: []}, lambda arguments: compose(list(arguments)))
    assert [run.arm for run in runs] == list(settings.arms)
    found = segments(runs)
    assert all(len(each.runs) > 1 and (each.above is None or each.above in found) for each in found)
