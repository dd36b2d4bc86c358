"""Whole runs of the scripted model, written down: what was asked, what was said, what came of it.

Each file in ``tests/golden`` holds some runs. They pin what the library does today, byte for byte, at the
model's side and at the user's side; nothing inside the search is looked at. A change that means to change
nothing leaves them as they are. ``python -m tests.test_golden --write`` writes them anew, and ``--hashes``
writes only the hashes of the settings anew.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeAlias, cast
from unittest.mock import patch

import numpy as np
import pytest

from rain_llm import (
    GROUNDEDNESS,
    HARMLESS_ACTIONS,
    HARMLESSNESS,
    Calibration,
    Criterion,
    Message,
    ModelError,
    Rain,
    RainError,
    RainResult,
    RainSettings,
    SentenceVerdict,
    Step,
    Task,
    Tool,
    ToolCall,
    Verdict,
)
from rain_llm.criteria.criterion import Guard
from rain_llm.models.scripted import END, ScriptedModel
from rain_llm.requests import Sample, Samples, Score, Scores, Vector
from rain_llm.types import Candidate, TokenIds

FOLDER = Path(__file__).parent / "golden"
Record: TypeAlias = dict[str, Any]
Asks: TypeAlias = Callable[["Bench"], Record]

# --- settings: the only place that knows where a field stands ------------------------------------------

SECTIONS = {
    "generation": ("max_new_tokens", "temperature", "top_k", "top_p", "stop", "seed", "chat_template"),
    "evaluation": ("criteria", "actions", "style", "mode", "swap", "examples", "sentences"),
    "": ("on_unsafe", "refusal"),
}
RENAMED = {"judge_template": ("evaluation", "chat_template")}
"""Where settings stand; any other is the search's."""

GOOD = Criterion(name="good", labels=(("good", "bad"),), frames=("Text: {answer}\nIt is",), calibration=None)
"""Is shown the answer alone; its log-odds are its evidence."""

BRIGHT = Criterion(
    name="bright",
    labels=(("bright", "dark"), ("clear", "dim")),
    frames=("{text} is", "Text: {answer}\nIt is"),
    guide="Be bright.",
    threshold=0.4,
    target=0.6,
    weight=2.0,
    calibration=Calibration(center="content_free", scale=0.5),
)
"""Is asked twice in two ways, after a calibration, and has a guide."""

HONEST = Criterion(
    name="honest", labels=(("good", "bad"),), frames=("Action: {answer} is",), calibration=None
)


def changed(settings: RainSettings, **changes: Any) -> RainSettings:
    """Change some fields of settings, named without their sections."""
    parts: dict[str, Any] = {}
    for name, value in changes.items():
        section = next((section for section, names in SECTIONS.items() if name in names), "search")
        section, own = RENAMED.get(name, (section, name))
        if section:
            parts.setdefault(section, {})[own] = value
        else:
            parts[name] = value
    return settings.updated(**parts)


def usual(**changes: Any) -> RainSettings:
    """The default settings, with a shorter answer."""
    return changed(RainSettings(), **{"max_new_tokens": 30, **changes})


def drafting(**changes: Any) -> RainSettings:
    """A search that keeps its drafts and commits by verdict, in small steps."""
    small = {
        "max_new_tokens": 24,
        "seed": 3,
        "token_set_lengths": (2, 4),
        "strategy": "keep_drafts",
        "simulation_ends": "sentence",
        "simulation_tokens": 8,
        "iterations": 7,
        "criteria": [GOOD],
        "style": "labels",
        "mode": "soft",
        "examples": False,
        "on_unsafe": "best",
    }
    return changed(RainSettings(), **{**small, **changes})


def paper(**changes: Any) -> RainSettings:
    """The paper's search, made short."""
    small = {
        "max_new_tokens": 12,
        "seed": 3,
        "iterations": 12,
        "extra_iterations": 4,
        "min_visits": 3,
        "width": 4,
        "simulation_tokens": 6,
        "similarity": {"threshold": 0.8},
        "criteria": [GOOD.model_copy(update={"threshold": 0.35})],
        "style": "labels",
        "mode": "soft",
        "examples": False,
    }
    return changed(RainSettings.preset("paper"), **{**small, **changes})


def preset(name: str, **changes: Any) -> RainSettings:
    """One of the paper's presets with its own questions, made short."""
    small = {"max_new_tokens": 8, "iterations": 8, "extra_iterations": 3, "min_visits": 2, "width": 3}
    return changed(RainSettings.preset(name), **{**small, "simulation_tokens": 6, **changes})


def formed(**changes: Any) -> RainSettings:
    """Settings for calls and documents."""
    fine = {"criteria": [KIND], "actions": [HONEST], "max_new_tokens": 60}
    return changed(RainSettings(), **{**fine, **changes})


def grounded(**changes: Any) -> RainSettings:
    """Settings for answers with passages."""
    by_words = GROUNDEDNESS.model_copy(
        update={"style": "labels", "target": None, "calibration": None, "guide": ""}
    )
    fine = {"criteria": [by_words], "max_new_tokens": 32, "iterations": 4}
    return changed(RainSettings(), **{**fine, "refusal": "The passages do not say.", **changes})


GUARDED = Criterion(name="guarded", guard=Guard(), style="guard")
"""Asks a guard model."""

KIND = Criterion(
    name="kind", labels=(("good", "bad"),), frames=("{text} is",), calibration=None, guide="Be good."
)

# --- worlds: what the model writes, and what it thinks of it -------------------------------------------

_PAIRS = [*HARMLESSNESS.labels, *HARMLESS_ACTIONS.labels, *GROUNDEDNESS.labels, *GOOD.labels, *BRIGHT.labels]
_GOOD_WORDS, _BAD_WORDS = ({pair[side] for pair in _PAIRS} for side in (0, 1))
_WORDS = re.compile(r"\s*\w+|\s*[^\w\s]|\s+")


def noise(text: str) -> float:
    """A number in [0, 1) that depends on every letter."""
    return (zlib.crc32(text.encode()) % 1000) / 1000


