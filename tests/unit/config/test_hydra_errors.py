"""The texts of Hydra and OmegaConf that the code recognizes are in their sources, so a reworded release fails here."""

import ast
import inspect
import re
from pathlib import Path

import hydra
import omegaconf
import pytest

from lightning_mmrl.config import hydra_errors, validate
from lightning_mmrl.config.compose import compose
from lightning_mmrl.errors import ConfigError


def literals(package):
    """All texts of a package, also the plain parts of formatted ones."""
    for path in Path(inspect.getfile(package)).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


@pytest.mark.parametrize(
    ("package", "text"),
    [
        (hydra, hydra_errors.IN_FILE),
        (hydra, hydra_errors.NO_MATCH),
        (omegaconf, validate.RESOLVING),
        (omegaconf, validate.NO_SUCH_KEY[0]),
        (omegaconf, validate.NO_SUCH_KEY[1]),
    ],
)
def test_what_is_read_from_their_prose_is_still_there(package, text):
    assert any(text in literal for literal in literals(package))


def test_no_other_prose_of_theirs_is_read():
    """Patterns of texts are kept in names, so that the test above knows them; the only other pattern is of a key."""
    for module in (hydra_errors, validate):
        found = [
            ast.unparse(node)
            for node in ast.walk(ast.parse(inspect.getsource(module)))
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("re.")
        ]
        assert all("fullmatch" in each for each in found), found


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["trial=a", "sede=1"], "sede: unknown key; did you mean 'seed'?"),
        (
            ["+stage@stages.warm=sft", "+stage@stages.warm=rl"],
            "stage@stages.warm: an option is chosen more than once (+stage@stages.warm=sft, +stage@stages.warm=rl)",
        ),
        (["debug=fast", "debug=overfit", "+seed=2"], "seed: is there already; change it without the plus"),
        (["experiment=quickstart", "algorithm@stages.raeson=rloo"], "did you mean 'algorithm@stages.reason'?"),
        (["algorithm=rloo", "debug=null"], "debug=null: debug needs the name of an option"),
        (["algorithm=rloo", "~debug=fast"], "algorithm: this composition has 'algorithm@stages.reason' to override"),
        (["seed=1", "reward=token_lengbh"], "reward=token_lengbh: no such option; did you mean 'token_length'?"),
        (["+trial=a", "+trial=b"], "trial: is there already; change it without the plus"),
        (["seed=1", "~seed=2"], "~seed: its value is 1 and not 2; write ~seed to remove it"),
    ],
)
def test_of_several_overrides_the_one_at_fault_is_named(overrides, sentence):
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        compose(overrides)
