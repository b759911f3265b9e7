"""Where a server's key is from, and what is no key; no message ever says it."""

import os
import stat

import pytest

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.rollout.vllm import keys
from lightning_mmrl.rollout.vllm.keys import VARIABLE, Key, read_key, serving_key, trainer_key, write_key

KEY = "mmrl-secret-of-37-characters-in-a-file"
HERE, ELSEWHERE = "http://127.0.0.1:8000", "http://192.0.2.7:8000"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home without a key, and no key in the environment."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv(VARIABLE, raising=False)
    return tmp_path / "home"


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "key"
    path.write_text(f"{KEY}\n")
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_private_file_is_read(key_file, mode, end):
    key_file.write_bytes(f"{KEY}{end}".encode())
    key_file.chmod(mode)
    assert read_key(key_file).value == KEY


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o604, 0o602, 0o610, 0o666, 0o4777])
def test_a_file_that_others_may_touch_is_refused(key_file, mode):
    key_file.chmod(mode)
    with pytest.raises(ConfigError, match=f"{key_file} has mode {mode:03o}, so other users may know it; .*--new-key"):
        read_key(key_file)


NO_KEY = {
    "empty": "",
    "a line break alone": "\n",
    "short": "x" * 15,
    "long": "x" * 1025,
    "endless": "x" * 100_000,
    "two lines": f"{KEY}\n{KEY}\n",
    "an empty second line": f"{KEY}\n\n",
    "a carriage return": f"{KEY}\r{KEY}",
    "a space": f"{KEY} x",
    "a tab": f"{KEY}\t",
    "a null": f"{KEY}\x00",
    "not ASCII": f"{KEY}\u00e9",
    "a byte order mark": f"\ufeff{KEY}",
    "a header of its own": f"{KEY}\r\nX-Forwarded-For: 127.0.0.1",
}


@pytest.mark.parametrize("text", NO_KEY.values(), ids=NO_KEY)
def test_what_is_no_key_is_refused_in_a_sentence_that_does_not_say_it(key_file, monkeypatch, text):
    key_file.write_bytes(text.encode())
    with pytest.raises(
        ConfigError, match=f"^the server key {key_file} .*; it must be one line of 16 to 1024"
    ) as refused:
        read_key(key_file)
    assert KEY not in str(refused.value)
    if "\x00" not in text and text != "\n":
        monkeypatch.setenv(VARIABLE, text)
        with pytest.raises(ConfigError, match=f"^the server key {VARIABLE} ") as refused:
            trainer_key(HERE, None)
        assert KEY not in str(refused.value)


OTHER_SECRETS = {
    "a token of a vault": "hvs.CAESIJ2x8Q0b1vXnM4kq7yTz",
    "a token of the hub": "hf_abcdefghijklmnopqrstuvwxyz",
    "a token of GitHub": "ghp_0123456789abcdefghijklmnopqrstuvwxyz",
    "a password": "correct-horse-battery-staple",
    "a key within": "token-mmrl-0123456789abcdef",
    "capitals": "MMRL-0123456789abcdef",
}


@pytest.mark.parametrize("secret", OTHER_SECRETS.values(), ids=OTHER_SECRETS)
def test_another_secret_is_shown_to_no_server(key_file, monkeypatch, home, secret):
    key_file.write_text(f"{secret}\n")
    own = home / ".mmrl" / "server.key"
    write_key(own)
    own.write_text(secret)
    for find, source in (
        (lambda: trainer_key(ELSEWHERE, str(key_file)), key_file),
        (lambda: serving_key("0.0.0.0", str(key_file)), key_file),
        (lambda: trainer_key(HERE, None), own),
        (keys.environment_key, VARIABLE),
        (lambda: trainer_key(ELSEWHERE, None), VARIABLE),
    ):
        if source == VARIABLE:
            monkeypatch.setenv(VARIABLE, secret)
        with pytest.raises(
            ConfigError, match=f"^{source} is no key of mmrl serve; write one with mmrl serve --new-key FILE$"
        ):
            find()


def test_a_variable_of_other_bytes_than_text_is_no_key(monkeypatch):
    monkeypatch.setitem(os.environ, VARIABLE, os.fsdecode(KEY.encode() + b"\xff"))
    with pytest.raises(ConfigError, match="beyond ASCII"):
        trainer_key(HERE, None)


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path, what in (("pipe", "no regular file"), ("", "no regular file"), ("none", "cannot be read: No such file")):
        with pytest.raises(ConfigError, match=what):
            read_key(tmp_path / path)
    with pytest.raises(ConfigError, match="no regular file"):
        read_key(keys.Path("/dev/zero"))