def babble(text: str) -> Mapping[str, float]:
    """Words with probabilities that depend on all text before them; the judge likes "glow", not "murk"."""
    chances = zlib.crc32(text.encode())
    if text.endswith("."):
        return {END: 1.0 + chances % 2, " Oh": 2.0, " So": 1.0}
    return {
        " la": 1.0 + chances % 7,
        " li": 1.0 + chances % 5,
        " glow": 1.0 + chances % 3,
        " murk": 2.0 + chances % 4,
        ".": 1.0,
        ",": 0.5,
    }


def gloom(text: str) -> Mapping[str, float]:
    """Nothing good is written."""
    return {" murk": 3.0, " la": 1.0} if not text.endswith("murk") else {".": 1.0, " murk": 1.0, END: 0.5}


def turning(text: str) -> Mapping[str, float]:
    """A good first sentence, and nothing good behind it."""
    if text.endswith("glow"):
        return {".": 1.0}
    if text.endswith(" and so"):
        return {" glow": 1.0}
    return {" murk": 1.0, " So": 0.2, ".": 0.5}


def taste(question: str, label: str) -> float:
    """Weigh words and letters by what the question shows; anything else by chance."""
    word = label.strip()
    odds = 1.3 * question.count("glow") - question.count("murk") + 2 * noise(question) - 1.2
    for bad in ("thief", "vile", "wine", "ten."):
        odds -= 6.0 * (bad in question.rpartition("Answer:")[2])
    odds += 1.5 * ("do it" in question or "Action" in question or "ferry" in question)
    odds = min(2.5, max(-2.5, odds)) / 2
    if word in ("A", "B"):
        last = question.rpartition("(A) ")[2]
        good_first = HARMLESSNESS.choice is not None and last.startswith(HARMLESSNESS.choice.good)
        return -3.0 + (odds if (word == "A") == good_first else -odds)
    if word in _GOOD_WORDS or word == "Yes":
        return -3.0 + odds
    if word in _BAD_WORDS or word == "No":
        return -3.0 - odds
    return -1.0 - 3 * noise(question + label)


def says(mark: str, *answers: tuple[str, float]) -> Callable[[str], Mapping[str, float]]:
    """Know whole answers, with weights, to what ends with ``mark``."""

    def next_words(text: str) -> Mapping[str, float]:
        said = text.rpartition(mark)[2].removeprefix("\n</tool_response>").removeprefix("Be good.\n\n")
        words: dict[str, float] = {}
        for answer, weight in answers:
            if answer.startswith(said):
                rest = _WORDS.findall(answer[len(said) :])
                word = rest[0] if rest else END
                words[word] = words.get(word, 0) + weight
        return words or {END: 1.0}

    return next_words


class LettersEmbedder:
    """Texts of about one length are alike."""

    def embed(self, texts: Sequence[str]) -> list[Vector]:
        sides = [np.array([8.0, len(text) % 23], np.float32) for text in texts]
        return [cast("Vector", side / np.sqrt((side * side).sum())) for side in sides]


# --- the model's side: everything that was asked, in order ---------------------------------------------


@dataclass(eq=False)
class Job:
    """One request that is being answered, pass by pass."""

    request: Sample | Score
    row: Record
    whole: Samples | Scores | None = None
    reply: Samples | Scores | None = None
    model_tokens: int = 0
    forwards: int = 0


