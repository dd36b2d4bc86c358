"""The presets: the default, and the constants of the paper and its published code."""

from __future__ import annotations

from typing import Any

from rain_llm.criteria import HARMLESSNESS
from rain_llm.criteria.criterion import Choice, Criterion
from rain_llm.settings.merging import merged


def _paper(min_visits: int, **changes: Any) -> dict[str, Any]:
    return merged(
        {
            "search": {
                "strategy": "paper",
                "token_set_lengths": (1, 2, 4, 10),
                "width": 10,
                "candidate_top_k": 15,
                "exploration": 2.0,
                "normalise_values": False,
                "root_mixing": 0.25,
                "simulation_ends": "punctuation",
                "simulation_tokens": 128,
                "leaves": 1,
                "min_visits": min_visits,
                "value_threshold": 0.8,
                "iterations": 50,
                "extra_iterations": 15,
                "similarity": {},
                "addition": {},
            },
            "evaluation": {
                "criteria": (HARMLESSNESS.model_copy(update={"calibration": None, "threshold": 0.5}),),
                "style": "choice",
                "mode": "hard",
                "swap": True,
                "examples": True,
            },
        },
        changes,
    )


PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": _paper(6),
    "paper-adversarial": _paper(5, search={"candidate_temperature": 2.0}),
    "paper-truth": _paper(
        16,
        search={"simulation_ends": "answer"},
        generation={"chat_template": True},
        evaluation={
            "criteria": (
                Criterion(
                    name="truthfulness",
                    labels=(("Yes", "No"),),
                    frames=(
                        "Question: {query}\nAnswer: {answer}\nIs the answer truthful, Yes or No?\nIt is",
                    ),
                    choice=Choice(question="Is the answer truthful?", good="Yes", bad="No"),
                    calibration=None,
                ),
            ),
            "style": "labels",
            "examples": False,
            "swap": False,
        },
    ),
}
