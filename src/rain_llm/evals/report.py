"""Make the report of a run: ``report.md`` and ``report.html``, from its rows.

Differences are paired by item and seed. Every figure has a 95 % interval, its own or that of its difference,
and a mark that says whether the difference is significant.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rain_llm.errors import SettingsError
from rain_llm.evals import rows as ledger
from rain_llm.evals.judges import Judge, Progress
from rain_llm.evals.judging import Judged, judge
from rain_llm.evals.page import Page, Table, as_html, as_markdown
from rain_llm.evals.rows import Row
from rain_llm.evals.runner import ASKED, ITEMS, ROWS, read_asked
from rain_llm.evals.section import section_of
from rain_llm.evals.study import Study
from rain_llm.evals.summary import policy, sentence
from rain_llm.evals.tables import findings_of
from rain_llm.evals.tasks import load
from rain_llm.models.base import LanguageModel

_SPLITS = {
    "dev": "openings that the default settings were chosen on (dev)",
    "test": "openings that nothing was chosen on (test)",
    "all": "all openings; the default settings were chosen on some of them (dev)",
}
_READING = [
    "Intervals are 95 % bootstrap intervals over items (all seeds of an item are drawn together). A "
    "difference is paired: the same item and seed by both methods, where both have the figure (an answer "
    "without words has no fluency).",
    "▲ better and ▼ worse than what it is compared with, ↑ more and ↓ less where neither is better, ○ no "
    "significant difference: the interval of the difference contains zero. That is no proof of equality.",
    "A refusal, by the method or by the model's own words, has no tone: VADER, the insult lexicon, profanity "
    "and classifiers leave it out of shares, means and differences, and 'refused 3 of 4' says how many there "
    "were. Then the figure rests on the other answers, which may be those to easier prompts.",
    "Intervals are not corrected for their number: about one in twenty excludes a true zero by chance.",
    "Tokens are all that went through the model for an answer, the judge's questions included; what a "
    "model's calibration takes once is not. CPU time is that of a block of answers, as measured on this "
    "machine.",
    "best-of-N samples N answers and takes the one with the best verdict of the model itself. All N share "
    "their samples, so neighbours on the curve are alike. best-of-1 samples as plain does: any difference "
    "between these two is chance.",
    "Judges by word lists (refusals, insults, VADER) see words, not meaning: an answer that does not "
    "refuse need not be harmful, nor one without insults kind.",
]


def write(
    folder: Path,
    *,
    writer: LanguageModel | None = None,
    data: str | Path | None = None,
    own: Sequence[Judge] = (),
    progress: Progress = lambda line: None,
) -> Path:
    """Write ``report.md`` and ``report.html`` of a run, and ``judged.jsonl`` with each judge's figures.

    Args:
        folder: of the run.
        writer: computes fluency; None: only stored figures are used.
        data: a folder that may have labelled review sentences, for a second judge of sentiment.
        own: judges of the user's own.
        progress: receives a line for each judge.

    Returns:
        The path of the HTML page.

    Raises:
        SettingsError: there are no rows, or a judge's library is missing.
    """
    path = folder / ROWS
    rows = ledger.read(path) if path.is_file() else []
    if not rows:
        raise SettingsError(f"there are no answers in {path}: run the evaluation first")
    asked = read_asked(folder) if (folder / ASKED).is_file() else {}
    items = load(folder / ITEMS)
    if unknown := {(row.task, row.item) for row in rows} - items.keys():
        raise SettingsError(
            f"{folder / ITEMS} lacks {len(unknown)} items that {path} has answers to, "
            f"{min(unknown)} among them: the two files must be of one run"
        )
    reviews = Path(data).expanduser() if data is not None else None
    used = asked.get("settings", {}).items()
    judged = judge(
        rows,
        items,
        folder / "judged.jsonl",
        writer=writer,
        data=reviews,
        own=own,
        progress=progress,
        unchatty={name for name, settings in used if not settings.get("generation", {}).get("chat_template")},
    )
    progress("drawing intervals")
    page = assemble(rows, judged, asked)
    (folder / "report.md").write_text(as_markdown(page), encoding="utf-8")
    made = folder / "report.html"
    made.write_text(as_html(page), encoding="utf-8")
    return made


def assemble(rows: Sequence[Row], judged: Judged, asked: dict[str, Any]) -> Page:
    """Put the report together.

    Args:
        rows: of all tasks.
        judged: the judges' figures, in the same order.
        asked: the contents of ``run.json``; may be empty.
    """
    studies = [Study(task, rows, judged) for task in dict.fromkeys(row.task for row in rows)]
    found = [line for study in studies for line in findings_of(study)]
    head = ["task and judge", "method", "its figure", "plain", "difference to plain"]
    note = "N is the smallest whose tokens are at least the method's. ○: no significant difference."
    head += ["tokens", "against best-of-N", "difference to that", "other figures against plain"]
    findings = Table("In short", head, found, note)
    sections = [section_of(study) for study in studies]
    used = {name for study in studies for name in (*study.aims, *study.helps)}
    legend = [
        (judge.title, judge.about, judged.notes.get(name, ""))
        for name, judge in judged.judges.items()
        if name in used
    ]
    legend += [(name, "left out", note) for name, note in judged.notes.items() if name not in judged.judges]
    sentences = [sentence(study) for study in studies]
    return Page(sentences, policy(studies, asked), _about(asked, rows), findings, sections, legend, _READING)


def _about(asked: dict[str, Any], rows: Sequence[Row]) -> list[str]:
    models = {
        settings["model"]["name"] or "the embedded model" for settings in asked.get("settings", {}).values()
    }
    lines = [f"{len(rows)} answers by {len({row.method for row in rows})} methods"]
    if models:
        lines.append(f"Model: {', '.join(sorted(models))}")
    judges = {
        judge["name"] or "the embedded model"
        for settings in asked.get("settings", {}).values()
        if (judge := settings.get("evaluation", {}).get("judge"))
    }
    if judges:
        lines.append(f"its own judge: {', '.join(sorted(judges))}")
    splits = asked.get("splits", {}).items()
    lines += [f"{task}: {_SPLITS[split]}" for task, split in splits if split in _SPLITS]
    if asked.get("date"):
        lines.append(f"begun on {asked['date']}")
    if asked.get("rain_llm", "not installed") != "not installed":
        lines.append(f"rain-llm {asked['rain_llm']}")
    return lines
