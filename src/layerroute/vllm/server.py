"""vLLM's own server, and the folder in which its processes add up what they count: gone when the server ends.

``layerroute serve --engine vllm`` becomes ``python -m layerroute.vllm.server``; arguments are those of vLLM's server.
"""

import os
import runpy
import signal
import tempfile
from typing import NoReturn

COUNTED_IN = "PROMETHEUS_MULTIPROC_DIR"
"""Where prometheus_client looks for the folder, when it is imported; who sets it keeps it."""


def main() -> None:
    """Serve until interrupted or told to end."""
    if COUNTED_IN in os.environ:
        _serve()
        return
    # Until vLLM answers SIGTERM itself, it ends Python without what `with` promises.
    signal.signal(signal.SIGTERM, _leave)
    # Processes that vLLM ends last may still be writing there.
    with tempfile.TemporaryDirectory(prefix="layerroute-metrics-", ignore_cleanup_errors=True) as folder:
        os.environ[COUNTED_IN] = folder
        _serve()


def _serve() -> None:
    # Not `vllm serve`: it asks for the version of a distribution called vllm, and CPU builds are called otherwise.
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)


def _leave(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main()
