"""Mutated files of every format: damaged bytes, and rows with changed values, keys and tags."""

import copy
import json
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from published_files import PUBLISHED
from published_layout import Published, write_array, write_lines

from lightning_mmrl.data.schema import Entry, Problem
from lightning_mmrl.data.sources import Source, read_source
from lightning_mmrl.errors import DataError, MmrlError

MAX_SECONDS = 5.0
MAX_MESSAGE = 2000

Rows = list[dict[str, Any]]


class Hang(BaseException):
    """A file was not read within `MAX_SECONDS`."""


def mutated_files(seed: int, values: Sequence[Any]) -> Iterator[tuple[Published, str, Callable[[Path], Path]]]:
    """Endless triples of a published file, a mutation's name, and a function that writes the mutated file."""
    rng = random.Random(seed)
    byte_mutations = (flip_bytes, cut, insert, repeat)
    row_mutations = (value, key, drop_key, text, retype, reorder)
    while True:
        for published in PUBLISHED:
            if rng.random() < 0.5:
                damage = rng.choice(byte_mutations)
                state = rng.random()
                yield published, damage.__name__, _damaged(published, damage, state)
            else:
                change = rng.choice(row_mutations)
                rows = copy.deepcopy([dict(row) for row in published.rows])
                change(rng, rows, values)
                yield published, change.__name__, _changed(published, rows)


def _damaged(published: Published, damage: Callable[[random.Random, bytes], bytes], state: float) -> Any:
    def write(folder: Path) -> Path:
        source = published.put(folder)
        rng = random.Random(state)
        name = published.file if rng.random() < 0.8 or not published.source else published.source
        file = folder / name
        file.write_bytes(damage(rng, file.read_bytes()))
        return source

    return write


def _changed(published: Published, rows: Rows) -> Any:
    def write(folder: Path) -> Path:
        try:
            return published.put(folder, rows)
        except Exception:  # a table has no such values; JSON has them
            source = published.put(folder)
            (write_array if published.write is write_array else write_lines)(folder / published.file, plain(rows))
            return source

    return write


def plain(node: Any) -> Any:
    """The node with bytes as text."""
    if isinstance(node, Mapping):
        return {str(name): plain(each) for name, each in node.items()}
    if isinstance(node, list):
        return [plain(each) for each in node]
    return node.decode("latin-1") if isinstance(node, bytes) else node


