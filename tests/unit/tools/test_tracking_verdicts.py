"""The tracking campaign calls a run good with every value once, exit code 0, and steps as fast as without an outage."""

import argparse
import json
import sqlite3

import pytest
import tracking_campaign

NUM_STEPS = 3


@pytest.fixture
def database(tmp_path):
    """The tables of a server that has the whole run."""
    path = tmp_path / "main.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE runs (run_uuid, name, status)")
    connection.execute("CREATE TABLE metrics (run_uuid, key, step, value)")
    connection.execute("INSERT INTO runs VALUES ('4f2a', 'name', 'FINISHED')")
    rows = [
        ("4f2a", key, step, value)
        for step in range(NUM_STEPS)
        for key, value in tracking_campaign.values_at(step).items()
    ]
    connection.executemany("INSERT INTO metrics VALUES (?, ?, ?, ?)", rows)
    connection.commit()
    yield path, connection
    connection.close()


def result_of(database, **changes):
    later = tracking_campaign.count(database[0], "name", NUM_STEPS)
    times = {"main": [0.05] * 20, "spare": [0.05] * 20}
    kept = {"exit_code": 0, "at_the_end": later, "later": later, "lines": 1, "step_s": times}
    return {**kept, **changes}


def test_a_whole_run_is_good(database):
    assert tracking_campaign._is_good(result_of(database))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE metrics SET value = value + 0.5 WHERE step = 1 AND key LIKE '%_3'",
        "UPDATE metrics SET value = NULL WHERE step = 1",
        "UPDATE metrics SET step = 7 WHERE step = 1",
        "UPDATE metrics SET key = 'stage/group/other' WHERE key LIKE '%_3'",
        "INSERT INTO metrics SELECT run_uuid, key, step, 99 FROM metrics WHERE step = 2",
        "DELETE FROM metrics WHERE step = 2",
    ],
)
def test_wrong_points_are_not(database, statement):
    database[1].execute(statement)
    database[1].commit()
    assert not tracking_campaign._is_good(result_of(database))


@pytest.mark.parametrize("code", [1, -9, None])
def test_a_run_that_did_not_end_well_is_not(database, code):
    assert not tracking_campaign._is_good(result_of(database, exit_code=code))


@pytest.mark.parametrize(("step_s", "code"), [(0.051, 0), (0.0524, 0), (0.053, 1), (0.5, 1)])
def test_steps_that_an_outage_slows_fail_the_campaign(database, tmp_path, step_s, code):
    result = result_of(database, step_s={"main": [step_s] * 20, "spare": [0.05] * 20})
    tracking_campaign._result_file(tmp_path, "reset", 0).write_text(json.dumps(result))
    assert tracking_campaign._report(argparse.Namespace(work=tmp_path, kinds=["reset"], seeds=[0])) == code
