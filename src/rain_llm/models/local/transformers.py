"""A local causal language model that runs with transformers.

Every forward pass is one flat row of tokens over a shared cache (``tree_attention``, ``kv_cache``). The jobs
(``jobs``) decide which tokens a request needs and choose tokens by the logits.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from rain_llm.errors import (
    ModelError,
    ModelNotFoundError,
    ModelNotSupportedError,
    PromptError,
    PromptTooLongError,
)
from rain_llm.forks import renew_after_fork
from rain_llm.models import which
from rain_llm.models.base import Job
from rain_llm.models.grammar import Vocabulary, check_sample, vocabulary_of
from rain_llm.models.local.jobs import ReadJob, SampleJob, ScoreJob
from rain_llm.models.local.kv_cache import KVCache
from rain_llm.models.local.loading import quiet_loading
from rain_llm.models.local.numpy_rows import Floats
from rain_llm.models.local.torch_rows import TorchRows
from rain_llm.models.local.tree_attention import TREE_ATTENTION, Pass
from rain_llm.models.local.watched import Watched
from rain_llm.models.tokenizer import Tokenizer, first_line, local_folder
from rain_llm.requests import Read, Reading, Sample, Samples, Score, Scores, Values
from rain_llm.settings import ModelSettings
from rain_llm.types import Message, TokenIds, Tool

# In standard deviations of the logits. A wrong position or a missing token makes a difference of about 1; in
# half precision, rounding in a wide network makes up to 0.05.
_REWIND_TOLERANCE = {torch.float32: 0.02, torch.bfloat16: 0.2, torch.float16: 0.2}


class TransformersModel:
    """A frozen causal language model from a folder or the hub, with a prefix cache.

    Args:
        settings: name, device and data type of the model.

    Raises:
        ModelNotFoundError: there is no such model.
        ModelNotSupportedError: it is not a causal language model, or cannot be rewound. This is tested when
            it is loaded: after a branch and a rewind, a short text must have the same logits as without the
            cache.
    """

    def __init__(self, settings: ModelSettings) -> None:
        if settings.name is None:
            raise ModelNotFoundError("transformers needs a folder or a hub name: set model.name")
        self.name = settings.name + (f"@{settings.revision}" if settings.revision else "")
        self._lock = threading.RLock()
        renew_after_fork(self)
        device = settings.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._device = torch.device(device)
        dtype = automatic_dtype(self._device) if settings.dtype == "auto" else settings.dtype
        with quiet_loading():
            tokenizer, self._network = _load(settings.name, settings.revision, getattr(torch, dtype))
        self._tokenizer = tokenizer
        self.text = Tokenizer(tokenizer, self.name, _ends(self._network))
        self._network.requires_grad_(False).eval().to(self._device)
        self._cache_bytes = settings.kv_cache_bytes
        self.cache = KVCache(self._cache_bytes)
        self._watched = Watched()
        config: Any = self._network.config.get_text_config()
        self.depth = int(config.num_hidden_layers) - 1  # the last block's output is only kept normalised
        self.width = int(config.hidden_size)
        folder = Path(settings.name).expanduser()
        self.folder: Path | None = folder if folder.is_dir() else None
        self.fingerprint = (
            f"{self._network.config.model_type}, {self.depth + 1} x {self.width}, "
            f"{config.vocab_size} tokens, weights {_digest(self._network)}, "
            f"template {_text_digest(tokenizer.chat_template)}"
        )
        self.model_tokens = 0  # processed so far
        self.forwards = 0
        self._check_rewinding()

    # -- text ----------------------------------------------------------------------------------

    @cached_property
    def context_length(self) -> int:
        """Return the maximum number of tokens of a prefix and its continuation together."""
        config: Any = self._network.config.get_text_config()
        return int(config.max_position_embeddings)

    @property
    def start(self) -> TokenIds:
        """Return the start token, if the tokenizer adds one."""
        return self.text.start

    def encode(self, text: str) -> TokenIds:
        """Encode text as ordinary tokens."""
        return self.text.encode(text)

    def decode(self, tokens: TokenIds) -> str:
        """Decode tokens to text."""
        return self.text.decode(tokens)

    def render_chat(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> TokenIds:
        """Render a chat with the model's template."""
        return self.text.render_chat(messages, tools)

    # -- sampling and scoring -------------------------------------------------------------------

    def begin(self, request: Sample | Score | Read) -> SampleJob | ScoreJob | ReadJob:
        """Create a job for a request, without computing anything yet."""
        if isinstance(request, Read):
            self._check_read(request.prefix, request.tokens)
            self._watched.check(request)
            return ReadJob(request)
        if isinstance(request, Sample):
            self._check_length(len(request.prefix), request.max_tokens)
            check_sample(request)
            matchers = [self._vocabulary.matcher(request.schema) for _ in range(request.n) if request.schema]
            return SampleJob(request, self.text.special, self.text.piece, matchers)
        self._check_length(len(request.prefix), max(map(len, request.options)))
        return ScoreJob(request)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        """Return the vocabulary for constrained decoding."""
        size = int(self._network.config.get_text_config().vocab_size)
        return vocabulary_of(self._tokenizer, size, frozenset(i for i in self.text.special if i < size))

    def step(self, jobs: Sequence[Job]) -> None:
        """Run one forward pass for all jobs: samples grow by one token, questions are answered."""
        begun = cast("Sequence[SampleJob | ScoreJob | ReadJob]", jobs)
        with self._lock, torch.inference_mode():
            self.cache.begin()
            forward = Pass(self.cache, self._watched)
            wanted, costs = [], []
            try:
                for job in begun:
                    before = len(forward.tokens)
                    wanted.append(job.read(forward))
                    costs.append(len(forward.tokens) - before)
                logits = self._run(forward, [row for rows in wanted for row in rows])
            except BaseException:
                self.cache.abandon()
                raise
            sizes = [len(rows) for rows in wanted]
            parts = zip(begun, torch.split(logits, sizes), costs, strict=True)
            # All jobs decide before the first one changes, so that an error changes none.
            decided: list[tuple[SampleJob | ScoreJob | ReadJob, Any, int]] = [
                (job, job.weigh(TorchRows(rows)), cost) for job, rows, cost in parts
            ]
            for job, decision, cost in decided:
                job.accept(decision, cost)

    def sample(self, batch: Sequence[Sample]) -> list[Samples]:
        """Continue each request's prefix; all requests and branches share the forward passes."""
        return cast(list[Samples], self._answer(batch))

    def score(self, batch: Sequence[Score]) -> list[Scores]:
        """Score each request's options, all in one forward pass once the prefixes are read."""
        return cast(list[Scores], self._answer(batch))

    def read(self, batch: Sequence[Read]) -> list[Values]:
        """Read from the hidden states of each request's tokens; what is cached was read already."""
        return cast(list[Values], self._answer(batch))

    def watch(self, readings: Sequence[Reading]) -> None:
        """Read these from now on; if there is a new one, the prefix cache is cleared."""
        with self._lock:
            if self._watched.add(readings):
                self.cache.clear()

    def states(self, prefix: TokenIds, tokens: TokenIds, layers: Sequence[int]) -> Floats:
        """Return the hidden states of ``tokens`` after ``prefix``, shape [tokens, layers, width].

        They are computed without the cache.
        """
        self._check_read(prefix, tokens)
        with self._lock, torch.inference_mode():
            cache = KVCache(self._cache_bytes)
            cache.begin()
            forward = Pass(cache)
            forward.open_request()
            forward.add(prefix + tokens, 0)
            _, states = self._compute(forward, [], layers)
            assert states is not None  # some layers are wanted
            return states[len(prefix) :]

    def _answer(self, batch: Sequence[Sample | Score | Read]) -> list[Samples | Scores | Values | None]:
        jobs = [self.begin(request) for request in batch]
        while unfinished := [job for job in jobs if job.reply is None]:
            self.step(unfinished)
        return [job.reply for job in jobs]

    def after_fork(self) -> None:
        """Replace the lock in a forked process, and the cache if the parent was in a forward pass."""
        idle = self._lock.acquire(blocking=False)
        self._lock = threading.RLock()
        if not idle:
            self.cache = KVCache(self._cache_bytes)

    def forget(self) -> None:
        """Clear the prefix cache."""
        with self._lock:
            self.cache.clear()

    # -- the forward pass -----------------------------------------------------------------------

    def _run(self, forward: Pass, keep: list[int]) -> torch.Tensor:
        """Compute a pass; return the logits of the rows ``keep``, in float32."""
        if not forward.tokens:  # a text that is read may be cached completely
            return torch.empty(0, 0)
        logits, states = self._compute(forward, keep, self._watched.layers)
        self.cache.read.update(zip(forward.slots, self._watched.numbers(states), strict=False))
        self.model_tokens += len(forward.tokens)
        self.forwards += 1
        return logits

    def _compute(
        self, forward: Pass, keep: list[int], layers: Sequence[int]
    ) -> tuple[torch.Tensor, Floats | None]:
        """Run the network over a pass; return the logits of the rows ``keep``, and the states of all rows.

        Args:
            forward: the pass.
            keep: rows whose logits are wanted.
            layers: blocks whose output is wanted; (): none.

        Returns:
            Logits, and hidden states of shape [rows, layers, width] or None, both in float32.
        """
        forward.close(self._device)
        output = self._network(
            input_ids=torch.tensor([forward.tokens], device=self._device),
            position_ids=torch.tensor([forward.positions], device=self._device),
            use_cache=False,
            # While a long prefix is read in chunks, no row is needed, but the minimum is one.
            logits_to_keep=torch.tensor(keep or [0], device=self._device),
            output_hidden_states=bool(layers),
            rain_pass=forward,
        )
        logits: torch.Tensor = output.logits[0, : len(keep)].float()
        if not layers:
            return logits, None
        # Before the first block's output stand the embeddings.
        states = torch.stack([output.hidden_states[layer + 1][0] for layer in layers], 1)
        return logits, states.float().cpu().numpy()

    def _check_read(self, prefix: TokenIds, tokens: TokenIds) -> None:
        self._check_length(len(prefix), len(tokens))
        if not tokens:
            raise PromptError("a text of 0 tokens cannot be read: give at least 1 token")

    def _check_length(self, prefix: int, more: int) -> None:
        if prefix < 1:
            raise PromptError("a prefix of 0 tokens cannot be continued: give at least 1 token")
        if prefix + more > self.context_length:
            raise PromptTooLongError(
                f"{prefix} tokens and {more} more exceed the context of {self.name}, "
                f"{self.context_length} tokens: shorten the prompt or ask for fewer tokens"
            )

    def _check_rewinding(self) -> None:
        """Check that logits after a branch and a rewind equal uncached logits."""
        vocabulary = int(self._network.config.get_text_config().vocab_size)
        ids: NDArray[np.int64] = np.random.default_rng(7).integers(0, vocabulary, 12)
        text = tuple(int(i) for i in ids)
        other = (*text[:6], *text[3:6])
        kind = f"{self.name} ({type(self._network).__name__})"
        try:
            with torch.inference_mode():
                self._network.set_attn_implementation("sdpa")
                plain = self._network(input_ids=torch.tensor([text], device=self._device), use_cache=False)
                reference = plain.logits[0, -1].float()
                self._network.set_attn_implementation(TREE_ATTENTION)
                for step in (text[:6], other, text[:9], text):
                    self.cache.begin()
                    forward = Pass(self.cache)
                    forward.open_request()
                    forward.add(step)
                    logits = self._run(forward, [len(forward.tokens) - 1])[0]
        except ModelNotSupportedError:
            raise
        except Exception as error:
            raise ModelNotSupportedError(f"{kind} cannot be rewound: {error}") from error
        difference = float((logits - reference).abs().max() / reference.std())
        tolerance = _REWIND_TOLERANCE[self._network.dtype]
        if not difference <= tolerance:
            raise ModelNotSupportedError(
                f"{kind} cannot be rewound: after a rewind, logits differ by {difference:.3f} standard "
                f"deviations, more than {tolerance}: use a Llama-, Qwen-, Mistral- or GPT-2-like model"
            )
        self._check_long_texts(forward.windows, kind)
        self.model_tokens = self.forwards = 0

    def _check_long_texts(self, windows: set[int | None], kind: str) -> None:
        """Check for masks and rotations that depend on the length, which a short text does not show."""
        config: Any = self._network.config.get_text_config()
        layers = set(getattr(config, "layer_types", None) or ())
        if unknown := layers - {"full_attention", "sliding_attention"}:
            raise ModelNotSupportedError(f"{kind} has layers of {', '.join(sorted(unknown))}: not supported")
        window = getattr(config, "sliding_window", None)
        slides = not layers and window is not None and window < self.context_length
        if ("sliding_attention" in layers or slides) and windows == {None}:
            raise ModelNotSupportedError(
                f"{kind} does not pass its sliding window to the attention: not supported"
            )
        ropes = getattr(config, "rope_parameters", None) or {}
        for rope in (ropes, *(rope for rope in ropes.values() if isinstance(rope, dict))):
            if rope.get("rope_type") in ("dynamic", "longrope"):
                raise ModelNotSupportedError(
                    f"{kind} scales its positions by the text's length ({rope['rope_type']}), so that "
                    "keys cannot be cached: not supported"
                )


