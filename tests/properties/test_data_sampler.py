"""What every order of the data must satisfy, whatever the sizes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_mmrl.data.sampler import DrawSampler, ModalityDropout, SourceRows

sizes = st.integers(1, 20)
seeds = st.integers(0, 2**31)


def draws(num_samples, **how):
    sampler = DrawSampler([SourceRows(num_samples=num_samples)], **how)
    batches = list(sampler)
    assert len(sampler) == len(batches) == how["num_batches"]
    assert all(len(batch) == how["batch_size"] for batch in batches)
    return [draw for batch in batches for draw in batch]


@given(num_samples=sizes, batch_size=sizes, num_batches=sizes, seed=seeds)
def test_every_pass_is_a_permutation(num_samples, batch_size, num_batches, seed):
    found = draws(num_samples, batch_size=batch_size, num_batches=num_batches, seed=seed)
    assert [draw.serial for draw in found] == list(range(batch_size * num_batches))
    for start in range(0, len(found), num_samples):
        one_pass = [draw.index for draw in found[start : start + num_samples]]
        assert len(set(one_pass)) == len(one_pass)
        assert set(one_pass) <= set(range(num_samples))


@given(num_samples=sizes, batch_size=sizes, seed=seeds)
def test_a_draw_does_not_depend_on_the_batch_size(num_samples, batch_size, seed):
    dropout = ModalityDropout(silent=0.3, blank=0.3)
    how = {"seed": seed, "dropout": dropout}
    one = draws(num_samples, batch_size=1, num_batches=3 * batch_size, **how)
    assert draws(num_samples, batch_size=batch_size, num_batches=3, **how) == one


def test_iterating_again_gives_the_same_draws_and_another_seed_others():
    sampler = DrawSampler([SourceRows(num_samples=50)], batch_size=10, num_batches=10, seed=3)
    assert list(sampler) == list(sampler)
    other = draws(50, batch_size=10, num_batches=10, seed=4)
    ours = [draw for batch in sampler for draw in batch]
    assert [draw.index for draw in ours] != [draw.index for draw in other]


def test_passes_differ_from_each_other():
    found = [draw.index for draw in draws(50, batch_size=50, num_batches=2, seed=0)]
    assert found[:50] != found[50:]
    assert found[:50] != list(range(50))


def test_dropout_has_its_frequencies():
    found = [ModalityDropout(silent=0.2, blank=0.3).variant(0, serial) for serial in range(20_000)]
    # Five standard deviations of a frequency of 0.3 over 20 000 draws are 0.016.
    assert found.count("silent") / len(found) == pytest.approx(0.2, abs=0.016)  # tolerance: sampling error
    assert found.count("blank") / len(found) == pytest.approx(0.3, abs=0.016)  # tolerance: sampling error
    assert set(found) == {"full", "silent", "blank"}


@pytest.mark.parametrize(
    ("dropout", "expected"),
    [
        (ModalityDropout(), {"full"}),
        (ModalityDropout(silent=1.0), {"silent"}),
        (ModalityDropout(blank=1.0), {"blank"}),
        (ModalityDropout(silent=0.5, blank=0.5), {"silent", "blank"}),
    ],
)
def test_dropout_at_its_limits(dropout, expected):
    assert {dropout.variant(1, serial) for serial in range(500)} == expected


def test_dropout_is_independent_of_the_order():
    found = draws(2, batch_size=2, num_batches=2000, seed=0, dropout=ModalityDropout(silent=0.5))
    silent = [draw.index for draw in found if draw.variant == "silent"]
    assert sum(silent) / len(silent) == pytest.approx(0.5, abs=0.06)  # tolerance: sampling error of 2000 draws


@pytest.mark.parametrize("shares", [{"silent": -0.1}, {"blank": 1.1}, {"silent": 0.6, "blank": 0.6}])
def test_shares_must_be_probabilities(shares):
    with pytest.raises(ValueError, match="add up to at most 1"):
        ModalityDropout(**shares)
