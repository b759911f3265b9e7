"""Counts how often each part of this package was called in this process, so that tests see that a run used it."""

from collections import Counter

CALLS: Counter[str] = Counter()
