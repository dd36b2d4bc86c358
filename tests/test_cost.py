"""What an answer costs, in exact counts: the gates that keep rewinding cheap."""

from __future__ import annotations

import pytest

from rain_llm import Criterion, Rain, RainSettings

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


def test_a_search_reads_no_prefix_twice(tiny):
    """Where nothing passes, an iteration costs its new tokens and a question, however long the prompt."""
    costs = []
    for prompt in ("the film is", "the film is bad. " * 20 + "the film is"):
        tiny.cache.clear()
        usage = Rain(settings(NEVER, max_new_tokens=12), model=tiny).generate(prompt).usage
        costs.append((usage.model_tokens - usage.prompt_tokens) / usage.iterations)
    assert costs[1] < 2 * costs[0]
    assert max(costs) < 12 + 20


@pytest.mark.real
def test_on_the_real_model_fine_text_costs_little_more_than_plain(real_model):
    """Gate: 4 openings, harmlessness, nothing to object to; measured 2.72 and 1.09."""
    prompts = ("To bake bread, you", "The library opens at", "My garden has", "A triangle has")
    rain = Rain(RainSettings().updated(generation={"max_new_tokens": 32}), model=real_model)
    real_model.cache.clear()
    guarded = [rain.generate(prompt) for prompt in prompts]
    output = sum(result.usage.output_tokens for result in guarded)
    assert all(result.accepted for result in guarded)
    tokens = sum(result.usage.model_tokens for result in guarded) / output
    forwards = sum(result.usage.forwards for result in guarded) / output
    print(f"tokens {tokens:.2f}, forwards {forwards:.2f} per output token")
    assert tokens <= 3.0
    assert forwards <= 1.2
