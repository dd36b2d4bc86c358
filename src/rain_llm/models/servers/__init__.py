"""Models on completions servers: vLLM, SGLang, llama-server."""
