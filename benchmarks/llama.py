"""Count what a RAIN answer costs llama-server: prompt tokens read and found in its cache, request by request.

    python -m benchmarks.llama [--slots 8]

Starts llama-server with the embedded model as it is packed. All counts are from the ``timings`` of its
replies, so they do not depend on the machine's load while answers are written one after another.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from benchmarks.servers import OPENINGS, documents
from rain_llm import Rain, RainSettings
from rain_llm.models.local.embedded import embedded_file
from rain_llm.models.servers.attempt import Attempts
from rain_llm.types import Message, Prompt
from tests.servers.llama_server import CONTEXT
from tests.servers.process import Server

QUESTIONS = ("What is the capital of France?", "How do I bake bread?", "Write two sentences about the sea.")
CHATS = [[Message("user", question)] for question in QUESTIONS]


@dataclass(frozen=True)
class Asked:
    """One completion request.

    Attributes:
        prompt: its tokens. label: it asks for log-probabilities only.
        read, found: tokens of the prompt that were evaluated, and that were in the cache. drawn: tokens.
        known: tokens that an earlier request had with the same beginning; the last one is always evaluated.
    """

    prompt: tuple[int, ...]
    label: bool
    read: int
    found: int
    drawn: int
    known: int


@dataclass
class Load:
    """The requests of some answers, in the order of their replies."""

    asked: list[Asked] = field(default_factory=list)
    _texts: list[tuple[int, ...]] = field(default_factory=list)

    def add(self, body: dict[str, Any], content: bytes) -> None:
        """Add a request and its reply."""
        text = content.decode()
        parts = [line.removeprefix("data: ") for line in text.splitlines()] if body.get("stream") else [text]
        events = [json.loads(part) for part in parts if part.startswith("{")]
        timings = [event["timings"] for event in events if "timings" in event][-1]
        choices = [choice for event in events for choice in event.get("choices", ())]
        drawn = [place["id"] for one in choices for place in (one["logprobs"] or {}).get("content", ())]
        prompt = tuple(body["prompt"])
        known = max((_common(prompt, other) for other in self._texts), default=0)
        self._texts.append((*prompt, *(drawn[:-1] if body.get("n", 1) == 1 else ())))
        read, found, count = (timings[name] for name in ("prompt_n", "cache_n", "predicted_n"))
        known = min(known, len(prompt) - 1)
        self.asked.append(Asked(prompt, "logit_bias" in body, read, found, count, known))

    @property
    def labels(self) -> list[Asked]:
        """The requests for labels."""
        return [asked for asked in self.asked if asked.label]

    @property
    def found(self) -> float:
        """Share of the tokens that the server had read before which it found in its cache."""
        return sum(asked.found for asked in self.asked) / max(1, sum(asked.known for asked in self.asked))

    def __str__(self) -> str:
        prompt, read = sum(len(asked.prompt) for asked in self.asked), sum(a.read for a in self.asked)
        labels = self.labels
        each = sum(asked.read for asked in labels) / max(1, len(labels))
        return (
            f"{len(self.asked)} requests, {len(labels)} of them for labels; {read} of {prompt} prompt tokens "
            f"read ({1 - read / prompt:.1%} cached), {self.found:.1%} of those read before were found; "
            f"{sum(asked.drawn for asked in self.asked)} drawn; {each:.1f} tokens read a label request"
        )


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


@contextlib.contextmanager
def counted() -> Iterator[Load]:
    """Count the completion requests that this process sends meanwhile."""
    load, send = Load(), Attempts.send

    async def watched(self: Attempts, replica: Any, method: str, path: str, content: Any, **how: Any) -> Any:
        reply = await send(self, replica, method, path, content, **how)
        if path == "/v1/completions" and reply.status == 200:
            load.add(json.loads(content), reply.body)
        return reply

    with patch.object(Attempts, "send", watched):
        yield load


def answers(url: str, criterion: str, tokens: int, prompts: Sequence[Prompt]) -> Load:
    """Write an answer to each prompt, one after another, and count; calibration comes before."""
    settings = RainSettings().updated(
        model={"base_url": url},
        evaluation={"criteria": [criterion]},
        generation={"max_new_tokens": tokens, "seed": 0},
        on_unsafe="best",  # a refusal would end the answer that is counted
    )
    rain = Rain(settings)
    with counted() as load:
        for hello in ("Hello there", [Message("user", "Hello there")]):
            rain.generate(hello, settings=settings.updated(generation={"max_new_tokens": 2}))
        load.asked.clear()
        for prompt in prompts:
            rain.generate(prompt)
    return load


def main() -> None:
    """Start llama-server, count, and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.llama", description=__doc__)
    parser.add_argument("--slots", type=int, default=8)
    options = parser.parse_args()
    command = [sys.executable, "-m", "tests.servers.llama_server", "--model", str(embedded_file())]
    command += ["--port", "{port}", "--parallel", str(options.slots), "--ctx", str(CONTEXT)]
    with Server(command) as server:
        print(f"3 chats: {answers(server.url, 'harmlessness', 64, CHATS)}", flush=True)
        print(f"3 documents: {answers(server.url, 'harmlessness', 64, documents(3))}", flush=True)
        print(f"3 openings: {answers(server.url, 'positive_sentiment', 32, OPENINGS[:3])}", flush=True)


if __name__ == "__main__":
    main()
