"""A whole HTML document under a strict content policy, which loads nothing."""

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files

from lightning_mmrl.report.markup import Html, joined, tag

PLAIN_STYLES = ("colors.css", "page.css")
"""The style of every page."""


def document(
    title: str,
    body: Html,
    scripts: Sequence[str] = (),
    styles: Sequence[str] = PLAIN_STYLES,
    *,
    with_media: bool = False,
) -> str:
    """The document; its policy names the scripts and the style by their hashes, and allows nothing else.

    With media it also allows those beside the page; `file:` is for a page opened from a disk, which is no `'self'`.

    Args:
        title: Of the window.
        body: Everything that is shown.
        scripts: Names of assets.
        styles: Names of assets.
        with_media: Whether the page shows media that lie beside it.
    """
    codes, style = [asset(name) for name in scripts], "\n".join(asset(name) for name in styles)
    policy = "; ".join(
        [
            "default-src 'none'",
            *([f"script-src {' '.join(map(_hashed, codes))}"] if codes else []),
            f"style-src {_hashed(style)}",
            *([f"{kind}-src 'self' file:" for kind in ("img", "media")] if with_media else []),
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    head = joined(
        [
            Html('<meta charset="utf-8">'),
            Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
            Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            Html('<meta name="color-scheme" content="light dark">'),
            Html('<meta name="referrer" content="no-referrer">'),
            tag("title", title),
            Html(f"<style>{style}</style>"),
        ]
    )
    code = joined(Html(f"<script>{script}</script>") for script in codes)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{body}{code}</body></html>\n'


def asset(name: str) -> str:
    """The text of a file that the pages embed."""
    return files("lightning_mmrl.report").joinpath("assets", name).read_text(encoding="utf-8")


def _hashed(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
