"""No form in which an address, a header or a library repeats a credential gets through; what is none stays."""

import base64

import pytest

from lightning_mmrl.types import redaction
from lightning_mmrl.types.redaction import redact, redact_addresses, redacted_tree, remember

SECRET = "hunter22"
BASIC = base64.b64encode(f"me:{SECRET}".encode()).decode()


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(redaction, "_remembered", set())
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)


@pytest.mark.parametrize(
    "text",
    [
        f"http://me:{SECRET}@host:5000",
        f"http://me:{SECRET}/more@host:5000/x",
        f"https://{SECRET}@host does not answer",
        f"http://me:p%40{SECRET}@host",
        f"postgresql://me:{SECRET}@db/mlflow and mysql+pymysql://me:{SECRET}@db/mlflow",
        f"http://host/api?access_token={SECRET}&x=1",
        f"http://host/?x=1&X-Amz-Signature={SECRET}",
        f"s3://bucket/key?AWSSecretKey={SECRET}",
        f"HTTPConnectionPool(host='h', port=80): url: /get?api_key={SECRET} (Caused by ...)",
        f"ProxyError('Cannot connect to proxy http://me:{SECRET}@proxy:3128')",
        f"{{'Authorization': 'Basic {SECRET}'}}",
        f"authorization: Bearer {SECRET}",
        f"tracking.uri is 'http://me:{SECRET}and-much-more-th...'",
    ],
)
def test_credentials_in_addresses_and_headers_are_cut_without_being_known(text):
    assert SECRET not in redact(text)
    assert SECRET not in redact_addresses(text)


@pytest.mark.parametrize(
    "text",
    [
        "http://host:5000/users/me@home",
        "sqlite:////a/b@c.db",
        "sqlite:///runs/mlflow.db",
        "http://[::1]:5000/",
        "http(s)://<host>",
        "http://host:5000/?page=2&order=asc",
        "max_new_tokens=512, stages.reason.optimizer.lr: 0.1 -> 0.2",
        "mail me@home about s3://bucket/key",
    ],
)
def test_what_is_no_credential_stays(text):
    assert redact(text) == text


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MLFLOW_TRACKING_PASSWORD", SECRET),
        ("MLFLOW_TRACKING_TOKEN", SECRET),
        ("MMRL_SERVER_KEY", SECRET),
        ("MLFLOW_TRACKING_URI", f"http://me:{SECRET}@host"),
        ("MLFLOW_REGISTRY_URI", f"http://me:{SECRET}@host"),
        ("https_proxy", f"http://me:{SECRET}@proxy:3128"),
        ("HTTP_PROXY", f"http://me:{SECRET}@proxy:3128"),
    ],
)
def test_secrets_of_the_environment_are_cut_wherever_a_library_repeats_them(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    assert redact(f"login of me with {SECRET} failed") == "login of me with *** failed"


@pytest.mark.parametrize("repeated", ["p@ss/w0rd", "p%40ss%2Fw0rd", base64.b64encode(b"me:p@ss/w0rd").decode()])
def test_a_password_is_cut_in_every_encoding(repeated):
    remember("tracking.uri=http://me:p%40ss%2Fw0rd@host:5000")
    assert redact(f"header {repeated} refused") == "header *** refused"


def test_the_header_of_user_and_password_in_the_environment_is_cut(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    assert redact(BASIC) == "***"


def test_a_remembered_password_does_not_change_what_is_stored():
    """A password that is also the name of a folder."""
    remember("http://me:runs@host")
    assert redact_addresses("runs/quickstart") == "runs/quickstart"


def test_a_tree_keeps_its_form():
    tree = {"tracking": {"uri": f"http://me:{SECRET}@host", "loggers": ["csv"]}, "seed": 1, "none": None}
    assert redacted_tree(tree) == {"tracking": {"uri": "http://host", "loggers": ["csv"]}, "seed": 1, "none": None}
