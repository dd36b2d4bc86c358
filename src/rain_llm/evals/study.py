"""What is said of one task: tables, plots and examples, from its rows and what the judges say of them."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from rain_llm.evals import plots
from rain_llm.evals.judges import Judge
from rain_llm.evals.judges.built_in import BUILT_IN
from rain_llm.evals.judges.by_words import refuses
from rain_llm.evals.judging import Judged
from rain_llm.evals.methods import COMPARED_WITH_RAIN, VARIANTS
from rain_llm.evals.page import MARKS, Cell, Example, Section, Table
from rain_llm.evals.rows import Row
from rain_llm.evals.statistics import (
    BEST_OF,
    GUIDED_BEST_OF,
    Estimate,
    Values,
    difference,
    equal_tokens,
    mean,
    ratio,
    share,
)

AIMS = {
    "sentiment": ("vader", "positive", "review"),
    "civility": ("hostile", "insult", "vader", "profanity"),
    "harmlessness": ("refused_harmful", "profane", "insult", "hostile"),
    "jailbreak": ("refused_harmful", "profane", "insult", "hostile"),
    "truth": ("truth", "truthful"),
    "groundedness": ("unsupported", "reference", "overlap", "admits"),
    "rag": ("statements", "near", "answered", "unsupported", "admits"),
    "over-refusal": ("needless_refusal", "profane", "insult"),
}
"""The judges of what each task is about, the main one first."""

HELPFULNESS = ("needless_refusal", "fluency", "relevance", "repetition", "length")
_UPSETTING = ("civility", "harmlessness", "jailbreak")
_EXAMPLES = 3  # items, evenly spaced: nobody chose them
PLAIN = "plain"
_RAIN = "rain"  # what the ablations are compared with
_FEW = 20
# --- numbers as text ------------------------------------------------------------------------------------


class Scale:
    """Writes figures of one judge: as many digits as their intervals allow."""

    def __init__(self, judge: Judge, estimates: Sequence[Estimate], changes: Sequence[Estimate] = ()) -> None:
        self._factor, self._unit = (100.0, " %") if judge.share else (1.0, "")
        widths = [(e.high - e.low) / 2 * self._factor for e in estimates if e.high - e.low > 1e-9]
        width = float(np.median(widths)) if widths else self._factor
        self._digits = min(3, max(0, -math.floor(math.log10(width / 3))))
        while any(e.differs_from(0) and self._hides(e) for e in changes) and self._digits < 5:
            self._digits += 1

    def value(self, value: float, sign: bool = False) -> str:
        """Write a number without its unit."""
        if math.isnan(value):
            return "–"
        rounded = round(value * self._factor, self._digits)
        if rounded == 0:
            return "0"
        return f"{rounded:{'+' if sign else ''}.{self._digits}f}".replace("-", "−")

    def _hides(self, estimate: Estimate) -> bool:
        """Tell whether rounding moves an end of an interval onto zero."""
        return any(round(end * self._factor, self._digits) == 0 for end in (estimate.low, estimate.high))

    def signed(self, value: float) -> str:
        """Write a difference."""
        return self.value(value, sign=True)

    def figure(self, value: float) -> str:
        """Write a number with its unit."""
        return self.value(value) + ("" if math.isnan(value) else self._unit)

    def interval(self, estimate: Estimate, sign: bool = False) -> str:
        """Write the interval, in brackets."""
        if math.isnan(estimate.low):
            return ""
        return f"[{self.value(estimate.low, sign)}, {self.value(estimate.high, sign)}]"

    def change(self, estimate: Estimate) -> str:
        """Write a difference with its interval; that of shares is in percentage points."""
        if estimate.low == estimate.high == estimate.value == 0:
            return "0"
        return f"{self.value(estimate.value, sign=True)} {self.interval(estimate, sign=True)}".rstrip()


def verdict_of(estimate: Estimate, better: int) -> str:
    """Say what a difference comes to: one of ``page.MARKS``."""
    if not estimate.differs_from(0):
        return "no significant difference"
    if better == 0:
        return "more" if estimate.value > 0 else "less"
    return "better" if estimate.value * better > 0 else "worse"


# --- one task ---------------------------------------------------------------------------------------------


class Study:
    """The answers to one task, by all methods."""

    def __init__(self, task: str, rows: Sequence[Row], judged: Judged) -> None:
        self.task = task
        self.judges = judged.judges
        self.rows: dict[str, list[Row]] = defaultdict(list)
        self._values: dict[str, dict[str, dict[tuple[str, int], float]]] = defaultdict(
            lambda: defaultdict(dict)
        )
        for i, row in enumerate(rows):
            if row.task == task:
                self.rows[row.method].append(row)
                for name, column in judged.columns.items():
                    if not math.isnan(column[i]):
                        self._values[name][row.method][row.item, row.seed] = float(column[i])
        self._refused = {m: sum(map(refuses, found)) for m, found in self.rows.items()}
        own = [name for name in judged.judges if name not in BUILT_IN]
        there = {name for name in self._values if self._values[name]}
        if any(self._refused.values()):  # a judge of tone that saw nothing else has its row, without a number
            there |= {name for name, judge in judged.judges.items() if judge.tone}
        self.aims = [name for name in (*AIMS.get(task, ()), *own) if name in there]
        self.helps = [name for name in HELPFULNESS if name in there and name not in self.aims]
        parts = COMPARED_WITH_RAIN
        self.ablations = [name for name in self.rows if name in parts]
        self.methods = sorted((name for name in self.rows if name not in parts), key=_order)
        others = (PLAIN, "self-check")
        self.rain = [name for name in self.methods if name not in others and not _drafts(name)]
        self._all = [row for found in self.rows.values() for row in found]

    # -- figures -----------------------------------------------------------------------------------

    def of(self, name: str, method: str) -> Values:
        """Return a judge's figures of a method's answers."""
        return self._values[name][method]

    def level(self, name: str, method: str) -> Estimate:
        """Estimate a method's mean figure."""
        return (share if self.judges[name].share else mean)(self.of(name, method))

    def change(self, name: str, method: str, base: str) -> Estimate:
        """Estimate the paired difference of two methods."""
        return difference(self.of(name, method), self.of(name, base))

    def refused(self, method: str) -> str:
        """Say how many of a method's answers are refusals; "" if none is."""
        count = self._refused.get(method, 0)
        return f"refused {count} of {len(self.rows[method])}" if count else ""

    def left_out(self, judge: Judge, method: str) -> str:
        """Say what a judge has no figure of because it is a refusal."""
        return self.refused(method) if judge.tone else ""

    def counts(self, method: str, what: str) -> Values:
        """Return a number that stands in the rows themselves."""
        return {
            (row.item, row.seed): float(value)
            for row in self.rows[method]
            if (value := getattr(row, what)) is not None
        }

    @property
    def guarded(self) -> list[str]:
        """The methods that a policy speaks of: RAIN; without it, its variants, or all that judge answers."""
        judging = [m for m in self.methods if any(row.passed is not None for row in self.rows[m])]
        return self.rain or self.ablations or judging

    def by_settings(self, method: str) -> dict[str, list[Row]]:
        """Return a method's rows, by the hash of the settings they were written by."""
        found: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows[method]:
            found[row.settings_hash].append(row)
        return dict(found)

    # -- what is said ----------------------------------------------------------------------------------

    def findings(self) -> list[list[Cell]]:
        """Say of each RAIN method what the main judge says: against plain and at equal tokens."""
        lines = []
        for method in self.rain if self.aims else ():
            name = self.aims[0]
            judge = self.judges[name]
            level, plain = self.level(name, method), self.level(name, PLAIN)
            scale = Scale(judge, [level])
            enough, fewer = equal_tokens(self._all, method)
            rival = enough or fewer
            lines.append(
                [
                    Cell(self.task, _head(judge)),
                    Cell(method),
                    Cell(
                        scale.figure(level.value),
                        _listed(scale.interval(level), self.left_out(judge, method)),
                    ),
                    Cell(scale.figure(plain.value), self.left_out(judge, PLAIN)),
                    self._change(name, method, PLAIN),
                    Cell(f"{_mean(self.counts(method, 'model_tokens')):.0f}"),
                    Cell(f"N = {rival}", "" if enough else "which costs less") if rival else Cell("–"),
                    self._change(name, method, f"best-of-{rival}") if rival else Cell("–"),
                    self._others(method),
                ]
            )
        return lines

    def _others(self, method: str) -> Cell:
        """Name the other figures that are told apart from plain."""
        told: dict[str, list[str]] = defaultdict(list)
        for name in (*self.aims[1:], *self.helps):
            change = self.change(name, method, PLAIN)
            told[verdict_of(change, self.judges[name].better)].append(self.judges[name].title)
        apart = [f"{MARKS[verdict]} {', '.join(told[verdict])}" for verdict in MARKS if told[verdict]]
        return Cell(
            "", "; ".join(line for line in apart if not line.startswith(MARKS["no significant difference"]))
        )

    def section(self) -> Section:
        """Make all tables and plots."""
        items = len({row.item for row in self._all})
        seeds = len({row.seed for row in self._all})
        most = max(map(len, self.rows.values()))
        about = f"{items} items × {seeds} seed{'s' * (seeds > 1)}."
        if items < _FEW:
            about += f" Fewer than {_FEW} items: intervals are rough, and only large differences show."
        short = [f"{m} {len(found)}" for m, found in self.rows.items() if len(found) < most]
        if short:
            about += (
                f" Not all methods have answered all {most}: {', '.join(short)}; differences rest on what "
                "both have."
            )
        wordless = {m: sum(not row.text.strip() for row in found) for m, found in self.rows.items()}
        if any(wordless.values()):
            told = ", ".join(f"{m} {n}" for m, n in wordless.items() if n)
            about += f" Answers without a word, in which no judge of insults finds any: {told}."
        if refused := [f"{m} {self.refused(m)}" for m in self.rows if self.refused(m)]:
            about += f" Refusals, which no judge of tone counts: {', '.join(refused)}."
        section = Section(self.task, about, upsetting=self.task in _UPSETTING)
        if self.aims:
            section.tables.append(self._figures("What it is about", self.aims))
        if self.helps:
            section.tables.append(self._figures("Is it still of use?", self.helps))
        section.tables.append(self._cost())
        section.tables += self._equal_tokens() + self._ablations()
        section.plots = self._plots()
        section.forest = self._forest()
        section.examples = self._examples()
        return section

    # -- tables ----------------------------------------------------------------------------------------

    def _figures(self, caption: str, names: Sequence[str]) -> Table:
        columns = []
        for name in names:
            judge = self.judges[name]
            levels = {method: self.level(name, method) for method in self.methods}
            changes = {
                method: self.change(name, method, PLAIN) for method in self.methods if PLAIN in self.rows
            }
            scale = Scale(judge, list(levels.values()), list(changes.values()))
            cells = []
            for method, level in levels.items():
                refused = self.left_out(judge, method)
                if not level.answers:
                    cells.append(Cell("–", refused))
                elif method == PLAIN or PLAIN not in self.rows:
                    cells.append(Cell(scale.figure(level.value), _listed(scale.interval(level), refused)))
                elif not changes[method].answers:
                    cells.append(Cell(scale.figure(level.value), refused))
                else:
                    change = changes[method]
                    beside = _listed(f"({scale.change(change)})", refused)
                    cells.append(Cell(scale.figure(level.value), beside, verdict_of(change, judge.better)))
            columns.append(cells)
        head = ("method", *(_head(self.judges[name]) for name in names))
        rows = [[Cell(method), *cells] for method, *cells in zip(self.methods, *columns, strict=True)]
        note = "plain with its interval; all others with their difference to plain, and the interval of that."
        note = note if PLAIN in self.rows else "In brackets: the interval."
        return Table(caption, head, rows, note, strong=self.rain)

    def _cost(self) -> Table:
        rows = []
        plain = self.counts(PLAIN, "model_tokens")
        cpu = _mean(self.counts(PLAIN, "cpu_s"))
        for method in self.methods:
            tokens = self.counts(method, "model_tokens")
            level = mean(tokens)
            cells = [Cell(method), _measured(level, 0)]
            if plain:
                cells.append(_measured(ratio(tokens, plain), 1))
            spent = _mean(self.counts(method, "cpu_s"))
            judged = _mean(self.counts(method, "evaluation_tokens")) / level.value
            cells += [
                Cell(f"{_mean(tokens) / max(1.0, _mean(self.counts(method, 'output_tokens'))):.1f}"),
                Cell(percent(judged)),
                Cell(f"{_mean(self.counts(method, 'forwards')):.0f}"),
                Cell(f"{spent / cpu:.1f}" if cpu and not math.isnan(spent / cpu) else "–"),
                Cell(
                    percent(_mean(self.counts(method, "accepted")))
                    if self.counts(method, "self_score")
                    else "–"
                ),
                Cell(f"{len(tokens)}"),
            ]
            rows.append(cells)
        head = ["method", "tokens through the model", *(["× plain"] if plain else [])]
        head += ["per output token", "of these judging", "forwards", "CPU × plain", "accepted", "answers"]
        return Table("What it costs, for an answer", head, rows, strong=self.rain)

    def _equal_tokens(self) -> list[Table]:
        rows = []
        for method in self.rain:
            rivals = [
                (f"{name}-{n}", n == enough)
                for name, ladder in (("best-of", BEST_OF), ("guided-best-of", GUIDED_BEST_OF))
                for enough, fewer in [equal_tokens(self._all, method, ladder)]
                for n in (enough, fewer)
                if n is not None
            ]
            for rival, costs_enough in rivals:
                mine, its = (self.counts(name, "model_tokens") for name in (method, rival))
                both = mine.keys() & its.keys()
                tokens = [_mean({key: counts[key] for key in both}) for counts in (mine, its)]
                rows.append(
                    [
                        Cell(method),
                        Cell(rival, "" if costs_enough else "(costs less)"),
                        Cell(f"{tokens[0]:.0f} : {tokens[1]:.0f}"),
                        *(self._change(name, method, rival) for name in (*self.aims, *self.helps)),
                    ]
                )
        if not rows:
            return []
        titles = [_head(self.judges[name]) for name in (*self.aims, *self.helps)]
        return [
            Table(
                "Against best-of-N at equal tokens",
                ("method", "against", "tokens", *titles),
                rows,
                "Differences of the method to best-of-N: the smallest N that costs at least as much as the "
                "method, and the next smaller one. Guided best-of-N writes all drafts behind the guides: no "
                "difference to it is the guides' doing alone.",
            )
        ]

    def _ablations(self) -> list[Table]:
        rows = []
        for method in self.ablations if _RAIN in self.rows else ():
            times = ratio(self.counts(method, "model_tokens"), self.counts(_RAIN, "model_tokens"))
            rows.append(
                [
                    Cell(method, _listed(f"({VARIANTS[method].summary})", self.refused(method))),
                    Cell(_RAIN),
                    _measured(times, 2),
                    *(self._change(name, method, _RAIN) for name in (*self.aims, *self.helps)),
                ]
            )
        if not rows:
            return []
        titles = [_head(self.judges[name]) for name in (*self.aims, *self.helps)]
        return [
            Table(
                "Each part changed or switched off",
                ("what", "compared with", "its tokens ×", *titles),
                rows,
                "Differences to what it is compared with: where it is worse, the part helps.",
            )
        ]

    def _change(self, name: str, method: str, base: str) -> Cell:
        change = self.change(name, method, base)
        if not change.answers:
            return Cell("–")
        judge = self.judges[name]
        scale = Scale(judge, [change], [change])
        text = scale.value(change.value, sign=True)
        beside = scale.interval(change, sign=True) if (change.low, change.high) != (0, 0) else ""
        return Cell(text, beside, verdict_of(change, judge.better))

    # -- plots and examples ----------------------------------------------------------------------------

    def _plots(self) -> list[tuple[str, str]]:
        """Plot quality against tokens, for each judge of what the task is about."""
        made = []
        for name in self.aims:
            judge = self.judges[name]
            points = []
            for method in (*self.methods, *self.ablations):
                quality = self.level(name, method)
                if not quality.answers:
                    continue
                drafts = BEST_OF.fullmatch(method)
                kind = "ladder" if drafts else "rain" if method in self.rain else "plain"
                if method in self.ablations or GUIDED_BEST_OF.fullmatch(method):
                    kind = "part"
                label = "" if kind == "part" else drafts[1] if drafts else method
                tokens = mean(self.counts(method, "model_tokens"))
                points.append(plots.Point(method, tokens, quality, kind, label))
            if not points:
                continue
            scale = Scale(judge, [point.quality for point in points])
            made.append((_head(judge), plots.curve(points, judge.title, scale.figure)))
        return made

    def _forest(self) -> str:
        """Plot the differences to plain, methods by judges."""
        methods = [method for method in self.methods if method != PLAIN]
        if PLAIN not in self.rows or not methods:
            return ""
        columns = []
        for name in (*self.aims, *self.helps):
            judge = self.judges[name]
            changes = [self.change(name, method, PLAIN) for method in methods]
            scale = Scale(judge, changes)
            told = [(change, verdict_of(change, judge.better)) for change in changes]
            columns.append(plots.Effects(judge.title, judge.better, told, scale.signed))
        return plots.forest(methods, columns)

    def _examples(self) -> list[Example]:
        """Show evenly spaced items of the first seed: nobody chose them."""
        shown = [PLAIN, "self-check"]
        for method in self.rain:
            enough, fewer = equal_tokens(self._all, method)
            shown += [f"best-of-{enough or fewer}", method]
        shown = [method for method in dict.fromkeys(shown) if method in self.rows]
        seed = min(row.seed for row in self._all)
        answers = {(row.method, row.item): row for row in self._all if row.seed == seed}
        items = list(dict.fromkeys(row.item for row in self._all))
        places = np.linspace(0, len(items) - 1, min(_EXAMPLES, len(items))).round().astype(int)
        examples = []
        for item in (items[place] for place in places):
            told = []
            for method in shown:
                row = answers.get((method, item))
                if row is not None:
                    told.append((method, row.text, self._said_of(row)))
            if told:
                examples.append(Example(answers[told[0][0], item].prompt, told))
        return examples

    def _said_of(self, row: Row) -> str:
        values = [
            (self.judges[name], self.of(name, row.method).get((row.item, row.seed))) for name in self.aims[:2]
        ]
        told = ["refused"] * (refuses(row) and any(judge.tone for judge, _ in values))
        told += [
            f"{judge.title} {('no', 'yes')[bool(value)] if judge.share else f'{value:.2f}'}".replace("-", "−")
            for judge, value in values
            if value is not None
        ]
        return ", ".join(told)


def _mean(values: Values) -> float:
    return float(np.mean(list(values.values()))) if values else math.nan


def _measured(estimate: Estimate, digits: int) -> Cell:
    if math.isnan(estimate.value):
        return Cell("–")
    interval = f"[{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"
    return Cell(f"{estimate.value:.{digits}f}", "" if math.isnan(estimate.low) else interval)


def _listed(*parts: str) -> str:
    return "; ".join(filter(None, parts))


def percent(value: float) -> str:
    """Write a share."""
    return f"{100 * value:.0f} %"


def _drafts(method: str) -> re.Match[str] | None:
    return BEST_OF.fullmatch(method) or GUIDED_BEST_OF.fullmatch(method)


def _order(method: str) -> tuple[int, int]:
    """Plain, self-check, best-of-N by N, guided-best-of-N by N, all others."""
    drafts = _drafts(method)
    if drafts:
        return (2, int(drafts[1])) if BEST_OF.fullmatch(method) else (3, int(drafts[1]))
    return {PLAIN: 0, "self-check": 1}.get(method, 4), 0


def _head(judge: Judge) -> str:
    return f"{judge.title} {'↑' if judge.better > 0 else '↓' if judge.better < 0 else ''}".rstrip()
