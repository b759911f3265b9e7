"""The mutations of tools/mutation/mutate_configs.py: overrides and config files that a user could have meant."""

import random
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from lightning_mmrl.config.compose import compose_tree
from lightning_mmrl.config.folders import groups, options

OWN_CLIPS = ("experiment=own_clips", "data.root=clips", "data.labels=[happy,sad]")
OPEN_NAMES = ("evaluation.sets",)
"""Mappings whose names are free: `+` adds one, so a misspelled name is a new one."""
WRONG = (
    "0",
    "-1",
    "nan",
    "inf",
    "-inf",
    "1e30",
    "2.5",
    "''",
    "zzz",
    "a b",
    "[1]",
    "[]",
    "{a: 1}",
    "null",
    "true",
    "???",
)
BROKEN = (
    "${nope}",
    "${stages.raeson.num_steps}",
    "${oc.env:MMRL_NOT_SET}",
    "${",
    "${seed",
    "${nothing:1}",
    "${.}",
    "${..x}",
)
ODD = (
    "gr\u00f6\u00dfe", '"gr\u00f6\u00dfe"', "'it''s'", '"a', "'a", "(a)", "a\nb", "'a\nb'", "a,b",
    "[a", "{a", "a]", "x" * 5000, "a=b", "\t",
    "'", '"', "\\", "a\\", "'\u2028'", "'\U0001f600'", "%s{}", "<video>", "$(id)", "a;b", "a#b",
    "*", "a:b:c", "!!python",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """Arguments of `mmrl train` that a generator has changed.

    Attributes:
        kind: Which generator made it.
        arguments: Command-line arguments.
        right: The word that a mistyped one should have been; None if the mutation is no typing error in a key.
        files: Relative paths and texts of files that the arguments name.
    """

    kind: str
    arguments: tuple[str, ...]
    right: str | None = None
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A valid command line and the tree it composes."""

    arguments: tuple[str, ...]
    leaves: dict[str, Any]

    @property
    def known(self) -> set[str]:
        """Every dotted key and its parents."""
        parts = (path.split(".") for path in self.leaves)
        return {".".join(path[:depth]) for path in parts for depth in range(1, len(path) + 1)}


def mutations(
    seed: int, num_typos: int = 130, num_values: int = 100, calls: Sequence[tuple[str, ...]] = ()
) -> list[Mutation]:
    """All kinds of mutations; the same seed gives the same ones.

    Args:
        seed: Seed of what is mutated, and how.
        num_typos: Misspelled keys.
        num_values: Wrong values.
        calls: The command lines that are mutated; all shipped experiments and curricula if there are none.
    """
    rng = random.Random(seed)
    bases = [_base(arguments) for arguments in calls or base_arguments()]
    made = [
        _typo(rng, rng.choice(bases), prefix)
        for _ in range(num_typos)
        for prefix in [rng.choice(["", "", "+", "++", "~"])]
    ]
    made += _misspelled_choices(rng)
    made += [_wrong_value(rng, rng.choice(bases), rng.choice(WRONG), "value") for _ in range(num_values)]
    made += [_wrong_value(rng, rng.choice(bases), broken, "interpolation") for broken in BROKEN for _ in range(2)]
    made += [_wrong_value(rng, rng.choice(bases), odd, "odd text") for odd in ODD]
    made += list(_removed(bases))
    made += list(_doubled(rng, bases))
    made += list(_misplaced())
    made += [Mutation(kind="file", arguments=call, right=right, files=files) for call, right, files in config_files()]
    return made


def base_arguments() -> list[tuple[str, ...]]:
    """Every shipped experiment, and every curriculum with every algorithm."""
    experiments = [OWN_CLIPS if name == "own_clips" else (f"experiment={name}",) for name in options("experiment")]
    curricula = [(f"curriculum={name}",) for name in options("curriculum")]
    with_rl = [call for call in curricula if call != ("curriculum=sft_only",)]
    return [*experiments, *curricula, *((*call, "algorithm@stages.reason=rloo") for call in with_rl)]


def misspelled(rng: random.Random, word: str) -> str:
    """The word with one letter inserted, left out, exchanged or swapped with its neighbor."""
    letters = string.ascii_lowercase + "_"
    while True:
        at = rng.randrange(len(word))
        wrong = {
            "insert": word[:at] + rng.choice(letters) + word[at:],
            "delete": word[:at] + word[at + 1 :],
            "substitute": word[:at] + rng.choice(letters) + word[at + 1 :],
            "transpose": word[:at] + word[at : at + 2][::-1] + word[at + 2 :],
        }[rng.choice(["insert", "delete", "substitute", "transpose"])]
        if wrong not in ("", word) and wrong[0] != "-":
            return wrong


@cache
def _base(arguments: tuple[str, ...]) -> Base:
    tree = OmegaConf.to_container(compose_tree(list(arguments)), resolve=False)
    return Base(arguments=arguments, leaves=dict(_leaves(tree, "")))


def _leaves(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, tree


def _written(value: Any) -> str:
    """A value as it would be written in an override."""
    plain = isinstance(value, bool | int | float) or (isinstance(value, str) and value.isidentifier())
    return str(value).lower() if plain else "1"


def _typo(rng: random.Random, base: Base, prefix: str) -> Mutation:
    """One misspelled part of a key, at any depth."""
    while True:
        path = rng.choice(sorted(base.leaves))
        parts = path.split(".")
        at = rng.randrange(len(parts))
        wrong = [*parts[:at], misspelled(rng, parts[at]), *parts[at + 1 :]]
        free = prefix in ("+", "++") and ".".join(parts[:at]) in OPEN_NAMES
        if ".".join(wrong[: at + 1]) in base.known or wrong[0] in groups() or free:
            continue
        value = "" if prefix == "~" else f"={_written(base.leaves[path])}"
        return Mutation(
            kind=f"typo {prefix}".strip(),
            arguments=(*base.arguments, f"{prefix}{'.'.join(wrong)}{value}"),
            right=parts[at],
        )


def _misspelled_choices(rng: random.Random) -> list[Mutation]:
    """Misspelled groups, options, stages of a group and flags of the command."""
    made = []
    for group in [name for name in groups() if name not in ("stage", "algorithm")]:
        for name in options(group):
            wrong = misspelled(rng, name)
            if wrong not in options(group):
                made.append(Mutation(kind="option", arguments=(f"{group}={wrong}",), right=name))
        wrong = misspelled(rng, group)
        if wrong not in groups():
            made.append(Mutation(kind="group", arguments=(f"{wrong}={options(group)[0]}",), right=group))
            made.append(Mutation(kind="group", arguments=(f"+{wrong}={options(group)[0]}",), right=group))
    for _ in range(4):
        for package, name, option in (("algorithm", "reason", "rloo"), ("stage", "cold_start", "tiny/cold_start")):
            wrongs = [misspelled(rng, part) for part in (package, name, option)]
            made.append(Mutation(kind="group", arguments=(f"{wrongs[0]}@stages.{name}={option}",), right=package))
            made.append(
                Mutation(kind="group", arguments=(f"{package}@stages.{wrongs[1]}={option}",), right=f"stages.{name}")
            )
            made.append(Mutation(kind="option", arguments=(f"{package}@stages.{name}={wrongs[2]}",), right=option))
    return made


def _wrong_value(rng: random.Random, base: Base, value: str, kind: str) -> Mutation:
    path = rng.choice(sorted(base.known))
    return Mutation(kind=kind, arguments=(*base.arguments, f"{path}={value}"))


def _removed(bases: list[Base]) -> Iterator[Mutation]:
    """Groups and nodes that are taken away."""
    for group in ("model", "data", "prompt", "curriculum", "trainer", "tracking", "evaluation", "experiment", "stage"):
        yield Mutation(kind="removed", arguments=(f"~{group}",))
    for path in ("stages", "stages.reason", "order", "seed", "run_name", "output_dir", "data.media", "model.family",
                 "stages.reason.rewards", "stages.reason.algorithm", "stages.reason.data", "stages.reason.kind",
                 "stages.reason.rewards.weights", "stages.reason.rewards.components.label",
                 "evaluation.sets", "data.labels", "stages.reason.optimizer._target_", "stages.reason.schedule",
                 "data.module"):  # fmt: skip
        yield Mutation(kind="removed", arguments=(f"~{path}",))
    for base in bases[:4]:
        yield Mutation(kind="removed", arguments=(*base.arguments, "~stages.pretrain"))


def _doubled(rng: random.Random, bases: list[Base]) -> Iterator[Mutation]:
    """The same thing twice, or with a plus that it does not need."""
    yield from (Mutation(kind="doubled", arguments=("seed=1", "seed=2", *base.arguments)) for base in bases[:2])
    for group in ("model", "experiment", "data", "curriculum", "debug"):
        name = options(group)[0]
        for call in (
            (f"{group}={name}", f"{group}={name}"),
            (f"+{group}={name}",),
            (f"++{group}={name}",),
            (f"{group}=null",),
        ):
            yield Mutation(kind="doubled", arguments=call)
    for path in rng.sample(sorted(bases[0].leaves), 6):
        yield Mutation(kind="doubled", arguments=(*bases[0].arguments, f"+{path}=1"))


def _misplaced() -> Iterator[Mutation]:
    """Right words in the wrong place; each names where the word belongs."""
    for call, right in (
        ("lr=1", "stages.reason.optimizer.lr"),
        ("stages.reason.lr=1", "stages.reason.optimizer.lr"),
        ("+stages.reason.lr=1", "stages.reason.optimizer.lr"),
        ("group_size=4", "stages.reason.algorithm.group_size"),
        ("stages.reason.group_size=4", "stages.reason.algorithm.group_size"),
        ("++stages.reason.group_size=4", "stages.reason.algorithm.group_size"),
        ("reason.num_steps=4", "stages.reason"),
        ("temperature=1", "stages.reason.sampling.temperature"),
        ("stages.cold_start.batch_size=4", "stages.cold_start.data.batch_size"),
        ("num_frames=4", "data.media.num_frames"),
        ("stages.reason.num_minibatches=2", "stages.reason.algorithm.update.num_minibatches"),
        ("max_steps=4", "trainer.max_steps"),
        ("algorithm=rloo", "algorithm@stages.reason"),
        ("algorithm@stages.cold_start=rloo", "algorithm@stages.reason"),
    ):
        yield Mutation(kind="misplaced", arguments=(call,), right=right)
    for call in (
        "=1",
        "=",
        "seed",
        "seed:1",
        "seed==1",
        "@=x",
        "seed@=1",
        "a/b/c=1",
        "model@foo=tiny_omni",
        "--config-dir=none",
    ):
        yield Mutation(kind="misplaced", arguments=(call,))


def config_files() -> Iterator[tuple[tuple[str, ...], str | None, dict[str, str]]]:
    """A user's own folder with one file that is wrong: arguments, right word, files."""
    head = "# @package _global_\n"
    texts = {
        "stages: {reason: {num_stesp: 5}}": "num_steps",
        "stages: {raeson: {num_steps: 5}}": "reason",
        "stages:\n  reason:\n    sampling:\n      temprature: 0.5": "temperature",
        "runname: x": "run_name",
        "trainer: {acelerator: cpu}": "accelerator",
        "stages: {reason: {num_steps: 5, num_steps: 6}}": None,
        "stages:\n  reason:\n   num_steps: 5\n  data:\n    limit: 3": None,
        "stages:\n\treason: 5": None,
        "stages:\n  reason:\n num_steps: 5": None,
        "[1, 2]": None,
        "just text": None,
        "seed: [": None,
        "seed: ${nope}": None,
        "stages: {base: {}}\norder: [base]": None,
        "defaults: [/stage@stages.previous: rl]\norder: [previous]": None,
        "defaults: [/stage@stages.base: rl]\norder: [base]": None,
        "stages: {reason: {module: {_target_: os.system}}}": None,
        "stages: {reason: {schedule: {_target_: builtins.eval}}}": None,
        "stages: {reason: {schedule: {_target_: lightning_mmrl.registry.targets.resolve_name}}}": None,
        "defaults: [override /modle: tiny_omni]": "model",
        "defaults: [override /model: tiny_omi]": "tiny_omni",
        "defaults: [override /stage@stages.pretrain: sft]": None,
        "defaults: [override /algorithm@stages.raeson: rloo]": "stages.reason",
        "defaults: [/modle: tiny_omni]": "model",
        "defaults: 5": None,
        "defaults: [5]": None,
        "defaults: {a: b}": None,
        "order: reason": None,
        "order: [reason, {a: 1}]": None,
        "null: 5": None,
        "5: 5": None,
        "stages: {5: {num_steps: 1}}": None,
        "stages: {'../x': {kind: sft}}\norder: ['../x']": None,
        "evaluation: {sets: {'../x': test.jsonl}}": None,
        "hydra: {job: {chdir: 5}}": None,
        "data: {labels: [happy, happy]}": None,
        'run_name: "a\\nb"': None,
        "": None,
    }
    for text, right in texts.items():
        yield ("--config-dir", "own", "experiment=mine"), right, {"own/experiment/mine.yaml": head + text + "\n"}
    yield (
        ("--config-dir", "own", "experiment=mine"),
        None,
        {"own/experiment/mine.yaml": "# @package _globl_\nseed: 3\n"},
    )
    yield ("--config-dir", "own", "experiment=mine"), None, {"own/experiment/mine.yaml": "seed: 3\n"}
    yield ("--config-dir", "own", "experiment=mien"), "mine", {"own/experiment/mine.yaml": head + "seed: 3\n"}
    yield ("--config-dir", "own/x.yaml", "experiment=mine"), None, {"own/x.yaml": head}
    yield (
        ("--config-dir", "own", "+stage@stages.other=mine", "order=[other]"),
        None,
        {"own/stage/mine.yaml": "kind: rl\n"},
    )
    yield ("--config-dir", "own", "data=mine"), None, {"own/data/mine.yaml": "root: here\n"}
