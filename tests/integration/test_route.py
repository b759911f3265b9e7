"""Answers are sorted by pass rate, experts are asked, and a model learns from both; a kill changes nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter

import pytest
from faulty_endpoint import FaultyEndpoint

from lightning_mmrl.app import experts
from lightning_mmrl.app.experts import Consultation, Judge
from lightning_mmrl.cli.main import main
from lightning_mmrl.curriculum import artifacts, orchestrator
from lightning_mmrl.curriculum.artifacts import check_artifact
from lightning_mmrl.curriculum.experts.traces import Traces
from lightning_mmrl.curriculum.manifest import Manifest
from lightning_mmrl.data.rollout_table import read_table
from lightning_mmrl.data.schema import read_manifest
from lightning_mmrl.stages.module import StageModule

pytestmark = pytest.mark.slow

NUM_PROMPTS, NUM_ANSWERS = 40, 4
SMALL = (
    "experiment=task_arithmetic",
    "model=tiny_qwen2",
    "tracking=none",
    "trainer=cpu",
    "trainer.num_threads=1",
    "state.every_n_steps=2",
    "+data.build.scale=0.1",
    "evaluation.limit=4",
    "evaluation.max_new_tokens=4",
    "evaluation.num_resamples=20",
    "stages.cold_start.num_steps=40",
    "stages.cold_start.data.batch_size=8",
    "stages.cold_start.stop_when=null",
    "stages.cold_start.validate_every=null",
    "+stage@stages.draw=sample",
    f"stages.draw.num_completions={NUM_ANSWERS}",
    f"stages.draw.data.limit={NUM_PROMPTS}",
    "stages.draw.sampling.max_new_tokens=16",
    "+stage@stages.hard=filter",
    "stages.hard.mixed=true",
    "+stage@stages.sort=route",
    "stages.sort.data.manifest=traces.jsonl",
    "stages.sort.tries=2",
    "stages.sort.expert={model: adder}",
    "stages.sort.endpoint={base_url: none, concurrency: 2, retries: 1, first_wait_s: 0, longest_wait_s: 0.1}",
    "+stage@stages.again=tiny/task_cold_start",
    "stages.again.data.manifest=null",
    "+stages.again.data.sources={own: {stage: sort, artifact: own}, expert: {stage: sort, artifact: expert}}",
    "stages.again.data.batch_size=2",
    "stages.again.num_steps=4",
    "stages.again.stop_when=null",
    "stages.again.validate_every=null",
)
MADE = ("own", "expert", "solved", "unsolved", "pairs")


class Workplace:
    """A folder with a data set, a base model and runs."""

    def __init__(self, folder):
        self.folder = folder

    def arguments(self, name, order, *more):
        places = (f"output_dir={self.folder}/runs", f"data.root={self.folder}/sums", f"run_name={name}")
        return ["train", *SMALL, *places, f"order=[{order}]", *more]

    def train(self, name, order, *more):
        return main(self.arguments(name, order, *more))

    def sort(self, name, url, *more):
        """The whole curriculum; its first two stages are finished."""
        return self.train(name, "cold_start,draw,hard,sort,again", f"stages.sort.endpoint.base_url={url}", *more)

    def copy(self, name):
        shutil.copytree(self.run("base"), self.run(name))
        return name

    def run(self, name):
        return self.folder / "runs" / name

    def artifact(self, name, stage, artifact):
        return self.run(name) / Manifest.read(self.run(name)).stages[stage].result.artifacts[artifact].path

    def manifest(self, name, artifact, stage="sort"):
        path = self.artifact(name, stage, artifact) / f"{artifact}.jsonl"
        return read_manifest(path, self.folder / "sums") if path.read_text() else []

    def dropped(self, name, artifact, stage="sort"):
        lines = (self.artifact(name, stage, artifact) / "dropped.jsonl").read_text().splitlines()
        return {each["id"]: each["reason"] for each in map(json.loads, lines)}

    def rows(self):
        folder = self.artifact("base", "draw", "rollouts")
        return [row for path in sorted(folder.glob("*.jsonl")) for row in read_table(path)]

    def never_solved(self):
        return [row.sample for row in self.rows() if row.pass_rate == 0]

    def digests(self, name):
        results = [stage.result for stage in Manifest.read(self.run(name)).stages.values()]
        return {result.name: {key: made.digest for key, made in result.artifacts.items()} for result in results}

    def files(self, name):
        """All that stages sealed; those of a stage that ran again are kept beside it, and left out here."""
        folders = [path.parent for path in sorted((self.run(name) / "stages").rglob("mmrl.json"))]
        folders = [folder for folder in folders if "replaced" not in str(folder)]
        return {str(path.relative_to(self.run(name))): path.read_bytes() for each in folders for path in each.iterdir()}

    def write_traces(self):
        """A trace for two of three prompts that are never solved: a right one, and a wrong one not to be learned."""
        lines = []
        for number, sample in enumerate(self.never_solved()):
            said = {0: sample.solution, 1: str((int(sample.solution) + 1) % 10)}.get(number % 3)
            if said is not None:
                turns = [{"role": "user", "content": sample.messages[0].content}]
                turns.append({"role": "assistant", "content": f"<think>so</think><answer>{said}</answer>"})
                lines.append(json.dumps({"id": sample.id, "messages": turns}))
        (self.folder / "sums" / "traces.jsonl").write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """With a run whose model has answered, and traces."""
    place = Workplace(tmp_path_factory.mktemp("workplace"))
    assert place.train("base", "cold_start,draw") == 0
    place.write_traces()
    return place


@pytest.fixture(scope="module")
def alone(workplace):
    """The name of the run that is left alone, and how often its expert was asked each question."""
    with FaultyEndpoint(plans(workplace)) as server:
        assert workplace.sort(workplace.copy("alone"), server.url) == 0
    return "alone", server.asked


def plans(workplace):
    """What the endpoint does with the prompts that are never solved: every seventh is answered wrongly at first."""
    wrong = {sample.messages[0].content: ("wrong", "right") for sample in workplace.never_solved()[::7]}
    return wrong | {workplace.never_solved()[2].messages[0].content: ("wrong", "wrong")}


@pytest.mark.main_path
def test_every_prompt_goes_where_its_answers_say_and_only_right_answers_are_learned(alone, workplace):
    name, asked = alone
    rows = workplace.rows()
    shares = {row.sample.id: sum(map(bool, row.right)) / NUM_ANSWERS for row in rows}
    assert len(shares) == NUM_PROMPTS
    sometimes, never = (
        {key for key, share in shares.items() if test(share)} for test in (lambda s: 0 < s < 1, lambda s: s == 0)
    )
    assert len(never) > 6
    assert len(sometimes) > 2
    found = {artifact: workplace.manifest(name, artifact) for artifact in MADE}
    ids = {artifact: {sample.id.partition("#")[0] for sample in samples} for artifact, samples in found.items()}
    unanswered = workplace.never_solved()[2].id
    assert ids["own"] == ids["pairs"] == sometimes
    assert ids["solved"] == {key for key, share in shares.items() if share == 1}
    assert ids["unsolved"] == {unanswered}
    assert ids["expert"] == never - {unanswered}
    for artifact in MADE:
        assert workplace.dropped(name, artifact).keys() == shares.keys() - ids[artifact]
    assert workplace.dropped(name, "expert")[unanswered] == "wrong"
    solutions = {row.sample.id: row.sample.solution for row in rows}
    for sample in found["own"] + found["expert"]:
        assert f"<answer>{solutions[sample.id.partition('#')[0]]}</answer>" in sample.messages[-1].content
    for pair in found["pairs"]:
        right = f"<answer>{pair.solution}</answer>"
        assert right in pair.extras["chosen"]
        assert right not in pair.extras["rejected"]
    facts = check_artifact(workplace.artifact(name, "sort", "expert"))
    assert facts["routing"]["prompts"]["never_solved"] == len(never)
    traces = Counter(["right", "wrong", "no_trace"][number % 3] for number in range(len(never)))
    assert facts["routing"]["experts"]["traces"]["right"] == traces["right"]
    # A right trace is as good as an answer: no more than the others were asked.
    with_right_trace = {sample.messages[0].content for sample in workplace.never_solved()[::3]}
    assert not with_right_trace & asked.keys()
    result = Manifest.read(workplace.run(name)).stages["again"].result
    assert result.inputs["data.sources.expert"] == workplace.digests(name)["sort"]["expert"]
    assert result.changed


def test_the_offline_filter_keeps_what_is_solved_sometimes(alone, workplace):
    kept = workplace.manifest(alone[0], "kept", "hard")
    assert kept == [row.sample for row in workplace.rows() if 0 < row.pass_rate < 1]
    reasons = {row.sample.id: row.pass_rate for row in workplace.rows() if row.pass_rate in (0, 1)}
    named = {key: "always_solved" if share else "never_solved" for key, share in reasons.items()}
    assert workplace.dropped(alone[0], "kept", "hard") == named


def test_a_question_has_no_gold_and_no_target(alone, workplace):
    with FaultyEndpoint() as server:
        assert workplace.sort(workplace.copy("bodies"), server.url) == 0
    questions = [[{"role": "user", "content": sample.messages[0].content}] for sample in workplace.never_solved()]
    for body in server.bodies:
        assert body["messages"] in questions
        assert set(body) == {"model", "temperature", "top_p", "max_tokens", "seed", "messages"}


BRIDGE = (
    "+stage@stages.ask=bridge",
    "stages.ask.descriptions.stage=draw",
    "+stage@stages.think=route",
    "stages.think.table=null",
    "stages.think.prompts={stage: ask, artifact: questions}",
    "stages.think.expert={model: adder}",
    "+stage@stages.teach=bridge",
    "stages.teach.descriptions.stage=draw",
    "stages.teach.answers={stage: think, artifact: answers}",
    "stages.teach.rewards=${stages.draw.rewards}",
)
"""An endpoint thinks about the descriptions, which are what the model said."""


@pytest.mark.timeout(300)
def test_an_endpoint_answers_the_questions_of_a_bridge(workplace):
    name, rows = workplace.copy("bridge"), workplace.rows()
    unlike = rows[0].sample.id  # answered wrongly, whatever is asked
    with FaultyEndpoint(reads=lambda text: text.splitlines()[-1]) as server:
        asked = workplace.arguments(name, "cold_start,draw,ask", *BRIDGE)
        assert main(asked) == 0
        questions = workplace.manifest(name, "questions", "ask")
        first = next(sample for sample in questions if sample.id == unlike)
        server.plans[first.messages[0].content] = ("wrong",)
        url = f"stages.think.endpoint={{base_url: {server.url}}}"
        assert main(workplace.arguments(name, "cold_start,draw,ask,think,teach", *BRIDGE, url)) == 0
    assert server.asked.keys() == {sample.messages[0].content for sample in questions}
    taught = workplace.manifest(name, "traces", "teach")
    solutions = {row.sample.id: row.sample for row in rows}
    assert {sample.id for sample in taught} == {f"{sample.id}#bridge" for sample in questions} - {f"{unlike}#bridge"}
    for sample in taught:
        prompt = solutions[sample.id.partition("#")[0]]
        assert sample.messages[0] == prompt.messages[0]
        assert sample.messages[-1].content == f"<answer>{prompt.solution}</answer>"
    assert workplace.dropped(name, "traces", "teach")[unlike] == "not_answered"
    assert workplace.dropped(name, "expert", "think") == {unlike: "wrong"}


def test_the_same_command_again_asks_nothing(alone, workplace, capsys):
    before = workplace.files(alone[0])
    with FaultyEndpoint() as server:
        assert workplace.sort(alone[0], server.url) == 0
        assert capsys.readouterr().err.count("already finished") == 5
        assert workplace.sort(alone[0], server.url, "--from-stage", "sort") == 0
    assert not server.asked
    assert workplace.files(alone[0]) == before


class Killed(BaseException):
    """Ends a run without a word; no handler of the package knows it."""


WHERE = {
    "before the filter writes": (orchestrator, "write_artifact", 1),
    "while the filter is sealed": (artifacts, "sync_tree", 1),
    "before anything is asked": (Consultation, "consult", 1),
    "within the traces": (Traces, "ask", 1),
    "before the traces are judged": (Judge, "scores", 1),
    "before the answers are judged": (Judge, "scores", 3),
    "before the answers to the second try are judged": (Judge, "scores", 4),
    "before the first artifact": (orchestrator, "write_artifact", 1),
    "while the first artifact is sealed": (artifacts, "sync_tree", 1),
    "before the second artifact": (orchestrator, "write_artifact", 2),
    "while the third artifact is sealed": (artifacts, "sync_tree", 3),
    "while the last artifact is sealed": (artifacts, "sync_tree", 5),
    "at the border": (Manifest, "write", 5),
    "within the last stage": (StageModule, "on_train_batch_end", 3),
}
"""Where one run is killed, one after the other: the function, and which of its calls in the process never returns."""
KILL = """
import os, signal, sys
from lightning_mmrl.cli.main import main
from lightning_mmrl.curriculum.experts.ledger import Ledger
number, real = int(sys.argv[1]), Ledger._add
def add(ledger, record, calls=[]):
    calls.append(record)
    if len(calls) == number:
        os.kill(os.getpid(), signal.SIGKILL)
    real(ledger, record)
