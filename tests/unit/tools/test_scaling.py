"""The cost model of docs/scaling.md: its split, its fit and its arithmetic."""

import pytest
import scaling_model
import scaling_paper


def test_the_halves_are_equal_and_the_fresh_shapes_are_in_neither():
    halved, fresh = set(scaling_model.HALVED), set(scaling_model.FRESH)
    assert len(halved) == 2 * len(scaling_model.FITTED) == scaling_model.NUM_SHAPES
    assert halved > scaling_model.FITTED
    assert len(fresh) == scaling_model.NUM_FRESH
    assert not halved & fresh


def test_the_fit_finds_the_costs_that_made_the_seconds():
    costs = {"products": 1e-11, "attention": 3e-11, "elements": 4e-8, "calls": 2e-3, "layer steps": 5e-4}
    costs |= {"weights read": 2e-10, "keys read": 1e-9, "pictures": 3e-3, "parameters": 5e-10}

    def seconds(shape):
        terms = scaling_model.work(shape)
        return {phase: sum(costs[name] * each for name, each in own.items()) for phase, own in terms.items()}

    found = scaling_model.fitted({shape: seconds(shape) for shape in scaling_model.FITTED})
    for shape in scaling_model.SHAPES:
        predicted = scaling_model.predicted(found, shape)
        assert predicted == pytest.approx(seconds(shape) | {"iteration": sum(seconds(shape).values())}, rel=1e-6)


def test_a_cost_is_never_negative():
    """Seconds that fall with the work would otherwise give one."""
    same = {shape: dict.fromkeys(scaling_model.work(shape), 1.0) for shape in scaling_model.FITTED}
    found = scaling_model.fitted(same)
    assert min(value for terms in found.values() for value in terms.values()) >= 0


def test_the_work_of_a_small_shape_is_what_a_hand_counts():
    shape = scaling_model.Shape(width=128, layers=4, prompt=3, completion=2, group=2, prompts=1)
    weights, head = 12 * 128 * 128 * 4, 4096 * 128
    score = scaling_model.work(shape)["score"]
    assert score["products"] == 2 * weights * 7 + 2 * head * 4
    # The prompt sees 1 + 2 + 3 positions; each completion sees the prompt twice, and 1 + 2 of its own.
    assert score["attention"] == 4 * 4 * 128 * (6 + 2 * (6 + 3))
    assert scaling_model.work(shape)["decode"]["weights read"] == weights + head


def test_on_paper_a_group_takes_the_operations_of_the_design():
    """One group of the 7B class at P = 3000, C = 200, G = 8: 65.6 TFLOP shared, 379 with copies less its full heads."""
    load = scaling_paper.Load(prompts=1)
    shared = scaling_paper.forward(scaling_paper.LARGE, load, shared=True)
    copies = scaling_paper.forward(scaling_paper.LARGE, load, shared=False)
    assert shared == pytest.approx(65.6e12, rel=0.01)
    assert copies == pytest.approx(379e12 - 2 * 0.545e9 * 8 * 3000, rel=0.01)


def test_lag_pays_where_few_gpus_can_decode_for_all():
    load = scaling_paper.Load(prompts=8, completion=2000)
    alone = sum(scaling_paper.phases(scaling_paper.LARGE, load, 64, scaling_paper.OURS, 3.35e12).values())
    assert min(scaling_paper.split_s(scaling_paper.LARGE, load, 64, each) for each in range(1, 64)) < alone
