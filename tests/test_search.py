"""The search driven by hand: what it asks for, what it commits, where it ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rain_llm import Criterion, RainSettings, Step, StopReason
from rain_llm.judging.evaluator import SelfEvaluator
from rain_llm.judging.questions import JudgeInput
from rain_llm.models.base import Embedder
from rain_llm.models.scripted import END, ScriptedModel, script
from rain_llm.requests import (
    Continuation,
    Embed,
    Embeddings,
    Read,
    Reply,
    Request,
    Sample,
    Samples,
    Score,
    Scores,
    Vector,
)
from rain_llm.search.algorithm import RainSearch
from rain_llm.search.outcome import Interrupted, Outcome
from rain_llm.settings import PUNCTUATION
from rain_llm.types import Candidate
from tests.examples import examples

# --- a small world ------------------------------------------------------------------------------

GOOD = Criterion(name="good", labels=(("good", "bad"),), frames=("Text: {answer}\nIt is",), calibration=None)
"""The judge is shown the answer alone; its log-odds are the value's, uncalibrated."""


def opinion(odds: Callable[[str], float]) -> Callable[[str, str], float]:
    """Make the scripted judge's opinion from the log-odds of an answer."""

    def logprob(question: str, label: str) -> float:
        answer = question.removeprefix("Text: ").removesuffix("\nIt is")
        return odds(answer) if label == " good" else 0.0

    return logprob


def wording(**odds: float) -> Callable[[str], float]:
    """Log-odds by the words of an answer, summed."""
    return lambda answer: sum(value for word, value in odds.items() if word in answer)


DRAWING = {"max_new_tokens": 30, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "stop": (), "seed": 0}


def paper(**parts: Any) -> RainSettings:
    """The paper's search with a judge that is easy to script; hard votes: values -1, 0, 1."""
    base = RainSettings.preset("paper").updated(
        generation=DRAWING,
        evaluation={"criteria": [GOOD], "style": "labels", "mode": "hard", "examples": False},
        on_unsafe="best",
    )
    return base.updated(**parts)


def keeping(**parts: Any) -> RainSettings:
    """The search that keeps its simulations and commits by verdict; all that matters is set here."""
    base = RainSettings().updated(
        generation=DRAWING,
        evaluation={"criteria": [GOOD], "style": "labels", "mode": "soft", "examples": False},
        search={
            "token_set_lengths": (2, 4),
            "strategy": "keep_drafts",
            "simulation_ends": "sentence",
            "simulation_tokens": 16,
            "exploration": 1.0,
            "normalise_values": False,
            "widening": 1.0,
            "leaves": 1,
            "iterations": 8,
            "similarity": None,
        },
        on_unsafe="best",
    )
    return base.updated(**parts)


@dataclass
class Run:
    """A search that was driven to its end."""

    search: RainSearch
    steps: list[Step] = field(default_factory=list)
    rounds: list[tuple[Request, ...]] = field(default_factory=list)
    replies: list[list[Reply]] = field(default_factory=list)
    result: Outcome | None = None

    @property
    def outcome(self) -> Outcome:
        assert self.result is not None
        return self.result

    def asked(self, kind: type) -> list[Any]:
        return [request for requests in self.rounds for request in requests if isinstance(request, kind)]


def new_search(model: ScriptedModel, settings: RainSettings, prompt: str = "It is") -> RainSearch:
    evaluator = SelfEvaluator(settings.evaluation, model)
    seed = settings.generation.seed or 0
    return RainSearch(model.encode(prompt), JudgeInput(prompt), model, evaluator, settings, seed)


def drive(
    search: RainSearch,
    answer: Callable[[Sequence[Request]], list[Reply]],
    interrupt_at: int | None = None,
    reason: StopReason = StopReason.CANCELLED,
) -> Run:
    """Send a search what it asks for until it ends; interrupt it in place of one reply."""
    run = Run(search)
    coroutine = search.run()
    try:
        item = next(coroutine)
        while True:
            if isinstance(item, Step):
                run.steps.append(item)
                item = next(coroutine)
                continue
            run.rounds.append(tuple(item))
            if len(run.rounds) - 1 == interrupt_at:
                item = coroutine.throw(Interrupted(reason))
                continue
            run.replies.append(answer(item))
            item = coroutine.send(run.replies[-1])
    except StopIteration as stop:
        run.result = stop.value
    return run


def by_model(
    model: ScriptedModel, embedder: Embedder | None = None
) -> Callable[[Sequence[Request]], list[Reply]]:
    def answer(requests: Sequence[Request]) -> list[Reply]:
        replies: list[Reply] = []
        for request in requests:
            if isinstance(request, Sample):
                replies += model.sample([request])
            elif isinstance(request, Score):
                replies += model.score([request])
            elif isinstance(request, Read):
                replies += model.read([request])
            else:
                assert embedder is not None
                replies.append(Embeddings(tuple(embedder.embed(request.texts))))
        return replies

    return answer


def write(
    model: ScriptedModel,
    settings: RainSettings,
    prompt: str = "It is",
    embedder: Embedder | None = None,
    **interruption: Any,
) -> Run:
    return drive(new_search(model, settings, prompt), by_model(model, embedder), **interruption)


def seeds(settings: RainSettings, count: int) -> list[RainSettings]:
    return [settings.updated(generation={"seed": seed}) for seed in range(count)]


class WordEmbedder:
    """A vector for the first known word in a text."""

    def __init__(self, vectors: dict[str, tuple[float, ...]]) -> None:
        self.vectors = vectors

    def embed(self, texts: Sequence[str]) -> list[Vector]:
        default = tuple(1.0 for _ in next(iter(self.vectors.values())))
        found = [next((v for word, v in self.vectors.items() if word in t), default) for t in texts]
        return [np.array(v, np.float32) / np.float32(np.linalg.norm(v)) for v in found]


GOOD_OR_BAD = {"It is": {" bad": 3.0, " good": 1.0}, " bad": {".": 1.0}, " good": {".": 1.0}}
"""Two texts, 'bad.' (3/4) and 'good.' (1/4); both end behind the full stop."""

ENDLESS = {"": {" la": 0.5, " li": 0.3, " lu": 0.2}}

SENTENCES = {
    "It is": {" good": 1.0},
    " good": {".": 1.0},
    "good.": {" Then": 1.0},
    " Then": {" bad": 2.0, " awful": 1.0},
    " bad": {".": 1.0},
    " awful": {".": 1.0},
}
"""A good sentence, behind which only bad ones follow."""


# --- golden traces --------------------------------------------------------------------------------