def test_a_file_of_another_user_is_refused(key_file, monkeypatch):
    monkeypatch.setattr(keys.os, "geteuid", lambda: key_file.stat().st_uid + 1)
    facts = key_file.stat()
    monkeypatch.setattr(keys.os, "fstat", lambda descriptor: os.stat_result([*facts[:4], 4711, *facts[5:]]))
    with pytest.raises(ConfigError, match="belongs to user 4711, who knows it"):
        read_key(key_file)


def test_a_link_is_followed_and_its_goal_is_what_is_checked(key_file, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(key_file)
    assert read_key(link).value == KEY
    key_file.chmod(0o644)
    with pytest.raises(ConfigError, match="has mode 644"):
        read_key(link)


def test_the_environment_comes_before_the_file_and_the_file_before_the_users_own(key_file, monkeypatch, home):
    write_key(home / ".mmrl" / "server.key")
    assert trainer_key(HERE, None).source == serving_key("localhost", None).source == str(keys.own_file())
    assert trainer_key(HERE, str(key_file)) == serving_key("127.0.0.1", str(key_file))
    monkeypatch.setenv(VARIABLE, f"mmrl-{'e' * 11}")
    assert trainer_key(HERE, str(key_file)) == serving_key("::", None) == Key(value=f"mmrl-{'e' * 11}", source=VARIABLE)


def test_a_server_on_the_loopback_writes_a_key_that_a_trainer_here_finds(home):
    with pytest.raises(
        ConfigError, match=rf"^rollout.settings.server.url is {HERE}, and there is no key .* is missing"
    ):
        trainer_key(HERE, None)
    served = serving_key("127.0.0.1", None)
    assert served == trainer_key(HERE, None) == trainer_key("http://[::1]:1", None) == serving_key("::1", None)
    path = home / ".mmrl" / "server.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert served.value.startswith("mmrl-")
    assert len(served.value) >= 5 + 43  # 256 bits in base64


def test_the_users_own_key_goes_over_no_network(home):
    serving_key("127.0.0.1", None)
    with pytest.raises(
        ConfigError, match=rf"^rollout.settings.server.url is {ELSEWHERE}, and there is no key for it; set"
    ):
        trainer_key(ELSEWHERE, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "0", "192.0.2.7", "::ffff:192.0.2.7", "no.such.host.invalid"])
def test_a_server_that_others_reach_wants_a_key_of_its_own(home, host, key_file):
    serving_key("127.0.0.1", None)
    with pytest.raises(ConfigError, match=r"^mmrl serve would listen on .*, where other machines reach it, and no key"):
        serving_key(host, None)
    assert serving_key(host, str(key_file)).value == KEY


@pytest.mark.parametrize(
    ("addresses", "loopback"),
    [(["127.0.0.1", "::1"], True), (["127.0.0.1", "192.0.2.7"], False), (["fe80::1%eth0"], False), (["::1%lo"], True)],
)
def test_a_name_is_the_loopback_if_all_its_addresses_are(monkeypatch, addresses, loopback):
    found = [(None, None, None, "", (address, 0)) for address in addresses]
    monkeypatch.setattr(keys.socket, "getaddrinfo", lambda host, port: found)
    assert keys.is_loopback("name") is loopback


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch):
    def none():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(keys.Path, "home", none)
    for find in (lambda: trainer_key(HERE, None), lambda: serving_key("127.0.0.1", None)):
        with pytest.raises(ConfigError, match=f"^there is no home folder for a server key; set {VARIABLE} or "):
            find()


def test_a_new_key_is_random_private_and_replaces_none(tmp_path):
    old = os.umask(0)
    try:
        for name in ("one", "two"):
            write_key(tmp_path / "folder" / name)
    finally:
        os.umask(old)
    one, two = (tmp_path / "folder" / name for name in ("one", "two"))
    assert read_key(one).value != read_key(two).value
    assert stat.S_IMODE(one.stat().st_mode) == 0o600
    before = one.read_text()
    with pytest.raises(ConfigError, match=f"{one} is there already"):
        write_key(one)
    assert one.read_text() == before
    (tmp_path / "link").symlink_to(tmp_path / "goal")
    with pytest.raises(ConfigError, match="is there already"):
        write_key(tmp_path / "link")
    assert not (tmp_path / "goal").exists()


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"no server key can be written to .*: .*; name another place"):
        write_key(tmp_path / "file" / "key")

    def full(size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keys.secrets, "token_urlsafe", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        write_key(tmp_path / "key")
    assert not (tmp_path / "key").exists()


def test_a_key_is_not_shown_with_what_holds_it():
    assert KEY not in repr(Key(value=KEY, source="somewhere"))
