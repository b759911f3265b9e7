"""Samples that are left out are written down once, and each notice is given once."""

import json

from lightning_mmrl.data.prepared import Quarantined
from lightning_mmrl.training.monitor import ConsoleMonitor


class Console:
    """Remembers what is said."""

    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


def test_a_sample_that_is_left_out_again_is_written_down_once(tmp_path):
    path = tmp_path / "run" / "quarantine.jsonl"

    def left_out(manifest, *names, reason="broken"):
        items = [Quarantined(sample_id=name, reason=reason) for name in names]
        ConsoleMonitor(Console(), path).leave_out(manifest, 5, len(items), items)

    left_out("a.jsonl", "x", 'y", "reason": "z')
    left_out("a.jsonl", "x", "z", reason="still broken")
    left_out("b.jsonl", "x")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(each["manifest"], each["sample_id"]) for each in rows] == [
        ("a.jsonl", "x"),
        ("a.jsonl", 'y", "reason": "z'),
        ("a.jsonl", "z"),
        ("b.jsonl", "x"),
    ]


def test_what_several_stages_would_say_alike_is_said_once(tmp_path):
    console = Console()
    monitor = ConsoleMonitor(console, tmp_path / "quarantine.jsonl")
    items = [Quarantined(sample_id="x", reason="broken")]
    for _ in range(2):
        monitor.leave_out("a.jsonl", 6, 1, items)
        monitor.warn("a.jsonl", ["one.wav: odd"])
    assert console.said == ["a.jsonl: left out x: broken", "a.jsonl: warning: one.wav: odd"]
    monitor.leave_out("b.jsonl", 6, 1, items)
    monitor.leave_out("a.jsonl", 6, 2, [*items, Quarantined(sample_id="y", reason="gone")])
    assert console.said[2:] == ["b.jsonl: left out x: broken", "a.jsonl: left out y: gone"]


def test_of_many_samples_the_first_are_named_and_the_number_said_whenever_it_has_doubled(tmp_path):
    console = Console()
    monitor = ConsoleMonitor(console, tmp_path / "quarantine.jsonl")
    for num in range(1, 18):
        monitor.leave_out("a.jsonl", 99, num, [Quarantined(sample_id=f"s{num}", reason="gone")])
    assert console.said[:3] == [f"a.jsonl: left out s{num}: gone" for num in (1, 2, 3)]
    named = tmp_path / "quarantine.jsonl"
    assert console.said[3:] == [
        f"a.jsonl: {num} of 99 samples left out so far, all named in {named}" for num in (4, 8, 16)
    ]


def test_of_many_warnings_the_first_are_said(tmp_path):
    console = Console()
    ConsoleMonitor(console, tmp_path / "quarantine.jsonl").warn("a.jsonl", [f"{index}: odd" for index in range(13)])
    assert len(console.said) == 11
    assert console.said[-1] == "a.jsonl: 3 more such warnings; mmrl data validate shows all"
    ConsoleMonitor(console, None).warn("a.jsonl", ["another rank"])
    assert len(console.said) == 11
