"""One task's section of a report: its tables, plots and examples."""

from __future__ import annotations

import numpy as np

from rain_llm.evals import plots
from rain_llm.evals.formatting import Scale, title_of, verdict_of
from rain_llm.evals.judges.by_words import refuses
from rain_llm.evals.page import Example, Section
from rain_llm.evals.rows import Row
from rain_llm.evals.statistics import BEST_OF, GUIDED_BEST_OF, equal_tokens, mean
from rain_llm.evals.study import PLAIN, SELF_CHECK, Study
from rain_llm.evals.tables import ablations_table, cost_table, equal_tokens_table, figures_table

_UPSETTING = ("civility", "harmlessness", "jailbreak")
_EXAMPLES = 3  # items, evenly spaced, so that nobody chooses them
_FEW = 20  # items


def section_of(study: Study) -> Section:
    """Make a task's section."""
    section = Section(study.task, _about(study), upsetting=study.task in _UPSETTING)
    if study.aims:
        section.tables.append(figures_table(study, "What it is about", study.aims))
    if study.helps:
        section.tables.append(figures_table(study, "Is it still of use?", study.helps))
    tables = (cost_table(study), equal_tokens_table(study), ablations_table(study))
    section.tables += [table for table in tables if table is not None]
    section.plots = _plots(study)
    section.forest = _forest(study)
    section.examples = _examples(study)
    return section


def _about(study: Study) -> str:
    """Return how many items and seeds there are, and what is missing."""
    items = len({row.item for row in study.answers})
    seeds = len({row.seed for row in study.answers})
    most = max(map(len, study.rows.values()))
    about = f"{items} items × {seeds} seed{'s' * (seeds > 1)}."
    if items < _FEW:
        about += f" Fewer than {_FEW} items: intervals are rough, and only large differences show."
    short = [f"{m} {len(found)}" for m, found in study.rows.items() if len(found) < most]
    if short:
        about += (
            f" Not all methods have answered all {most}: {', '.join(short)}; differences rest on what "
            "both have."
        )
    wordless = {m: sum(not row.text.strip() for row in found) for m, found in study.rows.items()}
    if any(wordless.values()):
        counts = ", ".join(f"{m} {n}" for m, n in wordless.items() if n)
        about += f" Answers without a word, in which no judge of insults finds any: {counts}."
    if refused := [f"{m} {study.refused(m)}" for m in study.rows if study.refused(m)]:
        about += f" Refusals, which no judge of tone counts: {', '.join(refused)}."
    return about


def _plots(study: Study) -> list[tuple[str, str]]:
    """Plot quality against tokens, for each judge of the task's goal."""
    made = []
    for name in study.aims:
        judge = study.judges[name]
        points = []
        for method in (*study.methods, *study.ablations):
            quality = study.level(name, method)
            if not quality.answers:
                continue
            best_of = BEST_OF.fullmatch(method)
            kind = "ladder" if best_of else "rain" if method in study.rain else "plain"
            if method in study.ablations or GUIDED_BEST_OF.fullmatch(method):
                kind = "part"
            label = "" if kind == "part" else best_of[1] if best_of else method
            tokens = mean(study.counts(method, "model_tokens"))
            points.append(plots.Point(method, tokens, quality, kind, label))
        if not points:
            continue
        scale = Scale(judge, [point.quality for point in points])
        made.append((title_of(judge), plots.curve(points, judge.title, scale.figure)))
    return made


def _forest(study: Study) -> str:
    """Plot the differences to plain, methods by judges."""
    methods = [method for method in study.methods if method != PLAIN]
    if PLAIN not in study.rows or not methods:
        return ""
    columns = []
    for name in (*study.aims, *study.helps):
        judge = study.judges[name]
        changes = [study.change(name, method, PLAIN) for method in methods]
        scale = Scale(judge, changes)
        effects = [(change, verdict_of(change, judge.better)) for change in changes]
        columns.append(plots.Effects(judge.title, judge.better, effects, scale.signed))
    return plots.forest(methods, columns)


def _examples(study: Study) -> list[Example]:
    """Show evenly spaced items of the first seed, so that nobody chooses them."""
    shown = [PLAIN, SELF_CHECK]
    for method in study.rain:
        enough, fewer = equal_tokens(study.answers, method)
        shown += [f"best-of-{enough or fewer}", method]
    shown = [method for method in dict.fromkeys(shown) if method in study.rows]
    seed = min(row.seed for row in study.answers)
    answers = {(row.method, row.item): row for row in study.answers if row.seed == seed}
    items = list(dict.fromkeys(row.item for row in study.answers))
    places = np.linspace(0, len(items) - 1, min(_EXAMPLES, len(items))).round().astype(int)
    examples = []
    for item in (items[place] for place in places):
        texts = []
        for method in shown:
            row = answers.get((method, item))
            if row is not None:
                texts.append((method, row.text, _figures_of(study, row)))
        if texts:
            examples.append(Example(answers[texts[0][0], item].prompt, texts))
    return examples


def _figures_of(study: Study, row: Row) -> str:
    """Return the figures of the first two judges of the task's goal, as text."""
    values = [
        (study.judges[name], study.of(name, row.method).get((row.item, row.seed))) for name in study.aims[:2]
    ]
    figures = ["refused"] * (refuses(row) and any(judge.tone for judge, _ in values))
    figures += [
        f"{judge.title} {('no', 'yes')[bool(value)] if judge.share else f'{value:.2f}'}".replace("-", "−")
        for judge, value in values
        if value is not None
    ]
    return ", ".join(figures)
