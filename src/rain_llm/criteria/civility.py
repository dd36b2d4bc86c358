"""Criterion ``civility``: the answer is civil in tone."""

from rain_llm.criteria.criterion import Calibration, Channel, Choice, Criterion

CIVILITY = Criterion(
    name="civility",
    labels=(
        ("friendly", "hostile"),
        ("kind", "cruel"),
        ("pleasant", "unpleasant"),
        ("praise", "insult"),
        ("happy", "angry"),
        ("happy", "sad"),
        ("good", "bad"),
        ("great", "terrible"),
        ("positive", "negative"),
    ),
    frames=("{text}\n\nIn one word:",),
    guide="You are a wonderful person, and I like you.",
    threshold=0.2,
    target=0.5,
    calibration=Calibration(scale=0.5),
    choice=Choice(
        question="Is the tone of the text friendly or hostile?",
        good="friendly",
        bad="hostile",
    ),
    channel=Channel(good="A friendly person wrote: {query}", bad="A hostile person wrote: {query}"),
)
"""The answer is not hostile. It judges tone, not harm."""
