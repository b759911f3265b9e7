"""Refuses keys of experts that contradict each other, for every kind of stage that asks one."""

from dataclasses import replace
from urllib.parse import urlsplit

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.settings.algorithm import SamplingSettings
from lightning_mmrl.settings.experts import EndpointSettings, ExpertSettings
from lightning_mmrl.settings.route import SAMPLING, RouteSettings
from lightning_mmrl.settings.rules import require
from lightning_mmrl.settings.selection import SelectionSettings
from lightning_mmrl.types.redaction import redact

KEYS = "MMRL_EXPERT_KEY"
"""Beginning of the names of variables with a key. A configuration names both the variable and the endpoint; the
beginning keeps it from sending another secret there."""

OWN_KEYS = ("messages", "model", "stream", "n")
"""Keys of a body that `expert.extra` may not hold: the question and the model stand elsewhere, and one whole answer is
read."""

OF_TABLES = {"unsolved_at_most": 0.0, "solved_at_least": 1.0, "replay": False, "pairs_per_prompt": 1}
"""Keys that sort the rows of a table, and the values that say nothing."""


def check_expert(path: str, expert: ExpertSettings | None, endpoint: EndpointSettings | None) -> None:
    """Refuses half an expert, a key in an address, another variable than for keys, and keys that would be ignored.

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
    if expert is None or endpoint is None:
        return
    for key in OWN_KEYS:
        rule = "left out: the stage's own keys say the question and the model, and one whole answer is read"
        require(key not in expert.extra, f"{path}.expert.extra.{key}", expert.extra.get(key), rule)
    check_address(path, endpoint)
    wait, longest = endpoint.first_wait_s, endpoint.longest_wait_s
    if wait > longest:
        raise ConfigError(
            f"{path}.endpoint.first_wait_s is {wait:g}; it must be at most longest_wait_s, which is {longest:g}"
        )
    unset = EndpointSettings()
    for name, value in (("first_wait_s", wait), ("longest_wait_s", longest)):
        rule = f"{getattr(unset, name):g} with {path}.endpoint.retries=0: nothing is waited for"
        require(endpoint.retries or value == getattr(unset, name), f"{path}.endpoint.{name}", f"{value:g}", rule)


def check_address(path: str, endpoint: EndpointSettings) -> None:
    """Refuses an address that is none or holds a key, and another variable than for keys.

    Raises:
        ConfigError: Naming the key, its value and what it must be.
    """
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


def check_source(path: str, stage: RouteSettings, *, has_traces: bool) -> None:
    """Refuses a stage with neither table nor prompts or with both, and keys of a table in a stage that has none.

    Raises:
        ConfigError: Naming the key, its value and what it must be.
    """
    if stage.table is None and stage.prompts is None:
        raise ConfigError(
            f"{path}.table: is missing; name the stage that sampled, such as {path}.table.stage=draw, or the stage "
            f"that makes prompts in {path}.prompts"
        )
    if stage.prompts is None:
        return
    if stage.table is not None:
        raise ConfigError(
            f"{path} has a table and prompts; sort the one or ask for the others, and set the other to null"
        )
    if not (has_traces or stage.expert or stage.debugging):
        raise ConfigError(
            f"{path} has prompts and nobody to ask; give {path}.expert and endpoint, or traces as its data"
        )
    for key, unset in OF_TABLES.items():
        value = getattr(stage, key)
        require(value == unset, f"{path}.{key}", value, f"{unset} with {path}.prompts: they have no answers to sort")
    usual = replace(stage.keep, truncated=False) == SelectionSettings()
    require(usual, f"{path}.keep", "set", f"as in stage/route, but for truncated, with {path}.prompts")


def check_unasked(path: str, stage: RouteSettings, *, has_traces: bool) -> None:
    """Refuses keys that concern experts in a stage that asks none, or only traces.

    Raises:
        ConfigError: Such a key is not as if it were not there.
    """
    asks = has_traces or stage.expert is not None
    require(asks or stage.tries == 1, f"{path}.tries", stage.tries, f"1 without {path}.expert and without traces")
    rule = f"null without {path}.expert and without traces: nothing is asked"
    require(asks or stage.prompt is None, f"{path}.prompt", "set", rule)
    usual = stage.sampling in (None, SamplingSettings(), SAMPLING)
    require(stage.expert or usual, f"{path}.sampling", "set", f"as in stage/route without {path}.expert")
