"""Asks an endpoint that fails in many ways 1,000 questions, kills the asking process, and counts every request.

    python tools/campaigns/expert_endpoint.py                     1,000 questions, left alone and killed five times
    python tools/campaigns/expert_endpoint.py --num 100 --kills 1

The endpoint is on the loopback (tests/helpers/faulty_endpoint.py) and has a plan for each question: what its first,
second and further requests get. So the number of requests, the tokens that are billed and the end of each question are
known beforehand. A process that is left alone must meet all exactly; tokens of replies that are cut off are estimated,
and each must be counted. One that is killed may send again only what was under way at a kill. A question that was
answered or refused is not asked again. The exit code is 0 if all holds.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "helpers"))

from faulty_endpoint import ANSWERS, BILLED, COUNTED, FINAL, PASSING, FaultyEndpoint, expected, question

from lightning_mmrl.curriculum.experts.chat import ChatBodies
from lightning_mmrl.curriculum.experts.endpoint import ChatEndpoint
from lightning_mmrl.curriculum.experts.ledger import Ledger
from lightning_mmrl.protocols.experts import ExpertRequest
from lightning_mmrl.settings.algorithm import SamplingSettings
from lightning_mmrl.settings.experts import EndpointSettings, ExpertSettings
from lightning_mmrl.tracking.jsonl import read_lines
from lightning_mmrl.types.records import Message

RETRIES, CONCURRENCY, PATIENCE_S = 3, 8, 300.0
BYTES_EACH = 300
"""Bytes that a question takes on record, about."""
REFUSALS = frozenset({"status_400", "status_422", "cut_before_answer", "declined"})
"""Problems that are the outcomes of refused questions."""
ESTIMATED = ("malformed", "unreachable")
"""Problems of requests whose replies are cut off, if there are any."""
SHARE_OF_FAULTS = 0.4
"""Share of the questions whose first request fails or is answered wrongly."""

Plans = Mapping[str, Sequence[str]]


def plans_of(number: int, seed: int) -> dict[str, tuple[str, ...]]:
    """What each question gets, one request after the other; all faults are among them."""
    rng = random.Random(seed)
    found = {}
    for place in range(number):
        faults = [rng.choice((*ANSWERS[1:], *PASSING, *FINAL)) for _ in range(rng.randint(1, RETRIES + 2))]
        plan = (*faults, "right") if rng.random() < SHARE_OF_FAULTS else ("right",)
        found[question(place, 1)] = plan
    return found


def ask(url: str, work: Path, number: int) -> None:
    """Asks all questions and writes the answers down; the client's own process runs this."""
    expert = ExpertSettings(model="adder")
    endpoint = EndpointSettings(
        base_url=url,
        concurrency=CONCURRENCY,
        request_timeout_s=1.0,
        retries=RETRIES,
        first_wait_s=0.01,
        longest_wait_s=0.1,
        give_up_after=number,
        max_failed_rate=1.0,
    )
    turns = {text: (Message(role="user", content=text),) for text in (question(place, 1) for place in range(number))}
    requests = [ExpertRequest(key=text, turns=turns[text], most_tokens=16) for text in turns]
    with Ledger.opened(work / "answers.jsonl") as ledger:
        bodies = ChatBodies(expert, SamplingSettings(), endpoint, work)
        answers = ChatEndpoint(expert=expert, endpoint=endpoint, bodies=bodies, ledger=ledger).ask(requests)
        found = {
            "answers": {each.key: [each.text, each.problem] for each in answers},
            "requests": ledger.num_requests,
            "tokens": ledger.num_tokens,
            "estimates": [line["billed"] for line in read_lines(ledger.path) if line.get("problem") in ESTIMATED],
        }
    (work / "found.json").write_text(json.dumps(found))


def asked_by_a_process(url: str, work: Path, number: int, kills: int, seed: int) -> tuple[dict[str, Any], int, float]:
    """Runs the client, kills it at random times, and returns what it found, the kills, and its seconds."""
    work.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--client", url, "--work", str(work), "--num", str(number)]
    rng, done, start = random.Random(seed), 0, time.monotonic()
    while True:
        process = subprocess.Popen(command)
        try:
            ledger = work / "answers.jsonl"
            if done < kills:
                size, most = (
                    ledger.stat().st_size if ledger.exists() else 0,
                    rng.uniform(0.3, 1.0) * BYTES_EACH * number / (kills + 1),
                )
                while process.poll() is None and (ledger.stat().st_size if ledger.exists() else 0) < size + most:
                    time.sleep(0.005)
                process.send_signal(signal.SIGKILL)
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise SystemExit(f"the client hangs: it has not ended after {PATIENCE_S:g} s") from None
        if process.returncode == 0:
            return json.loads((work / "found.json").read_text()), done, time.monotonic() - start
        if process.returncode != -signal.SIGKILL:
            raise SystemExit(f"the client ended with {process.returncode}")
        done += 1