@dataclass(eq=False)
class Recorder:
    """A model that writes down what it is asked; it answers whole batches.

    Attributes:
        model: answers. rows: one for each request, in the order in which they came.
        called: rows say who was asked, where there is another judge.
        fails_at: the pass at which it fails.
    """

    model: ScriptedModel
    rows: list[Record]
    clock: list[float]
    called: str = ""
    fails_at: int | None = None
    lock: Any = field(default_factory=threading.RLock)

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def context_length(self) -> int:
        return self.model.context_length

    @property
    def start(self) -> TokenIds:
        return self.model.start

    def encode(self, text: str) -> TokenIds:
        return self.model.encode(text)

    def decode(self, tokens: TokenIds) -> str:
        return self.model.decode(tokens)

    def render_chat(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> TokenIds:
        return self.model.render_chat(messages, tools)

    def sample(self, batch: Sequence[Sample]) -> list[Samples]:
        return cast("list[Samples]", self._batch(batch))

    def score(self, batch: Sequence[Score]) -> list[Scores]:
        return cast("list[Scores]", self._batch(batch))

    def _batch(self, batch: Sequence[Sample | Score]) -> list[Samples | Scores]:
        with self.lock:
            now = self.tick()
            rows = [self.row(request) for request in batch]
            replies = [self.answer(request) for request in batch]
            for row, reply in zip(rows, replies, strict=True):
                row |= {"passes": [now, now], "reply": self.reply(reply)}
            return replies

    def tick(self) -> int:
        """Count a pass: it takes a second."""
        self.clock[0] += 1
        passed = int(self.clock[0])
        if self.fails_at is not None and passed >= self.fails_at:
            raise ModelError("the script is at its end")
        return passed

    def answer(self, request: Sample | Score) -> Samples | Scores:
        if isinstance(request, Sample):
            return self.model.sample([request])[0]
        return self.model.score([request])[0]

    def row(self, request: Sample | Score) -> Record:
        """Write a request down: what is as usual is left out."""
        row: Record = {"of": self.called} if self.called else {}
        if isinstance(request, Sample):
            row |= {"kind": "sample", "prefix": self.prefix(request.prefix), "width": request.n}
            row |= {"length": request.max_tokens, "seed": request.seed}
            more = {
                "temperature": (request.temperature, 1.0),
                "top_k": (request.top_k, 0),
                "top_p": (request.top_p, 1.0),
                "greedy_first": (request.greedy_first, False),
                "ranked": (request.ranked, False),
                "ends": (crowd(request.ends), []),
                "schema": (request.schema, ""),
            }
            row |= {name: short(value) for name, (value, as_usual) in more.items() if value != as_usual}
        else:
            row |= {"kind": "score", "prefix": self.prefix(request.prefix)}
            row["options"] = crowd([self.words(option) for option in request.options])
        self.rows.append(row)
        return row

    def reply(self, reply: Samples | Scores) -> Any:
        """Write a reply down: of each continuation its words, log-probabilities, end and their sum."""
        if isinstance(reply, Scores):
            return crowd(reply.logprobs)
        return [
            [self.words(found.tokens), crowd(found.logprobs, 1), found.ended, found.logprob]
            for found in reply.continuations
        ]

    def prefix(self, tokens: TokenIds) -> str:
        """Write tokens down: how many, a name that no others have, and the last 8 as text."""
        return f"{len(tokens)} {named(','.join(map(str, tokens)))} {self.decode(tokens[-8:])}"

    def words(self, tokens: TokenIds) -> str:
        """Write tokens down one by one."""
        return "|".join(self.decode((token,)) or f"<{token}>" for token in tokens)


class Stepped(Recorder):
    """A model that answers pass by pass, so that searches join and leave: a token takes a pass."""

    def begin(self, request: Sample | Score) -> Job:
        with self.lock:
            job = Job(request, self.row(request))
            job.row["passes"] = [int(self.clock[0]) + 1]
            return job

    def step(self, jobs: Sequence[Any]) -> None:
        with self.lock:
            now = self.tick()
            for job in cast("Sequence[Job]", jobs):
                whole = job.whole = job.whole or self.answer(job.request)
                job.forwards += 1
                job.model_tokens = min(whole.model_tokens, len(job.request.prefix) + job.forwards - 1)
                if job.forwards >= whole.forwards:
                    job.model_tokens, job.reply = whole.model_tokens, whole
                    job.row["passes"].append(now)
                    job.row["reply"] = self.reply(whole)


@dataclass(eq=False)
class RecordingEmbedder:
    """Writes down what is to be embedded."""

    rows: list[Record]

    def embed(self, texts: Sequence[str]) -> list[Vector]:
        vectors = LettersEmbedder().embed(texts)
        reply = named(",".join(vector.tobytes().hex() for vector in vectors))
        self.rows.append({"kind": "embed", "texts": list(texts), "reply": reply})
        return vectors


def named(text: str) -> str:
    return blake2b(text.encode(), digest_size=5).hexdigest()


def crowd(items: Sequence[Any], most: int = 4) -> list[Any]:
    """Write many items down as the first, how many there are, and a name that no others have."""
    return list(items) if len(items) <= most else [items[0], f"{len(items)} {named(compact(list(items)))}"]


def short(value: Any) -> Any:
    """Write a long text down as its beginning and a name that no other has."""
    return f"{value[:24]}... {named(value)}" if isinstance(value, str) and len(value) > 40 else value


# --- the user's side -----------------------------------------------------------------------------------


def plain_verdict(verdict: Verdict | None) -> Any:
    """Score, passed, on target, and for each criterion: name, probability, threshold, passed, on target and
    log-odds."""
    if verdict is None:
        return None
    criteria = [
        [c.name, c.probability, c.threshold, c.passed, c.on_target, c.log_odds] for c in verdict.criteria
    ]
    return [verdict.score, verdict.passed, verdict.on_target, criteria]


def plain_candidate(c: Candidate, depth: int = 1) -> Any:
    """Text, prior, visits, weight, value, best, chosen; and the children, where there are some.

    What is further down is written as how many there are, and a name that no others have.
    """
    children = [plain_candidate(child, depth + 1) for child in c.children]
    below = [children if depth < 2 else f"{len(children)} {named(compact(children))}"] if children else []
    return [c.text, c.prior, c.visits, c.weight, c.value, c.best, c.chosen, *below]


def plain_calls(calls: Sequence[ToolCall]) -> Any:
    return [{"name": call.name, "arguments": dict(call.arguments), "id": call.id} for call in calls]


def plain_sentence(s: SentenceVerdict) -> Record:
    record = {"index": s.index, "start": s.start, "end": s.end, "verdict": plain_verdict(s.verdict)}
    return record | {"passage": s.passage, "passage_text": s.passage_text, "text": s.text}


def plain_step(step: Step, words: Callable[[TokenIds], str]) -> Record:
    record = {
        "text": step.text,
        "tokens": words(step.tokens),
        "accepted": step.accepted,
        "refusal": step.refusal,
        "verdict": plain_verdict(step.verdict),
        "iterations": step.iterations,
        "candidates": [plain_candidate(candidate) for candidate in step.candidates],
    }
    return record | ({"tool_calls": plain_calls(step.tool_calls)} if step.tool_calls else {})


def plain_result(result: RainResult, words: Callable[[TokenIds], str], steps: bool = True) -> Record:
    """Everything in a result; the steps of its trace may stand elsewhere already."""
    usage = result.usage
    record = {
        "text": result.text,
        "verdict": plain_verdict(result.verdict),
        "stop_reason": result.stop_reason.value,
        "accepted": result.accepted,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "output_tokens": usage.output_tokens,
            "model_tokens": usage.model_tokens,
            "evaluation_tokens": usage.evaluation_tokens,
            "forwards": usage.forwards,
            "evaluations": usage.evaluations,
            "iterations": usage.iterations,
            "embeddings": usage.embeddings,
            "cached_tokens": usage.cached_tokens,
        },
        "seed": result.trace.seed,
        "model": result.trace.model,
        "tool_calls": plain_calls(result.tool_calls),
        "sentences": [plain_sentence(sentence) for sentence in result.sentences],
    }
    assert result.settings_hash == result.trace.settings_hash
    shown_steps = {"steps": [plain_step(step, words) for step in result.trace.steps]} if steps else {}
    return record | shown_steps | {"settings_hash": result.settings_hash}


def plain_error(error: Exception, words: Callable[[TokenIds], str], steps: bool = True) -> Record:
    record: Record = {"error": type(error).__name__, "says": str(error)}
    result = getattr(error, "result", None)
    return record | ({"result": plain_result(result, words, steps)} if result is not None else {})


# --- a run ---------------------------------------------------------------------------------------------


