"""A fixture that several integration tests start from."""

import pytest


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """A tracking database with tables and nothing in it, made once, because that takes seconds."""
    from lightning_mmrl.tracking.connection import connect

    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    connect(f"sqlite:///{path}", "unused")
    return path
