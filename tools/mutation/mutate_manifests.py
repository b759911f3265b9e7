"""Mutated manifest lines, mutated files of every format, and path escapes: what reading does with each.

    python tools/mutation/mutate_manifests.py                 2,400 lines, 10,000 files, 100+ escapes, by outcome
    python tools/mutation/mutate_manifests.py --lines 300     a slice of the lines

Every line must give a problem that names it, or a sample that can be written down again. Every file must give
the same within five seconds, or a refusal that names it. Every escape must be refused without an open outside of
media_root. Two witnesses see the opens: Python's audit hook, and inotify, which also sees those of C libraries. Exits
with 1 if anything else happens.
"""

import argparse
import copy
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from format_mutations import run_formats
from manifest_escapes import run_escapes

from lightning_mmrl.data.schema import Entry, Problem, read_manifest, scan_manifest
from lightning_mmrl.errors import DataError

MAX_MESSAGE = 1000
MAX_SECONDS_PER_LINE = 1.0
SENTINEL = json.dumps({"id": "sentinel", "messages": [{"role": "user", "content": "?"}]}).encode()
USER = [{"role": "user", "content": "<video><audio>Which emotion?"}]
ROWS = (
    {"id": "a", "messages": USER, "videos": ["a.mp4"], "audios": ["a.mp4"], "solution": "sad", "speaker": "s1"},
    {"messages": USER, "videos": [{"path": "a.mp4", "start": 0.5, "end": 2}], "audios": "a.mp4", "split": "train"},
    {"query": "<image>What?", "response": "sad", "images": "a.mp4", "history": [["q", "r"]], "system": "Be brief."},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}], "labels": ["sad", "glad"]},
    {"id": 7, "messages": USER, "video": "a.mp4", "audio": "a.mp4", "start": 0, "end": 1.5, "cues": {"brow": [1]}},
)
VALUES = (
    *(None, True, False, 0, -1, 1, 10**19, 10**400, -(10**400), 0.1, -0.5, 1e308, "", " ", "x", "sad", "x" * 100_000),
    *([], [[]], [None], [1], ["a.mp4"], ["a.mp4"] * 50, {}, {"path": None}, {"path": "a.mp4", "end": 0}, {"": ""}),
    *("\x00", "\n", "\u202e", "\ufeff", "\U0001f600", "a\u0301", "\u0661", "<video>", "<image><image>", "</think>"),
)
RAW_VALUES = (
    *(b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"9" * 5000, b"0x10", b"01", b"1.", b".5", b"+1"),
    *(b'"\\ud800"', b'"\\udc00\\ud800"', b'"\\u12"', b'"\\x41"', b"'x'", b"undefined", b"[1,]", b'{"a":1,}', b"//"),
    *(
        b"[" * 500 + b"]" * 500,
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'"' + b"x" * 300_000 + b'"',
        b'"\xff\xfe"',
        b'"\x01"',
    ),
)


def mutated_lines(seed: int) -> Iterator[tuple[str, bytes]]:
    """Endless pairs of a mutation's name and the bytes of a line; the same seed gives the same lines."""
    rng = random.Random(seed)
    mutations = (flip, truncate, splice, replace_value, raw_value, drop, duplicate, rename, nest, tags, frame, unicode)
    while True:
        for mutation in mutations:
            yield mutation.__name__, mutation(rng, copy.deepcopy(rng.choice(ROWS)))


def flip(rng: random.Random, row: dict) -> bytes:
    """A few bytes changed."""
    line = bytearray(json.dumps(row).encode())
    for _ in range(rng.randint(1, 4)):
        line[rng.randrange(len(line))] = rng.randrange(256)
    return bytes(line)


def truncate(rng: random.Random, row: dict) -> bytes:
    """The end or the beginning cut off."""
    line = json.dumps(row).encode()
    cut = rng.randrange(len(line))
    return line[:cut] if rng.random() < 0.7 else line[cut:]


def splice(rng: random.Random, row: dict) -> bytes:
    """Two lines run together."""
    line, other = json.dumps(row).encode(), json.dumps(rng.choice(ROWS)).encode()
    return line[: rng.randrange(len(line))] + other[rng.randrange(len(other)) :]


def replace_value(rng: random.Random, row: dict) -> bytes:
    """A value of another type or size, anywhere in the row."""
    row = json.loads(json.dumps(row))
    node, key = rng.choice(list(places(row)))
    node[key] = rng.choice(VALUES)
    return json.dumps(row).encode()


def raw_value(rng: random.Random, row: dict) -> bytes:
    """A value that JSON does not know, or that is too deep or too long."""
    row[rng.choice([*row, "other"])] = "@@"
    return json.dumps(row).encode().replace(b'"@@"', rng.choice(RAW_VALUES))


def drop(rng: random.Random, row: dict) -> bytes:
    """One or two keys missing."""
    for key in rng.sample(list(row), k=min(len(row), rng.randint(1, 2))):
        del row[key]
    return json.dumps(row).encode()


def duplicate(rng: random.Random, row: dict) -> bytes:
    """A key twice."""
    key = rng.choice(list(row))
    return json.dumps(row).encode()[:-1] + b", " + json.dumps({key: rng.choice(VALUES)}).encode()[1:]


def rename(rng: random.Random, row: dict) -> bytes:
    """A key misspelled, in another case or with a lookalike."""
    key = rng.choice(list(row))
    value = row.pop(key)
    row[rng.choice([key.upper(), key[:-1], key + " ", key.replace("e", "\u0435"), "", "x" * 50_000])] = value
    return json.dumps(row).encode()