class Bench:
    """A model that is watched, and a Rain with it.

    Args:
        settings: of the Rain.
        words: what the model writes.
        stepped: it answers pass by pass; else whole batches.
        judge: there is another model as judge.
        fails_at: the pass at which the model fails.
        context_length: of the model.
        timed: the clock goes by passes.
        opinion: what it thinks.
    """

    def __init__(
        self,
        settings: RainSettings,
        words: Callable[[str], Mapping[str, float]] = babble,
        stepped: bool = True,
        judge: bool = False,
        fails_at: int | None = None,
        context_length: int = 4096,
        timed: bool = False,
        opinion: Callable[[str, str], float] = taste,
    ) -> None:
        self.rows: list[Record] = []
        self.clock = [0.0]
        self.timed = timed
        made = Stepped if stepped else Recorder
        scripted = ScriptedModel(words, opinion, context_length=context_length)
        self.writer = made(scripted, self.rows, self.clock, "writer" if judge else "", fails_at)
        other = (
            made(ScriptedModel(words, opinion, "judge"), self.rows, self.clock, "judge") if judge else None
        )
        self.rain = Rain(settings, model=self.writer, judge=other, embedder=RecordingEmbedder(self.rows))

    def run(self, *asks: Asks) -> Record:
        """Ask one thing after the other; write everything down."""
        record: Record = {}
        for place, ask in enumerate(asks):
            self.rows.clear()
            self.clock[0] = 0.0
            ticking = patch("time.monotonic", lambda: self.clock[0]) if self.timed else nullcontext()
            with ticking, warnings.catch_warnings(record=True) as met:
                warnings.simplefilter("always")
                answer = ask(self)
            said = {"warnings": [str(warning.message) for warning in met]} if met else {}
            part = {"requests": list(self.rows)} | answer | said
            record |= {str(place): part} if len(asks) > 1 else part
        return record

    def words(self, tokens: TokenIds) -> str:
        return self.writer.words(tokens)


def caught(bench: Bench, ask: Callable[[], Record], steps: bool = True) -> Record:
    try:
        return ask()
    except RainError as error:  # a run may be meant to end in one; any other error fails the test
        return plain_error(error, bench.words, steps)


def follow(bench: Bench, stream: Iterator[Step]) -> Record:
    """Listen to a stream up to its end, or its error."""
    steps: list[Record] = []

    def listen() -> Record:
        for step in stream:
            steps.append(plain_step(step, bench.words))
            if step.result is not None:
                result = plain_result(step.result, bench.words)
                assert result.pop("steps") == steps[:-1]
                return {"result": result}
        raise AssertionError("a stream ends with a result")

    end = caught(bench, listen, steps=False)
    return {"steps": steps} | end


def stream(prompt: Any, **asked: Any) -> Asks:
    return lambda bench: caught(bench, lambda: follow(bench, bench.rain.stream(prompt, **asked)))


def generate(prompt: Any, **asked: Any) -> Asks:
    return lambda bench: caught(
        bench, lambda: {"result": plain_result(bench.rain.generate(prompt, **asked), bench.words)}
    )


def later(prompt: Any, **asked: Any) -> Asks:
    """Ask from an event loop."""
    return lambda bench: caught(
        bench,
        lambda: {"result": plain_result(asyncio.run(bench.rain.agenerate(prompt, **asked)), bench.words)},
    )


def batch(prompts: Sequence[Any], **asked: Any) -> Asks:
    return lambda bench: caught(
        bench,
        lambda: {
            "results": [plain_result(r, bench.words) for r in bench.rain.generate_batch(prompts, **asked)]
        },
    )


def plain_batch(prompts: Sequence[Any], **asked: Any) -> Asks:
    return lambda bench: caught(
        bench,
        lambda: {"results": [plain_result(r, bench.words) for r in bench.rain.plain_batch(prompts, **asked)]},
    )


def plain(prompt: Any, **asked: Any) -> Asks:
    return lambda bench: caught(
        bench, lambda: {"result": plain_result(bench.rain.plain(prompt, **asked), bench.words)}
    )


def plain_stream(prompt: Any, **asked: Any) -> Asks:
    return lambda bench: caught(bench, lambda: follow(bench, bench.rain.plain_stream(prompt, **asked)))


def judge(prompt: Any, text: str, **asked: Any) -> Asks:
    return lambda bench: caught(
        bench, lambda: {"verdict": plain_verdict(bench.rain.judge(prompt, text, **asked))}
    )


def judge_sentences(prompt: Any, text: str, **asked: Any) -> Asks:
    return lambda bench: caught(
        bench,
        lambda: {"sentences": [plain_sentence(s) for s in bench.rain.judge_sentences(prompt, text, **asked)]},
    )


# --- the runs ------------------------------------------------------------------------------------------

PROMPTS = [f"{word} and so" for word in ("One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight")]
CHAT = [
    Message("system", "Be short."),
    Message("user", "Tell me."),
    Message("assistant", "What?"),
    Message("user", "A tale"),
]


def default_runs() -> dict[str, Record]:
    runs = {
        f"seed {seed}": Bench(usual(seed=seed)).run(stream(PROMPTS[seed % 8])) for seed in (0, 1, 2, 3, 4, 5)
    }
    return runs | {
        "as they are": Bench(RainSettings()).run(generate("Tell me\nNow: and so")),
        "twice of one": Bench(usual()).run(stream(PROMPTS[0]), stream(PROMPTS[1])),
        "chat": Bench(usual(seed=7)).run(stream(CHAT)),
        "template": Bench(usual(seed=8, chat_template=True)).run(stream(PROMPTS[2])),
        "whole batches": Bench(usual(seed=2), stepped=False).run(stream(PROMPTS[2])),
        "another judge": Bench(usual(seed=3), judge=True).run(stream(PROMPTS[3])),
        "later": Bench(usual(seed=4)).run(later(PROMPTS[4])),
        "stop": Bench(usual(seed=5, stop=("li.", " So"))).run(stream(PROMPTS[5])),
        "short": Bench(usual(seed=6, max_new_tokens=5)).run(stream(PROMPTS[6])),
        "blind": Bench(drafting(iterations=9, max_new_tokens=10), opinion=lambda asked, label: -1.0).run(
            stream(PROMPTS[0])
        ),
        "too long": Bench(usual(), context_length=20).run(generate(PROMPTS[0] * 5)),
        "no room for a guide": Bench(usual(seed=1, max_new_tokens=20), context_length=30).run(
            stream(PROMPTS[1])
        ),
    }


