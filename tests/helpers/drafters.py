"""Drafters for tests, with every quality of drafts."""

import random

from lightning_mmrl.rollout.drafts import Draft, DraftStore


class Told:
    """Knows the completions; drafts of up to `longest` tokens are right for a while and then wrong.

    Args:
        answers: The tokens of each row.
        quality: Probability that the next token of a draft is right.
        wrong: Tokens that take the place of right ones.
        longest: Tokens of a draft at most.
        most_rows: Rows up to which it is asked.
    """

    def __init__(self, answers, quality, wrong, longest=6, most_rows=1000):
        self._answers, self._quality, self._wrong, self._longest = answers, quality, list(wrong), longest
        self.most_rows = most_rows
        self._random = random.Random(0)
        self.lengths, self.asked = [], []

    def begin(self, names):
        self._noted = [0] * len(names)
        assert len(names) == len(self._answers)
        return True

    def end(self, rows, tally):
        assert rows == self._answers

    def note(self, row, tokens):
        self._noted[row] += len(tokens)

    def propose(self, rows, rooms):
        self.asked.append(rows)
        return [self._draft(row, room) for row, room in zip(rows, rooms, strict=True)]

    def _draft(self, row, room):
        length = min(room, self._random.randint(0, self._longest))
        right = self._answers[row][self._noted[row] :]
        tokens = []
        for place in range(length):
            is_right = place < len(right) and self._random.random() < self._quality
            tokens.append(right[place] if is_right else self._random.choice(self._wrong))
        self.lengths.append(length)
        return Draft(tokens, ["told"] * length)


class Tireless(DraftStore):
    """Drafts in every rollout, whether it pays or not."""

    def begin(self, names):
        super().begin(names)
        return True
