# pyright: reportMissingImports=false
# vllm is an extra that the type checker's environment does not have.
"""Runs vLLM's HTTP server with the guard in front of it; `mmrl serve` runs this module with `python -m`."""

import os

from lightning_mmrl.rollout.vllm.guard import Guard
from lightning_mmrl.rollout.vllm.keys import environment_key

HEADER_BYTES = 2**16
"""Maximum size of the request line and the headers, which are read before the key can be checked."""


def main() -> None:
    """Serves until a signal ends it.

    Raises:
        ConfigError: The environment has no key.
    """
    environment_key()
    # vLLM's processes talk over sockets in the temporary folder: whoever may write to one controls the engine.
    os.umask(0o077)
    import uvloop
    from vllm.entrypoints.launchers.api_server.entry import run_server
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    options = make_arg_parser(FlexibleArgumentParser()).parse_args()
    validate_parsed_serve_args(options)
    options.middleware = [f"{Guard.__module__}.{Guard.__qualname__}"]
    options.h11_max_incomplete_event_size = HEADER_BYTES
    # Of uvicorn's parsers, h11 limits headers; httptools accepts any number of them, in quadratic time.
    uvloop.run(run_server(options, http="h11", server_header=False))


if __name__ == "__main__":
    main()