def draft_runs() -> dict[str, Record]:
    asked: dict[str, dict[str, Any]] = {
        "usual": {},
        "three leaves": {"leaves": 3},
        "four leaves, hard": {"leaves": 4, "mode": "hard", "iterations": 9},
        "no foresight": {"prefetch": False},
        "long sets": {"token_set_lengths": (3, 1, 6), "iterations": 12},
        "single tokens": {"token_set_lengths": (1,), "max_new_tokens": 12},
        "drawn otherwise": {"temperature": 0.7, "top_k": 4, "top_p": 0.9},
        "values as they are": {"normalise_values": False, "exploration": 2.0, "widening": 2.5},
        "guided": {"criteria": [BRIGHT]},
        "not guided": {"criteria": [BRIGHT], "guided": False},
        "two criteria": {"criteria": [GOOD, BRIGHT], "iterations": 9, "leaves": 2},
        "deep": {
            "token_set_lengths": (1,),
            "simulation_ends": "answer",
            "max_new_tokens": 44,
            "iterations": 3,
            "criteria": [GOOD.model_copy(update={"threshold": 0.9})],
        },
        "high target": {"criteria": [GOOD.model_copy(update={"target": 0.85})], "iterations": 14},
    }
    return {
        f"{name}, {place}": Bench(drafting(seed=10 + place, **changes)).run(stream(PROMPTS[place]))
        for name, changes in asked.items()
        for place in (0, 1)
    }


def iteration_runs() -> dict[str, Record]:
    def worth(good: int | None, bright: int | None) -> list[Criterion]:
        steering = GOOD.model_copy(update={"target": 0.9, "threshold": 0.3, "iterations": good})
        return [steering, BRIGHT.model_copy(update={"target": 0.8, "iterations": bright})]

    return {
        f"{good} {bright} seed {seed}": Bench(
            drafting(criteria=worth(good, bright), iterations=9, seed=seed, max_new_tokens=16)
        ).run(stream(PROMPTS[seed]))
        for good, bright in ((2, None), (None, 3), (1, 4), (5, 2))
        for seed in (0, 1)
    }


def end_runs() -> dict[str, Record]:
    runs = {
        f"{ends} seed {seed}": Bench(drafting(simulation_ends=ends, seed=seed)).run(stream(PROMPTS[seed]))
        for ends in ("answer", "punctuation", "sentence")
        for seed in (0, 1, 2)
    }
    for limit in (1, 2, 7):
        runs[f"length {limit}"] = Bench(drafting(max_new_tokens=limit)).run(stream(PROMPTS[limit]))
    for place, stop in enumerate((" li", ".", " Oh murk", ("glow.", ", la"), " la li glow")):
        runs[f"stop {place}"] = Bench(drafting(stop=stop, seed=place)).run(stream(PROMPTS[place]))
    runs["stop in a chat"] = Bench(drafting(stop=("murk",))).run(stream(CHAT))
    return runs


def paper_runs() -> dict[str, Record]:
    shapes: dict[str, dict[str, Any]] = {
        "bare": {"similarity": None, "addition": None},
        "similar": {"addition": None},
        "added": {"similarity": None, "addition": {"variance": 5.0, "value": 0.6, "max_children": 6}},
        "both": {"addition": {"variance": 5.0, "value": 0.6}},
    }
    runs = {
        f"{name}, foresight {foresight}, leaves {leaves}": Bench(
            paper(prefetch=foresight, leaves=leaves, **shape)
        ).run(stream(PROMPTS[1]))
        for name, shape in shapes.items()
        for foresight in (0, 4)
        for leaves in (1, 4)
    }
    more: dict[str, dict[str, Any]] = {
        "undecided": {"stop_when_decided": False},
        "no mixing": {"root_mixing": 0.0, "similarity": None},
        "hot": {"candidate_temperature": 2.0, "candidate_top_k": 3},
        "by answers": {"simulation_ends": "answer", "similarity": None},
        "hard": {"mode": "hard", "similarity": None},
        "shared": {"similarity": {"threshold": 0.5, "share": 0.6}, "on_unsafe": "best"},
        "the best": {"on_unsafe": "best"},
        "stop": {"stop": (" la",), "on_unsafe": "best"},
    }
    for place, (name, changes) in enumerate(more.items()):
        runs[name] = Bench(paper(seed=place, **changes)).run(stream(PROMPTS[place]))
    runs["whole batches"] = Bench(paper(), stepped=False).run(stream(PROMPTS[5]))
    return runs


def preset_runs() -> dict[str, Record]:
    return {
        f"{name}, {place}": Bench(preset(name, seed=place)).run(stream(PROMPTS[place]))
        for name in ("paper", "paper-adversarial", "paper-truth")
        for place in (0, 1)
    }


PLEASE = [Message("user", "Please do it")]
PAY = Tool(
    "pay",
    "Pay somebody.",
    {"type": "object", "properties": {"to": {"enum": ["shop", "thief"]}}, "required": ["to"]},
)
LOOK = Tool(
    "look",
    "Look something up.",
    {"type": "object", "properties": {"word": {"type": "string", "maxLength": 9}}, "required": ["word"]},
)


def call(name: str, **arguments: str) -> str:
    return (
        "\n<tool_call>\n"
        + json.dumps({"name": name, "arguments": arguments}, separators=(",", ":"))
        + "\n</tool_call>"
    )


SHOP, THIEF, LOOKS = call("pay", to="shop"), call("pay", to="thief"), call("look", word="rain")
PAYS = says("do it", (f"I do.{SHOP}", 2), (f"I do.{THIEF}", 3), (f"It is vile.{SHOP}", 1), ("No.", 1))
CALLS = says("do it", (SHOP.lstrip(), 1), (THIEF.lstrip(), 2), (f"{SHOP}{LOOKS}".lstrip(), 2), ("No.", 1))
PAID = says("do it", (SHOP.lstrip(), 1), (THIEF.lstrip(), 2), (f"{THIEF}{SHOP}".lstrip(), 2))
STEALS = says("do it", (f"I do.{THIEF}", 1))


def tool_task(**asked: Any) -> Task:
    return Task(PLEASE, **{"tools": [PAY, LOOK], **asked})


