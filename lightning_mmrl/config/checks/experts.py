"""Refuses keys of experts that contradict each other, for every kind of stage that asks one."""

from urllib.parse import urlsplit

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.settings.experts import EndpointSettings, ExpertSettings
from lightning_mmrl.types.redaction import redact

KEYS = "MMRL_EXPERT_KEY"
"""Beginning of the names of variables with a key. A configuration names both the variable and the endpoint; the
beginning keeps it from sending another secret there."""


def check_expert(path: str, expert: ExpertSettings | None, endpoint: EndpointSettings | None) -> None:
    """Refuses an expert without an endpoint or the reverse, a key in an address, and another variable than for keys.

    Args:
        path: The key of the stage.
        expert: The model.
        endpoint: Where it is asked.

    Raises:
        ConfigError: Naming the key, its value and what it must be.
    """
    if (expert is None) != (endpoint is None):
        given, missing = ("endpoint", "expert") if expert is None else ("expert", "endpoint")
        raise ConfigError(f"{path} has {given} and no {missing}; set {path}.{missing}, or {path}.{given} to null")
    if endpoint is None:
        return
    parts = urlsplit(endpoint.base_url)
    bare = not (parts.username or parts.password or parts.query or parts.fragment)
    if parts.scheme not in ("http", "https") or not parts.hostname or not bare:
        raise ConfigError(
            f"{path}.endpoint.base_url is {redact(endpoint.base_url)}; it must be http(s)://HOST[:PORT]/PATH alone, "
            "and a key belongs into the variable that key_variable names"
        )
    if endpoint.key_variable is not None and not endpoint.key_variable.startswith(KEYS):
        raise ConfigError(
            f"{path}.endpoint.key_variable is {endpoint.key_variable}; it must be {KEYS}, or begin so, since a "
            "configuration may send no other variable away"
        )
    wait, longest = endpoint.first_wait_s, endpoint.longest_wait_s
    if wait > longest:
        raise ConfigError(
            f"{path}.endpoint.first_wait_s is {wait:g}; it must be at most longest_wait_s, which is {longest:g}"
        )
