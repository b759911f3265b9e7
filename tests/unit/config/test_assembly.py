"""What the parts of a run take from its configuration, and write down."""

import json

from lightning_mmrl.config.assembly import ConsoleMonitor, training_sources
from lightning_mmrl.config.compose import compose
from lightning_mmrl.data.prepared import Quarantined


class Console:
    """Says nothing."""

    def say(self, text):
        pass


def test_the_limit_of_a_stage_is_that_of_its_sources_unless_they_have_their_own():
    key = "stages.reason.data"
    both = f"+{key}.sources={{one: {{manifest: a.jsonl}}, two: {{manifest: b.jsonl, limit: 3}}}}"
    for limit in (f"{key}.limit=7", "data.limit=7"):
        config = compose([f"{key}.manifest=null", both, limit])
        assert [each.limit for each in training_sources(config, config.stages["reason"].data)] == [7, 3]


def test_a_sample_that_is_left_out_again_is_written_down_once(tmp_path):
    path = tmp_path / "run" / "quarantine.jsonl"

    def left_out(manifest, *names, reason="broken"):
        items = [Quarantined(sample_id=name, reason=reason) for name in names]
        ConsoleMonitor(Console(), path).quarantine(manifest, 5, items)

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
