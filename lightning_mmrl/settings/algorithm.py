"""Keys of RL: the algorithm and its parts, sampling and rewards; and of the microbatches of every stage that trains."""

from dataclasses import dataclass, field
from typing import Any

from lightning_mmrl.settings.setting import setting, target

KL_ESTIMATORS = ("k1", "k2", "k3")
KL_PLACES = ("loss", "reward")


@dataclass
class MicrobatchSettings:
    """How much of an optimizer step is computed at once; gradients of its microbatches add up."""

    tokens_per_microbatch: int = setting(16_384, at_least=1)
    """Tokens scored at once, a prompt counted once for its group of completions or targets; bounds memory, does not
    change the loss. A group that does not fit is split."""
    pairs_per_microbatch: int | None = setting(None, at_least=1)
    """Attention pairs scored at once; null leaves it to the tokens."""


@dataclass
class UpdateSettings(MicrobatchSettings):
    """How a rollout becomes optimizer steps."""

    num_epochs: int = setting(1, at_least=1)
    """Passes over the rollout."""
    num_minibatches: int = setting(1, at_least=1)
    """Optimizer steps per pass; prompts are split evenly."""

    @property
    def on_policy(self) -> bool:
        """True if every gradient is taken at the weights that sampled: the old log-probs are the policy's own."""
        return self.num_epochs == 1 and self.num_minibatches == 1


@dataclass
class PhaseSettings:
    """Changes of the rollouts within an rl stage; null leaves a value as it was."""

    after: int = setting()
    """Iterations before the first one of the phase."""
    group_size: int | None = None
    """Completions per prompt, G."""
    max_new_tokens: int | None = setting(None, at_least=1)
    """Tokens of the longest completion."""
    temperature: float | None = setting(None, above=0)
    """Temperature of sampling, and of the log-probabilities that are trained."""


@dataclass
class KLSettings:
    """Penalty on the divergence from the policy that the stage starts from."""

    coefficient: float = setting(0.0, at_least=0)
    """Factor of the divergence; 0: no penalty, and no reference policy."""
    estimator: str = setting("k3", choices=KL_ESTIMATORS)
    """k1, k2 or k3, see `ops.kl`."""
    where: str = setting("loss", choices=KL_PLACES)
    """loss: added at each token; reward: summed over a completion and subtracted, before advantages are computed."""
    ratio_correction: bool = False
    """Multiply the estimates in the loss by the ratio to the policy that sampled."""
    schedule: Any = target(None)
    """Multiplier of the coefficient by iteration, such as WarmupCosine; null: always 1."""


@dataclass
class EntropySettings:
    """Bonus on the entropy of the policy at each token."""

    coefficient: float = setting(0.0, at_least=0)
    """Factor of the entropy, in nats; 0: no bonus."""
    schedule: Any = target(None)
    """Multiplier of the coefficient by iteration; null: always 1."""


@dataclass
class CriticSettings:
    """How a second model next to the policy learns values, and how PPO makes advantages of them.

    LMM-R1 (arXiv:2503.07536) has the same defaults; the learning rate is in its table A7.
    """

    learning_rate: float = setting(9.0e-6, above=0)
    """Learning rate of its own optimizer, which is of the stage's kind and schedule."""
    max_grad_norm: float = setting(1.0, above=0, infinite=True)
    """Norm above which the critic's gradients are scaled down; infinity: never."""
    value_clip: float | None = setting(0.2, above=0)
    """Moving a value farther than this from its value at the rollout lowers the loss no further; null: no limit."""
    gamma: float = setting(1.0, above=0, at_most=1)
    """Discount of a reward for each token before it."""
    gae_lambda: float = setting(1.0, at_least=0, at_most=1)
    """1: returns as they are; 0: the value of the next token's state (arXiv:1506.02438, eq. 16)."""
    whiten: bool = True
    """Shift and scale advantages to mean 0 and variance 1 over all tokens of the iteration on all ranks."""
    normalize_rewards: bool = False
    """Shift and scale rewards by the mean and deviation of all rewards of the stage so far, before a divergence is
    subtracted and advantages are estimated."""