def flip_bytes(rng: random.Random, content: bytes) -> bytes:
    """A few bytes changed."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 6)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def cut(rng: random.Random, content: bytes) -> bytes:
    """The end, the beginning or a piece missing."""
    start, end = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    return rng.choice([content[:start], content[start:], content[:start] + content[end:]])


def insert(rng: random.Random, content: bytes) -> bytes:
    """Bytes that do not belong there."""
    at = rng.randrange(len(content))
    extra = rng.choice(
        [b"\x00", b"\xff" * 9, b'"', b"[", b"]" * 3, b"{", b",", b"[" * 10_000, b"\n", b"\\", b"x" * 70_000]
    )
    return content[:at] + extra + content[at:]


def repeat(rng: random.Random, content: bytes) -> bytes:
    """A piece twice."""
    start, end = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    return content[:end] + content[start:]


def value(rng: random.Random, rows: Rows, values: Sequence[Any]) -> None:
    """A value of another type or size, anywhere in a row."""
    node, name = rng.choice(list(places(rows)))
    node[name] = copy.deepcopy(rng.choice(values))


def key(rng: random.Random, rows: Rows, values: Sequence[Any]) -> None:
    """A column misspelled."""
    row = rng.choice(rows)
    name = rng.choice(list(row))
    row[rng.choice([name.upper(), name[:-1], f"{name} ", f"{name}s", "", "id", "messages", "images"])] = row.pop(name)


def drop_key(rng: random.Random, rows: Rows, values: Sequence[Any]) -> None:
    """A value missing, anywhere in a row."""
    node, name = rng.choice(list(places(rows)))
    if isinstance(node, list) and node is rows:
        return
    del node[name]


def text(rng: random.Random, rows: Rows, values: Sequence[Any]) -> None:
    """Characters or tags put into a text."""
    found = [(node, name) for node, name in places(rows) if isinstance(node[name], str)]
    node, name = rng.choice(found)
    trick = rng.choice(
        ["\x00", "\u202e", "\ufeff", "\u2028", "<image>", "<video>" * 3, "<|im_end|>", "../", "\\", "/", '"']
    )
    at = rng.randrange(len(node[name]) + 1)
    node[name] = node[name][:at] + trick + node[name][at:]


def retype(rng: random.Random, rows: Rows, values: Sequence[Any]) -> None:
    """A value wrapped in a list or an object, or as text, in all rows."""
    name = rng.choice(list(rows[0]))
    wrap = rng.choice(
        [lambda each: [each], lambda each: {"x": each}, str, lambda each: [each, each], lambda each: None]
    )
    for row in rows:
        if name in row:
            row[name] = wrap(row[name])


def reorder(rng: random.Random, rows: Rows, values: Sequence[Any]) -> None:
    """Rows repeated, exchanged or mixed."""
    rows += copy.deepcopy(rows)
    rng.shuffle(rows)
    first, last = rows[0], rows[-1]
    shared = [name for name in first if name in last]
    if shared:
        name = rng.choice(shared)
        first[name], last[name] = last[name], first[name]


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every container with one of its keys or indices."""
    for name, each in node.items() if isinstance(node, dict) else enumerate(node):
        yield node, name
        if isinstance(each, dict | list):
            yield from places(each)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Ends the block after some seconds."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang(f"still reading after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome_of(path: Path, root: Path, name: str | None) -> tuple[str, str]:
    """What reading a source does, and what is wrong about that."""
    try:
        with within(MAX_SECONDS):
            items = list(Source(path, root, name).scan())
            strict = None
            try:
                read_source(path, root, name)
            except DataError as error:
                strict = str(error)
    except MmrlError as error:
        return ("refused", "") if fits(str(error), path) else ("fault", f"no place in: {error}"[:300])
    except BaseException as error:
        return "fault", f"{type(error).__name__}: {error}"[:300]
    problems = [item for item in items if isinstance(item, Problem)]
    fault = next(filter(None, (fault_of(item, path) for item in items)), "")
    expected = str(problems[0]) if problems else None
    if not fault and items and strict != expected:
        fault = f"the strict reading says {strict}, not {expected}"
    if fault:
        return "fault", fault[:300]
    return ("bad rows" if problems else "samples" if items else "no rows"), ""


def fault_of(item: Entry | Problem, path: Path) -> str:
    """What is wrong about a row: a problem without place or fix, or a sample that cannot be written."""
    if isinstance(item, Problem):
        has_fix = any(word in item.reason for word in ("; ", " must "))
        return "" if fits(str(item), path) and has_fix and item.group else f"no place or fix in: {item}"
    try:
        json.dumps(asdict(item.sample), ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        return f"a sample that cannot be written ({error})"
    return ""


def fits(message: str, path: Path) -> bool:
    """Whether a message names the folder of the source and is short."""
    message.encode()
    return str(path.parent) in message and len(message) < MAX_MESSAGE


def run_formats(
    number: int, seed: int, folder: Path, values: Sequence[Any]
) -> tuple[dict[str, Counter], list[str], float]:
    """Outcomes by format, the faults, and the longest time that a file took, in seconds."""
    outcomes: dict[str, Counter] = {}
    faults, longest = [], 0.0
    for index, (published, name, write) in enumerate(mutated_files(seed, values)):
        if index == number:
            break
        place = folder / published.file.replace(".", "_")
        source = write(place)
        started = time.monotonic()
        outcome, fault = outcome_of(source, place, published.format if index % 3 else None)
        longest = max(longest, time.monotonic() - started)
        outcomes.setdefault(published.file, Counter())[outcome] += 1
        if fault:
            faults.append(f"file {index} ({published.file}, {name}): {fault}")
    return outcomes, faults, longest
