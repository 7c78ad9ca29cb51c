"""A merge judged, as a terminal table.

Holds: ``render_judgement``.
May import: rich, ``secant.readings``, ``secant.report.paths``, ``secant.uses.judge``.
"""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from secant.readings import ModelReport
from secant.report.paths import path_table, sentences, shown
from secant.uses.judge import MERGED


def render_judgement(report: ModelReport) -> list[Table | str]:
    """A line a model; the barrier; notes. Without a loss, the outputs between two parents."""
    scores = {(one.site, one.gauge): one for one in report.readings if "t" not in one.details
              and one.gauge in ("loss", "accuracy")}  # fmt: skip
    parts: list[Table | str] = []
    if scores:
        table = Table(
            title=escape(f"{report.name} on {report.data}: {report.units} units"),
            caption="loss in nats; merged less: paired by groups of units, of the loss positive "
            "where the merged model is worse; ±: half-width of the 95 % interval, its longer side",
            box=SIMPLE_HEAD, padding=(0, 1, 0, 0),
        )  # fmt: skip
        table.add_column("model", overflow="fold")
        for head in ("loss", "merged less", "accuracy", "merged less"):
            table.add_column(head, justify="right")
        for name in dict.fromkeys(site for site, _ in scores):
            cells = [escape(name)]
            for gauge in ("loss", "accuracy"):
                beside = scores[MERGED, gauge].controls.get(name, {}).get("difference")
                cells += [shown(scores[name, gauge]), shown(beside, "+") if beside else ""]
            table.add_row(*cells)
        parts.append(table)
    else:
        parts.append(path_table(report, [one for one in report.readings if one.gauge == "chord"]))
    parts += [
        f"Between the parents. {escape(line)}"
        for line in sentences([one for one in report.readings if one.gauge == "barrier"])
    ]
    return parts + [f"[bold]{escape(note)}[/bold]" for note in report.notes]