def nest(rng: random.Random, row: dict) -> bytes:
    """The row or one value wrapped many times."""
    depth = rng.choice([1, 10, 200, 900, 5000])
    line = json.dumps(row).encode()
    if rng.random() < 0.5:
        return b"[" * depth + line + b"]" * depth
    return line[:-1] + b', "deep": ' + b'{"a":' * depth + b"1" + b"}" * depth + b"}"


def tags(rng: random.Random, row: dict) -> bytes:
    """Other media tags in the text."""
    text = json.dumps(row)
    wrong = rng.choice(["<image>", "<video><video>", "<VIDEO>", "< video>", "<audio>" * 3000, "", "<video"])
    return text.replace(rng.choice(["<video>", "<audio>", "<image>"]), wrong).encode()


def frame(rng: random.Random, row: dict) -> bytes:
    """Bytes around the object: BOMs, line ends, other encodings, blank space, megabytes."""
    text = json.dumps(row)
    return rng.choice(
        [
            *(b"\xef\xbb\xbf" + text.encode(), b"\xef\xbb\xbf" * 2 + text.encode(), text.encode() + b"\r"),
            *(text.encode("utf-16"), text.encode("utf-32"), text.encode() + b"\x00", b"\x00" + text.encode()),
            *(text.replace(" ", "\u00a0").encode(), b" \t" + text.encode() + b"  ", text.encode() + b" " * 2**21),
            *(text.encode() * 2, b"#" + text.encode(), text.encode() + b",", f"[{text}]".encode(), b"\x1a", b"\x85"),
        ]
    )


def unicode(rng: random.Random, row: dict) -> bytes:
    """Characters that are easily mistaken, or that are none, in a text."""
    trick = rng.choice(["\ud83d", "\udfff", "\ud83d\ude00", "\u200b", "\u202e", "\x7f", "\u2028", "\x00", "\uffff"])
    node, key = rng.choice([place for place in places(row) if isinstance(place[0][place[1]], str)] or [(row, "id")])
    node[key] = str(node[key]) + trick
    return json.dumps(row, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


def places(node: dict | list) -> Iterator[tuple]:
    """Every container with one of its keys or indices."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        yield node, key
        if isinstance(value, dict | list):
            yield from places(value)


def try_line(line: bytes, folder: Path) -> tuple[str, str]:
    """Outcome and, if it is a fault, what is wrong about it."""
    manifest = folder / "mutated.jsonl"
    manifest.write_bytes(SENTINEL + b"\n" + line + b"\n")
    started = time.monotonic()
    try:
        items = list(scan_manifest(manifest, folder))
        strict = outcome_of_strict(manifest, folder)
    except BaseException as error:
        return "fault", f"{type(error).__name__}: {error}"[:300]
    if time.monotonic() - started > MAX_SECONDS_PER_LINE:
        return "fault", f"took {time.monotonic() - started:.1f} s"
    problems = [item for item in items if isinstance(item, Problem)]
    samples = [item for item in items if isinstance(item, Entry)][1:]
    fault = next(filter(None, map(fault_of_problem, problems)), None) or next(
        filter(None, map(fault_of_sample, samples)), None
    )
    if fault is None and (strict is None) != (not problems):
        fault = "the strict and the lenient reading disagree"
    if fault is None and problems and strict != str(problems[0]):
        fault = f"the strict reading says {strict}"
    if fault is not None:
        return "fault", fault
    return ("refused" if problems else "sample" if samples else "blank"), ""


def outcome_of_strict(manifest: Path, folder: Path) -> str | None:
    try:
        read_manifest(manifest, folder)
    except DataError as error:
        return str(error)
    return None


def fault_of_problem(problem: Problem) -> str | None:
    text = str(problem)
    if not text.startswith(f"{problem.file}:{problem.line}: ") or problem.line < 2 or not problem.group:
        return f"it does not name its line: {text[:200]}"
    if len(text) > MAX_MESSAGE:
        return f"the message has {len(text)} characters"
    text.encode()
    return None


def fault_of_sample(entry: Entry) -> str | None:
    """A sample must be writable, and its media inside the folder."""
    try:
        json.dumps(asdict(entry.sample), ensure_ascii=False).encode()
    except (UnicodeEncodeError, ValueError, RecursionError) as error:
        return f"a sample that cannot be written ({error})"[:200]
    return None


def run_lines(number: int, seed: int, folder: Path) -> tuple[Counter, list[str]]:
    """Outcomes by mutation, and the faults."""
    outcomes: Counter = Counter()
    faults = []
    (folder / "a.mp4").write_bytes(b"x")
    for index, (name, line) in enumerate(mutated_lines(seed)):
        if index == number:
            break
        outcome, fault = try_line(line, folder)
        outcomes[outcome] += 1
        if fault:
            faults.append(f"line {index} ({name}): {fault}")
    return outcomes, faults


def main() -> int:
    """Prints the counts, as JSON with --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=2400)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as base:
        (Path(base) / "lines").mkdir()
        lines, faults = run_lines(options.lines, options.seed, Path(base) / "lines")
        files, file_faults, longest = run_formats(options.files, options.seed, Path(base) / "files", VALUES)
        escaped, escape_faults, control = run_escapes(Path(base))
    report = {"lines": dict(lines), "line_faults": faults, "escapes": dict(escaped), "escape_faults": escape_faults}
    report |= {"files": {name: dict(found) for name, found in files.items()}, "file_faults": file_faults}
    report |= {"longest_file_s": round(longest, 2), "num_files": options.files}
    report |= {"control": control, "seconds": round(time.monotonic() - started, 1)}
    print(json.dumps(report, indent=None if options.json else 2))
    blind = not (control["control_seen"] and control["control_heard"] and control["naive_reads"])
    return 1 if faults or file_faults or escape_faults or blind else 0


if __name__ == "__main__":
    sys.exit(main())