def problems_alone(plans: Plans, asked: Counter[str], found: Mapping[str, Any]) -> list[str]:
    """What is not as the plans say, for a client that was left alone."""
    ends = {text: expected(plan, RETRIES) for text, plan in plans.items()}
    times = {text: number for text, (number, _) in ends.items()}
    problems = [
        f"{text} was asked {asked[text]} times, not {times[text]}" for text in plans if asked[text] != times[text]
    ]
    for text, (_, end) in ends.items():
        answer, problem = found["answers"][text]
        if (end in ANSWERS) != (answer is not None) or (answer is None) != (problem is not None):
            problems.append(f"{text} ended with {answer!r} and {problem!r}, and its plan with {end}")
    sent = [plan[min(n, len(plan)) - 1] for text, plan in plans.items() for n in range(1, times[text] + 1)]
    estimates = [tokens for tokens in found["estimates"] if tokens]
    compared = (
        ("requests", found["requests"], sum(times.values())),
        ("tokens counted", found["tokens"] - sum(estimates), BILLED * sum(fault in COUNTED for fault in sent)),
        ("estimates", len(estimates), sum(fault in ("half", "lost") for fault in sent)),
    )
    return problems + [f"{value} {what} on record, not {wanted}" for what, value, wanted in compared if value != wanted]


def problems_killed(asked: Counter[str], found: Mapping[str, Any], kills: int, kept: Mapping[str, str]) -> list[str]:
    """What is not as it must be for a client that was killed: `kept` are the answers on record by question."""
    lost = sum(asked.values()) - found["requests"]
    problems = [] if lost <= 0 else [f"{lost} requests are not on record"]
    # A request is on record before it is sent, so a kill may leave some on record that were never sent.
    problems += [] if -lost <= kills * CONCURRENCY else [f"{-lost} requests on record were not sent"]
    gone = [text for text, answer in kept.items() if found["answers"][text][0] != answer]
    return problems + [f"the answer to {text} is gone" for text in gone]


def main() -> int:
    """Runs the campaign and returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=1000, help="questions")
    parser.add_argument("--kills", type=int, default=5, help="kills of the second client")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder of the answers (default: a temporary one)")
    parser.add_argument("--client", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client is not None:
        ask(options.client, options.work, options.num)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        problems = campaign(options.work or Path(folder), options.num, options.kills, options.seed)
    for problem in problems:
        print(problem)
    print(f"{len(problems)} problems")
    return 1 if problems else 0


def campaign(work: Path, number: int, kills: int, seed: int) -> list[str]:
    """Asks in a process that is left alone, in one that is killed, and once more; returns what is wrong."""
    plans = plans_of(number, seed)
    with FaultyEndpoint(plans) as server:
        found, _, seconds = asked_by_a_process(server.url, work / "alone", number, 0, seed)
    ends = Counter(end for _, end in (expected(plan, RETRIES) for plan in plans.values()))
    print(f"left alone: {number} questions, {sum(server.asked.values())} requests, {seconds:.0f} s; ends {dict(ends)}")
    problems = problems_alone(plans, server.asked, found)
    with FaultyEndpoint(plans) as server:
        found, done, seconds = asked_by_a_process(server.url, work / "killed", number, kills, seed)
        total, record = sum(server.asked.values()), found["requests"]
        print(f"killed {done} times: {total} requests, {record} on record, {seconds:.0f} s")
        kept = {text: answer for text, (answer, _) in found["answers"].items() if answer is not None}
        before = Counter(server.asked)
        again, _, _ = asked_by_a_process(server.url, work / "killed", number, 0, seed)
    problems += problems_killed(before, found, done, kept) + problems_killed(server.asked, again, done, kept)
    refused = {text for text, (_, problem) in found["answers"].items() if problem in REFUSALS}
    more = {text for text in (*kept, *refused) if server.asked[text] != before[text]}
    print(f"asked once more: {sum((server.asked - before).values())} requests for questions without an answer")
    return problems + [f"{text} has an outcome and was asked again" for text in sorted(more)]


if __name__ == "__main__":
    sys.exit(main())