def test_the_papers_search_on_two_words_is_the_one_worked_out_by_hand():
    """c = 2; priors mixed: bad .75 * .75 + .125 = .6875, good .25 * .75 + .125 = .3125.

    So u is 1.375 and 0.625 times sqrt(n) / (1 + n of the child); bad is worth h = 0, good h = 1
    once they were visited. n is the root's:

    ==  ======  =======================  ========================  =========
    n   sqrt    bad                      good                      visited
    ==  ======  =======================  ========================  =========
    0                                                              the root
    1   1       1.375                    .625                      bad (1)
    2   1.4142  1.375 * 1.4142 / 2 .972  .884                      bad (2)
    3   1.7321  / 3: .794                1.083                     good (1)
    4   2       / 3: .917                1 + .625 * 2 / 2: 1.625   good (2)
    5   2.2361  / 3: 1.025               / 3: 1.466                good (3)
    6   2.4495  / 3: 1.123               / 4: 1.383                good (4)
    7   2.6458  / 3: 1.213               / 5: 1.331                good (5)
    8   2.8284  / 3: 1.2964              / 6: 1.2946               bad (3)
    9   3       / 4: 1.031               / 6: 1.313                good (6)
    10  3.1623  / 4: 1.087               / 7: 1.282                good (7)
    ==  ======  =======================  ========================  =========

    After 11 iterations good has more than 6 visits and q = 1 > .8: committed. The full stop behind
    it ends the answer; it inherits 6 visits (good's first one found no children), needs 7: one more
    iteration. The third visit to bad finds one child, visited and bad: an addition is tried there.
    """
    model = ScriptedModel(script(GOOD_OR_BAD), opinion(wording(good=1.0, bad=-1.0)))
    embedder = WordEmbedder({"good": (1, 0), "bad": (0, 1)})  # unlike: nothing is shared
    run = write(model, paper(search={"prefetch": 0}), embedder=embedder)

    assert [step.text for step in run.steps] == [" good", "."]
    assert [step.iterations for step in run.steps] == [11, 1]
    assert [(c.text, c.visits, c.chosen) for c in run.steps[0].candidates] == [
        (" bad", 3, False),
        (" good", 7, True),
    ]
    assert [c.prior for c in run.steps[0].candidates] == pytest.approx([0.6875, 0.3125])
    assert [(c.weight, c.value, c.best) for c in run.steps[0].candidates] == [(3, -1, -1), (7, 1, 1)]
    below = [[(c.text, c.visits) for c in candidate.children] for candidate in run.steps[0].candidates]
    assert below == [[(".", 2)], [(".", 6)]]
    assert [(c.text, c.visits, c.chosen) for c in run.steps[1].candidates] == [(".", 7, True)]
    assert run.outcome.text == " good."
    assert run.outcome.stop_reason is StopReason.EOS
    assert run.outcome.accepted
    assert (run.outcome.iterations, run.outcome.evaluations) == (12, 2)
    sets = [request for request in run.asked(Sample) if request.max_tokens == 2]
    additions = [request for request in sets if request.n == 1 and request.top_k]
    assert [model.decode(request.prefix) for request in additions] == ["It is bad"]


FINE_OR_GREAT = {
    "It is": {" fine": 0.5, " great": 0.3, " awful": 0.2},
    " fine": {".": 1.0},
    " great": {".": 1.0},
    " awful": {".": 1.0},
}
SEVEN = {
    "stop_when_decided": False,
    "root_mixing": 0.0,
    "iterations": 7,
    "extra_iterations": 0,
    "addition": None,
}


@pytest.mark.parametrize("similar", [True, False])
def test_similar_siblings_turn_the_choice_as_worked_out_by_hand(similar: bool):
    """c = 2, priors .5, .3, .2; fine is worth v = 0 (a tie), great v = 1. n is the root's.

    ==  ======  =================================  =========================  =======  ==========
    n   sqrt    fine                               great                      awful    visited
    ==  ======  =================================  =========================  =======  ==========
    1   1       1                                  .6                         .4       fine (1)
    2   1.4142  .5 + 1.4142 / 2: 1.207             .849                                fine (2)
    3   1.7321  .5 + 1.7321 / 3: 1.077             1.039                               fine (3)
    4   2       .5 + 2 / 4: 1                      1.2                        .8       great (1)
    5   2.2361  .5312 + 2.2361 / 4.2: 1.064        1 + .6 * 2.2361 / 2: 1.67           great (2)
    6   2.4495  .5588 + 2.4495 / 4.4: 1.116        1 + .6 * 2.4495 / 3: 1.49           great (3)
    ==  ======  =================================  =========================  =======  ==========

    Each visit to great teaches fine a share s = .2: n 3.2, 3.4, 3.6; q .2 / 3.2, .4 / 3.4, .6 / 3.6.
    So fine has the largest weight, 3.6 against 3. Without shares both have 3, and great the larger
    value.
    """
    model = ScriptedModel(script(FINE_OR_GREAT), opinion(wording(great=1.0, awful=-1.0)))
    embedder = WordEmbedder({"fine": (1, 0), "great": (1, 0), "awful": (0, 1)})
    search = SEVEN if similar else SEVEN | {"similarity": None}
    step = write(model, paper(search=search), embedder=embedder).steps[0]

    by_text = {candidate.text: candidate for candidate in step.candidates}
    assert {text: c.visits for text, c in by_text.items()} == {" fine": 3, " great": 3}
    assert by_text[" fine"].weight == pytest.approx(3.6 if similar else 3)
    assert by_text[" fine"].value == pytest.approx(0.6 / 3.6 if similar else 0)
    assert by_text[" great"].weight == 3
    assert by_text[" great"].value == 1
    assert step.text == (" fine" if similar else " great")


def test_an_added_candidate_is_the_next_ranked_token():
    """Two candidates, both bad and alike: the third-ranked token is tried, and it is good."""
    world = {"It is": {" bad": 0.6, " awful": 0.3, " good": 0.1}, "": {".": 1.0}, ".": {END: 1.0}}
    model = ScriptedModel(script(world), opinion(wording(good=1.0, bad=-1.0, awful=-1.0)))
    embedder = WordEmbedder({"good": (1, 0), "bad": (0, 1), "awful": (0, 1)})
    run = write(model, paper(search={"width": 2, "prefetch": 0}), embedder=embedder)
    assert run.outcome.text == " good."
    root = [r for r in run.asked(Sample) if r.ranked and r.prefix == model.encode("It is")]
    assert [request.n for request in root] == [2, 3]
    without = write(model, paper(search={"width": 2, "addition": None}), embedder=embedder)
    assert " good" not in without.outcome.text
    assert not without.outcome.accepted


# --- what the paper's search asks for ---------------------------------------------------------------


def test_candidates_are_ranked_tokens_first_then_one_greedy_and_sampled_sets():
    model = ScriptedModel(script(ENDLESS), opinion(lambda _: 1.0))
    settings = paper(
        generation={"temperature": 0.9, "top_p": 0.95, "max_new_tokens": 40},
        search={"similarity": None, "candidate_temperature": 2.0},
    )
    samples = write(model, settings).asked(Sample)
    candidates = [request for request in samples if request.ranked or request.greedy_first]
    simulations = [request for request in samples if request not in candidates]
    lengths = {}
    for request in candidates:
        ahead = len(request.prefix) - 2
        depth = {0: 0, 1: 1, 3: 2, 7: 3, 17: 4, 27: 5, 37: 6}[ahead]  # 1, 2, 4, 10, 10, ...
        lengths[depth] = request.max_tokens
        assert request.n == 10
        assert request.ranked is (request.max_tokens == 1)
        if request.max_tokens > 1:
            assert (request.temperature, request.top_k) == (2.0, 15)
    assert [lengths[depth] for depth in sorted(lengths)] == [1, 2, 4, 10, 10, 10, 3]
    for request in simulations:
        assert (request.n, request.temperature, request.top_p) == (1, 0.9, 0.95)
        assert set(PUNCTUATION) <= set(request.ends)
        assert len(request.prefix) - 2 + request.max_tokens <= 40