def tool_runs() -> dict[str, Record]:
    turns = [
        *PLEASE,
        Message("assistant", "", (ToolCall("look", {"word": "rain"}, "call_1"),)),
        Message("tool", "It rains.", name="look", tool_call_id="call_1"),
        Message("user", "Then do it"),
    ]
    runs = {
        f"free, seed {seed}": Bench(formed(seed=seed), PAYS).run(stream(tool_task())) for seed in range(4)
    }
    runs |= {
        f"{choice}, seed {seed}": Bench(formed(seed=seed), CALLS).run(stream(tool_task(tool_choice=choice)))
        for choice in ("any", "none")
        for seed in (0, 1)
    }
    runs |= {
        f"{name}, named": Bench(formed(), words).run(stream(tool_task(tool_choice=name)))
        for name, words in (("pay", PAID), ("look", says("do it", (LOOKS.lstrip(), 1))))
    }
    return runs | {
        "one call": Bench(formed(seed=2), CALLS).run(
            stream(tool_task(tool_choice="any", parallel_calls=False))
        ),
        "refused": Bench(formed(), STEALS).run(stream(tool_task())),
        "raised": Bench(formed(on_unsafe="raise"), STEALS).run(stream(tool_task())),
        "no best call": Bench(formed(on_unsafe="best", iterations=3), STEALS).run(stream(tool_task())),
        "best words": Bench(formed(on_unsafe="best"), says("do it", ("It is vile.", 1))).run(
            stream(tool_task())
        ),
        "no room": Bench(formed(max_new_tokens=12), CALLS).run(generate(tool_task(tool_choice="any"))),
        "leaves": Bench(formed(leaves=3, seed=3), PAYS).run(stream(tool_task())),
        "after a reply": Bench(formed(), PAYS).run(stream(Task(turns, tools=[PAY, LOOK]))),
        "batch": Bench(formed(), PAID).run(batch([tool_task(), tool_task(tool_choice="any"), "do it"])),
        "whole batches": Bench(formed(seed=1), PAYS, stepped=False).run(stream(tool_task())),
    }


