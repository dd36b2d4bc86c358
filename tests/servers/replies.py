"""What vLLM and llama-server would answer if they served the made-up model: requests and replies as JSON."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from tests.servers import babble
from tests.servers.fields import number, strings, whole

Json = dict[str, Any]


class Refused(Exception):
    """A request that is answered by an error: its status and body."""

    def __init__(self, status: int, body: Json) -> None:
        super().__init__(body)
        self.status = status
        self.body = body


class Vllm:
    """vLLM.

    Args:
        name: the model's. root: where its files are. context: tokens of a prompt and its continuation.
    """

    block = 32  # tokens a block of the prefix cache
    most_blocks = 50_000
    most_labels = 128

    def __init__(self, name: str, root: str, context: int, slots: int) -> None:
        self.name = name
        self.root = root
        self.context = context
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def other(self, path: str, body: Json | None) -> Json | None:
        """Answer all paths but that of completions; None: there is no such path."""
        if path == "/v1/models":
            model = {"id": self.name, "object": "model", "owned_by": "vllm"}
            return {
                "object": "list",
                "data": [model | {"root": self.root, "parent": None, "max_model_len": self.context}],
            }
        if path == "/tokenize" and body:
            tokens = babble.encode(body.get("prompt", ""), special=True)
            return {"count": len(tokens), "max_model_len": self.context, "tokens": tokens}
        return {"version": "0.32.0"} if path == "/version" else None

    def complete(self, body: Json) -> Json:
        if body.get("model", self.name) != self.name:
            raise _vllm_error(404, f"The model `{body['model']}` does not exist.", "NotFoundError")
        prompts = _prompts(body)
        n, temperature = body.get("n") or 1, number(body, "temperature", 1.0)
        if not prompts or not all(prompts):
            raise _vllm_error(400, "Either prompt or prompt_embeds must be provided and non-empty.")
        for prompt in prompts:
            if max(prompt) >= babble.SIZE or min(prompt) < 0:
                raise _vllm_error(400, f"Token id {max(prompt)} is out of vocabulary")
            if len(prompt) >= self.context:
                raise _vllm_error(
                    400,
                    f"This model's maximum context length is {self.context} tokens. "
                    f"However, your request has {len(prompt)} input tokens. "
                    "Please reduce the length of the input messages.",
                )
        if n > 1 and temperature == 0:
            raise _vllm_error(400, f"n must be 1 when using greedy sampling, got {n}.")
        for field in ("logprobs", "prompt_logprobs"):
            if (body.get(field) or 0) > 20:
                raise _vllm_error(400, f"Requested {field} of {body[field]}, which is greater than max: 20")
        if len(body.get("logprob_token_ids") or ()) > self.most_labels:
            raise _vllm_error(400, f"logprob_token_ids: at most {self.most_labels} are taken")
        if body.get("stream"):
            raise _vllm_error(400, "this server streams no completions")
        bias = (body.get("logit_bias") or {}).items()
        way = babble.Way(
            temperature=temperature,
            top_k=body.get("top_k") or 0,
            top_p=number(body, "top_p", 1.0),
            min_p=number(body, "min_p", 0.0),
            bias=tuple((int(token), max(-100.0, min(100.0, value))) for token, value in bias),
        )
        choices: list[Json] = []
        drawn_tokens = cached = 0
        for prompt in prompts:
            cached = self._cached(prompt)  # of several, the last one's is told
            state = babble.read(prompt)
            most = min(whole(body, "max_tokens", 16), self.context - len(prompt))
            for child in range(n):
                drawn = babble.draw(
                    state,
                    way,
                    most,
                    whole(body, "seed", time.time_ns()) + child,
                    frozenset(body.get("stop_token_ids") or ()) | {babble.EOS},
                    strings(body.get("stop")),
                )
                if held := body.get("structured_outputs"):
                    tag = json.loads(held["structural_tag"])
                    drawn = babble.recite(state, _document(tag["format"]["json_schema"]), most)
                drawn_tokens += len(drawn.tokens)
                choices.append(self._choice(len(choices), prompt, drawn, body))
        return {
            "id": "cmpl-0",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.name,
            "choices": choices,
            "usage": _usage(sum(map(len, prompts)), drawn_tokens, cached),
        }

    def _choice(self, index: int, prompt: Sequence[int], drawn: babble.Completion, body: Json) -> Json:
        choice: Json = {
            "index": index,
            "text": _text(drawn),
            "logprobs": None,
            "finish_reason": drawn.finish,
            "stop_reason": drawn.stop,
            "token_ids": drawn.tokens if body.get("return_token_ids") else None,
            "prompt_logprobs": None,
        }
        by_id = bool(body.get("return_tokens_as_token_ids"))
        if body.get("logprobs") is not None:
            places = list(zip(drawn.states, drawn.tokens, strict=True))
            labels = body.get("logprob_token_ids")
            tops = []
            for state, token in places:
                found = babble.logprobs(state)
                best = babble.likeliest(state, body["logprobs"]) if labels is None else labels
                tops.append({_name(one, by_id): found[one] for one in (token, *best)})
            choice["logprobs"] = {
                "tokens": [_name(token, by_id) for token in drawn.tokens],
                "token_logprobs": [babble.logprobs(state)[token] for state, token in places],
                "top_logprobs": tops,
                "text_offset": [len(babble.decode(drawn.tokens[:i])) for i in range(len(places))],
            }
        if (most := body.get("prompt_logprobs")) is not None:
            choice["prompt_logprobs"] = [None, *_before(prompt, most)]
        return choice

    def _cached(self, prompt: Sequence[int]) -> int:
        """Return how many tokens of whole blocks were there; the last token is always computed."""
        key = cached = 0
        unbroken = True
        for end in range(self.block, len(prompt) + 1, self.block):
            key = hash((key, tuple(prompt[end - self.block : end])))
            unbroken = unbroken and key in self._blocks
            if unbroken and end < len(prompt):
                cached = end
            self._blocks[key] = None
            self._blocks.move_to_end(key)
        while len(self._blocks) > self.most_blocks:
            self._blocks.popitem(last=False)
        return cached


class Llama:
    """llama-server.

    Args:
        name: the model's. root: where its file is. context: tokens a slot. slots: of them.
    """

    def __init__(self, name: str, root: str, context: int, slots: int) -> None:
        self.name = name
        self.root = root
        self.context = context
        self.slots = slots
        self.vocabulary = babble.SIZE  # as it reports it
        self._read: list[list[int]] = []  # what each slot has read, the last used at the end

    def other(self, path: str, body: Json | None) -> Json | None:
        """Answer all paths but that of completions; None: there is no such path."""
        body = body or {}
        if path == "/v1/models":
            meta = {"n_vocab": self.vocabulary, "n_ctx_train": self.context}
            model = {"id": self.name, "object": "model", "owned_by": "llamacpp", "meta": meta}
            return {"object": "list", "data": [model]}
        if path == "/props":
            return {
                "default_generation_settings": {"n_ctx": self.context, "params": {}},
                "total_slots": self.slots,
                "model_alias": self.name,
                "model_path": self.root,
                "chat_template": babble.CHAT,
                "bos_token": "",
                "eos_token": babble.SPECIAL[babble.EOS],
                "build_info": "b11549-scripted",
            }
        if path == "/tokenize":
            tokens = babble.encode(body.get("content", ""), special=body.get("parse_special", True))
            pieces = [{"id": token, "piece": _piece(token)} for token in tokens]
            return {"tokens": pieces if body.get("with_pieces") else tokens}
        if path == "/detokenize":
            return {"content": _spoken(body.get("tokens", ()))}
        if path == "/apply-template":
            return {"prompt": babble.render(body.get("messages", ()))}
        return None

    def complete(self, body: Json) -> Json:
        """Answer whole; for ``stream``, what :func:`events` makes a stream of."""
        prompts = _prompts(body)
        n = body.get("n") or 1
        if n > self.slots:
            raise _llama_error(400, "n_cmpl cannot be greater than the number of slots, please increase -np")
        if len(prompts) != 1 or not prompts[0]:
            raise _llama_error(400, "this server takes one prompt at a time, of at least one token")
        (prompt,) = prompts
        if max(prompt) >= babble.SIZE or min(prompt) < 0:
            raise _llama_error(400, "Prompt contains invalid tokens")
        if len(prompt) >= self.context:
            raise _llama_error(
                400,
                f"request ({len(prompt)} tokens) exceeds the available context size ({self.context} tokens), "
                "try increasing it",
                "exceed_context_size_error",
                n_prompt_tokens=len(prompt),
                n_ctx=self.context,
            )
        bias = body.get("logit_bias") or []
        way = babble.Way(
            steps=tuple(body.get("samplers") or ("top_k", "top_p", "min_p", "temperature")),
            temperature=max(0.0, number(body, "temperature", 0.8)),
            top_k=whole(body, "top_k", 40),
            top_p=number(body, "top_p", 0.95),
            min_p=number(body, "min_p", 0.05),
            bias=tuple((token, value) for token, value in bias),
        )
        most = whole(body, "max_tokens", -1)
        room = self.context - len(prompt)
        most = min(most, room) if most >= 0 else room
        schema = body.get("json_schema")
        drawn = [
            babble.recite(babble.read(prompt), _document(schema), most)
            if schema
            else babble.draw(
                babble.read(prompt),
                way,
                most,
                whole(body, "seed", time.time_ns()) + child,
                frozenset(range(len(babble.SPECIAL))),  # it knows by itself which tokens end a text
                strings(body.get("stop")),
            )
            for child in range(n)
        ]
        return {
            "id": "chatcmpl-0",
            "object": "text_completion",
            "created": int(time.time()),
            "model": body.get("model", self.name),
            "choices": [self._choice(i, one, way, body) for i, one in enumerate(drawn)],
            "usage": _usage(len(prompt), sum(len(one.tokens) for one in drawn), self._cached(prompt)),
        }

    def _choice(self, index: int, drawn: babble.Completion, way: babble.Way, body: Json) -> Json:
        places = list(zip(drawn.states, drawn.tokens, strict=True))
        if drawn.stop is not None and not body.get("stream"):
            places = places[: max(0, len(places) - len(babble.encode(drawn.stop)))]
        logprobs: Json | None = None
        if most := body.get("logprobs"):
            told = self._after if body.get("post_sampling_probs") else self._raw
            logprobs = {"content": [told(state, token, most, way) for state, token in places]}
        text = _text(drawn)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": drawn.finish}

    @staticmethod
    def _raw(state: int, token: int, most: int, way: babble.Way) -> Json:
        found = babble.logprobs(state)
        top = [_told(one) | {"logprob": found[one]} for one in babble.likeliest(state, most)]
        return _told(token) | {"logprob": found[token], "top_logprobs": top}

    @staticmethod
    def _after(state: int, token: int, most: int, way: babble.Way) -> Json:
        """Tell probabilities as they were when it was drawn."""
        chances = babble.probabilities(state, way)
        top = [_told(one) | {"prob": chances[one]} for one in list(chances)[:most]]
        return _told(token) | {"prob": chances[token], "top_probs": top}

    def _cached(self, prompt: list[int]) -> int:
        """Return how many tokens the best slot had read; the last token is always computed."""
        best = max(self._read, key=lambda read: _common(read, prompt), default=[])
        common = _common(best, prompt)
        if common and common * 2 > len(best):
            self._read.remove(best)
        self._read = [*self._read[-(self.slots - 1) :], prompt] if self.slots > 1 else [prompt]
        return min(common, len(prompt) - 1)


def events(reply: Json) -> list[bytes]:
    """Make a whole reply with one continuation the events of a stream, as llama-server does."""
    (choice,) = reply["choices"]
    frame = {key: reply[key] for key in ("id", "object", "created", "model")}
    content = (choice["logprobs"] or {}).get("content", [])
    made = [
        frame
        | {
            "choices": [
                {"index": 0, "text": place["token"], "logprobs": {"content": [place]}, "finish_reason": None}
            ]
        }
        for place in content
    ]
    end = {"index": 0, "text": "", "logprobs": None, "finish_reason": choice["finish_reason"]}
    made.append(frame | {"choices": [end], "usage": reply["usage"]})
    return [*(b"data: " + json.dumps(event).encode() + b"\n\n" for event in made), b"data: [DONE]\n\n"]


# --- both -------------------------------------------------------------------------------------------------


def _prompts(body: Json) -> list[list[int]]:
    given = body.get("prompt")
    if isinstance(given, str):
        return [babble.encode(given, special=True)]
    if isinstance(given, list) and all(isinstance(one, int) for one in given):
        return [given] if given else []
    if isinstance(given, list):
        return [babble.encode(one, special=True) if isinstance(one, str) else list(one) for one in given]
    return []


def _document(schema: Json) -> str:
    """Return the document of a schema that allows a single one."""
    return json.dumps(schema["const"], separators=(",", ":"))


def _usage(prompt: int, drawn: int, cached: int) -> Json:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": drawn,
        "total_tokens": prompt + drawn,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def _text(drawn: babble.Completion) -> str:
    """Return the text without the stop string that ended it."""
    text = babble.decode(drawn.tokens)
    return text if drawn.stop is None else text[: text.find(drawn.stop)]


def _before(prompt: Sequence[int], most: int) -> Iterable[Json]:
    """Tell, in vLLM's way, the log-probabilities at each place of a prompt but the first."""
    state = 0
    for read, token in pairwise(prompt):
        state = babble.read((read,), state)
        found = babble.logprobs(state)
        ranks = {one: i + 1 for i, one in enumerate(babble.likeliest(state, babble.SIZE))}
        told = {token: None} | dict.fromkeys(babble.likeliest(state, most))
        yield {
            str(one): {"logprob": found[one], "rank": ranks[one], "decoded_token": babble.decode((one,))}
            for one in told
        }


def _name(token: int, by_id: bool) -> str:
    return f"token_id:{token}" if by_id else _spoken((token,))


def _told(token: int) -> Json:
    piece = babble.PIECES[token]
    return {"id": token, "token": piece.decode(errors="replace"), "bytes": list(piece)}


def _piece(token: int) -> str | list[int]:
    """Return a token's text, or its bytes where they are none."""
    try:
        return _spoken((token,)) if token < len(babble.SPECIAL) else babble.PIECES[token].decode()
    except UnicodeDecodeError:
        return list(babble.PIECES[token])


def _spoken(tokens: Sequence[int]) -> str:
    """Turn tokens into text, special ones into their names."""
    names = [name.encode() for name in babble.SPECIAL]
    pieces = [names[t] if t < len(names) else babble.PIECES[t] for t in tokens]
    return b"".join(pieces).decode(errors="replace")


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two texts begin with together."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _vllm_error(status: int, message: str, kind: str = "BadRequestError") -> Refused:
    return Refused(status, {"error": {"message": message, "type": kind, "param": None, "code": status}})


def _llama_error(status: int, message: str, kind: str = "invalid_request_error", **more: int) -> Refused:
    return Refused(status, {"error": {"code": status, "message": message, "type": kind, **more}})