def test_every_request_has_a_seed_of_its_own():
    model = ScriptedModel(script(ENDLESS), opinion(lambda _: 1.0))
    asked = write(model, paper(search={"similarity": None})).asked(Sample)
    assert len({request.seed for request in asked}) == len(asked)


def test_a_text_is_judged_once():
    model = ScriptedModel(script(GOOD_OR_BAD), opinion(lambda _: 0.0))
    run = write(model, paper(search={"similarity": None}))
    questions = [model.decode(request.prefix) for request in run.asked(Score)]
    assert len(questions) == len(set(questions)) == run.outcome.evaluations
    assert run.outcome.iterations > 50


def test_texts_with_one_question_have_one_verdict():
    """The judge sees no white space at the end; a second answer would differ by its rounding error."""
    world = {"It is": {" so": 1.0}, " so": {".": 1.0}, ".": {"\n": 1.0}, "\n": {"\n": 1.0}}
    noise = iter(range(10**6))
    model = ScriptedModel(script(world), lambda _, label: next(noise) / 1e6 - 1 if label == " good" else 0.0)
    run = write(model, keeping(generation={"max_new_tokens": 6}, search={"iterations": 3}))
    assert len(run.steps) > 2
    assert len({step.verdict for step in run.steps}) == 1
    assert len(run.asked(Score)) == 1 < run.outcome.evaluations


def test_each_node_of_a_path_embeds_the_text_from_its_own_tokens_on():
    world = {"It is": {" one": 1.0}, " one": {" two": 1.0}, " two": {".": 1.0}}
    model = ScriptedModel(script(world), opinion(lambda _: 0.0))
    embedder = WordEmbedder({"one": (1, 0)})
    asked = write(model, paper(), embedder=embedder).asked(Embed)
    assert asked[0].texts == (" one two.",)  # the path is ' one', the rest was simulated
    assert asked[1].texts == (" one two.", " two.")


def test_a_ranked_last_token_has_its_exact_probability():
    # Sets of two tokens, but room for one: its candidates are ranked, so no greedy prior is lifted
    # (lifting .4 to .35 + .25 = .6 would make it .5 of 1.2).
    world = {"It is": {" a": 0.4, " b": 0.35, " c": 0.25}}
    model = ScriptedModel(script(world), opinion(lambda _: 0.0))
    search = {"token_set_lengths": (2,), "root_mixing": 0.0, "similarity": None, "addition": None}
    run = write(model, paper(generation={"max_new_tokens": 1}, search=search))
    priors = {candidate.text: candidate.prior for candidate in run.steps[0].candidates}
    assert priors == pytest.approx({" a": 0.4, " b": 0.35, " c": 0.25})


# --- asked ahead ------------------------------------------------------------------------------------


@pytest.mark.parametrize("odds", [{"la": 2.0, "lu": -2.0}, {"l": -2.0}, {"li": 3.0, "la li": -9.0}, {}])
def test_foresight_changes_no_choice_of_the_papers_search(odds: dict[str, float]):
    """Steps carry the whole tree that was looked at: visits, values, priors. All are the same."""
    runs = []
    for foresight in (0, 1, 2, 7):
        model = ScriptedModel(script(ENDLESS), opinion(wording(**odds)))
        search = {"iterations": 12, "similarity": None, "prefetch": foresight}
        runs.append(write(model, paper(generation={"max_new_tokens": 14}, search=search)))
    assert all(run.steps == runs[0].steps for run in runs)
    assert all(run.outcome == runs[0].outcome for run in runs)
    # What is asked ahead comes in fewer rounds, and is not asked again.
    assert len(runs[2].rounds) < len(runs[0].rounds)
    for run in runs:
        asked = run.asked(Sample)
        assert len(set(asked)) == len(asked)


def test_without_foresight_nothing_is_asked_that_is_not_used():
    model = ScriptedModel(script(ENDLESS), opinion(lambda _: 1.0))
    search = {"similarity": None, "prefetch": 0}
    run = write(model, paper(generation={"max_new_tokens": 14}, search=search))
    assert not run.search.prefetch.replies


def test_a_leaf_that_is_visited_once_gets_no_candidates():
    model = ScriptedModel(script(ENDLESS), opinion(lambda _: -1.0))
    search = {"similarity": None, "addition": None, "prefetch": 0, "iterations": 6, "extra_iterations": 0}
    run = write(model, paper(generation={"max_new_tokens": 1}, search=search))
    several = [request for request in run.asked(Sample) if request.n > 1]
    assert [request.prefix for request in several] == [run.search.state.prompt]


def test_a_rejected_draft_does_not_leave_its_next_token_behind():
    """The token drawn with a verdict is used behind that draft alone."""
    for one in seeds(keeping(search={"iterations": 6}), 12):
        model = ScriptedModel(script(ENDLESS), opinion(wording(lu=-3.0, la=1.0)))
        run = write(model, one)
        text = "".join(step.text for step in run.steps)
        assert run.outcome.text == text
        assert len(run.outcome.tokens) == 30
        place = len(run.search.state.prompt) + len(run.outcome.tokens)
        assert all(len(request.prefix) >= place for request in run.search.prefetch.replies)


def test_verdicts_on_what_was_rewound_are_forgotten():
    model = ScriptedModel(script(ENDLESS), opinion(wording(lu=-3.0, la=1.0)))
    run = write(model, keeping(search={"iterations": 6}))
    assert run.outcome.evaluations > len(run.search.verdicts.of)
    assert all(text.startswith(run.outcome.text) for text in run.search.verdicts.of)


def test_a_step_ends_when_what_is_left_cannot_change_its_choice():
    """Never good enough, so the budget would be spent: the first choice is the same, and comes sooner."""
    whole, short = (
        write(
            ScriptedModel(script(ENDLESS), opinion(wording(la=-0.1, li=-2.0))),
            paper(
                generation={"max_new_tokens": 1},
                search={"similarity": None, "addition": None, "stop_when_decided": stop},
            ),
        )
        for stop in (False, True)
    )
    assert short.outcome.text == whole.outcome.text
    assert short.outcome.iterations < whole.outcome.iterations == 50


# --- the budget -------------------------------------------------------------------------------------


def children_below(step: Step) -> Candidate:
    return next(candidate for candidate in step.candidates if candidate.chosen)


