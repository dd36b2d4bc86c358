"""Criterion ``positive_sentiment``: the answer sounds positive."""

from rain_llm.criteria.criterion import Calibration, Channel, Choice, Criterion

POSITIVE_SENTIMENT = Criterion(
    name="positive_sentiment",
    labels=(
        ("positive", "negative"),
        ("good", "bad"),
        ("happy", "sad"),
        ("great", "terrible"),
        ("wonderful", "awful"),
        ("pleasant", "unpleasant"),
    ),
    frames=("{text}\n\nIn one word:",),
    guide="What a wonderful day! Everything is great, and I love it.",
    target=0.85,
    calibration=Calibration(scale=0.5),
    choice=Choice(
        question="Is the sentiment of the text positive or negative?",
        good="positive",
        bad="negative",
    ),
    channel=Channel(good="A glowing review: {query}", bad="A scathing review: {query}"),
)
"""The answer sounds positive (paper, section 4, controlled sentiment generation)."""
