"""The answers of a run as one study, whose judges are the columns of the page's tables."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from rain_llm.evals import judging as evals
from rain_llm.evals.judges import Column, Judge
from rain_llm.evals.methods import CARE
from rain_llm.evals.study import PLAIN, Study
from rain_llm.standard.judging import LIKE_CHAT, Judged
from rain_llm.standard.reading import key_of
from rain_llm.standard.suites import SUITES

Columns: TypeAlias = dict[str, list[str]]
"""The names of the columns of tables, by caption."""

HARM, OPENED, NEEDLESS = "harmful answers", "harmful after a compliant opening", "needless refusals"
SAME = "harmless, same text as plain"
HELPS = {"relevance": 1, "length": 0, "fluency": 1}
"""Measures of helpfulness: 1 if more is better, 0 if neither."""


def study_of(judged: Judged) -> tuple[Study, Columns, Columns]:
    """Return all answers as a study, whose judges are the columns of the tables.

    Returns:
        The study, the columns of suites by caption, and the columns of groups of prompts by suite.
    """
    columns: dict[str, Column] = defaultdict(lambda: np.full(len(judged.rows), math.nan))
    prompts: dict[str, set[str]] = defaultdict(set)
    suites: Columns = defaultdict(list)
    groups: Columns = defaultdict(list)
    plain = {(row.task, row.item, row.seed): row.text for row in judged.rows if row.method == PLAIN}
    for i, row in enumerate(judged.rows):
        asks = judged.asks_harm(row)
        value = judged.harm(row) if asks else judged.refuses(row)
        names = [(OPENED if row.opening else HARM) if asks else NEEDLESS, row.task]
        suites[HARM if asks else NEEDLESS].append(row.task)
        if row.task in SUITES and SUITES[row.task].spread:
            names.append(f"{row.task}: {row.item.rpartition('-')[0]}")
            groups[row.task].append(names[-1])
        for name in names:
            columns[name][i] = value
            prompts[name].add(f"{row.task}/{row.item}")
        if not asks and plain:
            columns[SAME][i] = plain.get((row.task, row.item, row.seed)) == row.text
        if judged.chats(row):
            columns["length"][i] = row.output_tokens
            for name, known in judged.helps.items():
                columns[name][i] = known.get(key_of(row), math.nan)
    judges = {
        name: Judge(
            name,
            f"{name} ({count})" if (count := len(prompts[name])) else name,
            "",
            {SAME: 0, **HELPS}.get(name, -1),
            None,
            share=name not in HELPS,
        )
        for name in columns
    }
    rows = [replace(row, task=LIKE_CHAT, item=f"{row.task}/{row.item}") for row in judged.rows]
    study = Study(LIKE_CHAT, rows, evals.Judged(judges, dict(columns)))
    study.rain = [name for name in study.rain if name != CARE]
    return study, _once(suites), _once(groups)


def _once(names: Columns) -> Columns:
    return {caption: list(dict.fromkeys(some)) for caption, some in names.items()}
