"""These tests run where vllm is installed: `make test-vllm` sets up its CPU build in an environment of its own."""

import importlib.util
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MISSING = importlib.util.find_spec("vllm") is None


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore"))  # vLLM's own are not ours to mend
            if MISSING:
                item.add_marker(pytest.mark.skip(reason="vllm is not installed; make test-vllm runs these tests"))
