"""A language model judges the answers of a run: as a reward, and after the run; stopped, it goes on where it was."""

import json
import re
from collections import Counter

import pytest
from faulty_endpoint import FaultyEndpoint

from lightning_mmrl.cli.main import main
from lightning_mmrl.curriculum.manifest import Manifest
from lightning_mmrl.data.rollout_table import read_table

pytestmark = pytest.mark.slow

RUN = (
    "experiment=task_arithmetic",
    "model=tiny_qwen2",
    "tracking=none",
    "trainer=cpu",
    "trainer.num_threads=1",
    "state.every_n_steps=1",
    "+data.build.scale=0.1",
    "evaluation.limit=12",
    "evaluation.max_new_tokens=16",
    "evaluation.num_resamples=20",
    "stages.cold_start.num_steps=30",
    "stages.cold_start.data.batch_size=8",
    "stages.cold_start.stop_when=null",
    "stages.cold_start.validate_every=null",
    "stages.reason.num_steps=3",
    "stages.reason.validate_every=null",
    "stages.reason.data.batch_size=4",
    "stages.reason.algorithm.group_size=4",
    "stages.reason.sampling.max_new_tokens=16",
    "stages.reason.rewards.num_workers=0",
)
JUDGED = ("+reward@stages.reason.rewards=llm_judge", "stages.reason.rewards.components.judge.expert.model=m")


def says(text):
    """Judges as the rule does: the truth is in the tag of the answer, between the last marks."""
    parts = re.findall(r"^(=====[0-9a-f]{12})\n(.*?)\n\1$", text, re.DOTALL | re.MULTILINE)
    truth, answer = parts[1][1], parts[2][1]
    found = re.findall(r"<answer>(.*?)</answer>", answer)
    return f"It says {found}.\nVerdict: {'right' if found == [truth] else 'wrong'}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("judged")


@pytest.fixture(scope="module")
def started(folder):
    """Arguments of a run that begins with trained weights."""
    places = (f"output_dir={folder}/runs", f"data.root={folder}/sums")
    assert main(["train", *RUN, *places, "run_name=start", "order=[cold_start]"]) == 0
    handoff = folder / "runs" / "start" / "stages" / "00-cold_start" / "handoff"
    return (*RUN, *places, "order=[reason]", f"model.checkpoint={handoff}", "model.build=null")


@pytest.fixture(scope="module")
def judged(folder, started):
    """A finished run whose reward a judge was part of, and how often it was asked about each answer."""
    with FaultyEndpoint(says=says) as endpoint:
        where = f"stages.reason.rewards.components.judge.endpoint.base_url={endpoint.url}"
        key = "+stages.reason.rewards.components.judge.endpoint.key_variable=null"
        assert main(["train", *started, *JUDGED, where, key, "run_name=judged"]) == 0
        return folder / "runs" / "judged", Counter(endpoint.asked)


def metrics(run):
    lines = (run / "stages" / "00-reason" / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line)["metrics"].items() if "/time/" not in key} for line in lines]


@pytest.mark.main_path
def test_a_judge_is_part_of_a_reward(judged):
    run, asked = judged
    rows = [row for path in sorted(run.glob("stages/00-reason/rollouts/*.jsonl")) for row in read_table(path)]
    scores = [score for row in rows for score in row.scores]
    assert scores
    for score in scores:
        assert score.valid
        assert score.components["judge_agrees"] == 1.0
        assert score.total == pytest.approx(sum(score.components[name] for name in ("math", "format", "judge")))
    assert set(asked.values()) == {1}
    replies = [json.loads(line) for line in (run / "judges" / "reason.judge.jsonl").read_text().splitlines()]
    assert sum("answer" in each for each in replies) == len(asked)
    told = json.loads((run / "judges" / "reason.judge.json").read_text())["versions"]
    assert [each["judge"] for each in told] == ["m"]
    assert "{answer}" in told[0]["prompt"]


