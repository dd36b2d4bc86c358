"""A local causal language model through transformers: loading it, its text, its forward passes.

Every forward pass is one flat row of tokens over one shared cache (``tree_attention``, ``kv_cache``);
what a request reads and makes of the logits is its job's affair (``jobs``).
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jinja2 import TemplateError
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from rain_llm.errors import ModelError, ModelNotFoundError, ModelNotSupportedError, PromptError
from rain_llm.models.base import Job
from rain_llm.models.embedded import embedded_model, quiet_loading
from rain_llm.models.jobs import SampleJob, ScoreJob
from rain_llm.models.kv_cache import KVCache
from rain_llm.models.packed import pack
from rain_llm.models.tree_attention import TREE_ATTENTION, Pass
from rain_llm.settings import ModelSettings
from rain_llm.types import Message, Sample, Samples, Score, Scores, TokenIds

# Of the logits' own spread. A wrong position or a lost token makes a difference of about 1; in half
# precision a wide network's rounding alone was seen to make 0.05.
_REWIND_TOLERANCE = {torch.float32: 0.02, torch.bfloat16: 0.2, torch.float16: 0.2}


class TransformersModel:
    """A causal language model from a folder or the hub, frozen, with its prefixes cached.

    Args:
        settings: which model, where, in which number format.

    Raises:
        ModelNotFoundError: there is no such model.
        ModelNotSupportedError: it is no causal language model, or it cannot be rewound. Checked by
            what it computes: a short text by way of a branch and a rewind must give the logits that
            it gives uncached.
    """

    def __init__(self, settings: ModelSettings | None = None) -> None:
        settings = settings or ModelSettings()
        source = str(embedded_model()) if settings.name is None else settings.name
        self.name = (settings.name or "embedded:SmolLM2-135M-Instruct") + (
            f"@{settings.revision}" if settings.revision else ""
        )
        self._lock = threading.RLock()
        # A fast tokenizer keeps "special tokens are text" as a state of its own: two threads with
        # different wishes would let a user's text become a special token.
        self._text_lock = threading.RLock()
        device = settings.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._device = torch.device(device)
        dtype = settings.dtype
        if dtype == "auto":
            dtype = "float32" if self._device.type == "cpu" else "bfloat16"
        with quiet_loading():
            self._tokenizer, self._network = _load(source, settings.revision, getattr(torch, dtype))
        self._network.requires_grad_(False).eval().to(self._device)
        pack(self._network)
        self.cache = KVCache(settings.kv_cache_bytes)
        self.model_tokens = 0  # through the network so far
        self.forwards = 0
        self._pieces: dict[int, str] = {}
        self._check_rewinding()

    # -- text ----------------------------------------------------------------------------------

    @cached_property
    def context_length(self) -> int:
        """The most tokens that a prefix and its continuation may have together."""
        config: Any = self._network.config.get_text_config()
        return int(config.max_position_embeddings)

    @cached_property
    def start(self) -> TokenIds:
        """The start token, if the tokenizer puts one before a text."""
        plain = tuple(self._tokenizer("a").input_ids)
        bos = self._tokenizer.bos_token_id
        return (bos,) if bos is not None and plain[:1] == (bos,) else ()

    @cached_property
    def _special(self) -> frozenset[int]:
        """Tokens that are never text: sampling one ends the answer."""
        special = set(self._tokenizer.all_special_ids)
        special |= {i for i, token in self._tokenizer.added_tokens_decoder.items() if token.special}
        for config in (self._network.config, self._network.generation_config):
            eos = getattr(config, "eos_token_id", None)
            special |= set(eos) if isinstance(eos, list | tuple) else {eos} - {None}
        return frozenset(special)

    def encode(self, text: str) -> TokenIds:
        """Turn text into ordinary tokens: special tokens in the text stay the characters they are."""
        with self._text_lock:
            found = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        return tuple(found.input_ids)

    def decode(self, tokens: TokenIds) -> str:
        """Turn tokens into text."""
        with self._text_lock:
            return str(
                self._tokenizer.decode(
                    list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
                )
            )

    def render_chat(self, messages: Sequence[Message]) -> TokenIds:
        """Render a chat by the model's template, up to where the assistant begins to speak.

        The template sees marks instead of the contents, which are encoded on their own as plain
        text: no content can forge a turn.

        Raises:
            ModelNotSupportedError: there is no template, or it cannot show these messages.
        """
        if not self._tokenizer.chat_template:
            raise ModelNotSupportedError(f"{self.name} has no chat template: use plain text prompts")
        marks = [f"rain{secrets.token_hex(8)}" for _ in messages]
        roles = ", ".join(message.role for message in messages)
        try:
            rest = self._tokenizer.apply_chat_template(
                [
                    {"role": message.role, "content": mark}
                    for message, mark in zip(messages, marks, strict=True)
                ],
                tokenize=False,
                add_generation_prompt=True,
            )
        except TemplateError as error:
            raise ModelNotSupportedError(
                f"the chat template of {self.name} cannot show messages of the roles {roles}: {error}"
            ) from error
        tokens: TokenIds = ()
        for message, mark in zip(messages, marks, strict=True):
            before, found, rest = rest.partition(mark)
            if not found:
                raise ModelNotSupportedError(
                    f"the chat template of {self.name} leaves out a message of role '{message.role}'"
                )
            tokens += self._encode_template(before) + self.encode(message.content)
        return tokens + self._encode_template(rest)

    def _encode_template(self, text: str) -> TokenIds:
        with self._text_lock:
            found = self._tokenizer(text, add_special_tokens=False, split_special_tokens=False)
        return tuple(found.input_ids)

    def _piece(self, token: int) -> str:
        if token not in self._pieces:
            self._pieces[token] = self.decode((token,))
        return self._pieces[token]

    # -- sampling and scoring -------------------------------------------------------------------

    def begin(self, request: Sample | Score) -> SampleJob | ScoreJob:
        """Take up a request; nothing is computed yet."""
        if isinstance(request, Sample):
            self._check_length(len(request.prefix), request.max_tokens)
            return SampleJob(request, self._special, self._piece, self._device)
        self._check_length(len(request.prefix), max(map(len, request.options)))
        return ScoreJob(request)

    def step(self, jobs: Sequence[Job]) -> None:
        """Make one forward pass for all jobs: samples grow by a token, questions are answered."""
        begun = cast("Sequence[SampleJob | ScoreJob]", jobs)
        with self._lock, torch.inference_mode():
            self.cache.begin()
            forward = Pass(self.cache)
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
            logprobs = torch.log_softmax(logits, -1)
            parts = zip(begun, torch.split(logits, sizes), torch.split(logprobs, sizes), costs, strict=True)
            # All decide before the first one keeps anything.
            decided: list[tuple[SampleJob | ScoreJob, Any, int]] = [
                (job, job.weigh(rows, chances), cost) for job, rows, chances, cost in parts
            ]
            for job, decision, cost in decided:
                job.accept(decision, cost)

    def sample(self, batch: Sequence[Sample]) -> list[Samples]:
        """Continue each request's prefix, all requests and branches in lockstep."""
        return cast(list[Samples], self._answer(batch))

    def score(self, batch: Sequence[Score]) -> list[Scores]:
        """Weigh each request's options, all in one forward pass once the prefixes are read."""
        return cast(list[Scores], self._answer(batch))

    def _answer(self, batch: Sequence[Sample | Score]) -> list[Samples | Scores | None]:
        jobs = [self.begin(request) for request in batch]
        while unfinished := [job for job in jobs if job.reply is None]:
            self.step(unfinished)
        return [job.reply for job in jobs]

    def forget(self) -> None:
        """Drop every cached prefix."""
        with self._lock:
            self.cache.clear()

    # -- the forward pass -----------------------------------------------------------------------

    def _run(self, forward: Pass, keep: list[int]) -> torch.Tensor:
        """Run the network over the pass; return the logits of the rows ``keep``, in float32."""
        forward.close(self._device)
        output = self._network(
            input_ids=torch.tensor([forward.tokens], device=self._device),
            position_ids=torch.tensor([forward.positions], device=self._device),
            use_cache=False,
            # Where only a part of a long text is read, no row is wanted: one is the least there is.
            logits_to_keep=torch.tensor(keep or [0], device=self._device),
            rain_pass=forward,
        )
        self.model_tokens += len(forward.tokens)
        self.forwards += 1
        logits: torch.Tensor = output.logits[0, : len(keep)].float()
        return logits

    def _check_length(self, prefix: int, more: int) -> None:
        if prefix < 1:
            raise PromptError("a prefix of 0 tokens cannot be continued: give at least 1 token")
        if prefix + more > self.context_length:
            raise PromptError(
                f"{prefix} tokens and {more} more exceed the context of {self.name}, "
                f"{self.context_length} tokens: shorten the prompt or ask for fewer tokens"
            )

    def _check_rewinding(self) -> None:
        """Compare logits by way of a branch and a rewind with uncached logits."""
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
            raise ModelNotSupportedError(f"{kind} cannot be rewound here: {error}") from error
        difference = float((logits - reference).abs().max() / reference.std())
        tolerance = _REWIND_TOLERANCE[self._network.dtype]
        if not difference <= tolerance:
            raise ModelNotSupportedError(
                f"{kind} does not survive a rewind: logits differ by {difference:.3f} standard deviations, "
                f"more than {tolerance}; choose a Llama-, Qwen-, Mistral- or GPT-2-like model"
            )
        self._check_long_texts(forward.windows, kind)
        self.model_tokens = self.forwards = 0

    def _check_long_texts(self, windows: set[int | None], kind: str) -> None:
        """Refuse what a short text cannot show: masks and rotations that change with the length."""
        config: Any = self._network.config.get_text_config()
        layers = set(getattr(config, "layer_types", None) or ())
        if unknown := layers - {"full_attention", "sliding_attention"}:
            raise ModelNotSupportedError(f"{kind} has layers of {', '.join(sorted(unknown))}: not supported")
        window = getattr(config, "sliding_window", None)
        slides = not layers and window is not None and window < self.context_length
        if ("sliding_attention" in layers or slides) and windows == {None}:
            raise ModelNotSupportedError(f"{kind} keeps its sliding window from the attention: not supported")
        ropes = getattr(config, "rope_parameters", None) or {}
        for rope in (ropes, *(rope for rope in ropes.values() if isinstance(rope, dict))):
            if rope.get("rope_type") in ("dynamic", "longrope"):
                raise ModelNotSupportedError(
                    f"{kind} turns its positions by the text's length ({rope['rope_type']}), so that "
                    "keys cannot be kept: not supported"
                )


def _load(source: str, revision: str | None, dtype: torch.dtype) -> tuple[Any, Any]:
    """Load tokenizer and network; never remote code, never a pickle."""
    folder = Path(source)
    looks_local = folder.is_absolute() or source.startswith((".", "~"))
    if looks_local and not folder.expanduser().is_dir():
        raise ModelNotFoundError(f"there is no model folder {source}: give an existing folder or a hub name")
    source = str(folder.expanduser()) if looks_local else source
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
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelNotFoundError(f"cannot load the model {source}: {reason}") from error
    return tokenizer, network
