"""Entries of a feature cache, and a process that works on one; imports little, since tests start several of it."""

import logging

import torch

from lightning_mmrl.models import feature_cache
from lightning_mmrl.models.feature_cache import FeatureCache

ROWS = {"image": 4, "audio": 2}
PRECISION = "as their weights"


def features(seed=0):
    """The features that are put for key `seed`."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.randn(4, 3, generator=generator),
        "audio": torch.randn(2, 3, generator=generator).bfloat16(),
    }


def same(found, wanted):
    """True if values and precisions are equal."""
    return found.keys() == wanted.keys() and all(
        torch.equal(found[kind], wanted[kind]) and found[kind].dtype == wanted[kind].dtype for kind in wanted
    )


def hammer(directory, max_bytes, seed):
    """Puts and gets twelve entries at random; returns what was wrong, and how often an entry was found."""
    store = FeatureCache(directory, max_bytes=max_bytes, towers="towers")
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger(feature_cache.__name__).addHandler(handler)
    generator, hits = torch.Generator().manual_seed(seed), 0
    for _ in range(300):
        key = int(torch.randint(12, (), generator=generator))
        found = store.get(str(key), PRECISION, ROWS)
        if found is None:
            store.put(str(key), PRECISION, features(key))
        elif same(found, features(key)):
            hits += 1
        else:
            records.append(f"entry {key} is another's")
    return records, hits