SCHEMA = {"type": "object", "properties": {"to": {"enum": ["shop", "thief"]}}, "required": ["to"]}
LIST = {"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True}


def document_runs() -> dict[str, Record]:
    both = says("do it", ('{"to":"shop"}', 1), ('{"to":"thief"}', 3))
    lists = says("do it", ('["a","a"]', 3), ('["a","b"]', 1))
    bad = says("do it", ('{"to":"thief"}', 1))
    words = says("do it", ('"' + "I do " * 9 + '"', 1))
    of = Task(PLEASE, schema=SCHEMA)
    runs = {f"seed {seed}": Bench(formed(seed=seed), both).run(stream(of)) for seed in range(3)}
    return runs | {
        "text prompt": Bench(formed(), both).run(stream(Task("Please do it", schema=SCHEMA))),
        "that must differ": Bench(formed(seed=1), lists).run(stream(Task(PLEASE, schema=LIST))),
        "refused": Bench(formed(iterations=3), bad).run(stream(of)),
        "raised": Bench(formed(iterations=3, on_unsafe="raise"), bad).run(stream(of)),
        "no best": Bench(formed(iterations=3, on_unsafe="best"), bad).run(stream(of)),
        "no room": Bench(formed(max_new_tokens=4), both).run(stream(of)),
        "cut off again and again": Bench(formed(max_new_tokens=4), words).run(
            stream(Task(PLEASE, schema={"type": "string"}))
        ),
        "late": Bench(formed(max_model_tokens=6), both).run(generate(of)),
        "never fits": Bench(formed(max_new_tokens=12), says("do it", ('["a","a"]', 1))).run(
            stream(Task(PLEASE, schema=LIST))
        ),
    }


FERRY, CAFE = "The ferry leaves at nine. It is white.", "The cafe serves tea."
QUESTION = "When does the ferry leave?"
TRUE, WHITE, LATE, WINE = (
    " The ferry leaves at nine.",
    " It is white.",
    " It leaves at ten.",
    " The cafe serves wine.",
)


def grounded_runs() -> dict[str, Record]:
    mixed = says("leave?", (TRUE + WHITE, 2), (TRUE + WINE, 3), (LATE + WHITE, 2), (WINE, 2))
    false = says("leave?", (TRUE + WINE + LATE, 1))
    passages = [FERRY, CAFE]
    own = changed(grounded(), criteria=["groundedness"])
    runs = {
        f"seed {seed}": Bench(grounded(seed=seed), mixed).run(stream(QUESTION, context=FERRY))
        for seed in range(4)
    }
    for way in ("refuse", "raise", "best"):
        for shown in ("verdicts", "texts", "none"):
            asked = grounded(on_unsafe=way, sentences=shown)
            runs[f"{way}, {shown}"] = Bench(asked, false).run(stream(Task(QUESTION, context=passages)))
    return runs | {
        "own question": Bench(grounded(), mixed).run(
            stream(Task("Well: leave?", context=passages, question=QUESTION))
        ),
        "built in": Bench(own, mixed).run(stream(Task(QUESTION, context=passages))),
        "built in and harmless": Bench(
            changed(own, criteria=["harmlessness", "groundedness"], on_unsafe="best"), false
        ).run(stream(Task(QUESTION, context=passages))),
        "no passages": Bench(grounded(), mixed).run(generate(QUESTION)),
    }


def plain_runs() -> dict[str, Record]:
    runs = {f"seed {seed}": Bench(usual(seed=seed)).run(plain_stream(PROMPTS[seed])) for seed in range(4)}
    runs |= {
        f"judged, seed {seed}": Bench(drafting(seed=seed)).run(plain(PROMPTS[seed], judge=True))
        for seed in range(3)
    }
    of = Task(PLEASE, schema=SCHEMA)
    both = says("do it", ('{"to":"shop"}', 1), ('{"to":"thief"}', 3))
    return runs | {
        "long": Bench(usual(max_new_tokens=60, seed=9)).run(plain_stream(PROMPTS[3])),
        "stop": Bench(usual(stop=("murk.", " Oh li"), max_new_tokens=60)).run(plain_stream(PROMPTS[1])),
        "chat": Bench(usual(seed=5)).run(plain_stream(CHAT)),
        "calls": Bench(formed(seed=1), PAYS).run(plain(tool_task(), judge=True)),
        "calls, streamed": Bench(formed(seed=2), PAYS).run(plain_stream(tool_task())),
        "forced": Bench(formed(), CALLS).run(plain_stream(tool_task(tool_choice="any"))),
        "forced, no room": Bench(formed(max_new_tokens=9), CALLS).run(
            plain_stream(tool_task(tool_choice="any"))
        ),
        "document": Bench(formed(), both).run(plain(of, judge=True)),
        "document, streamed": Bench(formed(seed=3), both).run(plain_stream(of)),
        "document, no room": Bench(formed(max_new_tokens=4), both).run(plain_stream(of)),
        "grounded": Bench(grounded(), says("leave?", (TRUE + WINE, 1))).run(
            plain(Task(QUESTION, context=[FERRY, CAFE]), judge=True)
        ),
        "batch": Bench(drafting()).run(plain_batch(PROMPTS[:5], judge=True)),
        "whole batches": Bench(drafting(), stepped=False).run(plain(PROMPTS[0], judge=True)),
    }


def unsafe_runs() -> dict[str, Record]:
    runs: dict[str, Record] = {}
    for way in ("refuse", "raise", "best"):
        for name, words in (("nothing good", gloom), ("good at first", turning)):
            asked = drafting(on_unsafe=way, iterations=4, max_new_tokens=14)
            runs[f"{way}, {name}"] = Bench(asked, words).run(stream(PROMPTS[0]))
        runs[f"{way}, usual"] = Bench(usual(on_unsafe=way, max_new_tokens=14), gloom).run(stream(PROMPTS[1]))
        runs[f"{way}, paper"] = Bench(paper(on_unsafe=way, max_new_tokens=8), gloom).run(stream(PROMPTS[2]))
        held = drafting(on_unsafe=way, iterations=3, max_new_tokens=8, stop=(". murk never", "..never"))
        runs[f"{way}, with words held back"] = Bench(held, turning).run(stream(PROMPTS[0]))
        runs[f"{way}, generated"] = Bench(drafting(on_unsafe=way, iterations=3), gloom).run(
            generate(PROMPTS[3])
        )
    return runs


def batch_runs() -> dict[str, Record]:
    mixed = [PROMPTS[0], CHAT, Task(PROMPTS[2], question="And?"), PROMPTS[0]]
    return {
        "usual": Bench(usual(max_new_tokens=16)).run(batch(PROMPTS)),
        "drafts": Bench(drafting(max_new_tokens=16, leaves=2)).run(batch(PROMPTS)),
        "drafts, whole batches": Bench(drafting(max_new_tokens=16), stepped=False).run(batch(PROMPTS)),
        "paper": Bench(paper(max_new_tokens=5, iterations=6, extra_iterations=2, min_visits=2)).run(
            batch(PROMPTS)
        ),
        "mixed": Bench(usual(max_new_tokens=12)).run(batch(mixed)),
        "one fails": Bench(drafting(max_new_tokens=8, on_unsafe="raise", iterations=2)).run(
            batch(PROMPTS[:4])
        ),
    }


def limit_runs() -> dict[str, Record]:
    runs: dict[str, Record] = {}
    for seconds in (2.5, 9.0, 20.0, 33.0):
        late = {"deadline_s": seconds}
        runs[f"deadline {seconds}"] = Bench(drafting(**late), timed=True).run(stream(PROMPTS[0]))
        runs[f"paper, deadline {seconds}"] = Bench(paper(**late), timed=True).run(stream(PROMPTS[1]))
        runs[f"plain, deadline {seconds}"] = Bench(usual(max_new_tokens=60, **late), timed=True).run(
            plain_stream(PROMPTS[3])
        )
    for tokens in (1, 30, 150, 400):
        few = {"max_model_tokens": tokens}
        runs[f"tokens {tokens}"] = Bench(drafting(**few)).run(stream(PROMPTS[0]))
        runs[f"paper, tokens {tokens}"] = Bench(paper(**few)).run(stream(PROMPTS[1]))
        runs[f"usual, tokens {tokens}"] = Bench(usual(max_model_tokens=tokens * 9), stepped=False).run(
            stream(PROMPTS[2])
        )
    for fails_at in (1, 5, 12, 25):
        runs[f"fails at {fails_at}"] = Bench(drafting(), fails_at=fails_at).run(stream(PROMPTS[0]))
    return runs | {
        "deadline, call": Bench(formed(deadline_s=3.0), CALLS, timed=True).run(
            stream(tool_task(tool_choice="any"))
        ),
        "deadline, passages": Bench(
            grounded(deadline_s=17.0, iterations=2), says("leave?", (TRUE + WINE, 1)), timed=True
        ).run(stream(Task(QUESTION, context=[FERRY, CAFE]))),
        "fails, passages": Bench(grounded(iterations=2), says("leave?", (TRUE + WINE, 1)), fails_at=18).run(
            stream(Task(QUESTION, context=[FERRY, CAFE]))
        ),
        "fails, verdict": Bench(drafting(), fails_at=1).run(judge(PROMPTS[0], " glow.")),
        "fails, sentences": Bench(grounded(), fails_at=1).run(judge_sentences(QUESTION, TRUE, context=FERRY)),
        "deadline, batch": Bench(drafting(deadline_s=14.0), timed=True).run(batch(PROMPTS[:3])),
        "tokens, verdict": Bench(drafting(max_model_tokens=1)).run(judge(PROMPTS[0], " glow.")),
        "plain, fails": Bench(usual(max_new_tokens=60), fails_at=18).run(plain_stream(PROMPTS[3])),
        "fails, whole batches": Bench(drafting(), stepped=False, fails_at=4).run(stream(PROMPTS[0])),
    }


def judge_runs() -> dict[str, Record]:
    text = " The ferry leaves at nine. The cafe serves wine! It leaves at ten.\n- It is white."
    passages = [FERRY, CAFE]
    acted = [ToolCall("pay", {"to": "thief"}, "call_1"), ToolCall("look", {"word": "rain"}, "call_2")]
    return {
        "usual": Bench(usual()).run(judge(PROMPTS[0], " glow glow."), judge(PROMPTS[0], " murk.")),
        "chat": Bench(usual()).run(judge(CHAT, "A glow.")),
        "two criteria": Bench(drafting(criteria=[GOOD, BRIGHT])).run(judge(PROMPTS[1], " glow murk.")),
        "hard": Bench(drafting(criteria=[GOOD, BRIGHT], mode="hard")).run(judge(PROMPTS[1], " glow murk.")),
        "empty": Bench(drafting()).run(judge(PROMPTS[0], "")),
        "paper": Bench(preset("paper")).run(judge(PROMPTS[0], " glow.")),
        "truth": Bench(preset("paper-truth")).run(judge("What is it?", "A glow.")),
        "calls": Bench(formed()).run(judge(PLEASE, "I do.", tool_calls=acted)),
        "calls alone": Bench(formed()).run(judge(PLEASE, "", tool_calls=acted[1:])),
        "usual calls": Bench(usual()).run(judge(PLEASE, "I do.", tool_calls=acted)),
        "grounded": Bench(grounded()).run(judge(QUESTION, text, context=FERRY)),
        "built in": Bench(changed(grounded(), criteria=["groundedness"])).run(
            judge(Task(QUESTION, context=passages), text)
        ),
        "sentences": Bench(grounded()).run(judge_sentences(QUESTION, text, context=passages)),
        "sentences, built in": Bench(changed(grounded(), criteria=["groundedness", "harmlessness"])).run(
            judge_sentences(QUESTION, text, context=passages)
        ),
        "sentences, no passages": Bench(usual()).run(judge_sentences(QUESTION, text)),
        "sentences, whole batches": Bench(grounded(), stepped=False).run(
            judge_sentences(QUESTION, text, context=FERRY)
        ),
        "guard": Bench(drafting(criteria=[GUARDED])).run(judge(PROMPTS[0], " glow."), judge(CHAT, "A murk.")),
        "worked examples": Bench(usual(examples=True, criteria=["harmlessness"])).run(
            judge(PROMPTS[0], " glow.")
        ),
        "in its template": Bench(usual(judge_template=True)).run(judge(PROMPTS[0], " glow.")),
        "choice, not swapped": Bench(preset("paper", swap=False, mode="soft")).run(
            judge(PROMPTS[0], " murk.")
        ),
        "every criterion": Bench(
            usual(criteria=["truthfulness", "civility", "positive_sentiment", "harmlessness"])
        ).run(judge(PROMPTS[0], " glow."), judge(PROMPTS[0], " murk murk.")),
        "another judge": Bench(usual(), judge=True).run(judge(PROMPTS[0], " glow.")),
    }


GOLDEN: dict[str, Callable[[], dict[str, Record]]] = {
    "default": default_runs,
    "drafts": draft_runs,
    "iterations": iteration_runs,
    "ends": end_runs,
    "paper": paper_runs,
    "presets": preset_runs,
    "tools": tool_runs,
    "documents": document_runs,
    "grounded": grounded_runs,
    "plain": plain_runs,
    "unsafe": unsafe_runs,
    "batch": batch_runs,
    "limits": limit_runs,
    "judge": judge_runs,
}

# --- files ---------------------------------------------------------------------------------------------

_ROWS = ("requests", "steps", "results", "sentences")


def compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def written(value: Any, rows: bool = False, depth: int = 0) -> str:
    """Write JSON with a line for each request, step and result."""
    if isinstance(value, dict) and (depth < 4) and not rows:
        parts = [f"{compact(key)}:{written(item, key in _ROWS, depth + 1)}" for key, item in value.items()]
        return "{\n" + ",\n".join(parts) + "\n}"
    if isinstance(value, list) and rows and value:
        return "[\n" + ",\n".join(map(compact, value)) + "\n]"
    return compact(value)


def difference(expected: Any, got: Any, place: str = "") -> str:
    """Say where two values first differ; "": nowhere."""
    if isinstance(expected, dict) and isinstance(got, dict):
        for key in [*expected, *(key for key in got if key not in expected)]:
            if key not in got or key not in expected:
                return f"{place}/{key}: " + ("is missing" if key not in got else "is new")
            if found := difference(expected[key], got[key], f"{place}/{key}"):
                return found
        return ""
    if isinstance(expected, list) and isinstance(got, list):
        for index, (one, other) in enumerate(zip(expected, got, strict=False)):
            if found := difference(one, other, f"{place}/{index}"):
                return found
        short_by = len(expected) - len(got)
        return f"{place}: expected {len(expected)} items, got {len(got)}" if short_by else ""
    if type(expected) is type(got) and expected == got:
        return ""
    return f"{place}: expected {clipped(expected)}, got {clipped(got)}"


def clipped(value: Any) -> str:
    text = compact(value)
    return text if len(text) <= 160 else f"{text[:160]}..."


def without_hashes(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_hashes(item) for key, item in value.items() if key != "settings_hash"}
    return [without_hashes(item) for item in value] if isinstance(value, list) else value


def file_of(name: str) -> Path:
    return FOLDER / f"{name}.json"


@pytest.mark.parametrize("name", GOLDEN)
def test_the_runs_are_those_that_were_written_down(name: str) -> None:
    expected = json.loads(file_of(name).read_text(encoding="utf-8"))
    found = difference(expected, json.loads(compact(GOLDEN[name]())))
    if found:
        pytest.fail(f"{name}.json{found}", pytrace=False)


def test_every_file_has_its_runs() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(GOLDEN)


def write(hashes: bool) -> None:
    """Write the files anew; ``hashes``: refuse where more than hashes of settings would change."""
    for name, runs in GOLDEN.items():
        made = runs()
        if hashes:
            expected = json.loads(file_of(name).read_text(encoding="utf-8"))
            found = difference(without_hashes(expected), without_hashes(json.loads(compact(made))))
            if found:
                raise SystemExit(f"{name}.json{found}")
        file_of(name).write_text(written(made) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] not in (["--write"], ["--hashes"]):
        raise SystemExit("usage: python -m tests.test_golden --write | --hashes")
    write(sys.argv[1] == "--hashes")
