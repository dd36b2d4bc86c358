"""The llama.cpp engine: what its cache holds never changes an answer."""

from __future__ import annotations

import asyncio
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rain_llm import Message, ModelNotSupportedError, Rain, RainSettings
from rain_llm.models.local.jobs import CHUNK
from rain_llm.models.local.llama_cpp import LlamaCppModel
from rain_llm.requests import Continuation, Sample, Samples, Score
from rain_llm.settings import ModelSettings
from rain_llm.types import TokenIds
from tests import gguf_files
from tests.examples import examples
from tests.llama_fuzz import shrink
from tests.native_llama import F16, NativeModel
from tests.test_search import GOOD

# In nats: llama.cpp adds up values in 16 bits; one other token in the text makes a difference of some nats.
TOLERANCE = 0.1
TEXT = "The film is good, and the people are kind"


def load(file: Path, **changes: Any) -> LlamaCppModel:
    return LlamaCppModel(ModelSettings(name=str(file), **{"threads": 1} | changes))


def tokens(reply: Samples) -> list[tuple[TokenIds, bool]]:
    return [(c.tokens, c.ended) for c in reply.continuations]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf_files.tiny_gguf(tmp_path_factory.mktemp("gguf"))


@pytest.fixture(scope="module")
def long_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a context of several chunks."""
    changes = {"qwen2.context_length": 4096}
    return gguf_files.tiny_gguf(tmp_path_factory.mktemp("gguf"), changes=changes)


@pytest.fixture
def model(file: Path) -> LlamaCppModel:
    return load(file)


class Uncached:
    """llama.cpp's passes over whole texts, each with a context of its own."""

    def __init__(self, file: Path) -> None:
        self.native = NativeModel(file, F16)
        self._known: dict[TokenIds, Any] = {}

    def __call__(self, text: TokenIds) -> Any:
        """Return the log-probabilities after a text."""
        if text not in self._known:
            rows = self.native.logprobs(text)
            self._known |= {text[: i + 1]: row for i, row in enumerate(rows)}
        return self._known[text]


# --- logits -----------------------------------------------------------------------------------------

MOVE = st.tuples(
    st.sampled_from(["go on", "go on", "go on", "sample", "score", "return", "forget", "evict", "fail"]),
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(0, 60), st.lists(st.integers(3, 313), max_size=12)),
        min_size=1,
        max_size=4,
    ),
)
MOVES = st.lists(MOVE, min_size=2, max_size=8)


class Checked:
    """Makes moves with a model, and compares what it computes with an uncached pass.

    Args:
        model: the engine.
        uncached: its file.
        start: texts begin with this one.
    """

    def __init__(self, model: LlamaCppModel, uncached: Uncached, start: TokenIds) -> None:
        self.model, self.uncached = model, uncached
        self.texts: list[TokenIds] = [start]

    def continued(self, prefix: TokenIds, given: Continuation) -> None:
        for i, logprob in enumerate(given.logprobs):
            expected = self.uncached(prefix + given.tokens[:i])[given.tokens[i]]
            assert logprob == pytest.approx(expected, abs=TOLERANCE)
        self.texts.append(prefix + given.tokens)

    def ranked(self, texts: list[TokenIds]) -> None:
        """All tokens of the vocabulary: every logit is seen."""
        jobs = [self.model.begin(Sample(text, self.model.text.size, 1, 0, ranked=True)) for text in texts]
        while unfinished := [job for job in jobs if job.reply is None]:
            self.model.step(unfinished)
        for job, text in zip(jobs, texts, strict=True):
            expected = self.uncached(text)
            assert isinstance(job.reply, Samples)
            for c in job.reply.continuations:
                if c.tokens:
                    assert c.logprob == pytest.approx(expected[c.tokens[0]], abs=TOLERANCE)

    def scored(self, text: TokenIds, more: TokenIds) -> None:
        options = ((5,), (6, 7), more[:3] or (8,))
        (reply,) = self.model.score([Score(text, options)])
        for option, logprob in zip(options, reply.logprobs, strict=True):
            path = [self.uncached(text + option[:i])[token] for i, token in enumerate(option)]
            assert logprob == pytest.approx(math.fsum(path), abs=TOLERANCE * len(option))

    def move(self, what: str, wanted: list[tuple[int, int, list[int]]]) -> None:
        if what == "forget":
            self.model.forget()
        if what == "evict":
            shrink(self.model, 48, 5)
        texts = []
        for which, keep, more in wanted:
            text = self.texts[which % len(self.texts)]
            if what != "return":
                text = (*text[: 1 + keep], *more)[:70]
            texts.append(text)
        self.texts += texts
        if what == "fail":
            job = self.model.begin(Sample(texts[0], 2, 2, 1))
            job.weigh = None  # type: ignore[assignment,method-assign]
            with pytest.raises(TypeError):
                self.model.step([job])
        elif what == "score":
            for text, (_, _, more) in zip(texts, wanted, strict=True):
                self.scored(text, tuple(more))
        elif what == "sample":
            replies = self.model.sample([Sample(text, 3, 4, len(text), ends=(".",)) for text in texts])
            for text, reply in zip(texts, replies, strict=True):
                for c in reply.continuations:
                    self.continued(text, c)
        else:
            self.ranked(texts)
        self.model.cache.check_integrity()


