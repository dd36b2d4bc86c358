"""A local causal language model through transformers.

Every forward pass is one flat row of tokens: all branches of all requests side by side, without
padding. Each token knows its position and attends to the slots on its own path only (a *tree mask*);
its keys and values go into the shared :class:`~rain_llm.models.kv_cache.KVCache`. transformers runs
the network; only the attention is ours, plugged in through its attention interface.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rain_llm.errors import ModelError, ModelNotFoundError, ModelNotSupportedError, PromptError
from rain_llm.models.embedded import embedded_model, quiet_loading
from rain_llm.models.kv_cache import KVCache, Slots
from rain_llm.settings import ModelSettings
from rain_llm.types import Continuation, Message, Sample, Samples, Score, Scores, TokenIds

_ATTENTION = "rain_tree"
_REWIND_TOLERANCE = 0.02  # of the logits' own spread; bfloat16 needs most of it


# --- one forward pass over many branches ------------------------------------------------------------


@dataclass
class _Branch:
    """A path of slots, and the positions on it that are computed in this pass."""

    path: Slots
    computed: list[int]


@dataclass
class _Group:
    """New tokens that lie side by side in the row and look at one common set of slots."""

    start: int
    stop: int
    slots: torch.Tensor
    mask: torch.Tensor  # [new tokens, slots] bool
    rows_at: torch.Tensor  # [new tokens]: positions in the text
    slots_at: torch.Tensor  # [slots]: positions in the text

    def within(self, window: int) -> torch.Tensor:
        """Return the mask with nothing further back than a sliding window."""
        return self.mask & (self.rows_at[:, None] - self.slots_at[None, :] < window)


@dataclass
class _Pass:
    """One forward pass: what is computed, and what it looks at."""

    cache: KVCache
    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    row_of: dict[int, int] = field(default_factory=dict)  # slot -> row
    branches: list[list[_Branch]] = field(default_factory=list)  # a list for each request
    groups: list[_Group] = field(default_factory=list)
    slot_index: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    windows: set[int | None] = field(default_factory=set)  # what the layers asked for

    def open_request(self) -> None:
        """The branches added from here on may share one group."""
        self.branches.append([])

    def add(self, tokens: TokenIds, logits: int = 1) -> list[int]:
        """Bring ``tokens`` into the cache; return the rows of the last ``logits`` of them.

        Those are computed even where they are cached: logits are not kept.
        """
        slots = self.cache.find(tokens).tolist()
        known = len(slots)
        computed = []
        for position in range(min(known, len(tokens) - logits), len(tokens)):
            if position >= known:
                slots.append(self.cache.insert(slots[-1] if slots else -1, tokens[position]))
            if slots[position] not in self.row_of:
                self.row_of[slots[position]] = len(self.tokens)
                self.tokens.append(tokens[position])
                self.positions.append(position)
                self.slots.append(slots[position])
                computed.append(position)
        if computed:
            self.branches[-1].append(_Branch(np.array(slots, np.int64), computed))
        return [self.row_of[slot] for slot in slots[len(tokens) - logits :]]

    def close(self, device: torch.device) -> None:
        """Work out what each group of tokens may look at."""
        start = 0
        for branches in self.branches:
            if not branches:
                continue
            union = np.unique(np.concatenate([branch.path for branch in branches]))
            rows = sum(len(branch.computed) for branch in branches)
            mask = np.zeros((rows, len(union)), bool)
            position = np.empty(len(union), np.int64)
            row = 0
            for branch in branches:
                columns = np.searchsorted(union, branch.path)
                steps = np.arange(len(columns))
                position[columns] = steps
                until = np.array(branch.computed)[:, None]
                mask[row : row + len(until), columns] = steps <= until
                row += len(until)
            self.groups.append(
                _Group(
                    start,
                    start + rows,
                    torch.from_numpy(union).to(device),
                    torch.from_numpy(mask).to(device),
                    torch.tensor(self.positions[start : start + rows], device=device),
                    torch.from_numpy(position).to(device),
                )
            )
            start += rows
        self.slot_index = torch.tensor(self.slots, device=device)


def _tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, heads, tokens, size]
    key: torch.Tensor,  # [1, key heads, tokens, size]
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    rain_pass: _Pass | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a flat row of tokens, each over its own path in the cache."""
    unknown = [
        name for name in ("softcap", "s_aux", "position_bias", "head_mask") if others.get(name) is not None
    ]
    if rain_pass is None or unknown:
        raise ModelNotSupportedError(
            f"{type(module).__name__} uses {unknown or 'attention that bypasses the cache'}, "
            "which cannot be rewound here: choose a Llama-, Qwen-, Mistral- or GPT-2-like model"
        )
    rain_pass.windows.add(sliding_window)
    cache, layer = rain_pass.cache, int(module.layer_idx)  # type: ignore[arg-type]
    cache.write(layer, rain_pass.slot_index, key[0].transpose(0, 1), value[0].transpose(0, 1))
    heads, key_heads = query.shape[1], key.shape[1]
    outputs = []
    for group in rain_pass.groups:
        keys, values = cache.gather(layer, group.slots)
        rows = group.stop - group.start
        # Heads that share keys become more rows of one head: the context is never copied per head.
        q = query[0, :, group.start : group.stop].reshape(key_heads, heads // key_heads * rows, -1)
        mask = group.mask if sliding_window is None else group.within(sliding_window)
        mask = mask.repeat(heads // key_heads, 1)
        out = torch.nn.functional.scaled_dot_product_attention(
            q[None],
            keys.transpose(0, 1)[None],
            values.transpose(0, 1)[None],
            mask[None, None],
            scale=scaling,
        )
        outputs.append(out[0].reshape(heads, rows, -1))
    return torch.cat(outputs, 1).transpose(0, 1)[None], None


ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, _tree_attention)


# --- sampling -----------------------------------------------------------------------------------------


class _Growing:
    """One Sample request while it is answered."""

    def __init__(self, request: Sample, device: torch.device) -> None:
        self.request = request
        self.rng = torch.Generator(device).manual_seed(request.seed)
        self.tokens: list[list[int]] = [[] for _ in range(request.n)]
        self.logprobs: list[list[float]] = [[] for _ in range(request.n)]
        self.end_logprob = [0.0] * request.n
        self.ended = [False] * request.n
        self.alive = list(range(request.n))
        self.model_tokens = 0
        self.forwards = 0

    def texts(self) -> list[TokenIds]:
        """What the next pass reads: the prefix alone at first, then each living branch."""
        if not self.forwards:
            return [self.request.prefix]
        return [self.request.prefix + tuple(self.tokens[i]) for i in self.alive]

    def reply(self) -> Samples:
        branches = zip(self.tokens, self.logprobs, self.ended, self.end_logprob, strict=True)
        return Samples(
            tuple(
                Continuation(tuple(tokens), tuple(logprobs), ended, sum(logprobs) + end)
                for tokens, logprobs, ended, end in branches
                if tokens or ended  # a ranking cannot be longer than the vocabulary
            ),
            self.model_tokens,
            self.forwards,
        )


def _draw(logits: torch.Tensor, request: Sample, rng: torch.Generator) -> torch.Tensor:
    """Draw one token a row.

    The token with the largest ``log p - log e`` wins, e exponential (the Gumbel-max trick): unlike a
    walk along the cumulative distribution, it is not swayed by rounding errors of the logits, which
    depend on what else is in the batch.
    """
    scores = logits / request.temperature
    if 0 < request.top_k < scores.shape[-1]:
        least = scores.topk(request.top_k, -1).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if request.top_p < 1:
        ranked, order = scores.sort(-1, descending=True)
        probabilities = torch.softmax(ranked, -1)
        outside = probabilities.cumsum(-1) - probabilities >= request.top_p
        scores = scores.masked_fill(outside.scatter(-1, order, outside), -torch.inf)
    noise = torch.empty_like(scores).exponential_(generator=rng)
    drawn = (scores - noise.log_()).argmax(-1)
    if request.greedy_first:
        drawn[0] = logits[0].argmax()
    return drawn


# --- the model ------------------------------------------------------------------------------------------


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

    def sample(self, batch: Sequence[Sample]) -> list[Samples]:
        """Continue each request's prefix, all requests and branches in lockstep."""
        self._check_lengths((len(request.prefix), request.max_tokens) for request in batch)
        growing = [_Growing(request, self._device) for request in batch]
        with self._lock, torch.inference_mode():
            while active := [g for g in growing if g.alive]:
                self._advance(active)
        return [g.reply() for g in growing]

    def score(self, batch: Sequence[Score]) -> list[Scores]:
        """Weigh each request's options in one forward pass."""
        self._check_lengths((len(r.prefix), max(map(len, r.options))) for r in batch)
        replies = []
        with self._lock, torch.inference_mode():
            self.cache.begin()
            forward = _Pass(self.cache)
            wanted: list[list[list[int]]] = []  # request, option, token -> row of the logits before it
            for request in batch:
                forward.open_request()
                before = len(forward.tokens)
                rows = [
                    forward.add(request.prefix + option[:-1], logits=len(option))
                    for option in request.options
                ]
                wanted.append(rows)
                replies.append(len(forward.tokens) - before)
            keep = sorted({row for rows in wanted for option in rows for row in option})
            logprobs = torch.log_softmax(self._run(forward, keep).float(), -1)
            place = {row: i for i, row in enumerate(keep)}
            index = [
                (place[row], token)
                for request, rows in zip(batch, wanted, strict=True)
                for option, option_rows in zip(request.options, rows, strict=True)
                for row, token in zip(option_rows, option, strict=True)
            ]
            flat = logprobs[[row for row, _ in index], [token for _, token in index]].tolist()
        values = iter(flat)
        return [
            Scores(
                tuple(sum(next(values) for _ in option) for option in request.options),
                model_tokens=cost,
                forwards=1,
            )
            for request, cost in zip(batch, replies, strict=True)
        ]

    def _advance(self, active: list[_Growing]) -> None:
        """Give every living branch of every request its next token, in one forward pass."""
        self.cache.begin()
        forward = _Pass(self.cache)
        wanted = []
        for g in active:
            forward.open_request()
            before = len(forward.tokens)
            wanted.append([row for text in g.texts() for row in forward.add(text)])
            g.model_tokens += len(forward.tokens) - before
            g.forwards += 1
        logits = self._run(forward, [row for rows in wanted for row in rows]).float()
        parts = torch.split(logits, [len(rows) for rows in wanted])
        for g, rows in zip(active, parts, strict=True):
            logprobs = torch.log_softmax(rows, -1)
            if g.request.ranked:
                best = logprobs[0].topk(min(g.request.n, logprobs.shape[-1]))
                drawn, chosen = best.indices, best.values
                g.alive = g.alive[: len(drawn)]
            else:
                rows = rows.expand(len(g.alive), -1)  # the first tokens all come from the prefix's logits
                drawn = _draw(
                    rows,
                    replace(g.request, greedy_first=g.request.greedy_first and 0 in g.alive),
                    g.rng,
                )
                chosen = logprobs.expand(len(g.alive), -1).gather(-1, drawn[:, None])[:, 0]
            for branch, token, logprob in zip(tuple(g.alive), drawn.tolist(), chosen.tolist(), strict=True):
                self._append(g, branch, token, logprob)

    def _append(self, g: _Growing, branch: int, token: int, logprob: float) -> None:
        if token in self._special:
            g.ended[branch] = True
            g.end_logprob[branch] = logprob
            g.alive.remove(branch)
            return
        g.tokens[branch].append(token)
        g.logprobs[branch].append(logprob)
        full = len(g.tokens[branch]) >= g.request.max_tokens
        if full or (g.request.ends and self._piece(token).endswith(g.request.ends)):
            g.alive.remove(branch)

    # -- the forward pass -----------------------------------------------------------------------

    def _run(self, forward: _Pass, keep: list[int]) -> torch.Tensor:
        """Run the network over the pass; return the logits of the rows ``keep``."""
        forward.close(self._device)
        try:
            output = self._network(
                input_ids=torch.tensor([forward.tokens], device=self._device),
                position_ids=torch.tensor([forward.positions], device=self._device),
                use_cache=False,
                logits_to_keep=torch.tensor(keep, device=self._device),
                rain_pass=forward,
            )
        except BaseException:
            self.cache.abandon()
            raise
        self.model_tokens += len(forward.tokens)
        self.forwards += 1
        logits: torch.Tensor = output.logits[0]
        return logits

    def _check_lengths(self, lengths: Iterable[tuple[int, int]]) -> None:
        for prefix, more in lengths:
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
                self._network.set_attn_implementation(_ATTENTION)
                for step in (text[:6], other, text[:9], text):
                    self.cache.begin()
                    forward = _Pass(self.cache)
                    forward.open_request()
                    forward.add(step)
                    logits = self._run(forward, [len(forward.tokens) - 1])[0].float()
        except ModelNotSupportedError:
            raise
        except Exception as error:
            raise ModelNotSupportedError(f"{kind} cannot be rewound here: {error}") from error
        difference = float((logits - reference).abs().max() / reference.std())
        if not difference <= _REWIND_TOLERANCE:
            raise ModelNotSupportedError(
                f"{kind} does not survive a rewind: logits differ by {difference:.3f} standard deviations, "
                f"more than {_REWIND_TOLERANCE}; choose a Llama-, Qwen-, Mistral- or GPT-2-like model"
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
