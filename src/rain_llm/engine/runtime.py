"""Load models, and share them between all ``Rain`` objects with the same models."""

from __future__ import annotations

import os
import threading
import weakref

from rain_llm.clock import held
from rain_llm.judging.evaluator import SelfEvaluator
from rain_llm.missing import needed
from rain_llm.models.base import Embedder, Forgetful, LanguageModel
from rain_llm.scheduler import Scheduler
from rain_llm.settings import EvaluationSettings, ModelSettings, RainSettings, SimilaritySettings

KEPT_EVALUATORS = 64  # an evaluator only caches its calibration, which costs one question


class Runtime:
    """Loaded models with their scheduler, shared by all ``Rain`` objects with the same models."""

    def __init__(
        self, writer: LanguageModel, judge: LanguageModel, embedder: Embedder | None, embedder_name: str
    ) -> None:
        self.writer = writer
        self.judge = judge
        self.scheduler = Scheduler(writer, judge, self.embedder)
        self._embedder = embedder
        self._embedder_name = embedder_name
        self._evaluators: dict[EvaluationSettings, SelfEvaluator] = {}

    def embedder(self) -> Embedder:
        """Return the embedder; the first call loads it."""
        if self._embedder is None:
            from rain_llm.models.local.similarity import SentenceEmbedder

            self._embedder = SentenceEmbedder(self._embedder_name)
        return self._embedder

    def evaluator(self, settings: EvaluationSettings) -> SelfEvaluator:
        """Return the evaluator of these settings, which caches its calibration between answers."""
        evaluator = self._evaluators.get(settings)
        if evaluator is None:
            evaluator = SelfEvaluator(settings, self.judge)
            if len(self._evaluators) >= KEPT_EVALUATORS:
                self._evaluators.clear()
            self._evaluators[settings] = evaluator  # two threads may create equal ones: either can be used
        return evaluator

    def forget(self) -> None:
        """Clear the caches of calibrations and prefixes, so that measured costs are comparable.

        Call it only while no search is running.
        """
        self._evaluators.clear()
        for model in (self.writer, self.judge):
            if isinstance(model, Forgetful):
                model.forget()


_models: weakref.WeakValueDictionary[ModelSettings, LanguageModel] = weakref.WeakValueDictionary()
_runtimes: weakref.WeakValueDictionary[tuple[object, ...], Runtime] = weakref.WeakValueDictionary()
_latest: list[Runtime] = []  # a strong reference, so that short-lived objects do not reload their model
_loading = threading.RLock()


def _after_fork() -> None:
    global _loading
    _loading = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


def _load(settings: ModelSettings) -> LanguageModel:
    if settings.base_url:
        from rain_llm.models.servers.connecting import connected

        return connected(settings)
    with held(_loading):
        model = _models.get(settings)
        if model is None:
            model = _models[settings] = _local(settings)
        return model


def _local(settings: ModelSettings) -> LanguageModel:
    """Load a model in this process: a GGUF file with llama.cpp, a folder or hub name with transformers."""
    if settings.is_gguf:
        from rain_llm.models.local.llama_cpp import LlamaCppModel

        return LlamaCppModel(settings)
    with needed("a model of a folder or hub name"):
        from rain_llm.models.local.transformers import TransformersModel

        return TransformersModel(settings)


def models_of(settings: RainSettings) -> tuple[ModelSettings, ModelSettings | None, str]:
    """Return the settings of the models, which must be the same for all answers of a ``Rain`` object."""
    similarity = settings.search.similarity or SimilaritySettings()
    return settings.model, settings.evaluation.judge, similarity.embedder


def runtime_of(
    settings: RainSettings,
    model: LanguageModel | None,
    judge: LanguageModel | None,
    embedder: Embedder | None,
) -> Runtime:
    """Return the runtime of these models, and load those that are not loaded yet.

    Waiting for another thread that loads a model ends at the current call's deadline.

    Args:
        settings: selects the models that are not passed.
        model: a ready writer.
        judge: a ready judge; None: the settings' judge, or else the writer.
        embedder: a ready embedder.
    """
    own, other, name = models_of(settings)
    key = (own, other, name, *map(id, (model, judge, embedder)))
    runtime = _runtimes.get(key)
    if runtime is None:
        writer = model or _load(own)
        judge = judge or (_load(other) if other else writer)
        with held(_loading):
            runtime = _runtimes.get(key)  # another thread may have created it
            if runtime is None:
                runtime = _runtimes[key] = Runtime(writer, judge, embedder, name)
    if model is None:
        _latest[:] = [runtime]
    return runtime
