"""Keeps credentials out of messages, logs and files.

`redact_addresses` removes credentials in the forms that they have in an address or a header, and changes nothing else:
it is for text that is stored and read again. `redact` is for messages: it also cuts every occurrence of the passwords
and tokens that this process was given, in any encoding in which a library may repeat them.
"""

import base64
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote

HIDDEN = "***"

_USER = re.compile(r"://[^/\s]*@")
# A password with a raw slash; `host:5000/a@b` is a port and a path.
_USER_WITH_SLASH = re.compile(r"://[^/\s:@\[]+:(?!\d*/)[^\s@]*@")
_CUT_OFF = re.compile(r"://[^/\s:@\[]+:(?!\d+(?:/|\.\.\.))[^\s@]*\.\.\.")
_WITHOUT_SCHEME = re.compile(r"(?<![\w./@%-])[\w.%+-]+:[^\s/@'\"]+@(?=[\w\[])")
_QUERY = re.compile(
    r"([?&;#][\w.\-]*(?:token|passw|pwd|secret|api_?key|access_?key|auth|signature|credential)[\w.\-]*=)[^&;#\s'\"]+",
    re.IGNORECASE,
)
_HEADER = re.compile(r"(authorization['\"]?\s*[:=]\s*['\"]?(?:(?:basic|bearer)\s+)?)[^\s'\",}]+", re.IGNORECASE)

_SECRET_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MMRL_SERVER_KEY")
_ADDRESS_VARIABLES = (
    "MLFLOW_TRACKING_URI",
    "MMRL_TRACKING_URI",
    "MLFLOW_REGISTRY_URI",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
)
_SHORTEST = 4
"""Shorter secrets are cut in addresses only, because a secret like `a` is part of many words."""

_remembered: set[str] = set()


def redact(text: object) -> str:
    """Returns a message without the credentials in its addresses, and without any secret that this process was given.

    >>> redact("https://me:secret@host:5000/ml does not answer")
    'https://host:5000/ml does not answer'
    >>> redact("tracking.uri is me:secret@host:5000")
    'tracking.uri is host:5000'
    """
    shown = _WITHOUT_SCHEME.sub("", redact_addresses(str(text)))
    for secret in sorted(_known_secrets(), key=len, reverse=True):
        shown = shown.replace(secret, HIDDEN)
    return shown


def redact_addresses(text: str) -> str:
    """Returns a text whose addresses and headers carry no credentials; all else stays as it is.

    >>> redact_addresses("http://me:a/b@host/?access_token=f00 sqlite:////a/b@c.db")
    'http://host/?access_token=*** sqlite:////a/b@c.db'
    """
    text = _USER.sub("://", text)
    text = _USER_WITH_SLASH.sub("://", text)
    text = _CUT_OFF.sub(f"://{HIDDEN}", text)
    text = _QUERY.sub(rf"\1{HIDDEN}", text)
    return _HEADER.sub(rf"\1{HIDDEN}", text)


def redacted_tree(tree: Any) -> Any:
    """Returns a copy of a tree of mappings and lists, without the credentials in addresses of its texts.

    >>> redacted_tree({"uri": "http://me:secret@host", "seeds": [1, 2]})
    {'uri': 'http://host', 'seeds': [1, 2]}
    """
    if isinstance(tree, str):
        return redact_addresses(tree)
    if isinstance(tree, Mapping):
        return {key: redacted_tree(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [redacted_tree(value) for value in tree]
    return tree


def remember(*texts: str) -> None:
    """Makes `redact` cut the credentials of the addresses in these texts wherever they are repeated from now on."""
    for text in texts:
        _remembered.update(_credentials(text))


def remember_secret(text: str) -> None:
    """Makes `redact` cut a password or token wherever it is repeated from now on."""
    _remembered.add(text)


def _known_secrets() -> set[str]:
    names = {*_ADDRESS_VARIABLES, *(name.lower() for name in _ADDRESS_VARIABLES)}
    found = {*_remembered, *(os.environ.get(name, "") for name in _SECRET_VARIABLES)}
    for name in names:
        found.update(_credentials(os.environ.get(name, "")))
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("USERNAME", "PASSWORD"))
    found.add(base64.b64encode(f"{user}:{password}".encode()).decode() if password else "")
    return {secret for secret in found if len(secret) >= _SHORTEST}


def _credentials(text: str) -> Iterator[str]:
    """Passwords and tokens of an address, as written and in the encodings that libraries give them."""
    _, scheme, rest = text.partition("://")
    if not scheme or rest.startswith("/"):
        return
    user, at, _ = rest.rpartition("@")
    name, colon, password = user.partition(":")
    if at:
        secret = password if colon else name  # a user name alone is a token
        yield from (secret, unquote(secret), quote(unquote(secret), safe=""))
        yield base64.b64encode(unquote(user).encode()).decode()
    for found in _QUERY.finditer(text):
        value = found[0].removeprefix(found[1])
        yield from (value, unquote(value))