def test_a_run_that_lost_its_judge_goes_on_without_asking_again(folder, started, judged):
    whole, asked = judged
    num = sum(asked.values())
    with FaultyEndpoint(says=says) as endpoint:
        node = "stages.reason.rewards.components.judge.endpoint"
        own = (f"+{node}.key_variable=null", "run_name=stopped")
        first = (f"{node}.base_url={endpoint.url}", f"{node}.max_requests={num // 2}")
        code = main(["train", *started, *JUDGED, *own, *first, "stages.reason.rewards.max_invalid_rate=0.01"])
        assert code != 0
        early = Counter(endpoint.asked)
        assert 0 < sum(early.values()) <= num // 2
    with FaultyEndpoint(says=says) as endpoint:
        then = (f"{node}.base_url={endpoint.url}", "stages.reason.rewards.max_invalid_rate=0.01")
        assert main(["train", *started, *JUDGED, *own, *then]) == 0
        assert not early.keys() & endpoint.asked.keys()
        assert early + endpoint.asked == asked
    run = folder / "runs" / "stopped"
    assert metrics(run) == metrics(whole)
    digests = [Manifest.read(each).stages["reason"].result.handoff.digest for each in (run, whole)]
    assert digests[0] == digests[1]


def test_answers_of_a_run_are_judged_after_it(judged, capsys):
    run, _ = judged
    with FaultyEndpoint(says=says) as endpoint:
        keys = ["expert.model=m", f"endpoint.base_url={endpoint.url}", "endpoint.key_variable=null"]
        assert main(["judge", str(run), *keys]) == 0
        asked = Counter(endpoint.asked)
        assert main(["judge", str(run), *keys]) == 0
        assert endpoint.asked == asked
    assert "agreement" in capsys.readouterr().out
    found = json.loads((run / "judges" / "verdicts" / "reason" / "test.json").read_text())
    assert found["num_answers"] == sum(found["counts"].values()) == 12
    assert found["intervals"]["agreement"]["estimate"] == 1.0
    rule = json.loads((run / "stages" / "00-reason" / "evaluation" / "evaluation.json").read_text())["test"]
    assert found["intervals"]["judge"]["estimate"] == pytest.approx(rule["metrics"]["war"])
    lines = (run / "judges" / "verdicts" / "reason" / "test.jsonl").read_text().splitlines()
    assert len(lines) == 12


def test_a_local_checkpoint_judges(judged, capsys):
    """A tiny model says nothing that is a verdict, which is counted and told, and its replies are kept."""
    run, _ = judged
    handoff = run / "stages" / "00-reason" / "handoff"
    command = [
        "judge",
        str(run),
        f"local_checkpoint={handoff}",
        "max_reply_tokens=4",
        "--limit",
        "3",
        "--stage",
        "reason",
    ]
    assert main(command) == 1
    assert "no verdict for" in capsys.readouterr().out
    found = json.loads((run / "judges" / "verdicts" / "reason" / "test.json").read_text())
    assert (found["num_answers"], found["num_without_verdict"], found["kappa"]) == (3, 3, None)
    (kept,) = [path for path in (run / "judges").glob("answers-*.jsonl") if str(handoff) in _told(path)]
    before = kept.read_text()
    assert main(command) == 1
    assert kept.read_text() == before


def _told(path):
    return path.with_suffix(".json").read_text()


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (["expert.model=m"], "endpoint.base_url"),
        (["expert.model=m", "endpoint.base_url=ftp://h", "endpoint.key_variable=null"], "base_url"),
        (["expert.model=m", "endpoint.base_url=http://h/v1", "endpoint.key_variable=PATH"], "key_variable"),
        (["local_checkpoint=/no/such/folder"], "no Hugging Face folder"),
        (["model"], "KEY=VALUE"),
        (["expert.name=m", "endpoint.base_url=http://h/v1"], "expert.name"),
        (["expert.model=m", "endpoint.base_url=http://127.0.0.1:9/v1", "--set", "tset"], "test"),
        (["expert.model=m", "endpoint.base_url=http://127.0.0.1:9/v1", "--limit", "0"], "--limit"),
    ],
)
def test_a_judge_that_cannot_be_asked_is_refused(judged, keys, named, capsys):
    assert main(["judge", str(judged[0]), *keys]) == 2
    assert named in capsys.readouterr().err


def test_an_endpoint_that_is_down_ends_the_command(judged, capsys):
    keys = ["expert.model=m", "endpoint.base_url=http://127.0.0.1:9/v1", "endpoint.key_variable=null"]
    quick = ["endpoint.retries=0", "endpoint.give_up_after=2", "--stage", "reason"]
    with_other_text = "instructions='{question} {truth} {answer}'"
    assert main(["judge", str(judged[0]), *keys, *quick, with_other_text]) == 2
    assert "without an answer" in capsys.readouterr().err
