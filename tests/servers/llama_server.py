"""llama.cpp's own HTTP server (out of the wheel ``xllamacpp``) with the embedded model, all in float32.

``python -m tests.servers.llama_server --port 8080`` runs it until it is killed; ``llama_server()`` is the
context manager of the tests.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from pathlib import Path

from rain_llm.models.local.embedded import embedded_file
from tests.servers.process import Server
from tests.servers.unpacked import unpacked_model

CONTEXT = 2048  # tokens a slot
PARALLEL = 4  # slots: requests, or samples of one request, that are computed together
# What the packed file says of itself alone.
_ABOUT_FILE = {"general.architecture", "general.file_type", "general.quantization_version"}


def float32_gguf() -> Path:
    """Return the embedded model's file with its weights in float32, writing it on first use (8 s, 540 MB).

    These are the weights that transformers reads out of the same file. As it is, in 4 bits a weight,
    llama.cpp also rounds what it multiplies them with, and strays from that by 0.8 nats.
    """
    import gguf
    import numpy as np

    packed = embedded_file()
    converted = unpacked_model()  # in the cache folder, and of the same version
    target = converted.with_name(f"{converted.name}-float32.gguf")
    if target.is_file():
        return target
    reader = gguf.GGUFReader(str(packed))
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        writer = gguf.GGUFWriter(made, "llama")  # writes its own version, counts and architecture
        for field in reader.fields.values():
            if not field.name.startswith("GGUF.") and field.name not in _ABOUT_FILE:
                kind, items = field.types[0], field.types[-1]
                array = kind == gguf.GGUFValueType.ARRAY
                writer.add_key_value(field.name, field.contents(), kind, items if array else None)
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        for tensor in reader.tensors:
            weights = gguf.dequantize(tensor.data, tensor.tensor_type)
            writer.add_tensor(tensor.name, weights.astype(np.float32, copy=False))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        made.replace(target)  # whole, whoever else has made one
    return target


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
    command = [sys.executable, "-m", "tests.servers.llama_server", "--model", str(float32_gguf())]
    command += ["--port", "{port}", "--alias", alias]
    return Server([*command, "--parallel", str(parallel), "--ctx", str(context)], port=port)


def fast_server(model: Path, *, threads: int, parallel: int, context: int) -> Server:
    """Return a llama-server of any file, with llama.cpp's own defaults for speed, for benchmarks.

    Args:
        model: the GGUF file.
        threads: compute threads.
        parallel: slots.
        context: tokens a slot.
    """
    command = [sys.executable, "-m", "tests.servers.llama_server", "--model", str(model), "--fast"]
    command += ["--port", "{port}", "--threads", str(threads)]
    return Server([*command, "--parallel", str(parallel), "--ctx", str(context)], start_s=120)


def serve(
    model: Path, port: int, alias: str, parallel: int, context: int, threads: int = 1, fast: bool = False
) -> None:
    """Serve a model's file on the loopback interface until killed; ``fast`` with llama.cpp's defaults."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.model_alias = {alias}
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_parallel = parallel
    params.n_ctx = parallel * context
    params.n_gpu_layers = 0
    if not fast:
        # Both are by default in 16 bits, which costs 0.008 nats; so, nothing is left of that.
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)  # holds the server: it stops when this is freed
    threading.Event().wait()
    del server


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=None, help="a GGUF file; else the embedded model")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--alias", default="smollm2")
    parser.add_argument("--parallel", type=int, default=PARALLEL)
    parser.add_argument("--ctx", type=int, default=CONTEXT)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fast", action="store_true", help="llama.cpp's defaults instead of exact numbers")
    given = parser.parse_args()
    serve(
        given.model or float32_gguf(),
        given.port,
        given.alias,
        given.parallel,
        given.ctx,
        given.threads,
        given.fast,
    )


if __name__ == "__main__":
    main()
