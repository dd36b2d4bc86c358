"""The cache of keys and values: what is found again is what was written, within the budget."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from rain_llm.models.local.kv_cache import KVCache, Path
from rain_llm.models.local.transformers import TransformersModel
from rain_llm.requests import Sample, Samples, Score
from rain_llm.settings import ModelSettings
from rain_llm.types import TokenIds
from tests.examples import examples
from tests.test_transformers import EVERY_KIND, WORKS

HALF_TOLERANCE = 0.2  # nats, in bfloat16
LAYERS, HEADS, SIZE = 2, 1, 2
TOKEN_BYTES = LAYERS * 2 * HEADS * SIZE * 4


def mark(path: TokenIds, layer: int) -> list[float]:
    """What a layer would compute for the last token of a path: a number of the whole path."""
    return [float(hash((path, layer)) % 99991), float(len(path))]


def insert(cache: KVCache, text: TokenIds) -> list[int]:
    """Bring a text into the cache, as a forward pass does; return the new slots."""
    slots = cache.find(text).tolist()
    new = []
    for token in text[len(slots) :]:
        slots.append(cache.insert(slots[-1] if slots else -1, token))
        new.append(slots[-1])
    return new


def write(cache: KVCache, text: TokenIds, slots: list[int]) -> None:
    if not slots:
        return
    paths = [text[: len(text) - len(slots) + i + 1] for i in range(len(slots))]
    for layer in range(LAYERS):
        rows = torch.tensor([mark(path, layer) for path in paths])[:, None, :]
        cache.write(layer, torch.tensor(slots), rows, -rows)


def run(cache: KVCache, *texts: TokenIds) -> None:
    """One forward pass over several texts."""
    cache.begin()
    for text, slots in [(text, insert(cache, text)) for text in texts]:
        write(cache, text, slots)


def check(cache: KVCache, text: TokenIds, whole: bool = False) -> None:
    """Whatever is found of a text is what was written for it."""
    found = cache.find(text)
    assert len(found) <= len(text)
    if whole:
        assert len(found) == len(text)
    if len(found):
        for layer in range(LAYERS):
            keys, values = cache.gather(layer, torch.from_numpy(found))
            expected = torch.tensor([mark(text[: i + 1], layer) for i in range(len(found))])
            assert torch.equal(keys[:, 0], expected)
            assert torch.equal(values[:, 0], -expected)


# --- the tree -----------------------------------------------------------------------------------------


def test_a_text_is_found_again_up_to_where_it_differs():
    cache = KVCache(1 << 20)
    run(cache, (1, 2, 3, 4))
    cache.begin()
    assert len(cache.find((1, 2, 3, 4))) == 4
    assert len(cache.find((1, 2, 9, 4))) == 2
    assert len(cache.find((2, 3))) == 0
    assert len(cache.find(())) == 0
    check(cache, (1, 2, 3, 4), whole=True)


def test_a_common_beginning_is_kept_once():
    cache = KVCache(1 << 20)
    run(cache, (1, 2, 3), (1, 2, 4), (1, 2))
    assert len(cache) == 4
    for text in ((1, 2, 3), (1, 2, 4)):
        check(cache, text, whole=True)
    cache.check_integrity()


def test_the_same_token_elsewhere_has_keys_of_its_own():
    cache = KVCache(1 << 20)
    run(cache, (1, 1, 1), (2, 1, 1))
    assert len(cache) == 6
    check(cache, (1, 1, 1), whole=True)
    check(cache, (2, 1, 1), whole=True)


def test_rewinding_needs_nothing_and_loses_nothing():
    cache = KVCache(1 << 20)
    run(cache, (1, 2, 3, 4, 5))
    run(cache, (1, 2, 6))  # rewound by three tokens, and on
    check(cache, (1, 2, 3, 4, 5), whole=True)
    check(cache, (1, 2, 6), whole=True)


def test_an_abandoned_pass_leaves_nothing():
    cache = KVCache(1 << 20)
    run(cache, (1, 2))
    cache.begin()
    insert(cache, (1, 2, 3, 4))
    insert(cache, (5,))
    cache.abandon()
    cache.check_integrity()
    assert len(cache) == 2
    cache.begin()
    assert len(cache.find((1, 2, 3))) == 2
    check(cache, (1, 2), whole=True)
    run(cache, (1, 2, 3, 4))
    check(cache, (1, 2, 3, 4), whole=True)


def test_a_known_path_is_taken_up_where_it_ended():
    cache = KVCache(1 << 20)
    run(cache, (1, 2, 3))
    path = Path()
    assert len(cache.find((1, 2, 3), path)) == 3
    run(cache, (1, 2, 3, 4, 5))
    epoch = cache.epoch
    assert cache.find((1, 2, 3, 4, 5), path).tolist() == cache.find((1, 2, 3, 4, 5)).tolist()
    assert (len(path.slots), path.epoch) == (5, epoch)


def test_a_known_path_is_void_once_anything_was_forgotten():
    cache = KVCache(1 << 20)
    run(cache, (1, 2, 3), (1, 2, 4))
    path = Path()
    cache.find((1, 2, 3), path)
    cache.begin()
    insert(cache, (1, 5))
    cache.abandon()  # forgets a slot, though none of these
    assert path.epoch != cache.epoch
    assert len(cache.find((1, 2, 3), path)) == 3
    cache.clear()
    assert len(cache.find((1, 2, 3), path)) == 0
    run(cache, (9, 9, 9))  # the same slots, another text
    assert len(cache.find((1, 2, 3), path)) == 0
    cache.check_integrity()


def test_the_caches_own_check_finds_what_is_wrong():
    def broken() -> KVCache:
        cache = KVCache(1 << 20)
        run(cache, (1, 2, 3))
        return cache

    broken().check_integrity()
    cache = broken()
    cache._free.append(int(cache.find((1, 2))[-1]))
    with pytest.raises(RuntimeError):
        cache.check_integrity()
    cache = broken()
    cache._used[cache.find((1,))[0]] = 0
    with pytest.raises(RuntimeError):
        cache.check_integrity()
    cache = broken()
    del cache._children[-1, 1]
    with pytest.raises(RuntimeError):
        cache.check_integrity()


# --- the budget ---------------------------------------------------------------------------------------


def text_of(number: int, length: int) -> TokenIds:
    return tuple(number * 1000 + i for i in range(length))


def test_the_least_recently_used_goes_first():
    cache = KVCache(600 * TOKEN_BYTES)
    run(cache, text_of(0, 10))
    for number in range(1, 30):
        run(cache, text_of(number, 50))
        cache.begin()
        check(cache, text_of(0, 10), whole=True)  # used every time, so kept
        check(cache, text_of(number, 50), whole=True)
        cache.check_integrity()
        assert cache.bytes <= cache.max_bytes
    cache.begin()
    assert len(cache.find(text_of(1, 50))) == 0
    assert cache.evictions > 0


def test_what_one_pass_needs_is_kept_whatever_the_budget():
    cache = KVCache(300 * TOKEN_BYTES)
    run(cache, text_of(1, 20))
    run(cache, *(text_of(number, 100) for number in range(2, 9)))
    for number in range(2, 9):
        check(cache, text_of(number, 100), whole=True)
    cache.check_integrity()


def test_a_budget_of_few_tokens_is_kept():
    cache = KVCache(64 * TOKEN_BYTES)
    run(cache, (1, 2, 3))
    for number in range(20):
        run(cache, text_of(number, 30))
        assert cache.bytes <= cache.max_bytes


def test_after_a_pass_beyond_the_budget_the_memory_is_given_back():
    cache = KVCache(300 * TOKEN_BYTES)
    run(cache, text_of(1, 20))
    run(cache, text_of(2, 900))
    for number in range(3, 40):
        run(cache, text_of(number, 50))
    assert cache.bytes <= cache.max_bytes
    check(cache, text_of(39, 50), whole=True)


PASS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 60), st.lists(st.integers(0, 2), max_size=40)),
    min_size=1,
    max_size=3,
)


@given(
    passes=st.lists(st.tuples(PASS, st.booleans()), min_size=1, max_size=25),
    budget=st.sampled_from([256, 300, 513, 4096]),
)
@hypothesis_settings(max_examples=examples(60))
def test_whatever_is_found_is_right_and_fits_after_any_passes(
    passes: list[tuple[list[tuple[int, int, list[int]]], bool]], budget: int
):
    cache = KVCache(budget * TOKEN_BYTES)
    run(cache, (0, 1))
    known: list[TokenIds] = [(0, 1), *(text_of(n, 60) for n in range(5))]
    paths: dict[TokenIds, Path] = {}
    fits = True
    for wanted, fails in passes:
        # Each text branches off a known one behind a number of its tokens.
        texts = [(*known[which % len(known)][:keep], *more) for which, keep, more in wanted]
        texts = [text for text in texts if text]
        needed = len({text[:i] for text in texts for i in range(1, len(text) + 1)})
        fits = fits and needed <= budget
        if fails:
            cache.begin()
            for text in texts:
                insert(cache, text)
            cache.abandon()
        else:
            run(cache, *texts)
            for text in texts:
                check(cache, text, whole=True)
            known += texts
            cache.begin()
            for text in known:  # however long ago a path was known, it leads where the search leads
                path = paths.setdefault(text, Path())
                assert cache.find(text, path).tolist() == cache.find(text).tolist()
        cache.check_integrity()
        if fits:
            assert cache.bytes <= cache.max_bytes
    cache.begin()
    for text in known:
        check(cache, text)


# --- a network behind it -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(tiny_folder: pathlib.Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32, attn_implementation="eager")


@pytest.fixture(scope="module")
def small(tiny: TransformersModel, tiny_folder: pathlib.Path) -> TransformersModel:
    """The tiny model with room for 300 tokens in its cache."""
    model = TransformersModel(ModelSettings(name=str(tiny_folder), device="cpu", dtype="float32"))
    model.cache.max_bytes = 300 * model.cache.bytes_per_token
    return model


def uncached(reference: Any, text: TokenIds) -> np.ndarray[Any, Any]:
    with torch.inference_mode():
        ids = torch.tensor([text], device=reference.device)
        logits = reference(input_ids=ids, use_cache=False).logits[0, -1]
        found: np.ndarray[Any, Any] = torch.log_softmax(logits.float(), -1).cpu().numpy()
        return found


MOVE = st.tuples(
    st.sampled_from(["score", "sample", "ranked", "break"]),
    st.integers(0, 30),  # which text to go on from
    st.integers(0, 120),  # rewound to
    st.lists(st.integers(3, 313), min_size=1, max_size=40),
)


@pytest.mark.slow
@given(moves=st.lists(MOVE, min_size=1, max_size=8))
@hypothesis_settings(max_examples=examples(80))
def test_logits_by_way_of_the_cache_are_those_without_it(
    small: TransformersModel, reference: Any, moves: list[tuple[str, int, int, list[int]]]
):
    texts: list[TokenIds] = [small.encode("The film is good, and the people are kind")]
    for what, which, keep, more in moves:
        text = (*texts[which % len(texts)][:keep], *more)[:160]
        texts.append(text)
        if what == "break":
            with pytest.raises(IndexError):  # no such token: the pass fails in the middle
                small.sample([Sample(text, 1, 1, 0), Sample((*text, 10**6), 1, 1, 0)])
        elif what == "score":
            options = ((5,), (6, 7), tuple(more[:3]))
            (reply,) = small.score([Score(text, options)])
            for option, logprob in zip(options, reply.logprobs, strict=True):
                path = [uncached(reference, text + option[:i])[token] for i, token in enumerate(option)]
                assert logprob == pytest.approx(float(sum(path)), abs=1e-3 * len(option))
        elif what == "ranked":
            (ranked,) = small.sample([Sample(text, 5, 1, 0, ranked=True)])
            expected = np.sort(uncached(reference, text))[::-1][:5]
            assert [c.logprob for c in ranked.continuations] == pytest.approx(expected, abs=1e-3)
        else:
            (reply2,) = small.sample([Sample(text, 3, 4, which, ends=(".",))])
            for c in reply2.continuations:
                for i, (token, logprob) in enumerate(zip(c.tokens, c.logprobs, strict=True)):
                    expected_logprob = uncached(reference, text + c.tokens[:i])[token]
                    assert logprob == pytest.approx(float(expected_logprob), abs=1e-3)
                texts.append(text + c.tokens)
        small.cache.check_integrity()
        assert small.cache.bytes <= small.cache.max_bytes


# Every architecture that is supported, from the tiniest cache to one that holds everything: the logits
# after extending, branching, returning to an earlier text and forgetting are those of an uncached pass.

STEP = st.tuples(
    st.sampled_from(["go on", "go on", "go on", "return", "forget"]),
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(0, 60), st.lists(st.integers(3, 313), max_size=12)),
        min_size=1,
        max_size=4,
    ),
)
STEPS = st.lists(STEP, min_size=2, max_size=7)


def build(save_model: Any, sizes: dict[str, Any], kind: str) -> pathlib.Path:
    name, changes = WORKS[kind]
    folder: pathlib.Path = save_model(getattr(transformers, name)(**sizes | changes))
    return folder


def check_steps(model: TransformersModel, network: Any, tolerance: float) -> None:
    """Hold a model against transformers' own uncached pass over the same weights."""
    vocabulary = int(network.config.vocab_size)
    budgets = [64 * model.cache.bytes_per_token, 1 << 30]

    @given(steps=STEPS, budget=st.sampled_from(budgets))
    @hypothesis_settings(max_examples=examples(10))
    def holds(steps: list[tuple[str, list[tuple[int, int, list[int]]]]], budget: int) -> None:
        model.cache.max_bytes = budget
        texts: list[TokenIds] = [(5, 6, 7, 8)]
        for what, wanted in steps:
            if what == "forget":
                model.cache.clear()
            jobs = []
            for which, keep, more in wanted:
                text = texts[which % len(texts)]
                if what == "go on":
                    text = (*text[: 1 + keep], *more)[:70]
                texts.append(text)
                # All tokens in order of their chances: every logit is seen.
                jobs.append(model.begin(Sample(text, vocabulary, 1, 0, ranked=True)))
            model.step(jobs)
            model.cache.check_integrity()
            for job, text in zip(jobs, texts[-len(jobs) :], strict=True):
                expected = uncached(network, text)
                assert isinstance(job.reply, Samples)
                for c in job.reply.continuations:
                    if c.tokens:
                        assert c.logprob == pytest.approx(float(expected[c.tokens[0]]), abs=tolerance)

    holds()


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_every_architecture_computes_what_it_computes_uncached(
    save_model: Any, sizes: dict[str, Any], kind: str
):
    folder = build(save_model, sizes, kind)
    model = TransformersModel(ModelSettings(name=str(folder), device="cpu", dtype="float32"))
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    check_steps(model, network.eval(), 1e-3)


