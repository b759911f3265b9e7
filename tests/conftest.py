"""Settings of every test: offline hub, one torch thread, fixed seeds, checked shapes, a modest hypothesis profile."""

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import random

import numpy as np
import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

# Shapes are checked here and free in training. The hook must stand before the first import of these modules.
CHECKED_MODULES = ("types", "ops", "algorithms", "models.policy", "stages.experience")
install_import_hook([f"lightning_mmrl.{name}" for name in CHECKED_MODULES], "shape_checker.check")

torch.set_num_threads(1)

settings.register_profile("default", deadline=None, max_examples=30)
settings.register_profile("ci", deadline=None, max_examples=30, derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(autouse=True)
def fixed_seeds():
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  libraries draw from the global generator
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def nothing_missing():
    """What one test left unwritten is not told at the end of a command that another test runs."""
    from lightning_mmrl.files import take_missing

    yield
    take_missing()


def pytest_report_header(config):
    if chosen := config.getoption("markexpr"):
        return f"Only tests that are {chosen!r} run; `make test-all`, or pytest without -m, runs the others too."
    return "Slow tests run too; `make test` leaves them out."


def pytest_collection_modifyitems(config, items):
    if hasattr(config, "workerinput"):
        # A file is one worker's (--dist loadfile). The long ones come first, and short ones fill up the end.
        guards, long = ({item.path for item in items if mark in item.keywords} for mark in ("main_path", "slow"))
        items.sort(key=lambda item: (item.path not in guards, item.path not in long))
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu") is not None:  # keywords also hold the names of folders
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish():
    """Modules and collected tests live to the end: the garbage collector need not look at them again and again."""
    gc.freeze()
