"""Packs the groups of the browser into the page: each text once, compressed, and within limits of size."""

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_mmrl.report.rollouts import spread

MOST_PACKED = 8_000_000
"""Characters that the groups of all runs take in the page."""
MOST_UNPACKED = 48_000_000
"""Characters of the same groups in the memory of a browser."""
_MARGIN = 0.95


def packed(groups: Sequence[Mapping[str, Any]]) -> tuple[str, int]:
    """Returns groups as base64 of compressed JSON, and how many there are: all, or evenly fewer within the limits.

    The JSON has `texts`, each one once, and `groups`, in which numbers of texts stand in place of texts.
    """
    kept = list(groups)
    while True:
        content = _content(kept)
        text = base64.b64encode(gzip.compress(content, compresslevel=6, mtime=0)).decode()
        fraction = min(MOST_PACKED / len(text), MOST_UNPACKED / len(content))
        if fraction >= 1 or len(kept) <= 1:
            return text, len(kept)
        kept = [kept[place] for place in spread(len(kept), max(1, int(len(kept) * _MARGIN * fraction)))]


def _content(groups: Sequence[Mapping[str, Any]]) -> bytes:
    numbers: dict[str, int] = {}

    def number(text: str | None) -> int | None:
        return None if text is None else numbers.setdefault(text, len(numbers))

    numbered = [
        {
            **group,
            "id": number(group["id"]),
            "label": number(group["label"]),
            "turns": [[role, number(text)] for role, text in group["turns"]],
            "responses": [{**each, "text": number(each["text"])} for each in group["responses"]],
        }
        for group in groups
    ]
    content = {"texts": list(numbers), "groups": numbered}
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")
