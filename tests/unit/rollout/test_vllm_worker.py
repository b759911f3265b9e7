"""Code within vLLM's worker, against stand-ins of its model; nothing here needs vllm."""

from types import SimpleNamespace

import pytest
import torch

from lightning_mmrl.rollout.vllm.worker import POSITIONS, take_given_positions

# Eleven tokens: five of text, a picture of 2 x 2 at one time, two of text; the next token is at 9.
GIVEN = torch.tensor(
    [
        [0, 1, 2, 3, 4, 5, 5, 5, 5, 7, 8, 9],
        [0, 1, 2, 3, 4, 5, 5, 6, 6, 7, 8, 9],
        [0, 1, 2, 3, 4, 5, 6, 5, 6, 7, 8, 9],
    ]
)
PROMPT = list(range(11))
NEXT = 9


class Model:
    """Stands for SupportsMRoPE of vLLM 0.32, which both runners ask for positions (v1/worker/gpu/mm/rope.py:66)."""

    def get_mrope_input_positions(self, input_tokens, mm_features):
        assert not mm_features, "given positions stand in for the model's own"
        return torch.arange(len(input_tokens)).expand(3, -1), 0


@pytest.fixture
def model():
    model = Model()
    take_given_positions(SimpleNamespace(model_runner=SimpleNamespace(get_model=lambda: model)))
    return model


def feature():
    """A medium that carries the positions of its prompt, as `media_items` makes it."""
    return SimpleNamespace(data={POSITIONS: SimpleNamespace(data=GIVEN)})


def test_a_prompt_has_the_positions_that_it_carries(model):
    positions, delta = model.get_mrope_input_positions(PROMPT, [feature()])
    assert torch.equal(positions, GIVEN[:, :-1])
    # The runner gives the token after n others position n + delta (v1/worker/gpu/mm/rope.py:187).
    assert len(PROMPT) + delta == NEXT


@pytest.mark.parametrize("num_sampled", [1, 3, 40])
def test_a_preempted_request_goes_on_where_it_was(model, num_sampled):
    """V2 adds it again with prompt and output as one prompt (v1/worker/gpu/model_states/default.py:75)."""
    positions, delta = model.get_mrope_input_positions([*PROMPT, *[7] * num_sampled], [feature()])
    following = torch.arange(NEXT, NEXT + num_sampled).expand(3, -1)
    assert torch.equal(positions, torch.cat([GIVEN[:, :-1], following], dim=1))
    assert len(PROMPT) + num_sampled + delta == NEXT + num_sampled


def test_a_prompt_without_media_is_left_to_the_model(model):
    positions, delta = model.get_mrope_input_positions([1, 2], [])
    assert positions.tolist() == [[0, 1]] * 3
    assert delta == 0


def test_a_second_call_changes_nothing(model):
    before = model.get_mrope_input_positions
    take_given_positions(SimpleNamespace(model_runner=SimpleNamespace(get_model=lambda: model)))
    assert model.get_mrope_input_positions is before


def test_a_model_without_such_positions_is_left_alone():
    model = SimpleNamespace()
    take_given_positions(SimpleNamespace(model_runner=SimpleNamespace(get_model=lambda: model)))
    assert not vars(model)
