"""The key that `mmrl serve` asks for with every request: from the environment, a given file, or the user's own file."""

import os
import secrets
import socket
import stat
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from lightning_mmrl.errors import ConfigError

VARIABLE = "MMRL_SERVER_KEY"
SETTING = "rollout.settings.server.key_file"
MIN_LENGTH, MAX_LENGTH = 16, 1024
"""Smallest and largest number of characters of a key."""
START = "mmrl-"
"""Prefix of each key. A configuration names both file and server; the prefix keeps it from sending another secret."""
REMEDY = "mmrl serve --new-key FILE writes a good one"


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key and its source; only the source is ever printed."""

    value: str = field(repr=False)
    source: str

    @property
    def authorization(self) -> str:
        """The value of the header that shows the key."""
        return f"Bearer {self.value}"


def own_file() -> Path:
    """The default key file for `mmrl serve` and a trainer of the same user on the same machine.

    Raises:
        ConfigError: The user has no home folder.
    """
    try:
        return Path.home() / ".mmrl" / "server.key"
    except RuntimeError as error:  # a container may run as a user without a name
        raise ConfigError(f"there is no home folder for a server key; set {VARIABLE} or {SETTING}") from error


def trainer_key(url: str, key_file: str | None) -> Key:
    """The key to show to a server; a key from the user's own file is shown on this machine only, never over a network.

    Raises:
        ConfigError: There is no key, or it is malformed.
    """
    key = _given_key(key_file)
    if key is not None:
        return key
    if not is_loopback(urlsplit(url).hostname or ""):
        raise ConfigError(
            f"rollout.settings.server.url is {url}, and there is no key for it; set {VARIABLE} or {SETTING} to what "
            "mmrl serve was given there"
        )
    if not os.path.exists(own_file()):
        raise ConfigError(
            f"rollout.settings.server.url is {url}, and there is no key for it: {own_file()} is missing; start the "
            f"server with mmrl serve, which writes it, or set {VARIABLE} or {SETTING}"
        )
    return read_key(own_file())


def serving_key(host: str, key_file: str | None) -> Key:
    """The key that a server asks for; on the loopback, it comes from the user's own file, which is created if missing.

    Raises:
        ConfigError: Other machines can reach the address and no key is given, or the key is malformed.
    """
    key = _given_key(key_file)
    if key is not None:
        return key
    if not is_loopback(host):
        raise ConfigError(
            f"mmrl serve would listen on {host!r}, where other machines reach it, and no key is given; write one with "
            f"mmrl serve --new-key FILE, and set {SETTING}=FILE or {VARIABLE} for server and trainer"
        )
    if not os.path.exists(own_file()):
        write_key(own_file())
    return read_key(own_file())


def _given_key(key_file: str | None) -> Key | None:
    if VARIABLE in os.environ:
        return environment_key()
    return None if key_file is None else read_key(Path(os.path.expanduser(key_file)))


def environment_key() -> Key:
    """The key from the environment.

    Raises:
        ConfigError: The key is missing or malformed.
    """
    return _checked(os.environ.get(VARIABLE, ""), VARIABLE)


def read_key(path: Path) -> Key:
    """The key from a file that no other user can read.

    Raises:
        ConfigError: The file cannot be read, others can read it, or it holds no key.
    """
    try:
        # Opened once, so that all checks are of the same file; opening a pipe without a writer must not block.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"the server key {path} cannot be read: {reason}; {REMEDY}") from error
    try:
        facts = os.fstat(descriptor)
        mode = stat.S_IMODE(facts.st_mode)
        if not stat.S_ISREG(facts.st_mode):
            raise ConfigError(f"the server key {path} is no regular file; {REMEDY}")
        if facts.st_uid not in (os.geteuid(), 0):
            raise ConfigError(f"the server key {path} belongs to user {facts.st_uid}, who knows it; {REMEDY}")
        if mode & 0o077:
            raise ConfigError(f"the server key {path} has mode {mode:03o}, so other users may know it; {REMEDY}")
        content = os.read(descriptor, MAX_LENGTH + 3)
    finally:
        os.close(descriptor)
    # Editors add one line break at the end.
    text = content.decode("latin-1").removesuffix("\n").removesuffix("\r")
    return _checked(text, str(path))


def _checked(text: str, source: str) -> Key:
    problem = None
    if not text:
        problem = "is empty"
    elif not all("!" <= letter <= "~" for letter in text):
        problem = "has a space, a line break or a character beyond ASCII within it"
    elif not MIN_LENGTH <= len(text) <= MAX_LENGTH:
        problem = f"has {len(text)} characters" if len(text) < MIN_LENGTH else f"has more than {MAX_LENGTH} characters"
    if problem:
        raise ConfigError(
            f"the server key {source} {problem}; it must be one line of {MIN_LENGTH} to {MAX_LENGTH} printable ASCII "
            f"characters: {REMEDY}"
        )
    if not text.startswith(START):
        raise ConfigError(f"{source} is no key of mmrl serve; write one with mmrl serve --new-key FILE")
    return Key(value=text, source=source)


def write_key(path: Path) -> None:
    """Writes a key of 256 random bits to a new file of mode 600.

    Raises:
        ConfigError: The file already exists, or it cannot be written.
    """
    if os.path.lexists(path):
        raise ConfigError(f"{path} is there already, and a key may be in use; remove it, or name another")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(f"{START}{secrets.token_urlsafe(32)}\n")
        except OSError:
            path.unlink()
            raise
    except OSError as error:
        raise ConfigError(f"no server key can be written to {path}: {error.strerror}; name another place") from error


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address; all addresses of a name must be on the loopback.

    >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "0.0.0.0", "::", "")]
    [True, True, False, False, False]
    """
    try:
        found = socket.getaddrinfo(host, None) if host else []
    except (OSError, UnicodeError):
        return False
    addresses = {str(info[4][0]).partition("%")[0] for info in found}
    return bool(addresses) and all(ip_address(address).is_loopback for address in addresses)