def automatic_dtype(device: torch.device) -> str:
    """Return the data type of the weights for ``dtype="auto"``: the faster one on this device."""
    return "bfloat16" if device.type != "cpu" or _multiplies_bfloat16() else "float32"


def _multiplies_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 in hardware: AMX or AVX512-BF16, as torch reports it."""
    # torch.ops.mkldnn._is_mkldnn_bf16_supported does not answer this: it is true for any AVX512. Older
    # versions of torch lack a check; then float32 is used.
    checks = [
        getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    ]
    onednn: Any = torch.backends.mkldnn
    return bool(onednn.is_available()) and any(check() for check in checks if check)


def _load(source: str, revision: str | None, dtype: torch.dtype) -> tuple[Any, Any]:
    """Load tokenizer and network; remote code is never run and pickles are never loaded."""
    source = local_folder(source)
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        if config.is_encoder_decoder:
            raise ModelNotSupportedError(
                f"{source} ({config.model_type}) is an encoder-decoder: choose a causal model"
            )
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            revision=revision,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=dtype,
            output_loading_info=True,
        )
        network, report = loaded
        if missing := report["missing_keys"]:
            raise ValueError(f"weights are missing, {sorted(missing)[0]} among {len(missing)}")
    except ModelError:
        raise
    except Exception as error:  # the libraries raise anything for a broken file
        raise ModelNotFoundError(
            f"cannot load the model {source[:100]}: {first_line(error)[:300]}; {which.summary()}"
        ) from error
    return tokenizer, network


def _digest(network: Any) -> str:
    """Return a short digest of the first numbers of each weight."""
    seen = hashlib.sha256()
    for name, weight in network.named_parameters():
        seen.update(f"{name} {tuple(weight.shape)}".encode())
        seen.update(weight.flatten()[:64].float().cpu().numpy().tobytes())
    return seen.hexdigest()[:12]


def _text_digest(template: object) -> str:
    return hashlib.sha256(str(template).encode()).hexdigest()[:8]


def _ends(network: Any) -> frozenset[int]:
    """Return the tokens that end a text according to the network's configuration."""
    found: set[int] = set()
    for config in (network.config, network.generation_config):
        eos: Any = getattr(config, "eos_token_id", None)
        found |= set(eos) if isinstance(eos, list | tuple) else {eos} - {None}
    return frozenset(found)
