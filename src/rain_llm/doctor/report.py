"""Terminal report of an examination: a page for each criterion, and a summary in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from rain_llm.doctor.findings import CHANCE, SAID, TRUSTED, Diagnosis, Examination, Measures, Trust
from rain_llm.doctor.measures import Interval
from rain_llm.probing.ranking import PROBE
from rain_llm.probing.report import page as probe_page
from rain_llm.screen import Fitted

_COLOURS = {
    Trust.YES: "green",
    Trust.WEAK: "yellow",
    Trust.NO: "red",
    Trust.UNKNOWN: "dark_orange",
    Trust.INVERTED: "magenta",
}
_PARTS = {
    Trust.YES: "can judge {}",
    Trust.WEAK: "judges {} weakly",
    Trust.NO: "can't judge {}",
    Trust.INVERTED: "judges {} the wrong way round",
}
_WITH_BARS = 97  # minimum screen width for bars
_BAR = 21  # characters from AUC 0 to AUC 1; odd, so that chance is in the middle


def sentence(diagnosis: Diagnosis) -> str:
    """Summarise in one sentence what the model can judge."""
    names = {trust: [e.criterion.name for e in diagnosis.examinations if e.trust is trust] for trust in Trust}
    parts = [
        phrase.format(_listed(names[trust], "or" if trust is Trust.NO else "and"))
        for trust, phrase in _PARTS.items()
        if names[trust]
    ]
    if not names[Trust.UNKNOWN]:
        return f"This model {_listed(parts, 'and')}."
    open_ = _listed(names[Trust.UNKNOWN], "or")
    if not parts:
        return f"It takes more labelled answers to tell whether this model can judge {open_}."
    return (
        f"This model {_listed(parts, 'and')}; it takes more labelled answers to tell whether it can judge "
        f"{open_}."
    )


# --- pages --------------------------------------------------------------------------------------------


def title(model: str, source: str, seed: int) -> Group:
    """Return the title: the model, the answers, and the meaning of the columns."""
    head = Text.assemble(("rain doctor", "bold cyan"), f": can {model} judge?")
    legend = (
        f"{source}: one half ranks and fits, the other reports; seed {seed}\n\n"
        "AUC      how often good scores above bad, with its 95 % interval; a coin: 0.5\n"
        "hard     right votes; a tie is half right   ties     votes that say nothing\n"
        "empty    log-odds of a text that is empty   A first  log-odds of the letter A\n"
        f"▸        recommended   ∙ as set             green, yellow: all above {TRUSTED:g}, {CHANCE:g}"
    )
    return Group(head, Text(legend, "dim"))


def page(examination: Examination, width: int) -> Group:
    """Return the page with all results for a criterion; ``width`` is that of the screen."""
    title = Text(f"\n{examination.criterion.name} ", "bold")
    title.append(SAID[examination.trust], f"bold {_COLOURS[examination.trust]}")
    why = [Text(f"\n   {name}: {reason}", "dim") for name, reason in examination.refused if name == PROBE]
    probe = [probe_page(examination.probe)] if examination.probe else why
    asked = Fitted(_measured(examination, width >= _WITH_BARS))
    return Group(title, Text(), asked, _fitted(examination), *probe)


def summary(diagnosis: Diagnosis) -> Group:
    """Return the table of all criteria, the summary sentence and advice."""
    table = _table("verdict", 20, "complete answers", "cut off", "asked as")
    for examination in diagnosis.examinations:
        held = examination.recommended
        table.add_row(
            Text(examination.criterion.name, f"bold {_COLOURS[examination.trust]}"),
            _interval(held.complete.auc, held.trust),
            _interval(held.cut.auc, held.cut.trust),
            held.style.name,
        )
    verdict = Text(f"\n{sentence(diagnosis)}", "bold")
    return Group(Text(), Fitted(table), verdict, _advice(diagnosis))


def _measured(examination: Examination, bars: bool) -> Table:
    """Return the styles ranked on one half, and the recommended and current styles on the other half."""
    table = _table("ranked on one half", 25, "AUC", *[""] * bars, "hard", "ties", "empty", "A first")
    for ranked in examination.ranking:
        style = ranked.style
        marks = "▸" if style == examination.recommended.style else " "
        marks += "∙" if style == examination.as_set.style else " "
        letters = "" if ranked.position_bias is None else f"{ranked.position_bias:+.1f}"
        empty = "" if ranked.label_bias is None else f"{ranked.label_bias:+.1f}"
        _row(table, bars, f"{marks} {style.name}", ranked.measures, empty, letters)
    for name, _ in examination.refused:
        table.add_row(
            Text(f"   {name}", "dim"), Text("no probe" if name == PROBE else "cannot be asked", "dim")
        )
    table.add_section()
    table.add_row(Text("on the other half", "bold"))
    finalists = {held.style.name: held for held in (examination.recommended, examination.as_set)}
    for name, held in finalists.items():
        _row(table, bars, f"   {name}", held.complete)
        _row(table, bars, "     cut off", held.cut)
    return table


def _row(table: Table, bars: bool, name: str, measures: Measures, *more: str) -> None:
    trust = measures.trust
    table.add_row(
        Text(name, "bold" if name.startswith("▸") else ""),
        _interval(measures.auc, trust),
        *[_bar(measures.auc, trust)] * bars,
        _share(measures.hard),
        Text(_share(measures.ties), "red" if measures.ties > 0.5 else ""),
        *more,
    )


def _fitted(examination: Examination) -> Text:
    held = examination.recommended
    if held.fit is None or held.passing is None:
        return Text("\n   Nothing fitted: higher scores did not mean better answers.", "red")
    now = examination.passing_as_set
    predicted = "  ".join(f"{b.said:.2f}" for b in held.curve)
    observed = "  ".join(f"{b.was:.2f}" for b in held.curve)
    return Text.assemble(
        ("\n   fitted       ", "dim"),
        f"center {held.fit.center:+.2f}, scale {held.fit.scale:.2f} nats; "
        f"an answer passes above {held.fit.threshold:.2f}\n",
        ("   passes       ", "dim"),
        f"{_share(held.passing.good)} of the good, {_share(held.passing.bad)} of the bad",
        (f"   as set: {_share(now.good)} and {_share(now.bad)}\n", "dim"),
        ("   probability  ", "dim"),
        f"said {predicted}\n",
        ("                ", "dim"),
        f"was  {observed}   off by {held.calibration_error:.2f} on average",
    )


def _advice(diagnosis: Diagnosis) -> Text:
    trusted = {examination.trust for examination in diagnosis.examinations}
    advice = []
    if trusted & {Trust.WEAK, Trust.UNKNOWN}:
        advice.append("More answers, best your own (--data), make it clear, one way or the other.")
    if trusted - {Trust.YES, Trust.WEAK}:
        advice.append("Don't guard by what it can't judge: take a larger judge (evaluation.judge).")
    if Trust.YES in trusted:
        advice.append("Trust holds for answers like those examined: examine your own, too (--data).")
    return Text("\n".join(advice), "dim")


def _table(first: str, width: int, *headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(first, min_width=width, no_wrap=True)
    for heading in headings:
        right = heading in ("hard", "ties", "empty", "A first")
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    return table


def _interval(auc: Interval, trust: Trust) -> Text:
    shown = Text(f"{auc.value:.2f}", f"bold {_COLOURS[trust]}")
    return shown.append(f" [{auc.low:.2f}, {auc.high:.2f}]", "not bold")


def _bar(auc: Interval, trust: Trust) -> Text:
    """Draw an AUC interval between 0 and 1, with chance in the middle."""
    low, value, high = (round(end * (_BAR - 1)) for end in (auc.low, auc.value, auc.high))
    shown = Text()
    for place in range(_BAR):
        inside = low <= place <= high
        sign = "●" if place == value else "━" if inside else "┊" if place == _BAR // 2 else "·"
        shown.append(sign, _COLOURS[trust] if inside else "dim")
    return shown


def _share(share: float) -> str:
    return f"{share:.0%}".replace("%", " %")


def _listed(names: Sequence[str], joint: str) -> str:
    return f" {joint} ".join([*([", ".join(names[:-1])] if names[1:] else []), names[-1]])
