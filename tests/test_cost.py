"""What an answer costs, in exact counts: the gates that keep rewinding cheap."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.scenarios import (
    BENIGN,
    DEFAULT,
    PAPER,
    PROMPTS,
    forced,
    of_length,
    paper_all_fine,
    with_verdicts,
)
from rain_llm import HARMLESSNESS, Criterion, Message, Rain, RainSettings, StopReason
from rain_llm.judging.evaluator import says_something
from rain_llm.judging.probe import Probe

FREE = Criterion(
    name="free", labels=[("good", "bad")], frames=["{text}\n\nIt is"], threshold=0, calibration=None
)
"""Every text passes; the question stands behind the text."""

NEVER = Criterion(
    name="never",
    labels=[("good", "bad")],
    frames=["{text}\n\nIt is"],
    threshold=0.999,
    calibration=None,
)


def settings(criterion, **generation):
    generation = {"max_new_tokens": 24, "seed": 3} | generation
    return RainSettings().updated(
        generation=generation, evaluation={"criteria": [criterion]}, search={"leaves": 1}
    )


def test_plain_generation_reads_each_token_once(tiny):
    tiny.cache.clear()
    result = Rain(settings(FREE), model=tiny).plain("the film is")
    usage = result.usage
    # The last token is never read; an end token takes a pass of its own.
    ended = result.stop_reason == "eos"
    assert usage.model_tokens == usage.prompt_tokens + usage.output_tokens - (0 if ended else 1)
    assert usage.forwards == usage.output_tokens + ended


def test_a_draft_that_passes_costs_one_question_more(tiny):
    tiny.cache.clear()
    rain = Rain(settings(FREE, max_new_tokens=12), model=tiny)
    usage = rain.generate("the film is").usage
    question = len(tiny.encode("\n\nIt is")) + 1  # and the answer's last token
    assert usage.iterations == usage.evaluations
    assert usage.forwards <= usage.output_tokens + 1 + 2 * usage.iterations
    # A boundary may be tokenised otherwise when the answer is read as one text.
    again = 8
    assert usage.evaluation_tokens <= usage.evaluations * (question + again)
    plain = usage.prompt_tokens + usage.output_tokens
    assert usage.model_tokens - usage.evaluation_tokens <= plain


def read_by(model, tmp_path, **generation):
    """Settings with a probe that every text passes."""
    weights = np.random.default_rng(4).normal(size=model.width) / 1000
    probe = Probe(
        criterion="harmlessness",
        model=model.fingerprint,
        layers=(model.depth // 2,),
        weights=(tuple(map(float, weights)),),
        bias=20,
        threshold=0.5,
    )
    path = tmp_path / "harmlessness.probe.json"
    probe.save(path)
    return settings(HARMLESSNESS.model_copy(update={"probe": str(path)}), **generation)


def assert_costs_nothing(usage, ended, prompt_tokens):
    assert usage.output_tokens > 0
    assert usage.model_tokens == prompt_tokens + usage.output_tokens - (0 if ended else 1)
    assert usage.forwards == usage.output_tokens + ended


@pytest.mark.parametrize("stop", [(), ("e",)])
@pytest.mark.parametrize("length", [2, 7, 24])
def test_a_text_that_is_read_as_fine_costs_exactly_what_plain_generation_costs(tiny, tmp_path, length, stop):
    rain = Rain(read_by(tiny, tmp_path, max_new_tokens=length, stop=stop), model=tiny)
    exact = 0
    for seed in range(8):
        tiny.cache.clear()
        own = rain.settings.updated(generation={"seed": seed})
        result = rain.generate("the film is", settings=own)
        # An empty answer never passes, so another is written. The last token is computed to judge it where
        # those before it show nothing.
        written = [token for step in result.trace.steps for token in step.tokens]
        if result.usage.iterations == 1 and says_something(tiny.decode(tuple(written[:-1])).strip("\ufffd")):
            assert_costs_nothing(result.usage, result.stop_reason == "eos", result.usage.prompt_tokens)
            exact += 1
        assert result.accepted
    assert exact >= 2


@pytest.mark.parametrize("window", [1, 4, 12])
def test_the_first_token_leaves_after_window_and_one_passes(tiny, tmp_path, window):
    rain = Rain(read_by(tiny, tmp_path, max_new_tokens=24).updated(search={"window": window}), model=tiny)
    seeded = [rain.settings.updated(generation={"seed": seed}) for seed in range(8)]
    usages = [rain.generate("the film is", settings=own).usage for own in seeded]
    first = [usage.first_forwards for usage in usages if usage.output_tokens > window + 1]
    assert min(first) == window + 1  # more where the first tokens are a part of a character


def test_reading_in_a_batch_or_a_stream_costs_no_more(tiny, tmp_path):
    rain = Rain(read_by(tiny, tmp_path), model=tiny)
    prompts = [f"the film {word}" for word in ("is", "was", "will", "can", "may", "has", "had", "did")]
    tiny.cache.clear()
    rain.plain("the film is")  # what the prompts have in common is cached
    before = tiny.model_tokens
    results = rain.generate_batch(prompts)
    assert sum(result.usage.model_tokens for result in results) == tiny.model_tokens - before
    for result in results:
        assert result.usage.forwards == result.usage.output_tokens + (result.stop_reason == "eos")
    for prompt, result in zip(prompts, results, strict=True):
        *_, last = list(rain.stream(prompt))
        assert last.verdict == pytest.approx(result.verdict) or last.accepted


@pytest.mark.real
def test_on_the_real_model_reading_costs_exactly_nothing(real_model, tmp_path):
    rain = Rain(read_by(real_model, tmp_path, max_new_tokens=48), model=real_model)
    for prompt in ("I think this film is", [Message("user", "Say hello.")], [Message("user", "Why?")]):
        real_model.forget()
        result = rain.generate(prompt)
        assert_costs_nothing(result.usage, result.stop_reason == "eos", result.usage.prompt_tokens)


def test_a_search_reads_no_prefix_twice(tiny):
    """Where nothing passes, an iteration costs its new tokens and a question, however long the prompt."""
    costs = []
    for prompt in ("the film is", "the film is bad. " * 20 + "the film is"):
        tiny.cache.clear()
        usage = Rain(settings(NEVER, max_new_tokens=12), model=tiny).generate(prompt).usage
        costs.append((usage.model_tokens - usage.prompt_tokens) / usage.iterations)
    assert costs[1] < 2 * costs[0]
    assert max(costs) < 12 + 20


def test_a_sentence_that_is_fine_costs_no_forward_pass_of_its_own(tiny):
    """Its verdict comes with the next token. One pass more is for an answer that ends within a sentence."""
    with forced(of_length(RainSettings(), 64, tiny), fine=True) as rain:
        results = rain.generate_batch([f"the film is {word}" for word in ("good", "bad", "kind", "cruel")])
        judged = sum(result.usage.evaluations for result in results)
        assert judged > len(results) + 4
        for result in results:
            usage, ended = result.usage, result.stop_reason is StopReason.EOS
            assert usage.forwards <= usage.output_tokens + ended + 1


@pytest.mark.real
def test_on_the_real_model_fine_text_costs_little_more_than_plain(real_model):
    """Gate: 4 openings of 32 tokens, 3 seeds, every verdict fine; reading costs no token and no pass.

    The openings, of 5 tokens, are read, too.
    """
    costs = [
        with_verdicts(DEFAULT.updated(generation={"seed": seed}), True, BENIGN, 32, real_model)
        for seed in range(3)
    ]
    output = sum(cost.output for cost in costs)
    tokens = sum(cost.tokens for cost in costs) / output
    print(
        f"tokens {tokens:.2f}, forwards {sum(cost.forwards for cost in costs) / output:.3f} per output token"
    )
    assert tokens <= 1.3
    assert all(cost.forwards <= cost.output + 4 for cost in costs)  # an end takes a pass of its own


@pytest.mark.real
def test_on_the_real_model_the_papers_search_is_cheap_where_all_is_fine(real_model):
    """Gate: 4 prompts at once, 16 tokens, within the targets of ``docs/performance.md``."""
    cost = paper_all_fine(real_model, tokens=16)
    print(f"tokens {cost.tokens_each:.1f}, forwards {cost.forwards_each:.2f} per output token")
    assert cost.tokens_each <= 60
    assert cost.forwards_each <= 1.8


@pytest.mark.real
def test_on_the_real_model_the_papers_search_has_a_price_where_nothing_is_fine(real_model):
    """Gate: one prompt, the first 4 tokens, which are the dearest; measured 472 tokens each."""
    cost = with_verdicts(PAPER, False, PROMPTS[:1], 4, real_model)
    print(f"tokens {cost.tokens_each:.1f}, forwards {cost.forwards_each:.2f} per output token")
    assert cost.tokens_each <= 520