@dataclass
class RouterSettings:
    """Where each prompt of an iteration goes by the share of right answers among its completions: RL, SFT or nowhere.

    A stage of kind `route` sorts prompts by the same two bounds, once and between stages.
    """

    unsolved_at_most: float | None = setting(0.0, at_least=0, at_most=1)
    """Largest share of right answers with which a prompt counts as never solved: SFT learns its target; null: none."""
    solved_at_least: float | None = setting(None, at_least=0, at_most=1)
    """Smallest share of right answers with which a prompt counts as solved: it is dropped; null: none is."""
    target: str | None = None
    """The target of each row, as `target` of an sft stage; null: the assistant turn at the end of the sample."""
    rl_coefficient: float = setting(1.0, at_least=0)
    """Factor of the RL loss, over the groups of the prompts that go there."""
    sft_coefficient: float = setting(1.0, at_least=0)
    """Factor of the SFT loss, over the tokens of the targets of the prompts that go there."""


@dataclass
class AlgorithmSettings:
    """A policy-gradient algorithm; null takes the module's own part."""

    advantage: Any = target(None)
    """Advantages of the rewards of a group; null: the module's own, or the critic's."""
    loss: Any = target(None)
    """Loss of each token; null: the module's own."""
    aggregation: Any = target(None)
    """Denominator of the loss; null: the module's own."""
    correction: Any = target(None)
    """Weights for the difference between the engine's probabilities and the policy's, such as ImportanceCorrection;
    null: none."""
    group_size: int = 8
    """Completions per prompt, G."""
    mask_truncated: bool = False
    """Leave truncated completions out of the loss."""
    phases: dict[str, PhaseSettings] = field(default_factory=dict)
    """Name to phase, in the order of `after`: progressive lengths and group sizes; empty for none."""
    select: Any = target(None)
    """Which groups are trained on, such as AccuracyBand; null: all."""
    max_samplings: int = setting(1, at_least=1)
    """Batches of prompts an iteration may sample until enough groups pass; 1: groups that fail are left out."""
    select_after: int = 0
    """Iterations before the first one that selects groups."""
    resample: Any = target(None)
    """How often each completion is trained on, such as PaperPAD; null: once."""
    router: RouterSettings | None = None
    """Sends prompts that the model does not solve to SFT, or drops solved ones, in each iteration; null: all to RL."""
    kl: KLSettings = field(default_factory=KLSettings)
    """Penalty on leaving the policy that the stage starts from."""
    entropy: EntropySettings = field(default_factory=EntropySettings)
    """Bonus on the entropy of the policy."""
    critic: CriticSettings | None = None
    """Takes the place of `advantage` in a module that trains a critic; null: the module's own critic, if it has one."""
    update: UpdateSettings = field(default_factory=UpdateSettings)
    """Epochs, minibatches and microbatches."""


@dataclass
class SamplingSettings:
    """How completions are sampled."""

    temperature: float = setting(1.0, above=0)
    """Temperature of sampling, and of the log-probabilities that are trained."""
    top_p: float = setting(1.0, above=0, at_most=1)
    """Sample from the likeliest tokens up to this probability alone; below 1 only with an algorithm.correction."""
    max_new_tokens: int = setting(512, at_least=1)
    """Tokens of the longest completion."""


@dataclass
class RewardSettings:
    """Named reward functions and their weights; `num_workers` > 0 runs them in killable processes."""

    components: dict[str, Any] = setting()
    """Name to the `_target_` of a reward function; null leaves one out, with its weight."""
    weights: dict[str, float] = setting()
    """Name to the factor of the component in the sum; with 0 the component is only recorded."""
    pass_component: str = "label"
    """The component that says whether an answer is right: pass rates count it."""
    num_workers: int = setting(0, at_least=0)
    """Killable processes that score; 0: the training process scores, without deadlines and memory limit."""
    deadline_s: float = setting(8.0, above=0)
    """Seconds for one completion; then its process is killed and replaced."""
    soft_deadline_s: float | None = setting(4.0, above=0)
    """Seconds after which an exception interrupts scoring, which costs no process; null: only deadline_s counts."""
    batch_budget_s: float = setting(60.0, above=0)
    """Seconds for all completions of an iteration; scores that are not there by then are invalid."""
    memory_limit_mb: int | None = setting(4096, at_least=1)
    """Megabytes a process may take beyond its size at the start (on Linux); null: no limit."""
    max_invalid_rate: float = setting(0.5, at_least=0, at_most=1)
    """The run stops if a larger share of the scores of an iteration is invalid, or of all scores of a stage that judges
    answers from elsewhere, once there are 20; 1: never."""

    def __post_init__(self) -> None:
        if isinstance(self.components, str) or isinstance(self.weights, str):
            return  # required keys without a value yet
        left_out = {name for name, node in self.components.items() if node is None}
        self.components = {name: node for name, node in self.components.items() if name not in left_out}
        self.weights = {name: weight for name, weight in self.weights.items() if name not in left_out}