@pytest.mark.parametrize("kind", ["qwen2", "gemma3", pytest.param("sentence pieces", marks=pytest.mark.slow)])
def test_logits_are_those_of_an_uncached_pass_whatever_happened_before(tmp_path: Path, kind: str):
    file = gguf_files.VALID[kind](tmp_path)
    uncached = Uncached(file)

    @given(moves=MOVES)
    @hypothesis_settings(max_examples=examples(30))
    def holds(moves: list[tuple[str, list[tuple[int, int, list[int]]]]]) -> None:
        checked = Checked(load(file), uncached, (5, 6, 7, 8))
        for what, wanted in moves:
            checked.move(what, wanted)

    holds()


def test_a_wrong_token_would_show(file: Path):
    uncached = Uncached(file)
    text = tuple(np.random.default_rng(1).integers(3, 313, 40).tolist())
    for place in range(39):
        other = (*text[:place], text[place] + 1, *text[place + 1 :])
        assert np.abs(uncached(other) - uncached(text)).max() > 2 * TOLERANCE


def test_a_long_prompt_is_read_in_chunks_beside_other_requests(long_file: Path):
    model, uncached = load(long_file), Uncached(long_file)
    text = tuple(np.random.default_rng(2).integers(3, 313, 3 * CHUNK + 7).tolist())
    long, short = model.begin(Sample(text, 320, 1, 0, ranked=True)), model.begin(Sample(text[:5], 1, 9, 1))
    for _ in range(9):
        model.step([job for job in (long, short) if job.reply is None])
    assert long.forwards == 4
    assert short.forwards <= 9
    assert isinstance(long.reply, Samples)
    expected = uncached(text)
    assert all(
        abs(c.logprob - expected[c.tokens[0]]) < TOLERANCE for c in long.reply.continuations if c.tokens
    )
    model.cache.check_integrity()


# --- one answer -------------------------------------------------------------------------------------


def requests_of(model: LlamaCppModel) -> list[Sample]:
    start = model.encode(TEXT)
    return [Sample((*start[: 3 + i], 20 + i), 1 + i % 4, 8, i, temperature=0.7) for i in range(12)]


def test_a_full_cache_changes_no_reply(file: Path, model: LlamaCppModel):
    requests = requests_of(model)
    expected = [tokens(reply) for reply in model.sample(requests)]
    for cells, sequences in ((200, 40), (64, 12), (40, 5)):
        small = load(file)
        shrink(small, cells, sequences)
        assert [tokens(reply) for reply in small.sample(requests)] == expected
        assert small.cache.evictions > 0 or small.cache.cells > cells
        small.cache.check_integrity()


