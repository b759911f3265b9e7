"""The file of a comparison: what it holds, and what is refused in it."""

import pytest

from lightning_mmrl.config.comparisons import comparison_of, read_comparison
from lightning_mmrl.config.folders import COMPARE, groups
from lightning_mmrl.errors import ConfigError

WHOLE = """\
question: Which order?
overrides: [experiment=emotions_orders]
arms:
  both: {overrides: ["order=[pretrain,reason]", "data.root=${output_dir}/x"], shares: {reason: 1}}
  one: ["order=[pretrain]"]
budget: {flops: 1e13}
seeds: [0, 1]
"""
REFUSED = {
    "arm: {}": "arm: unknown key; did you mean 'arms'?",
    "arms: {a: {override: []}}": "arms.a.override: unknown key; did you mean 'overrides'?",
    "arms: {a: null}": "arms.a is null; it must be a group of keys",
    "arms: {a: order=x}": "arms.a is order=x; it must be a group of keys",
    "seeds: [x]": "seeds is ['x']; it must be a list of plain values",
    "seeds: 3": "seeds is 3; it must be a list",
    "budget: {flop: 3}": "budget.flop: unknown key; did you mean 'flops'?",
    "budget: {steps: -1}": "budget.steps is -1; it must be at least 1",
    "tolerance: x": "tolerance is x; it must be a number",
    "may_differ: [dat]": "may_differ is 'dat', which is no choice; did you mean 'data'?",
    "[]": "holds no keys",
    "arms: {a: [x=1], a: [y=1]}": "own.yaml:1: not valid YAML (found duplicate key a); correct this file",
    "arms: [": "not valid YAML",
}


@pytest.fixture
def file(tmp_path):
    def write(text, name="own"):
        path = tmp_path / COMPARE / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return tmp_path

    return write


def test_a_file_holds_arms_in_their_long_and_short_form(file):
    found = read_comparison("own", file(WHOLE))
    assert list(found.arms) == ["both", "one"]
    assert found.arms["both"].shares == {"reason": 1.0}
    assert found.arms["one"].overrides == ["order=[pretrain]"]
    assert (found.budget.measure, found.budget.total, found.seeds) == ("flops", 1e13, [0, 1])


def test_a_reference_in_an_override_is_left_to_the_run(file):
    assert read_comparison("own", file(WHOLE)).arms["both"].overrides[1] == "data.root=${output_dir}/x"


@pytest.mark.parametrize("text", REFUSED)
def test_a_fault_in_a_file_is_one_sentence(file, text):
    with pytest.raises(ConfigError) as error:
        read_comparison("own", file(text))
    assert REFUSED[text] in str(error.value)
    assert "own.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_comparison_names_the_nearest(file):
    with pytest.raises(ConfigError, match=r"^compare=owm: there is no such comparison; did you mean 'own'\?$"):
        read_comparison("owm", file(WHOLE))


def test_comparisons_are_no_group_that_a_run_could_choose_from(file):
    assert COMPARE not in groups(file(WHOLE))


def test_the_short_form_of_an_arm_is_its_list():
    assert comparison_of({"arms": {"a": ["x=1"]}}) == comparison_of({"arms": {"a": {"overrides": ["x=1"]}}})