@pytest.mark.parametrize(("iterations", "extra"), [(20, 5), (20, 30), (50, 15)])
def test_iterations_run_from_the_inherited_visits_to_the_budget(iterations: int, extra: int):
    model = ScriptedModel(script(ENDLESS), opinion(lambda _: 0.0))  # never good enough
    settings = paper(
        generation={"max_new_tokens": 12},
        search={
            "iterations": iterations,
            "extra_iterations": extra,
            "similarity": None,
            "stop_when_decided": False,
        },
    )
    run = write(model, settings)
    inherited = 0
    for step in run.steps:
        assert step.iterations == max(iterations, inherited + extra) - inherited
        inherited = children_below(step).visits
    assert len(run.steps) > 2
    assert run.outcome.iterations == sum(step.iterations for step in run.steps)


@pytest.mark.parametrize("min_visits", [0, 3, 6, 16])
def test_a_step_is_done_at_more_than_the_minimum_of_visits(min_visits: int):
    model = ScriptedModel(script({"It is": {" good": 1.0}, " good": {".": 1.0}}), opinion(lambda _: 1.0))
    search = {"min_visits": min_visits, "similarity": None}
    step = write(model, paper(search=search)).steps[0]
    assert children_below(step).visits == min_visits + 1
    assert step.iterations == min_visits + 2  # and one for the root


def test_a_value_at_the_threshold_is_not_good_enough():
    model = ScriptedModel(script({"It is": {" good": 1.0}, " good": {".": 1.0}}), opinion(lambda _: 0.0))
    search = {"min_visits": 1, "iterations": 9, "extra_iterations": 0, "similarity": None}
    settings = paper(search=search | {"value_threshold": 0.0})
    assert write(model, settings).steps[0].iterations == 9
    settings = paper(search=search | {"value_threshold": -0.01})
    assert write(model, settings).steps[0].iterations == 3


def test_a_step_may_be_settled_by_what_it_inherited():
    # ' a' has one bad look and ten good ones when its value exceeds .8; by then ' good' behind it
    # has ten visits and value 1, so that the next step is settled before it begins.
    world = {
        "It is": {" a": 1.0},
        " a": {" good": 1.0, " bad": 1.0},
        " good": {".": 1.0},
        " bad": {".": 1.0},
    }
    model = ScriptedModel(script(world), opinion(wording(good=1.0, bad=-1.0)))
    settings = paper(search={"exploration": 0.1, "similarity": None, "addition": None})
    runs = [write(model, one) for one in seeds(settings, 6)]
    assert {run.outcome.text for run in runs} == {" a good."}
    assert any(step.iterations == 0 for run in runs for step in run.steps)


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("iterations", [1, 2])
def test_the_smallest_budget_is_enough_for_an_answer(iterations: int, extra: int):
    search = {"iterations": iterations, "extra_iterations": extra, "similarity": None}
    model = ScriptedModel(script(GOOD_OR_BAD), opinion(wording(good=1.0, bad=-1.0)))
    for settings in seeds(paper(search=search), 4):
        assert write(model, settings).outcome.text in (" good.", " bad.")


def test_a_kept_step_takes_at_most_its_iterations():
    model = ScriptedModel(script(ENDLESS), opinion(lambda _: 0.0))
    settings = keeping(search={"iterations": 5, "simulation_tokens": 4})
    assert {step.iterations for step in write(model, settings).steps} == {5}


# --- terminal nodes, EOS, length ----------------------------------------------------------------------

MODES = pytest.mark.parametrize("mode", [paper, keeping])


def without_embedder(
    mode: Callable[..., RainSettings], search: Mapping[str, Any] = MappingProxyType({}), **parts: Any
) -> RainSettings:
    """Make settings; of ``search``, the fields that the mode's strategy has."""
    own = type(mode().search).model_fields
    kept = {name: value for name, value in search.items() if name in own}
    return mode(search={**kept, "similarity": None}, **parts)


@MODES
def test_the_answer_ends_exactly_at_the_end_of_sequence(mode: Callable[..., RainSettings]):
    # Behind the full stop the model would go on in half of the cases.
    world = {"It is": {" good": 1.0}, " good": {".": 1.0}, ".": {END: 1.0, " More": 1.0}, " More": {".": 1.0}}
    model = ScriptedModel(script(world), opinion(lambda _: 5.0))
    for settings in seeds(without_embedder(mode), 10):
        run = write(model, settings)
        assert run.outcome.stop_reason is StopReason.EOS
        assert run.outcome.text.removeprefix(" good.").replace(" More.", "") == ""
        assert run.outcome.tokens == model.encode(run.outcome.text)


@MODES
def test_a_text_that_ends_at_once_is_an_empty_answer(mode: Callable[..., RainSettings]):
    model = ScriptedModel(script({}), opinion(lambda _: 5.0))
    run = write(model, without_embedder(mode))
    assert (run.outcome.text, run.outcome.tokens) == ("", ())
    assert run.outcome.stop_reason is StopReason.EOS


def test_behind_a_terminal_node_nothing_is_simulated():
    model = ScriptedModel(script(GOOD_OR_BAD), opinion(wording(good=1.0, bad=-1.0)))
    run = write(model, paper(search={"similarity": None, "addition": None}))
    prefixes = {model.decode(request.prefix) for request in run.asked(Sample)}
    assert prefixes == {"It is", "It is bad", "It is good"}


@MODES
@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8, 20])
def test_the_answer_has_exactly_the_tokens_that_were_allowed(mode: Callable[..., RainSettings], limit: int):
    model = ScriptedModel(script(ENDLESS), opinion(wording(la=0.4, lu=-0.4)))
    settings = without_embedder(mode, generation={"max_new_tokens": limit})
    run = write(model, settings)
    assert len(run.outcome.tokens) == limit
    assert run.outcome.stop_reason is StopReason.LENGTH
    assert model.encode(run.outcome.text) == run.outcome.tokens
    for request in run.asked(Sample):
        assert len(request.prefix) - 2 + request.max_tokens <= limit


# --- stop strings ---------------------------------------------------------------------------------------

COLOURS = {
    "It is": {" red": 1.0},
    " red": {" green": 1.0},
    " green": {" blue": 1.0},
    " blue": {" red": 1.0},
}
"""red green blue red green blue ..."""


@MODES
@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ((" blue",), " red green"),
        (("blue",), " red green "),
        (("green blue",), " red "),  # across two tokens, so across two commitments of the paper
        (("reen bl",), " red g"),
        ((" blue red gr",), " red green"),
        (("blue red", "en b"), " red gre"),  # the first to be met
        (("red",), " "),
        ((" red",), ""),
        (("purple", "blue"), " red green "),
    ],
)
def test_the_answer_ends_exactly_before_a_stop_string(
    mode: Callable[..., RainSettings], stop: tuple[str, ...], text: str
):
    model = ScriptedModel(script(COLOURS), opinion(lambda _: 5.0))
    settings = without_embedder(mode, generation={"stop": stop, "max_new_tokens": 12})
    run = write(model, settings)
    assert run.outcome.text == text
    assert run.outcome.stop_reason is StopReason.STOP
    # While streaming, nothing is shown that the stop string then takes back.
    shown = ""
    for step in run.steps:
        shown += step.text
        assert text.startswith(shown)
    assert shown + run.outcome.tail == text


