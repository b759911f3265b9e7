"""A stage that counts passes over its data has as many steps as the passes need."""

import pytest

from lightning_mmrl.config.compose import compose
from lightning_mmrl.config.epochs import with_steps
from lightning_mmrl.config.saved import saved_config
from lightning_mmrl.config.specs import manifest_digests, stage_specs
from lightning_mmrl.curriculum.changes import same_content
from lightning_mmrl.errors import ConfigError

REASON = "stages.reason"
EPOCHS = (f"{REASON}.num_steps=null", f"{REASON}.validate_every=null", f"{REASON}.data.batch_size=4")


def write(root, name="train.jsonl", count=10):
    """A manifest of so many lines, with blank ones between them."""
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("{}\n\n" * count)


def composed(root, *overrides):
    return compose([f"data.root={root}", *EPOCHS, *overrides])


def steps_of(root, *overrides):
    return with_steps(composed(root, *overrides), "reason").num_steps


@pytest.mark.parametrize(
    ("epochs", "batch", "steps"),
    [
        ("2", 4, 5),
        ("1", 4, 3),
        ("0.5", 4, 2),
        ("0.01", 4, 1),
        ("1", 10, 1),
        ("3", 20, 2),
        ("0.3", 1, 3),
        ("1e-3", 4, 1),
    ],
)
def test_the_last_batch_of_the_last_pass_is_whole(epochs, batch, steps, tmp_path):
    """Of ten samples: ceil(epochs x 10 / batch)."""
    write(tmp_path)
    assert steps_of(tmp_path, f"{REASON}.num_epochs={epochs}", f"{REASON}.data.batch_size={batch}") == steps


def test_decimal_digits_count_and_not_their_nearest_float(tmp_path):
    write(tmp_path, count=50)
    assert 1.1 * 50 > 55
    assert steps_of(tmp_path, f"{REASON}.num_epochs=1.1", f"{REASON}.data.batch_size=1") == 55


def test_a_pass_over_sources_is_all_their_samples_within_their_limits(tmp_path):
    write(tmp_path)
    write(tmp_path, "a.jsonl", 10)
    write(tmp_path / "other", "b.jsonl", 100)
    other = f"{{manifest: b.jsonl, root: {tmp_path / 'other'}, limit: 30, weight: 1}}"
    sources = f"a: {{manifest: a.jsonl, weight: 9}}, b: {other}"
    both = [f"{REASON}.data.manifest=null", f"+{REASON}.data.sources={{{sources}}}", f"{REASON}.num_epochs=2"]
    assert steps_of(tmp_path, *both) == 20  # 2 x (10 + 30) / 4
    assert steps_of(tmp_path, *both, f"{REASON}.data.limit=5") == 18  # 2 x (5 + 30) / 4 is 17.5
    assert steps_of(tmp_path, f"{REASON}.num_epochs=2", "data.limit=6") == 3


def test_the_length_is_open_until_the_data_exist(tmp_path):
    assert steps_of(tmp_path / "none", f"{REASON}.num_epochs=2") is None
    write(tmp_path)
    config = composed(tmp_path, f"{REASON}.num_epochs=2")
    assert config.stages["reason"].num_steps is None
    assert with_steps(config, "reason").steps == 5
    assert with_steps(config, "cold_start") is config.stages["cold_start"]


def test_the_cap_of_a_debug_run_holds(tmp_path):
    write(tmp_path)
    assert steps_of(tmp_path, f"{REASON}.num_epochs=2", "trainer.max_steps=2") == 2
    assert steps_of(tmp_path, f"{REASON}.num_epochs=2", "trainer.max_steps=50") == 5


PHASES = f"+{REASON}.algorithm.phases={{long: {{after: 3, group_size: 4}}, never: {{after: 90}}}}"


def test_what_counts_steps_is_fitted_as_for_few_steps(tmp_path):
    write(tmp_path)
    said = []
    config = composed(tmp_path, f"{REASON}.num_epochs=2", f"{REASON}.validate_every=50", PHASES)
    assert list(config.stages["reason"].algorithm.phases) == ["long", "never"]
    stage = with_steps(config, "reason", say=said.append)
    assert stage.validate_every == 5
    assert list(stage.algorithm.phases) == ["long"]
    assert [line.split(" is ")[0].split(" begins")[0] for line in said] == [
        f"{REASON}.validate_every",
        f"{REASON}.algorithm.phases.never",
    ]