Ledger._add = add
main(sys.argv[2:])
"""


@pytest.mark.main_path
@pytest.mark.timeout(600)
def test_a_run_that_is_killed_everywhere_has_the_same_bytes_and_asks_nothing_twice(alone, workplace, monkeypatch):
    name = workplace.copy("killed")
    with FaultyEndpoint(plans(workplace)) as server:
        arguments = workplace.arguments(
            name, "cold_start,draw,hard,sort,again", f"stages.sort.endpoint.base_url={server.url}"
        )
        for owner, function, number in WHERE.values():
            whole, calls = getattr(owner, function), []

            def call(*given, whole=whole, calls=calls, number=number, **more):
                calls.append(given)
                if len(calls) == number:
                    raise Killed
                return whole(*given, **more)

            with monkeypatch.context() as patch:
                patch.setattr(owner, function, call)
                with pytest.raises(Killed):
                    main(arguments)
        assert main(arguments) == 0
    assert server.asked == alone[1]
    assert workplace.digests(name) == workplace.digests(alone[0])
    assert workplace.files(name) == workplace.files(alone[0])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [1, 2, 5])
def test_a_kill_among_the_questions_costs_the_answers_under_way_alone(alone, workplace, number):
    """A request counts before it is sent; an answer that was not written down is asked for again."""
    name = workplace.copy(f"killed-{number}")
    with FaultyEndpoint(plans(workplace)) as server:
        one = ("stages.sort.endpoint.concurrency=1",)
        arguments = workplace.arguments(
            name, "cold_start,draw,hard,sort,again", f"stages.sort.endpoint.base_url={server.url}", *one
        )
        ended = subprocess.run([sys.executable, "-c", KILL, str(number), *arguments], check=False, capture_output=True)
        assert ended.returncode == -signal.SIGKILL
        assert main(arguments) == 0
    again = {text: times - alone[1][text] for text, times in server.asked.items() if times != alone[1][text]}
    assert sum(again.values()) == (0 if number % 2 else 1)  # odd: before a request, even: before its answer is kept
    if not again:
        assert workplace.digests(name) == workplace.digests(alone[0])


@pytest.mark.parametrize(
    ("url", "plan", "sentence"),
    [
        (None, {}, "questions in a row without an answer (the last: unreachable"),
        ("up", "404", "refuses all requests (the last: status_404"),
        ("up", "html", "questions in a row without an answer (the last: malformed"),
    ],
)
def test_an_endpoint_that_cannot_be_used_ends_the_run_with_one_sentence(workplace, url, plan, sentence, capsys):
    name = f"{url}-{plan or 'down'}"
    shutil.copytree(workplace.run("base"), workplace.run(name))
    with FaultyEndpoint(
        {row.sample.messages[0].content: (plan,) for row in workplace.rows()} if plan else {}
    ) as server:
        address = server.url if url else "http://127.0.0.1:1/v1"
        assert workplace.sort(name, address, "+stages.sort.endpoint.give_up_after=3") == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert sentence in said
    assert "the same command asks for the others" in said
    assert list(Manifest.read(workplace.run(name)).stages) == ["cold_start", "draw", "hard"]


@pytest.mark.parametrize("plan", ["language", "cut_short"])
def test_answers_of_no_use_enter_nothing_and_are_counted(workplace, plan):
    name = workplace.copy(plan)
    texts = [row.sample.messages[0].content for row in workplace.rows()]
    with FaultyEndpoint({text: (plan,) for text in texts}) as server:
        assert workplace.sort(name, server.url, "stages.sort.tries=1") == 0
    counts = check_artifact(workplace.artifact(name, "sort", "expert"))["routing"]["experts"]["adder"]
    problem = "truncated" if plan == "cut_short" else "wrong"
    assert counts == {problem: len(workplace.never_solved()) - len(workplace.never_solved()[::3])}
    assert len(workplace.manifest(name, "expert")) == len(workplace.never_solved()[::3])


@pytest.mark.timeout(300)
def test_two_ranks_sort_as_one_and_rank_0_alone_asks(alone, workplace):
    name = workplace.copy("ranks")
    with FaultyEndpoint(plans(workplace)) as server:
        more = (f"stages.sort.endpoint.base_url={server.url}", "trainer.devices=2")
        arguments = workplace.arguments(name, "cold_start,draw,hard,sort", *more)
        command = [sys.executable, "-m", "lightning_mmrl.cli.main", *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert server.asked == alone[1]
    assert workplace.digests(name)["sort"] == workplace.digests(alone[0])["sort"]


def test_traces_of_another_dataset_are_refused(workplace, capsys):
    path = workplace.folder / "sums" / "traces.jsonl"
    real = path.read_text()
    try:
        path.write_text(real.replace('"id": "train-', '"id": "other-'))
        assert workplace.sort(workplace.copy("strangers"), "http://127.0.0.1:1/v1") == 2
        assert "has the id of a prompt in the table; take the traces of this dataset" in capsys.readouterr().err
        path.write_text(real.replace("What is", "What was"))
        assert workplace.sort(workplace.copy("questions"), "http://127.0.0.1:1/v1") == 2
        assert "has the question 'What was" in capsys.readouterr().err
    finally:
        path.write_text(real)


def test_an_unverified_answer_would_be_refused_when_it_is_written(workplace, monkeypatch, capsys):
    """The negative control: a judge that forgets afterwards what it found."""
    verdicts = []

    def verdict(judge, score):
        verdicts.append(score)
        return None if len(verdicts) <= 200 and score.valid else "wrong"

    monkeypatch.setattr(experts.Judge, "verdict", verdict)
    monkeypatch.setattr(
        experts.Consultation, "consult", lambda asking, expert, prompts: forced(asking, prompts, verdicts)
    )
    assert workplace.sort(workplace.copy("forced"), "http://127.0.0.1:1/v1") == 2
    assert "of cheat is not verified" in capsys.readouterr().err


def forced(asking, prompts, verdicts):
    from lightning_mmrl.app.experts import Verified
    from lightning_mmrl.data.routing import taught
    from lightning_mmrl.types.records import Completion, Score

    verdicts += [None] * 200
    for prompt in prompts:
        sample = taught(prompt, "<answer>11</answer>")
        asking.verified[prompt.id] = Verified(
            expert="cheat",
            completion=Completion(text="<answer>11</answer>", num_tokens=1, truncated=False),
            sample=sample,
            score=Score(total=1.0, components={}),
        )