def test_a_stop_string_that_is_begun_but_not_finished_is_shown_in_the_end():
    model = ScriptedModel(script(COLOURS), opinion(lambda _: 5.0))
    settings = paper(
        generation={"stop": "green blue red red", "max_new_tokens": 5}, search={"similarity": None}
    )
    run = write(model, settings)
    # Committed: ' red', ' green blue', ' red green'. Held back: 'green blue', then 'green'.
    assert [step.text for step in run.steps] == [" red", " ", "green blue red green"]
    assert run.outcome.text == " red green blue red green"
    assert run.outcome.stop_reason is StopReason.LENGTH


def test_the_judge_does_not_see_what_stands_behind_a_stop_string():
    model = ScriptedModel(script(COLOURS), opinion(lambda _: 5.0))
    for mode in (paper, keeping):
        run = write(model, without_embedder(mode, generation={"stop": " blue"}))
        assert not any("blue" in model.decode(request.prefix) for request in run.asked(Score))


# --- committing by verdict ---------------------------------------------------------------------------------


def test_a_good_draft_is_accepted_at_once():
    model = ScriptedModel(script({"It is": {" good": 1.0}, " good": {".": 1.0}}), opinion(lambda _: 3.0))
    run = write(model, keeping())
    assert [(step.text, step.iterations, step.accepted) for step in run.steps] == [
        (" good.", 1, True),
        ("", 1, True),  # the model ends the text
    ]
    # With the question comes the first token behind the draft: the end. That text was judged already.
    assert len(run.rounds) == 2
    blind = write(model, keeping(search={"prefetch": False}))
    assert len(blind.rounds) == 3
    assert blind.outcome.text == run.outcome.text
    verdict = run.steps[0].verdict
    assert verdict is not None
    assert verdict.passed
    assert verdict.score == pytest.approx(np.tanh(1.5))  # 2 * sigmoid(3) - 1
    assert run.outcome.verdict == verdict


def test_a_bad_draft_is_rewound():
    model = ScriptedModel(script(GOOD_OR_BAD), opinion(wording(good=3.0, bad=-3.0)))
    runs = [write(model, one) for one in seeds(keeping(search={"iterations": 40}), 12)]
    assert {run.outcome.text for run in runs} == {" good."}
    assert all(run.outcome.accepted for run in runs)
    rewound = [run for run in runs if run.steps[0].iterations > 1]
    assert rewound
    for run in rewound:
        candidates = {candidate.text: candidate for candidate in run.steps[0].candidates}
        assert not candidates[" bad."].chosen
        assert candidates[" good."].chosen
        assert sum(c.visits for c in candidates.values()) == run.steps[0].iterations


def aiming(target: float, **search: Any) -> RainSettings:
    return keeping(
        evaluation={"criteria": [GOOD.model_copy(update={"threshold": 0.5, "target": target})]},
        search={"iterations": 40, **search},
    )


def test_a_draft_that_passes_below_the_target_is_taken_when_the_budget_is_spent():
    model = ScriptedModel(script(GOOD_OR_BAD), opinion(wording(good=0.5, bad=-3.0)))  # sigmoid .622
    run = write(model, aiming(0.63))
    assert (run.outcome.text, run.outcome.accepted) == (" good.", True)
    assert run.steps[0].iterations == 40
    assert write(model, aiming(0.62)).steps[0].iterations < 40


def test_of_all_drafts_the_best_is_committed():
    world = {
        "It is": {" dull": 1.0, " fair": 1.0, " fine": 1.0},
        " dull": {".": 1.0},
        " fair": {".": 1.0},
        " fine": {".": 1.0},
    }
    model = ScriptedModel(script(world), opinion(wording(dull=-1.0, fair=0.3, fine=0.6)))
    assert {write(model, one).outcome.text for one in seeds(aiming(0.9), 5)} == {" fine."}


def test_a_text_that_passes_every_criterion_goes_before_a_higher_score():
    # fair: .52 and .52. fine: .98, but .45 of the second criterion, whose threshold is .5.
    world = {"It is": {" fair": 1.0, " fine": 1.0}, " fair": {".": 1.0}, " fine": {".": 1.0}}
    odds = {"good": {"fair": 0.1, "fine": 4.0}, "kind": {"fair": 0.1, "fine": -0.2}}

    def weigh(question: str, label: str) -> float:
        of = odds.get(label.strip(), {})
        return sum(value for word, value in of.items() if f"{word}." in question)

    kind = Criterion(name="kind", labels=(("kind", "cruel"),), frames=GOOD.frames, calibration=None)
    aims = [GOOD.model_copy(update={"target": 0.99}), kind]
    settings = keeping(evaluation={"criteria": aims}, search={"iterations": 30})
    run = write(ScriptedModel(script(world), weigh), settings)
    assert (run.outcome.text, run.outcome.accepted) == (" fair.", True)
    assert run.outcome.verdict is not None
    assert [score.name for score in run.outcome.verdict.criteria] == ["good", "kind"]
    best = {candidate.text: candidate.best for candidate in run.steps[0].candidates}
    assert best[" fine."] > best[" fair."]


def test_several_leaves_are_looked_at_in_one_round():
    model = ScriptedModel(script(ENDLESS), opinion(lambda _: -1.0))
    settings = keeping(search={"leaves": 4, "iterations": 9, "simulation_tokens": 4})
    run = write(model, settings)
    sizes = [len(requests) for requests in run.rounds if isinstance(requests[0], Sample)]
    assert sizes[:3] == [1, 4, 4]  # the first draft alone, then four at once
    assert {step.iterations for step in run.steps} == {9}
    assert all(
        (node.virtual_visits, node.virtual_children) == (0, 0) for node in run.search.state.tree.root.walk()
    )


def test_what_other_drafts_found_below_the_committed_one_is_kept():
    world = {"It is": {" a": 1.0}, " a": {" b": 1.0}, " b": {" c": 1.0, " d": 1.0}, "": {".": 1.0}}
    model = ScriptedModel(script(world | {".": {END: 1.0}}), opinion(wording(a=-1.0, d=0.5)))
    settings = keeping(search={"token_set_lengths": (1,), "iterations": 9, "simulation_tokens": 2})
    run = write(model, settings)
    # Every draft begins ' a b'; when that is committed, what was simulated behind it counts on.
    assert [step.text for step in run.steps][:2] == [" a b", " d."]
    assert sum(c.visits for c in run.steps[1].candidates) > run.steps[1].iterations


# --- when nothing passes ----------------------------------------------------------------------------------

AT_ONCE = {"min_visits": 0}  # of the paper's search: a good child is committed at its first visit
REFUSAL = "I would rather not."


