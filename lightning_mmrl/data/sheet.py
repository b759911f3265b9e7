"""A contact sheet of samples: one HTML file with frames, waveforms, turns and solutions, which loads nothing else."""

import base64
import html
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lightning_mmrl.data.media.examine import Guard
from lightning_mmrl.data.media.guard import DecodeTask, read, within_limits
from lightning_mmrl.data.media_files import resolve_media
from lightning_mmrl.data.schema import Entry, Problem
from lightning_mmrl.types.media import DecodedAudio, DecodedImage, DecodedVideo
from lightning_mmrl.types.records import MediaRef

_SIDE = 200
"""Longest side of a thumbnail, in pixels."""
_COLUMNS = 400
"""Columns of a waveform: each shows the smallest and the largest value of its share of the sound."""
_STYLE = (
    "body{font:14px/1.4 system-ui,sans-serif;margin:1.5em;color:#222}"
    "article{border-top:1px solid #ccc;padding:.8em 0}h2{font-size:1em;margin:0 0 .4em}"
    "figure{display:inline-block;margin:0 .8em .4em 0;vertical-align:top}figcaption{color:#666;font-size:.85em}"
    "img{margin-right:2px}svg{background:#f4f4f4}.turn{white-space:pre-wrap;max-width:60em}"
    ".role{color:#666}.bad{color:#a00}.gold{font-weight:600}"
)
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_HEAD = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumbnail:
    """One medium as the sheet shows it: JPEG pictures, or the outline of a sound, and a line about it."""

    pictures: tuple[bytes, ...] = ()
    outline: tuple[tuple[float, float], ...] = ()
    caption: str = ""


def thumbnail(task: DecodeTask) -> Thumbnail:
    """Decodes a medium as training does and reduces it.

    Raises:
        MediaError: The file exceeds a limit or cannot be decoded.
    """
    return within_limits(task, lambda file: _reduced(read(file, task)))


def contact_sheet(
    items: Sequence[Entry | Problem],
    media_root: Path,
    guard: Guard,
    *,
    title: str,
    notes: Sequence[str] = (),
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> str:
    """The HTML of a contact sheet; a medium that cannot be decoded is shown by its error.

    Args:
        items: The samples and bad rows, in order.
        media_root: Folder that paths of media are relative to.
        guard: Limits of the decoding.
        title: Heading of the sheet.
        notes: Sentences below the heading.
        on_progress: Gets the number of media that are decoded, and of all.
    """
    refs = [(resolve_media(ref.path, media_root, item.place), ref) for item in items for ref in _media(item)]
    outcomes = iter(guard.run(thumbnail, refs, media_root, on_progress))
    body = [f"<p>{_text(note)}</p>" for note in notes]
    for item in items:
        if isinstance(item, Problem):
            body.append(f'<article><h2>{_text(item.place)}</h2><p class="bad">{_text(item.reason)}</p></article>')
            continue
        figures = []
        for ref in item.sample.media:
            outcome = next(outcomes)
            what = f'<span class="bad">{_text(outcome.error)}</span>' if outcome.error else _figure(outcome.value)
            figures.append(f"<figure>{what}<figcaption>{_text(_name(ref))}</figcaption></figure>")
        body.append(_article(item, "".join(figures)))
    head = f"{_HEAD}<title>{_text(title)}</title><style>{_STYLE}</style></head>"
    return f"{head}<body><h1>{_text(title)}</h1>{''.join(body)}</body></html>\n"


def _media(item: Entry | Problem) -> Sequence[MediaRef]:
    return item.sample.media if isinstance(item, Entry) else ()


def _reduced(decoded: DecodedImage | DecodedVideo | DecodedAudio) -> Thumbnail:
    if isinstance(decoded, DecodedAudio):
        shares = np.array_split(decoded.waveform, min(_COLUMNS, max(1, len(decoded.waveform))))
        outline = tuple((float(share.min()), float(share.max())) for share in shares if len(share))
        return Thumbnail(outline=outline, caption=f"{decoded.duration_s:.2f} s")
    frames = decoded.pixels[None] if isinstance(decoded, DecodedImage) else decoded.frames
    height, width = decoded.resized_from or frames.shape[1:3]
    pictures = []
    for frame in frames:
        picture = Image.fromarray(frame)
        picture.thumbnail((_SIDE, _SIDE))
        content = io.BytesIO()
        picture.save(content, "JPEG", quality=80)
        pictures.append(content.getvalue())
    times = "" if isinstance(decoded, DecodedImage) else f", {decoded.duration_s:.2f} s"
    return Thumbnail(pictures=tuple(pictures), caption=f"{width} x {height}{times}")


def _figure(shown: Thumbnail) -> str:
    pictures = "".join(
        f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(picture).decode()}">' for picture in shown.pictures
    )
    if shown.outline:
        lines = "".join(
            f"M{column} {40 - 38 * high:.1f}V{41 - 38 * low:.1f}" for column, (low, high) in enumerate(shown.outline)
        )
        size = f'viewBox="0 0 {len(shown.outline)} 80" width="{_COLUMNS}" height="80"'
        pictures += f'<svg {size} preserveAspectRatio="none"><path stroke="#357" d="{lines}"/></svg>'
    return f"{pictures}<br>{_text(shown.caption)}"


def _article(entry: Entry, figures: str) -> str:
    sample = entry.sample
    turns = "".join(
        f'<p class="turn"><span class="role">{_text(turn.role)}:</span> {_text(turn.content)}</p>'
        for turn in sample.messages
    )
    gold = "no solution" if sample.solution is None else f"solution: {sample.solution}"
    more = [f"{name}: {value}" for name, value in (("speaker", sample.speaker), ("split", sample.split)) if value]
    facts = ", ".join([gold, *more])
    head = f"<h2>{_text(entry.place)} &middot; {_text(sample.id)}</h2>"
    return f'<article>{head}{figures}{turns}<p class="gold">{_text(facts)}</p></article>'


def _name(ref: MediaRef) -> str:
    span = "" if ref.start_s is None and ref.end_s is None else f" ({ref.start_s or 0:g} to {ref.end_s or 'the end'} s)"
    return f"{ref.kind}: {ref.path}{span}"


def _text(text: str) -> str:
    """A text as HTML; a lone surrogate, which a file cannot hold, is written out."""
    return html.escape(text.encode("utf-8", "backslashreplace").decode())
