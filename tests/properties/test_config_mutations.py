"""A slice of the mutations of tools/mutation/mutate_configs.py: each is refused in one sentence, or valid."""

import sys
from pathlib import Path

import mutate_configs
import pytest
from config_mutations import base_arguments, mutations

STEP = 20


@pytest.fixture(scope="module")
def verdicts():
    return [mutate_configs.judged(mutation, checked_targets=False) for mutation in mutations(1)[::STEP]]


@pytest.mark.slow
def test_a_mutated_configuration_is_refused_in_one_sentence_or_valid_and_writes_nothing(verdicts):
    assert [verdict.message for verdict in verdicts if verdict.outcome == "failed"] == []
    assert len({verdict.mutation.kind for verdict in verdicts}) >= 8
    assert sum(verdict.outcome == "refused" for verdict in verdicts) > len(verdicts) / 2


@pytest.mark.slow
def test_a_misspelled_key_is_answered_with_the_right_one(verdicts):
    # A parameter of a `_target_` is known only after the import of torch.
    typos = [verdict for verdict in verdicts if verdict.mutation.right is not None and verdict.outcome == "refused"]
    missed = [(verdict.mutation.arguments, verdict.message) for verdict in typos if not verdict.names_the_key]
    assert len(typos) >= 10
    assert len(missed) <= 0.1 * len(typos), missed


def test_the_same_seed_gives_the_same_mutations():
    def few(seed):
        return mutations(seed, num_typos=8, num_values=8, calls=base_arguments()[:4])

    assert few(3) == few(3)
    assert few(3) != few(4)


BAD = {
    (0, ""): "exit code 0",
    (2, "Traceback (most recent call last):\n  x\n"): "a traceback",
    (2, "mmrl train: one\ntwo\n"): "not one line",
    (2, "hydra says no\n"): "not by mmrl",
    (2, f"mmrl train: {'x' * 1000}\n"): "too long",
}


@pytest.mark.parametrize("refusal", BAD)
def test_what_is_no_clear_refusal_is_noticed(refusal):
    assert BAD[refusal] in mutate_configs.refusal_problem(*refusal)
    assert mutate_configs.refusal_problem(2, "mmrl train: seed is x; it must be a whole number\n") == ""


def test_a_file_that_a_command_leaves_behind_is_noticed(monkeypatch):
    def leaves_a_file(arguments):
        Path("left.txt").write_text("x")
        sys.stderr.write("mmrl train: no\n")
        return 2

    monkeypatch.setattr("lightning_mmrl.cli.main.main", leaves_a_file)
    verdict = mutate_configs.judged(mutate_configs.Mutation(kind="x", arguments=()), checked_targets=False)
    assert (verdict.outcome, "wrote something" in verdict.message) == ("failed", True)
