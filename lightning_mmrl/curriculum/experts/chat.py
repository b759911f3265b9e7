"""Turns a request into the body of a chat completion, with media as data URLs."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning_mmrl.data.media.opened import open_media
from lightning_mmrl.data.media_files import resolve_media
from lightning_mmrl.errors import DataError, MediaError
from lightning_mmrl.protocols.experts import ExpertRequest
from lightning_mmrl.settings.algorithm import SamplingSettings
from lightning_mmrl.settings.experts import EndpointSettings, ExpertSettings
from lightning_mmrl.types.records import MediaRef, Message

MEGABYTE = 10**6
_TAG = re.compile("(<(?:image|video|audio)>)")

_BEGINNINGS = (
    (b"\x89PNG", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"RIFF....WEBP", "image/webp"),
    (b"BM", "image/bmp"),
    (b"RIFF....WAVE", "audio/wav"),
    (b"fLaC", "audio/flac"),
    (b"OggS", "audio/ogg"),
    (b"ID3", "audio/mpeg"),
    (b"\xff\xfb", "audio/mpeg"),
    (b"....ftyp", "video/mp4"),
    (b"\x1aE\xdf\xa3", "video/x-matroska"),
    (b"RIFF....AVI ", "video/x-msvideo"),
)
"""Beginnings of files, a dot for any byte, and their types."""


class UnfitError(Exception):
    """A request that cannot be sent; the message is the reason, in one word."""


def asker(expert: ExpertSettings, sampling: SamplingSettings) -> str:
    """The beginning of a hash of model and sampling, with which an endpoint may refuse every question."""
    content = {"expert": asdict(expert), "sampling": asdict(sampling)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


class ChatBodies:
    """Makes the bodies of requests.

    Args:
        expert: The model, and further keys of the body.
        sampling: Temperature and top-p.
        endpoint: The limit on media.
        media_folder: Folder that paths of media are relative to.
    """

    def __init__(
        self, expert: ExpertSettings, sampling: SamplingSettings, endpoint: EndpointSettings, media_folder: Path
    ) -> None:
        self._expert = expert
        self._sampling = sampling
        self._root = media_folder
        self._max_bytes = endpoint.max_media_mb * MEGABYTE

    def hash(self, request: ExpertRequest) -> str:
        """The hash of all that decides the answer: model, sampling, turns, the content of the media, and the seed.

        Raises:
            UnfitError: A medium cannot be sent.
        """
        media = [[ref.kind, hashlib.sha256(content).hexdigest()] for ref, content in self._media(request)]
        turns = [[turn.role, turn.content] for turn in request.turns]
        content = {"parameters": self._parameters(request), "draw": request.draw, "turns": turns, "media": media}
        content |= {"thoughts": True} if self._expert.thoughts else {}  # they are part of the text that is kept
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def body(self, request: ExpertRequest) -> dict[str, Any]:
        """The body of a request.

        Raises:
            UnfitError: A medium cannot be sent.
        """
        media = self._media(request)
        messages = [{"role": turn.role, "content": _content(turn, media)} for turn in request.turns]
        return {**self._parameters(request), "messages": messages}

    def _parameters(self, request: ExpertRequest) -> dict[str, Any]:
        found = {
            "model": self._expert.model,
            "temperature": self._sampling.temperature,
            "top_p": self._sampling.top_p,
            "max_tokens": request.most_tokens,
            "seed": request.draw_seed,
            **self._expert.extra,
        }
        return {key: value for key, value in found.items() if value is not None}

    def _media(self, request: ExpertRequest) -> Iterator[tuple[MediaRef, bytes]]:
        left = self._max_bytes
        for ref in request.media:
            if ref.start_s is not None or ref.end_s is not None:
                raise UnfitError("media_span")  # the whole file would be another question
            try:
                path = resolve_media(ref.path, self._root, request.key)
                with open_media(path, self._root) as file:
                    content = file.head(left + 1)
            except (DataError, MediaError) as error:
                raise UnfitError("unreadable_media") from error
            left -= len(content)
            if left < 0:
                raise UnfitError("media_too_large")
            yield ref, content


def _content(turn: Message, media: Iterator[tuple[MediaRef, bytes]]) -> str | list[dict[str, Any]]:
    """The text of a turn; with media, its parts in order."""
    pieces = [piece for piece in _TAG.split(turn.content) if piece]
    if not any(_TAG.fullmatch(piece) for piece in pieces):
        return turn.content
    return [_part(*next(media)) if _TAG.fullmatch(piece) else {"type": "text", "text": piece} for piece in pieces]


def _part(ref: MediaRef, content: bytes) -> dict[str, Any]:
    data, kind = base64.b64encode(content).decode(), media_type(content, ref.kind)
    if ref.kind == "audio":  # OpenAI's form, which vLLM reads too
        return {"type": "input_audio", "input_audio": {"data": data, "format": kind.partition("/")[2]}}
    name = f"{ref.kind}_url"
    return {"type": name, name: {"url": f"data:{kind};base64,{data}"}}


def media_type(content: bytes, kind: str) -> str:
    """The type of a file by its first bytes; that of an unknown one names its kind alone.

    >>> media_type(b"RIFF1234WAVEfmt ", "audio"), media_type(b"?", "video")
    ('audio/wav', 'video/mp4')
    """
    for beginning, name in _BEGINNINGS:
        if re.match(re.escape(beginning).replace(rb"\.", b"."), content, re.DOTALL):
            return name
    return {"image": "image/png", "video": "video/mp4", "audio": "audio/wav"}[kind]
