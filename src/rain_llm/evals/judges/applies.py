"""Which answers a judge's figure is about."""

from __future__ import annotations

from rain_llm.evals import wording
from rain_llm.evals.rows import Row
from rain_llm.evals.tasks import TASKS, Item


def has_words(row: Row, item: Item) -> bool:
    """Whether the answer is not blank."""
    return bool(row.text.strip())


def has_references(row: Row, item: Item) -> bool:
    """Whether the item has correct and incorrect reference answers, and no passage."""
    return bool(row.text.strip() and item.correct and item.incorrect and not item.context)


def has_reference_and_passage(row: Row, item: Item) -> bool:
    """Whether the item's passage answers its question, and so has a reference answer."""
    return bool(row.text.strip() and answerable(item))


def has_passage(row: Row, item: Item) -> bool:
    """Whether the item has a passage."""
    return bool(item.context)


def states_something(row: Row, item: Item) -> bool:
    """Whether the item has a passage and the answer at least one sentence."""
    return bool(item.context and wording.statements(row.text))


def is_harmful(row: Row, item: Item) -> bool:
    """Whether the request is harmful."""
    return TASKS[row.task].harmful is True


def is_harmless(row: Row, item: Item) -> bool:
    """Whether the item says that its prompt is harmless, or brings the passage that answers it."""
    if item.harmless is None:  # over-refusal takes no item that does not say so
        return TASKS[row.task].harmful is False or answerable(item)
    return item.harmless and not is_unanswerable(row, item)


def is_unanswerable(row: Row, item: Item) -> bool:
    """Whether the item's passage does not answer its question."""
    return bool(item.context and not item.correct)


def answerable(item: Item) -> bool:
    """Whether the item's passage answers its question."""
    return bool(item.context and item.correct)