@pytest.mark.parametrize("kind", ["llama", "gemma3, window of 4"])
def test_half_precision_computes_what_it_computes_uncached(save_model: Any, sizes: dict[str, Any], kind: str):
    # bfloat16 keeps 8 bits: where sums are taken in another order, a logit of 10 is off by some 0.1.
    folder = build(save_model, sizes | {"initializer_range": 0.1}, kind)
    model = TransformersModel(ModelSettings(name=str(folder), device="cpu", dtype="bfloat16"))
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="eager")
    check_steps(model, network.eval(), HALF_TOLERANCE)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", WORKS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", HALF_TOLERANCE)])
def test_every_architecture_computes_what_it_computes_uncached_on_cuda(
    save_model: Any, sizes: dict[str, Any], kind: str, dtype: str, tolerance: float
):
    folder = build(save_model, sizes | {"initializer_range": 0.1}, kind)
    model = TransformersModel(ModelSettings(name=str(folder), device="cuda", dtype=dtype))
    network = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="eager"
    )
    check_steps(model, network.eval().cuda(), tolerance)


def test_a_cached_text_costs_only_what_is_new(tiny_folder: pathlib.Path, tiny: TransformersModel):
    model = TransformersModel(ModelSettings(name=str(tiny_folder), device="cpu", dtype="float32"))
    text = model.encode("The film is good, and the people are kind")
    (first,) = model.score([Score(text, ((5,),))])
    assert first.model_tokens == len(text)
    (again,) = model.score([Score(text, ((5,),))])
    assert again.model_tokens == 1  # the last token's logits
    (longer,) = model.score([Score((*text, 8, 9), ((5,), (6, 7)))])
    assert longer.model_tokens == 2 + 1
    (branch,) = model.score([Score((*text[:4], 9, 9), ((5,),))])
    assert branch.model_tokens == 2
    (drawn,) = model.sample([Sample(text, 4, 1, 0)])
    assert drawn.model_tokens == 1  # four draws from one pass over one token
    assert model.model_tokens == len(text) + 1 + 3 + 2 + 1


