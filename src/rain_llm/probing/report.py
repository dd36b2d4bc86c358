"""Terminal report of the examination of a probe."""

from __future__ import annotations

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from rain_llm.probing.findings import ProbeFindings, Row
from rain_llm.screen import Fitted


def page(findings: ProbeFindings) -> Group:
    """Return the results of a probe, each on answers that it was not fitted to."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    layers = ", ".join(map(str, findings.layers))
    head = f"read from layer{'s' * (len(findings.layers) > 1)} {layers} of {findings.depth}"
    table.add_column(head if findings.layers else "read from hidden states", min_width=25, no_wrap=True)
    table.add_column("AUC, not fitted to", no_wrap=True)
    table.add_column("answers", justify="right", no_wrap=True)
    table.add_column("probe ahead by", no_wrap=True)
    for rows in (findings.cuts, findings.sources, findings.kinds, findings.baselines):
        for row in rows:
            lead = _interval(row.lead.value, row.lead.low, row.lead.high, "+") if row.lead else ""
            table.add_row(f"   {row.name}", _auc(row), f"{row.n}", lead)
    curve = "  ".join(f"{row.n}: {row.auc.value:.2f}" for row in findings.learning)
    lines = [Text.assemble(("   labelled answers  ", "dim"), curve)] if curve else []
    return Group(
        Text(),
        Fitted(table),
        *lines,
        *(Text(f"   {warning}", "yellow") for warning in findings.warnings),
    )


def _auc(row: Row) -> str:
    return _interval(row.auc.value, row.auc.low, row.auc.high)


def _interval(value: float, low: float, high: float, sign: str = "") -> str:
    return f"{value:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"