SELECTS = (
    f"{REASON}.algorithm.select={{_target_: lightning_mmrl.algorithms.selection.has_signal.HasSignal}}",
    f"{REASON}.algorithm.select_after=7",
)


def test_what_cannot_be_fitted_is_refused_once_the_length_is_known(tmp_path):
    config = composed(tmp_path, f"{REASON}.num_epochs=2", *SELECTS)
    assert with_steps(config, "reason").num_steps is None
    write(tmp_path)
    with pytest.raises(ConfigError, match=r"select_after is 7; .* less than num_steps 5 \(of num_epochs 2\)"):
        with_steps(config, "reason")
    with pytest.raises(ConfigError, match=r"select_after is 7; .* less than num_steps 5$"):
        compose([*EPOCHS, f"{REASON}.num_steps=5", *SELECTS])


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            [f"{REASON}.num_epochs=2"],
            r"reason has both num_steps 250 and num_epochs 2; .* stages\.reason\.num_steps=null",
        ),
        ([f"{REASON}.num_steps=null"], r"reason has neither num_steps nor num_epochs; .* stages\.reason\.num_epochs=2"),
        ([*EPOCHS, f"{REASON}.num_epochs=0"], r"reason\.num_epochs is 0\.0; it must be above 0"),
        ([*EPOCHS, f"{REASON}.num_epochs=-1"], r"reason\.num_epochs is -1\.0; it must be above 0"),
        ([*EPOCHS, f"{REASON}.num_epochs=nan"], r"reason\.num_epochs is nan; it must be above 0 and finite"),
        ([*EPOCHS, f"{REASON}.num_epochs=inf"], r"reason\.num_epochs is inf; it must be above 0 and finite"),
        ([*EPOCHS, f"{REASON}.num_epochs=two"], r"reason\.num_epochs is two; it must be a number or null"),
        ([*EPOCHS, f"{REASON}.num_epochs=2", f"{REASON}.validate_every=0"], r"validate_every is 0; it must be null or"),
    ],
)
def test_a_length_that_says_nothing_is_refused(overrides, sentence):
    with pytest.raises(ConfigError, match=sentence):
        compose(overrides)


def test_a_finished_stage_stays_the_same_while_its_data_do(tmp_path):
    """Its digest holds the passes and the data; so it is the same before a stage is built and after."""
    write(tmp_path)

    def content(*overrides):
        config = composed(tmp_path, *overrides)
        with_steps(config, "reason")
        return dict(stage_specs(config, manifest_digests(config))[1].content)

    two = content(f"{REASON}.num_epochs=2")
    assert two == content(f"{REASON}.num_epochs=2.0")
    assert (two["stage.num_epochs"], two["stage.num_steps"]) == (2.0, None)
    assert two != content(f"{REASON}.num_epochs=1")
    assert two != content(f"{REASON}.num_epochs=2", "trainer.max_steps=2")
    write(tmp_path, count=11)
    assert two != content(f"{REASON}.num_epochs=2")


def test_a_stage_that_counts_steps_is_what_it_was_before_there_were_epochs(tmp_path):
    content = stage_specs(compose([]))[1].content
    assert content["stage.num_epochs"] is None
    assert same_content({key: value for key, value in content.items() if key != "stage.num_epochs"}, content)


def test_the_configuration_in_a_runs_folder_counts_epochs_too(tmp_path):
    from omegaconf import OmegaConf

    write(tmp_path)
    config = composed(tmp_path, f"{REASON}.num_epochs=2")
    OmegaConf.save(OmegaConf.structured(config), tmp_path / "config.yaml")
    again = saved_config(tmp_path, [])
    assert (again.stages["reason"].num_epochs, again.stages["reason"].num_steps) == (2.0, None)
    assert stage_specs(again)[1].digest == stage_specs(config)[1].digest


def test_a_debug_run_is_short_whatever_the_phases_of_its_epochs(tmp_path):
    """The checks hold for the whole length, and the cap comes after them, as with a number of steps."""
    write(tmp_path, count=200)
    phases = f"+{REASON}.algorithm.phases={{long: {{after: 20, max_new_tokens: 32}}}}"
    whole = with_steps(composed(tmp_path, f"{REASON}.num_epochs=5", phases), "reason")
    capped = with_steps(composed(tmp_path, f"{REASON}.num_epochs=5", phases, "trainer.max_steps=2"), "reason")
    assert (whole.num_steps, capped.num_steps) == (250, 2)
