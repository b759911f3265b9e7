"""Flags of `vllm serve` that `mmrl serve` passes on; none of them lets others in, runs code or breaks training."""

from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.suggestions import nearest

VALUED = (
    "--host",
    "--port",
    "--ssl-certfile",
    "--ssl-keyfile",
    "--tensor-parallel-size",
    "--pipeline-parallel-size",
    "--device-ids",
    "--gpu-memory-utilization",
    "--kv-cache-memory-bytes",
    "--num-gpu-blocks-override",
    "--cpu-offload-gb",
    "--block-size",
    "--max-model-len",
    "--max-num-seqs",
    "--max-num-batched-tokens",
    "--attention-backend",
    "--mm-encoder-attn-backend",
    "--mm-encoder-tp-mode",
    "--optimization-level",
    "--performance-mode",
    "--max-cudagraph-capture-size",
    "--distributed-timeout-seconds",
    "--shutdown-timeout",
)
SWITCHES = (
    "--enforce-eager",
    "--enable-prefix-caching",
    "--enable-chunked-prefill",
    "--enable-expert-parallel",
    "--async-scheduling",
    "--disable-custom-all-reduce",
    "--disable-cascade-attn",
    "--numa-bind",
)
"""Flags without a value; each also exists as `--no-...`."""

SHORT = {"-tp": "--tensor-parallel-size", "-pp": "--pipeline-parallel-size"}


def passed_flags(arguments: Sequence[str]) -> dict[str, str]:
    """The flags with their values; if a flag is given twice, the last value counts; a switch has an empty value.

    Names must be complete, although vLLM's parser also accepts the first letters of a name.

    >>> passed_flags(["-tp", "2", "--max_num_seqs=8", "--no-async-scheduling"])
    {'--tensor-parallel-size': '2', '--max-num-seqs': '8', '--no-async-scheduling': ''}

    Raises:
        ConfigError: A flag is not passed on, or lacks its value.
    """
    switches = {*SWITCHES, *(switch.replace("--", "--no-", 1) for switch in SWITCHES)}
    found: dict[str, str] = {}
    rest = iter(arguments)
    for argument in rest:
        written, equals, value = argument.partition("=")
        name = SHORT.get(written, written.replace("_", "-"))
        if name in switches and not equals:
            found[name] = ""
        elif name in VALUED:
            found[name] = value if equals else next(rest, "")
            if found[name].startswith("-") or not found[name]:
                raise ConfigError(f"{written} has no value; write {written} VALUE")
        else:
            close = nearest(written, [*VALUED, *switches])
            offer = f"did you mean {close[0]}?" if close else "mmrl serve --help lists the flags that are passed on"
            raise ConfigError(
                f"mmrl serve does not pass {written!r} on to vLLM, where it might let others in, run code or undo what "
                f"training needs; {offer}"
            )
    return found


def require_same_scheme(url: str, flags: Mapping[str, str]) -> None:
    """Refuses a server that does not use the scheme, http or https, of the trainer's URL.

    Raises:
        ConfigError: The URL is https, but the flags lack a certificate or its key; or it is http, and they have one.
    """
    secure = [name for name in ("--ssl-certfile", "--ssl-keyfile") if name in flags]
    wanted = 2 if urlsplit(url).scheme == "https" else 0
    if len(secure) != wanted:
        raise ConfigError(
            f"rollout.settings.server.url is {url}, and mmrl serve has {' and '.join(secure) or 'no certificate'}; "
            "https wants both -- --ssl-certfile FILE --ssl-keyfile FILE, and http neither"
        )
