"""Values of an RL stage that contradict each other; every message names key, value and rule."""

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.settings.algorithm import AlgorithmSettings
from lightning_mmrl.settings.rules import require
from lightning_mmrl.settings.stage import StageSettings


def check_algorithm(path: str, stage: StageSettings) -> None:
    """Refuses what an RL stage cannot do.

    Raises:
        ConfigError: Naming the first such key, its value and what it must be.
    """
    assert stage.algorithm is not None
    assert stage.sampling is not None
    algorithm, below = stage.algorithm, f"{path}.algorithm"
    if stage.trainer.precision == "16-mixed":
        raise ConfigError(
            f"{path}.trainer.precision is 16-mixed, whose scaled gradients an rl stage would clip; take bf16-mixed"
        )
    size, num_minibatches = stage.data.batch_size, algorithm.update.num_minibatches
    rule = f"a divisor of data.batch_size {size}"
    require(size % num_minibatches == 0, f"{below}.update.num_minibatches", num_minibatches, rule)
    _check_groups(below, algorithm, stage.num_steps)
    _check_selection(below, algorithm, stage.num_steps)
    if algorithm.critic is not None and algorithm.advantage is not None:
        raise ConfigError(f"{below} has both an advantage and a critic; set one of them to null")
    if algorithm.correction is None:
        rule = f"1, since without {below}.correction the policy's probabilities are those of all tokens"
        require(stage.sampling.top_p == 1, f"{path}.sampling.top_p", stage.sampling.top_p, rule)


def _check_groups(path: str, algorithm: AlgorithmSettings, num_steps: int) -> None:
    """Refuses groups that are too small for their estimator, and phases that are not in order."""
    least, why = (2, ", so that completions can be compared") if algorithm.critic is None else (1, "")
    size = algorithm.group_size
    require(size >= least, f"{path}.group_size", size, f"at least {least}{why}")
    before = 0
    for name, phase in algorithm.phases.items():
        rule = f"more than {before} and less than num_steps {num_steps}: phases come one after the other"
        require(before < phase.after < num_steps, f"{path}.phases.{name}.after", phase.after, rule)
        size = phase.group_size
        require(size is None or size >= least, f"{path}.phases.{name}.group_size", size, f"null or at least {least}")
        before = phase.after


def _check_selection(path: str, algorithm: AlgorithmSettings, num_steps: int) -> None:
    if algorithm.resample is not None and algorithm.critic is not None:
        raise ConfigError(
            f"{path} has both resample and a critic; completions are drawn by advantages of their own, and a critic's "
            "are of tokens, so set one of them to null"
        )
    most, after = algorithm.max_samplings, algorithm.select_after
    require(0 <= after < num_steps, f"{path}.select_after", after, f"at least 0 and less than num_steps {num_steps}")
    for name, value, neutral in (("max_samplings", most, 1), ("select_after", after, 0)):
        if algorithm.select is None and value != neutral:
            raise ConfigError(
                f"{path}.{name} is {value}, and nothing is selected; set {path}.select, or {path}.{name}={neutral}"
            )
