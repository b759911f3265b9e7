"""Rewards for Sokoban plans in one answer: solved or not, and the shaped reward of LMM-R1."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.prompts.scanner import scan
from lightning_mmrl.prompts.sokoban import Level, level_of, read_plan
from lightning_mmrl.types.records import Completion, Sample

STEP, BOX_ON, BOX_OFF, FINISHED = -0.1, 1.0, -1.0, 10.0
"""Rewards of gym-sokoban's environment: for each action, a box that moves onto or off a target, and the end."""
FORMAT = 0.5
PER_ACTION, MOST_REWARDED = 0.05, 20
DECAY, DECAY_ACTIONS = 0.2, 30
PER_WORD, MOST_WORDS = 0.001, 200
REPEATED, REPEATED_ACTIONS = -0.2, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class SokobanSolved:
    """1.0 if the plan in the answer solves the sample's level within `max_actions`, else 0.0.

    Any such plan is right, not only the shortest. The game ends when the level is solved, so later actions do not
    matter, but they count among `max_actions`. An answer with a word that is no action has no plan.

    >>> reward = SokobanSolved(max_actions=4)
    >>> sample = Sample(id="level", messages=(), extras={"level": ["@$ .", "    "]})
    >>> reward(sample, Completion(text="<answer>Right, Right</answer>", num_tokens=5, truncated=False))
    1.0
    >>> reward(sample, Completion(text="<answer>Right</answer>", num_tokens=3, truncated=False))
    0.0
    """

    max_actions: int = 50

    def __post_init__(self) -> None:
        _check(self.max_actions)

    def __call__(self, sample: Sample, completion: Completion) -> float:
        """Scores one completion.

        Raises:
            DataError: The sample has no level, or one that cannot be read.
        """
        level, plan = level_of(sample), _plan_of(completion)
        return float(plan is not None and len(plan) <= self.max_actions and level.solves(plan))


@dataclass(frozen=True, slots=True, kw_only=True)
class SokobanReturn:
    """The shaped reward of LMM-R1's Sokoban branch (arXiv:2503.07536; TideDra/lmm-r1, sokoban_verifier.py).

    0.0 unless the format is valid and all words of the answer are actions. Else, for n actions and w words of thought:

        best return + 0.5 + bonus(n) + 0.001 min(w, 200) - 0.2 [some four actions in a row occur twice]
        bonus(n) = 0.05 n for n <= 20, and 0.05 * 20 - 0.2 ((n - 20) / 30)^2 above

    The best return is the largest sum of the environment's rewards over the first t of at most `max_actions` actions,
    t >= 1: -0.1 for each action, 1 for a box that moves onto a target, -1 for one that moves off, and 10 at the end.

    So a solved level earns more with more actions, up to 20, as the best return ends with the solution; and one long
    plan that never looks solves most tiny levels. Prefer `SokobanSolved` unless you reproduce LMM-R1.

    **Deviations**: the weights are the release's, but we have no copy of its code to compare with. Our readings are:
    the environment's rewards are gym-sokoban's; the best return is over at least one action; a plan repeats itself if
    any four actions in a row occur again later without overlap, and that costs 0.2 once.

    >>> reward = SokobanReturn()
    >>> sample = Sample(id="level", messages=(), extras={"level": ["@$ .", "    "]})
    >>> text = "<think>Push it twice.</think><answer>Right, Right</answer>"
    >>> round(reward(sample, Completion(text=text, num_tokens=9, truncated=False)), 4)
    11.403
    """

    max_actions: int = 50

    def __post_init__(self) -> None:
        _check(self.max_actions)

    def __call__(self, sample: Sample, completion: Completion) -> float:
        """Scores one completion.

        Raises:
            DataError: The sample has no level, or one that cannot be read.
        """
        level, scanned, plan = level_of(sample), scan(completion.text), _plan_of(completion)
        if plan is None or not scanned.valid:
            return 0.0
        words = len((scanned.think or "").split())
        thought = PER_WORD * min(words, MOST_WORDS)
        repeated = REPEATED if repeats(plan, REPEATED_ACTIONS) else 0.0
        return best_return(level, plan[: self.max_actions]) + FORMAT + action_bonus(len(plan)) + thought + repeated


def best_return(level: Level, plan: Sequence[str]) -> float:
    """Return the largest sum of the environment's rewards over the first actions of a plan, of which there is one.

    >>> level = Level.parse(["@$.", "   "])
    >>> round(best_return(level, ["Right"]), 3), round(best_return(level, ["Down", "Up", "Left"]), 3)
    (10.9, -0.1)
    """
    before, rewards = level.start, []
    for state in level.play(plan):
        on, off = len(state.boxes & level.targets), len(before.boxes & level.targets)
        moved = BOX_ON * max(0, on - off) + BOX_OFF * max(0, off - on)
        rewards.append(STEP + moved + FINISHED * level.is_solved(state))
        before = state
    return max(accumulate(rewards), default=0.0)


def action_bonus(num_actions: int) -> float:
    """Return the bonus for the length of a plan: linear up to 20 actions, then falling with the square.

    >>> action_bonus(4), action_bonus(20), action_bonus(50)
    (0.2, 1.0, 0.8)
    """
    over = max(0, num_actions - MOST_REWARDED)
    return PER_ACTION * min(num_actions, MOST_REWARDED) - DECAY * (over / DECAY_ACTIONS) ** 2


def repeats(plan: Sequence[str], length: int) -> bool:
    """Whether some `length` actions in a row occur again later in a plan, without overlap.

    >>> repeats(["Up", "Left", "Up", "Left"], 2), repeats(["Up", "Up", "Up"], 2)
    (True, False)
    """
    first: dict[tuple[str, ...], int] = {}
    for start in range(len(plan) - length + 1):
        if start - first.setdefault(tuple(plan[start : start + length]), start) >= length:
            return True
    return False


def _plan_of(completion: Completion) -> tuple[str, ...] | None:
    answer = scan(completion.text).answer
    return None if answer is None else read_plan(answer)


def _check(max_actions: int) -> None:
    if max_actions < 1:
        raise ConfigError(f"max_actions is {max_actions}; it must be at least 1")