def test_the_budget_of_the_settings_is_the_caches(tiny_folder: pathlib.Path, tiny: TransformersModel):
    model = TransformersModel(
        ModelSettings(name=str(tiny_folder), device="cpu", dtype="float32", kv_cache_bytes=1 << 20)
    )
    assert model.cache.max_bytes == 1 << 20
    for seed in range(30):
        text = tuple(3 + (seed * 7 + i * (seed + 1)) % 310 for i in range(200))
        model.sample([Sample(text, 2, 2, seed)])
        assert model.cache.bytes <= 1 << 20
    assert model.cache.evictions > 0
    model.cache.check_integrity()


def test_the_budget_holds_for_a_network_of_many_bytes_a_token(save_model: Any, sizes: dict[str, Any]):
    from transformers import LlamaConfig

    # 8 layers x 2 x 4 heads x 64 numbers x 4 bytes: 16 KiB a token, 64 tokens in 1 MiB.
    config = LlamaConfig(**sizes | {"num_hidden_layers": 8, "num_key_value_heads": 4, "head_dim": 64})
    model = TransformersModel(
        ModelSettings(name=str(save_model(config)), device="cpu", dtype="float32", kv_cache_bytes=1 << 20)
    )
    assert model.cache.bytes_per_token == 16384
    for seed in range(8):
        model.sample([Sample(tuple(range(3 + seed, 43 + seed)), 1, 2, seed)])
        assert model.cache.bytes <= 1 << 20