@MODES
def test_best_marks_what_did_not_pass(mode: Callable[..., RainSettings]):
    model = ScriptedModel(script(SENTENCES), opinion(wording(good=1.0, bad=-3.0, awful=-4.0)))
    settings = without_embedder(mode, search=AT_ONCE, on_unsafe="best")
    run = write(model, settings)
    assert run.outcome.text in (" good. Then bad.", " good. Then awful.")
    assert run.steps[0].accepted
    assert not run.steps[-1].accepted
    assert not run.outcome.accepted
    assert run.outcome.verdict is not None
    assert not run.outcome.verdict.passed


@MODES
def test_refuse_says_the_refusal_behind_what_was_accepted(mode: Callable[..., RainSettings]):
    model = ScriptedModel(script(SENTENCES), opinion(wording(good=1.0, bad=-3.0, awful=-4.0)))
    settings = without_embedder(mode, search=AT_ONCE, on_unsafe="refuse", refusal=REFUSAL)
    run = write(model, settings)
    assert run.outcome.text == "".join(step.text for step in run.steps)
    accepted, _, refusal = run.outcome.text.partition("\n")
    assert accepted == (" good" if mode is paper else " good.")
    assert refusal == REFUSAL
    assert [step.refusal for step in run.steps] == [False] * (len(run.steps) - 1) + [True]
    assert all(step.accepted for step in run.steps[:-1])
    assert not run.outcome.accepted
    assert run.outcome.stop_reason is StopReason.REFUSED
    assert run.outcome.verdict is not None
    assert not run.outcome.verdict.passed


@MODES
def test_a_refusal_alone_stands_alone(mode: Callable[..., RainSettings]):
    model = ScriptedModel(script(GOOD_OR_BAD), opinion(lambda _: -3.0))
    settings = without_embedder(mode, on_unsafe="refuse", refusal=REFUSAL)
    run = write(model, settings)
    assert run.outcome.text == REFUSAL
    assert run.outcome.tokens == ()


@MODES
def test_raise_ends_with_what_was_accepted(mode: Callable[..., RainSettings]):
    model = ScriptedModel(script(SENTENCES), opinion(wording(good=1.0, bad=-3.0, awful=-4.0)))
    run = write(model, without_embedder(mode, search=AT_ONCE, on_unsafe="raise"))
    assert run.outcome.text == (" good" if mode is paper else " good.")
    assert run.outcome.stop_reason is StopReason.UNSAFE
    assert all(step.accepted for step in run.steps)
    assert run.outcome.text == "".join(step.text for step in run.steps) + run.outcome.tail


@pytest.mark.parametrize("on_unsafe", ["refuse", "raise"])
@pytest.mark.parametrize("mode", [paper, keeping])
@given(
    bad=st.sets(st.sampled_from(["la", "li", "lu", "la li", "lu lu"]), min_size=1), seed=st.integers(0, 99)
)
@hypothesis_settings(max_examples=examples(25))
def test_nothing_unaccepted_is_ever_emitted(
    mode: Callable[..., RainSettings], on_unsafe: str, bad: set[str], seed: int
):
    model = ScriptedModel(script(ENDLESS), opinion(wording(**dict.fromkeys(bad, -2.0), l=1.0)))
    settings = without_embedder(
        mode,
        on_unsafe=on_unsafe,
        generation={"seed": seed, "max_new_tokens": 5},
        search={"iterations": 6, "extra_iterations": 3, "simulation_tokens": 2, "token_set_lengths": (1, 2)},
    )
    run = write(model, settings)
    for step in run.steps:
        assert step.accepted or step.refusal or step.text == ""


def test_a_judge_that_always_says_the_same_letter_ties():
    choice = {"criteria": ["harmlessness"], "style": "choice", "mode": "hard", "examples": True}
    model = ScriptedModel(script(GOOD_OR_BAD), lambda question, label: 0.0 if label == "A" else -9.0)
    run = write(model, paper(search={"similarity": None}, evaluation=choice))
    assert not run.outcome.accepted
    assert {c.value for step in run.steps for c in step.candidates} == {0.0}
    refusing = paper(search={"similarity": None}, evaluation=choice, on_unsafe="refuse")
    assert write(model, refusing).outcome.stop_reason is StopReason.REFUSED


def test_a_step_carries_the_verdict_on_its_own_text():
    # As worked out above, fine is committed by weight although great was judged better.
    model = ScriptedModel(script(FINE_OR_GREAT), opinion(wording(great=1.0, awful=-1.0)))
    embedder = WordEmbedder({"fine": (1, 0), "great": (1, 0), "awful": (0, 1)})
    step = write(model, paper(search=SEVEN), embedder=embedder).steps[0]
    assert step.text == " fine"
    assert step.verdict is not None
    assert step.verdict.score == 0.0  # a tie; great's is 1
    assert not step.verdict.passed


def test_a_refusal_does_not_carry_the_verdict_of_a_text_that_passed():
    model = ScriptedModel(script(FINE_OR_GREAT), opinion(wording(great=1.0, awful=-1.0)))
    embedder = WordEmbedder({"fine": (1, 0), "great": (1, 0), "awful": (0, 1)})
    run = write(model, paper(search=SEVEN, on_unsafe="refuse"), embedder=embedder)
    assert run.outcome.stop_reason is StopReason.REFUSED
    assert run.outcome.verdict is not None
    assert not run.outcome.verdict.passed


# --- interruption and replay -------------------------------------------------------------------------------


@MODES
@pytest.mark.parametrize("reason", [StopReason.DEADLINE, StopReason.BUDGET, StopReason.CANCELLED])
def test_an_interrupted_search_returns_what_was_accepted(
    mode: Callable[..., RainSettings], reason: StopReason
):
    model = ScriptedModel(script(COLOURS), opinion(lambda _: 5.0))
    settings = without_embedder(
        mode, generation={"stop": "blue red yellow", "max_new_tokens": 8}, search={"min_visits": 1}
    ).updated(search={"simulation_tokens": 2})
    whole = write(model, settings)
    assert whole.outcome.stop_reason is StopReason.LENGTH
    for k in range(len(whole.rounds)):
        run = write(model, settings, interrupt_at=k, reason=reason)
        assert run.outcome.stop_reason is reason
        assert run.outcome.text == "".join(step.text for step in run.steps) + run.outcome.tail
        assert whole.outcome.text.startswith(run.outcome.text)
        assert run.outcome.tokens == whole.outcome.tokens[: len(run.outcome.tokens)]
        assert run.steps == whole.steps[: len(run.steps)]
        assert (run.outcome.verdict is None) == (not run.steps)
    assert len(whole.steps) > 2


@MODES
def test_a_search_is_replayed_by_its_replies(mode: Callable[..., RainSettings]):
    model = ScriptedModel(script(ENDLESS), opinion(wording(lu=-1.0, li=0.5)))
    settings = without_embedder(mode, generation={"max_new_tokens": 9, "seed": 7}, search={"iterations": 10})
    first = write(model, settings)
    recorded = iter(first.replies)
    again = drive(new_search(model, settings), lambda _: next(recorded))
    assert again.rounds == first.rounds
    assert again.steps == first.steps
    assert again.outcome == first.outcome