def test_more_branches_than_sequences_are_all_answered(model: LlamaCppModel):
    many = Sample(model.encode(TEXT), 300, 3, 5, temperature=2.0)
    (reply,) = model.sample([many])
    assert len(reply.continuations) == 300
    few = Sample(model.encode(TEXT), 20, 3, 5, temperature=2.0)
    (first,) = model.sample([few])
    assert tokens(first) == tokens(reply)[:20]
    model.cache.check_integrity()


def test_more_requests_than_sequences_are_all_answered(model: LlamaCppModel):
    requests = [Sample(model.encode(TEXT), 4, 3, seed, temperature=2.0) for seed in range(90)]
    alone = [one for request in requests for one in tokens(model.sample([request])[0])]
    together = [one for reply in model.sample(requests) for one in tokens(reply)]
    # Logits differ by up to 0.02 with the rows beside them; at times a draw is that close to another token.
    assert sum(one != other for one, other in zip(alone, together, strict=True)) <= 4
    model.cache.check_integrity()


@pytest.fixture(scope="module")
def rain(file: Path) -> Iterator[Rain]:
    settings = RainSettings().updated(
        generation={"max_new_tokens": 16, "seed": 0, "stop": ()},
        search={"iterations": 3},
        evaluation={"criteria": [GOOD], "style": "labels", "examples": False},
        on_unsafe="best",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield Rain(settings, model=load(file))


def test_an_answer_is_the_same_alone_in_a_batch_streamed_and_async(rain: Rain):
    prompts = [f"{TEXT}, {i}" for i in range(8)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = [rain.generate(prompt).text for prompt in prompts]
        assert len(set(alone)) > 4
        assert [result.text for result in rain.generate_batch(prompts)] == alone
        assert ["".join(step.text for step in rain.stream(prompt)) for prompt in prompts] == alone

        async def together() -> list[str]:
            return [result.text for result in await asyncio.gather(*map(rain.agenerate, prompts))]

        assert asyncio.run(together()) == alone
    assert isinstance(rain.runtime.writer, LlamaCppModel)
    rain.runtime.writer.cache.check_integrity()


# --- files ------------------------------------------------------------------------------------------


def test_a_recurrent_model_is_rejected(tmp_path: Path):
    with pytest.raises(ModelNotSupportedError, match="recurrent"):
        load(gguf_files.recurrent(tmp_path))


def test_a_file_without_a_chat_template_takes_texts_only(tmp_path: Path):
    model = load(gguf_files.VALID["no chat template"](tmp_path))
    with pytest.raises(ModelNotSupportedError, match="no chat template"):
        model.render_chat([Message("user", "x")])
    assert model.sample([Sample(model.encode(TEXT), 1, 1, 0)])


@pytest.mark.parametrize(("kind", "start"), [("qwen2", ()), ("start token", (0,)), ("sentence pieces", (1,))])
def test_a_text_begins_as_the_file_says(tmp_path: Path, kind: str, start: TokenIds):
    assert load(gguf_files.VALID[kind](tmp_path)).start == start


@pytest.mark.parametrize("kind", gguf_files.VALID)
@pytest.mark.parametrize("text", ["a <|im_end|></s><s> b", " two  spaces", "line\n\n", "ü終👋🏽\0", ""])
def test_text_is_text_in_every_file(tmp_path: Path, kind: str, text: str):
    model = load(gguf_files.VALID[kind](tmp_path))
    found = model.encode(text)
    assert not model.text.special & set(found)
    assert model.decode(found) == text


def test_a_chat_is_rendered_with_the_files_special_tokens(tmp_path: Path):
    model = load(gguf_files.VALID["sentence pieces"](tmp_path))
    found = model.render_chat([Message("user", "</s> good <s>")])
    assert [token for token in found if token in model.text.special] == [1, 2]
    assert "</s> good <s>" in model.decode(found)
