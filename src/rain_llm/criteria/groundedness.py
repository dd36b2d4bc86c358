"""Criterion ``groundedness``: the context supports the answer."""

from rain_llm.criteria.criterion import Calibration, Channel, Choice, Criterion

GROUNDEDNESS = Criterion(
    name="groundedness",
    labels=(("supported", "unsupported"), ("yes", "no"), ("true", "false")),
    frames=(
        "Passage: {context}\nQuestion: {query}\nAnswer: {answer}\n"
        "By the passage, is the answer supported? It is",
    ),
    style="channel",  # small models cannot judge this by labels or choices (docs/results.md)
    evidence=True,
    guide="I say only what the passage says.",
    target=0.9,
    calibration=Calibration(center=0.29, scale=0.1),
    choice=Choice(
        question="Is the answer supported by the passage?",
        good="The passage supports the answer",
        bad="The passage does not support the answer",
    ),
    channel=Channel(
        good="Passage: {context}\nQuestion: {query}\nAnswer:",
        bad="Question: {query}\nAnswer:",
        measure="share",
    ),
)
"""The given context supports the answer: its sentences make the answer likelier. Requires ``context=``."""