WORDS = (" la", " li", " lu", ".", ",", END)
LIKES = st.dictionaries(st.sampled_from(["la", "li", "lu", ".", "la li"]), st.floats(-3, 3), max_size=4)


WEIGHTS = st.lists(st.sampled_from([0.1, 1.0, 5.0]), min_size=6, max_size=6)
DRAWINGS = st.fixed_dictionaries(
    {
        "max_new_tokens": st.integers(1, 9),
        "seed": st.integers(0, 999),
        "stop": st.sampled_from([(), ("la li",), (".",), (" lu", "li l"), ("a.",)]),
    }
)
BOTH: dict[str, st.SearchStrategy[Any]] = {
    "token_set_lengths": st.sampled_from([(1,), (2,), (1, 2, 4), (3, 1)]),
    "simulation_ends": st.sampled_from(["punctuation", "sentence", "answer"]),
    "simulation_tokens": st.integers(1, 6),
    "iterations": st.integers(1, 9),
    "leaves": st.integers(1, 4),
    "exploration": st.sampled_from([0.0, 0.3, 2.0]),
    "normalise_values": st.booleans(),
    "similarity": st.sampled_from([None, {"threshold": 0.5}, {"threshold": 0.5, "share": 1.0}]),
}
PAPERS: dict[str, st.SearchStrategy[Any]] = {
    "strategy": st.just("paper"),
    "extra_iterations": st.integers(0, 4),
    "min_visits": st.integers(0, 4),
    "value_threshold": st.sampled_from([-1.0, 0.0, 0.8]),
    "width": st.integers(1, 4),
    "addition": st.sampled_from([None, {"variance": 5.0, "value": 1.0}, {"max_children": 3, "value": 0.2}]),
    "prefetch": st.sampled_from([0, 1, 4, 16]),
    "stop_when_decided": st.booleans(),
}
KEEPING: dict[str, st.SearchStrategy[Any]] = {
    "strategy": st.just("keep_drafts"),
    "widening": st.sampled_from([0.4, 1.0, 3.0]),
    "prefetch": st.booleans(),
}
BY_VISITS = st.fixed_dictionaries(BOTH | PAPERS)
BY_VERDICT = st.fixed_dictionaries(BOTH | KEEPING)


def run_any(
    weights: Sequence[float], likes: dict[str, float], settings: RainSettings, **interruption: Any
) -> Run:
    model = ScriptedModel(script({"": dict(zip(WORDS, weights, strict=True))}), opinion(wording(**likes)))
    embedder = WordEmbedder({"la": (1.0, 0.1), "li": (0.9, 0.3), "lu": (0.0, 1.0)})
    return write(model, settings, embedder=embedder, **interruption)


@given(
    weights=WEIGHTS,
    likes=LIKES,
    drawing=DRAWINGS,
    search=st.one_of(BY_VERDICT, BY_VISITS),
    on_unsafe=st.sampled_from(["best", "refuse", "raise"]),
)
@hypothesis_settings(max_examples=examples(300))
def test_any_search_ends_and_adds_up(
    weights: list[float],
    likes: dict[str, float],
    drawing: dict[str, Any],
    search: dict[str, Any],
    on_unsafe: str,
):
    settings = keeping(generation=drawing, search=search, on_unsafe=on_unsafe, refusal=REFUSAL)
    run = run_any(weights, likes, settings)
    outcome = run.outcome

    assert outcome.text == "".join(step.text for step in run.steps) + outcome.tail
    assert len(outcome.tokens) <= drawing["max_new_tokens"]
    assert outcome.tokens == tuple(token for step in run.steps for token in step.tokens)
    assert not any(stop in outcome.text.removesuffix(REFUSAL) for stop in drawing["stop"])
    decode = run.search.state.writer.decode
    assert decode(outcome.tokens).startswith(outcome.text.removesuffix(REFUSAL).rstrip("\n"))
    reasons = {StopReason.EOS, StopReason.STOP, StopReason.LENGTH}
    unsafe = {"best": set(), "refuse": {StopReason.REFUSED}, "raise": {StopReason.UNSAFE}}[on_unsafe]
    assert outcome.stop_reason in reasons | unsafe
    if outcome.stop_reason is StopReason.LENGTH:
        assert len(outcome.tokens) == drawing["max_new_tokens"]
    assert outcome.accepted == (outcome.stop_reason in reasons and all(s.accepted for s in run.steps))
    assert outcome.accepted or on_unsafe == "best" or outcome.stop_reason in unsafe
    assert outcome.verdict is not None
    assert outcome.verdict.passed or not outcome.accepted
    for step in run.steps:
        # A step that passed speaks for itself; one that did not never carries a verdict that did.
        assert step.accepted or step.verdict is None or not step.verdict.passed
        assert sum(candidate.chosen for candidate in step.candidates) <= 1
    questions = {decode(request.prefix) for request in run.asked(Score)}
    # A text that may hold verdicts of its own is asked about in three readings: with, with some, without.
    assert len(questions) <= 3 * outcome.evaluations
    assert outcome.evaluations <= outcome.iterations + len(run.steps)
    for node in run.search.state.tree.root.walk():
        assert (node.virtual_visits, node.virtual_children) == (0, 0)
    # Nothing is asked twice, and of what was asked only what may come again is kept.
    drawn = run.asked(Sample)
    assert len(set(drawn)) == len(drawn)
    here = run.search.state.prompt + outcome.tokens
    prefixes = [request.prefix for request in run.search.prefetch.replies] + [
        prefix for prefix, _ in run.search.state.turns
    ]
    assert all(prefix[: len(here)] == here for prefix in prefixes)


@pytest.mark.parametrize("changes", [{}, {"strategy": "paper"}])
def test_a_model_that_gives_no_token_and_no_end_holds_up_nobody(changes: dict[str, Any]):
    model = ScriptedModel(script({"": {"la": 1.0}}), opinion(wording()))
    answer = by_model(model)

    def silent(requests: Sequence[Request]) -> list[Reply]:
        nothing = Samples((Continuation((), (), False, 0.0),), 1, 1)
        return [r if isinstance(r, Scores) else nothing for r in answer(requests)]

    run = drive(new_search(model, keeping(search=changes), "It is"), silent)
    assert run.outcome.stop_reason is StopReason.ERROR
    assert "without a token" in str(run.outcome.cause)


def test_a_candidate_that_ends_the_text_has_ended():
    model = ScriptedModel(script({"": {END: 3.0, "la": 1.0}}))
    (reply,) = model.sample([Sample(model.encode("It"), 2, 1, 1, ranked=True)])
    assert [one.ended for one in reply.continuations] == [True, False]
    assert [len(one.tokens) for one in reply.continuations] == [0, 1]


