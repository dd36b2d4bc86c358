"""vLLM on the CPU, out of an environment of its own, with a model folder.

The interpreter of that environment is named by the variable ``RAIN_LLM_VLLM_PYTHON``; ``vllm_server()`` is
the context manager of the tests.
"""

from __future__ import annotations

import os
from pathlib import Path

from tests.servers.process import Server

PYTHON_VARIABLE = "RAIN_LLM_VLLM_PYTHON"
CONTEXT = 2048  # tokens of a prompt and its continuation
BLOCK = 32  # tokens a block of the prefix cache
START_S = 300.0  # a cold disk and a busy machine; 30 s is usual


def vllm_python() -> Path | None:
    """Return the interpreter that has vLLM; None where the variable is unset."""
    value = os.environ.get(PYTHON_VARIABLE)
    return Path(value) if value else None


def _cores() -> str:
    """Bind vLLM's threads to all cores of this process; by itself it leaves one of two free."""
    cores = sorted(os.sched_getaffinity(0))
    return f"{cores[0]}-{cores[-1]}" if cores == list(range(cores[0], cores[-1] + 1)) else "auto"


def vllm_server(
    python: Path,
    model_folder: Path,
    *,
    name: str = "smollm2",
    dtype: str = "float32",
    port: int | None = None,
) -> Server:
    """Return a vLLM server that runs while its context is open.

    Args:
        python: the interpreter of the environment that has vLLM.
        model_folder: the model, as transformers saves it.
        name: the model's name in requests.
        dtype: ``float32`` agrees with transformers within 1e-4 nats; ``bfloat16`` is twice as fast and strays
            by 0.3 nats.
        port: where it listens; None takes a free port.
    """
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(model_folder), "--served-model-name", name]
    command += ["--host", "127.0.0.1", "--port", "{port}", "--dtype", dtype]
    command += ["--generation-config", "vllm", "--enforce-eager", "--enable-prompt-tokens-details"]
    command += ["--max-model-len", str(CONTEXT), "--max-num-seqs", "32", "--block-size", str(BLOCK)]
    # On a CPU a seeded request whose prompt is computed in parts kills vLLM 0.32: every prompt goes in whole.
    command += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", str(4 * CONTEXT)]
    environment = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
        "VLLM_CPU_OMP_THREADS_BIND": _cores(),
        "TORCH_COMPILE_DISABLE": "1",  # the first request would compile for 20 s
        "VLLM_SERVER_DEV_MODE": "1",  # serves /reset_prefix_cache
        "PYTHONPATH": "",  # packages of the tests' own environment
    }
    return Server(command, environment=environment, start_s=START_S, stop_s=10.0, port=port)
