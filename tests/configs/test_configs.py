"""Every YAML of every group composes, validates and binds; a newcomer's file is tested without writing a test."""

import re
from dataclasses import asdict, fields

import pytest
import yaml

from lightning_mmrl.config.compose import compose, configs_dir
from lightning_mmrl.config.run import check_all_targets
from lightning_mmrl.config.schema import RootConfig, StageConfig
from lightning_mmrl.config.targets import check_targets
from lightning_mmrl.config.validate import stage_specs

GROUPS = sorted(folder.name for folder in configs_dir().iterdir() if folder.is_dir())
FILES = sorted(configs_dir().glob("*/*.yaml"))
OPTIONAL_IN_A_STAGE = {"algorithm", "sampling", "rewards", "rollout_table_every"}

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}={path.stem}")


def overrides(path):
    """What chooses a file; a value that its user must give is given."""
    group = path.parent.name
    if group == "stage":
        return [f"+stage@stages.other={path.stem}", "order=[other]"]
    needed = ["data.root=/data"] if "root: ???" in path.read_text() else []
    return [f"{group}={path.stem}", *needed]


def targets(tree):
    if isinstance(tree, dict):
        yield from [tree["_target_"]] if "_target_" in tree else []
        for value in tree.values():
            yield from targets(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from targets(value)


def test_all_groups_have_options():
    assert {path.parent.name for path in FILES} == set(GROUPS)
    assert {"model", "data", "prompt", "stage", "curriculum", "trainer", "tracking", "experiment"} <= set(GROUPS)
    assert not [path for path in configs_dir().rglob("*") if path.is_file() and path.suffix != ".yaml"]


@each_file
def test_a_config_composes_and_its_targets_bind(path):
    config = compose(overrides(path))
    assert stage_specs(config)
    check_all_targets(config)


@each_file
def test_every_target_of_a_file_binds_where_it_stands(path):
    """Also those of stages that the composition above does not run."""
    tree = yaml.safe_load(path.read_text())
    for target in targets(tree):
        assert target.startswith(("lightning_mmrl.", "torch.optim."))
    check_targets(tree, path.stem)


@each_file
def test_a_config_says_what_it_is_for(path):
    comments = [line for line in path.read_text().splitlines() if line.startswith("# ") and "@package" not in line]
    assert comments, "the first line of a config says what it is"


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name == "stage"], ids=lambda path: path.stem)
def test_a_stage_shows_its_knobs_so_that_they_need_no_plus(path):
    tree = yaml.safe_load(path.read_text())
    assert {field.name for field in fields(StageConfig)} - set(tree) <= OPTIONAL_IN_A_STAGE
    assert {"manifest", "batch_size", "limit"} <= set(tree["data"])


@pytest.mark.parametrize("path", sorted(configs_dir().glob("experiment/*.yaml")), ids=lambda path: path.stem)
def test_an_experiment_only_overrides(path):
    """It names a run of its own, and every stage it changes runs."""
    config = compose([f"experiment={path.stem}"])
    assert config.run_name == path.stem
    tree = yaml.safe_load(path.read_text())
    assert set(tree) - {"defaults"} <= {field.name for field in fields(RootConfig)}
    assert set(tree.get("stages", {})) <= set(config.order)


def test_the_default_is_a_complete_configuration():
    config = compose([])
    assert config.order == ["cold_start", "reason"]
    assert not re.search(r"\?\?\?", str(asdict(config)))


def test_an_option_that_cannot_work_would_be_found(tmp_path):
    (tmp_path / "stage").mkdir()
    text = (configs_dir() / "stage" / "sft.yaml").read_text()
    (tmp_path / "stage" / "bad.yaml").write_text(text.replace("warmup_steps", "warmup_stesp"))
    config = compose(["+stage@stages.other=bad", "order=[other]"], config_dir=tmp_path)
    with pytest.raises(Exception, match=r"warmup_stesp: .*did you mean 'warmup_steps'"):
        check_all_targets(config)