@given(weights=WEIGHTS, likes=LIKES, drawing=DRAWINGS, search=BY_VISITS)
@hypothesis_settings(max_examples=examples(200))
def test_whatever_the_search_by_visits_foresight_changes_no_choice(
    weights: list[float], likes: dict[str, float], drawing: dict[str, Any], search: dict[str, Any]
):
    settings = keeping(generation=drawing, search=search)
    blind = run_any(weights, likes, settings.updated(search={"prefetch": 0}))
    run = run_any(weights, likes, settings)
    assert run.steps == blind.steps
    assert run.outcome == blind.outcome
    assert set(run.asked(Score)) == set(blind.asked(Score))
    assert set(run.asked(Sample)) >= set(blind.asked(Sample))


@given(weights=WEIGHTS, likes=LIKES, drawing=DRAWINGS, search=BY_VISITS)
@hypothesis_settings(max_examples=examples(200))
def test_a_step_that_is_ended_early_has_the_choice_of_the_whole_budget(
    weights: list[float], likes: dict[str, float], drawing: dict[str, Any], search: dict[str, Any]
):
    """The first one; the next begin from less."""
    whole, short = (
        run_any(weights, likes, keeping(generation=drawing, search=search | {"stop_when_decided": stop}))
        for stop in (False, True)
    )
    assert short.steps[0].tokens == whole.steps[0].tokens
    assert short.steps[0].iterations <= whole.steps[0].iterations


@given(weights=WEIGHTS, likes=LIKES, drawing=DRAWINGS, search=BY_VISITS)
@hypothesis_settings(max_examples=examples(200))
def test_no_step_takes_more_than_its_budget(
    weights: list[float], likes: dict[str, float], drawing: dict[str, Any], search: dict[str, Any]
):
    run = run_any(weights, likes, keeping(generation=drawing, search=search))
    inherited = 0
    for step in run.steps:
        left = max(search["iterations"] - inherited, search["extra_iterations"])
        least = 1 if inherited else 2  # a step has a child that was visited
        assert step.iterations <= max(left, least)
        inherited = sum(candidate.visits for candidate in step.candidates if candidate.chosen)


@given(
    weights=WEIGHTS,
    likes=LIKES,
    drawing=DRAWINGS,
    search=st.one_of(BY_VERDICT, BY_VISITS),
    on_unsafe=st.sampled_from(["best", "refuse", "raise"]),
    place=st.integers(0, 60),
)
@example(
    weights=[0.1, 1.0, 0.1, 0.1, 0.1, 0.1],
    likes={},
    drawing={"max_new_tokens": 2, "seed": 0, "stop": (" lu", "li l")},
    search={
        "strategy": "keep_drafts",
        "simulation_ends": "punctuation",
        "simulation_tokens": 1,
        "iterations": 1,
        "similarity": None,
        "prefetch": False,
    },
    on_unsafe="best",
    place=2,
)
@hypothesis_settings(max_examples=examples(200))
def test_whenever_a_search_is_interrupted_only_what_was_accepted_leaves(
    weights: list[float],
    likes: dict[str, float],
    drawing: dict[str, Any],
    search: dict[str, Any],
    on_unsafe: str,
    place: int,
):
    settings = keeping(generation=drawing, search=search, on_unsafe=on_unsafe, refusal=REFUSAL)
    whole = run_any(weights, likes, settings)
    run = run_any(weights, likes, settings, interrupt_at=place % len(whole.rounds))
    assert run.outcome.stop_reason is StopReason.CANCELLED
    assert run.steps == whole.steps[: len(run.steps)]
    assert run.outcome.tokens == whole.outcome.tokens[: len(run.outcome.tokens)]
    assert run.outcome.text == "".join(step.text for step in run.steps) + run.outcome.tail
    # Accepted text in which a stop string may begin is held back; it leaves with an interruption.
    assert whole.outcome.text.startswith(run.outcome.text.removesuffix(run.outcome.tail))
    assert whole.search.state.writer.decode(whole.outcome.tokens).startswith(run.outcome.text)
    assert run.outcome.accepted or on_unsafe == "best"


def test_another_seed_asks_otherwise():
    model = ScriptedModel(script(ENDLESS), opinion(lambda _: 1.0))
    one, other = seeds(keeping(), 2)
    assert write(model, one).rounds[0] != write(model, other).rounds[0]


def test_the_search_takes_whatever_a_model_replies():
    # A continuation that ends at once, time and again, beside others: no step without an end.
    model = ScriptedModel(script(ENDLESS), opinion(lambda _: 0.0))
    answer = by_model(model)
    turn = iter(range(10**6))

    def odd(requests: Sequence[Request]) -> list[Reply]:
        replies = answer(requests)
        for i, request in enumerate(requests):
            if isinstance(request, Sample) and request.n == 1 and next(turn) % 2:
                replies[i] = Samples((Continuation((), (), True, -1.0),))
        return replies

    run = drive(new_search(model, keeping(search={"iterations": 12, "simulation_tokens": 3})), odd)
    assert run.outcome.stop_reason in (StopReason.EOS, StopReason.LENGTH)


# --- guided drafts ------------------------------------------------------------------------------

GUIDE = "Be kind. "


def guided_search(model: ScriptedModel, settings: RainSettings) -> RainSearch:
    search = new_search(model, settings)
    search.state.guided = model.encode(GUIDE + "It is")
    return search


def test_the_first_draft_of_a_step_is_the_prompts_own_and_what_follows_a_rewind_is_guided() -> None:
    model = ScriptedModel(script(SENTENCES), opinion(wording(good=1.0, bad=-4.0, awful=-4.0)))
    search = guided_search(model, keeping())
    run = drive(search, by_model(model))
    drafts = [request.prefix for request in run.asked(Sample) if request.max_tokens > 1]
    own = [prefix for prefix in drafts if prefix[: len(search.state.prompt)] == search.state.prompt]
    guided = [prefix for prefix in drafts if prefix[: len(search.state.guided)] == search.state.guided]
    sentence = run.steps[0].tokens
    assert drafts[0] == search.state.prompt and run.steps[0].accepted  # the first sentence is good at once
    assert drafts[1][: len(search.state.prompt + sentence)] == search.state.prompt + sentence
    assert len(own) <= len(run.steps) and len(own) + len(guided) == len(drafts)
    assert len(guided) >= keeping().search.iterations - 1  # the second never is
    assert all(
        prefix[: len(search.state.guided + sentence)] == search.state.guided + sentence for prefix in guided
    )


def test_a_guide_finds_what_the_prompts_own_drafts_do_not() -> None:
    told = {"It is": {" bad": 1.0}, GUIDE + "It is": {" good": 1.0}, " bad": {".": 1.0}, " good": {".": 1.0}}
    model = ScriptedModel(script(told), opinion(wording(bad=-4.0, good=4.0)))
    at_once = keeping(search={"token_set_lengths": (8,)})
    alone = write(model, at_once).outcome
    assert (alone.text, alone.accepted) == (" bad.", False)
    run = drive(guided_search(model, at_once), by_model(model))
    assert (run.outcome.text, run.outcome.accepted, run.outcome.iterations) == (" good.", True, 3)
