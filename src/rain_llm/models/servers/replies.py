"""Read the continuations in a completion reply, and check that they are what was asked for.

Status 200 proves little, so everything is counted: as many continuations as were asked for, by the model
that was asked, a log-probability for each token, nothing cut short.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rain_llm.models.servers.dialect import Completion, SampleRequest
from rain_llm.models.servers.reading import Malformed, Node, Unreadable, is_number, shown, token_ids

NONSENSE = -9000.0
"""Nats: vLLM's sampler fills rows with -9999; no log-probability is below this bound."""

_ROUNDING = 1e-2  # nats by which a log-probability may be above 0
_DIGITS = 9  # of a token id


def choices_of(reply: Any, count: int, model: str) -> list[Node]:
    """Return the continuations of a reply, in order of their index.

    Raises:
        Unreadable: there are more or fewer than ``count``, or another model has written them.
    """
    found = Node(reply)
    if not found["choices"].there:
        raise Malformed("answered with JSON that is not a completion")
    choices = found["choices"].items()
    if found.value.get("model", model) != model:  # llama-server takes any name
        raise Unreadable(f"answered as {shown(found['model'].value)} when {model!r} was asked")
    if len(choices) != count:
        raise Unreadable(f"returned {len(choices)} continuations, not {count}: it ignores n")
    places = [
        choice["index"].whole(0, count - 1) if choice["index"].there else i
        for i, choice in enumerate(choices)
    ]
    if len(set(places)) != count:
        raise Malformed("returned two continuations with the same index")
    return [choice for _, choice in sorted(zip(places, choices, strict=True), key=lambda pair: pair[0])]


def drawn_from(tokens: Any, logprobs: Any, sampling: SampleRequest, finish: Any, size: int) -> Completion:
    """Check one continuation, and return it.

    Args:
        tokens: their ids, all below ``size``.
        logprobs: one for each token, nats.
        sampling: what was asked for.
        finish: the server's reason for ending it.
        size: of the vocabulary.

    Raises:
        Unreadable: ids or log-probabilities are missing, or it was cut short.
    """
    if not isinstance(tokens, list) or None in tokens:
        raise Unreadable("returned no token ids for what it drew")
    if not isinstance(logprobs, list) or len(logprobs) != len(tokens):
        raise Unreadable(f"did not return a log-probability for each of {len(tokens)} tokens")
    if not tokens:
        raise Unreadable("drew no token")
    if len(tokens) > sampling.max_tokens:
        raise Malformed(f"drew {len(tokens)} tokens, more than max_tokens={sampling.max_tokens}")
    drawn = token_ids(tokens, size, "what it drew")
    if finish == "length" and len(tokens) < sampling.max_tokens:
        raise Unreadable(
            f"wrote {len(tokens)} of {sampling.max_tokens} tokens: its context is smaller than it reports"
        )
    if finish not in ("length", "stop"):
        raise Unreadable(f"ended a text with the finish_reason {shown(finish)}")
    return Completion(drawn, tuple(map(nats, logprobs)))


def nats(found: Any) -> float:
    """Read a log-probability, nats.

    Raises:
        Unreadable: it is not a number, not finite, or above 0.
    """
    if not is_number(found) or not NONSENSE < found < _ROUNDING:
        raise Malformed(f"returned {shown(found)} as a log-probability")
    return float(found)


def numbered(names: Mapping[str, Any], size: int, prefix: str = "") -> dict[int, Any]:
    """Return the values of an object by token id; its fields' names are ``prefix`` and the id.

    Raises:
        Malformed: a name is not a token id below ``size``.
    """
    found: dict[int, Any] = {}
    for name, value in names.items():
        digits = name.removeprefix(prefix)
        if not (digits.isascii() and digits.isdigit() and len(digits) <= _DIGITS and int(digits) < size):
            raise Malformed(f"returned {shown(name)} as a token id below {size:,}")
        found[int(digits)] = value
    return found
