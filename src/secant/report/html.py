"""A report as one HTML page: no network, no script, every control beside its reading.

Holds: ``render_html``, ``render_frame``.
May import: the standard library and ``secant.report``.
"""

from __future__ import annotations

from typing import Any

from secant.report.charts import escape
from secant.report.curves import curve_plots
from secant.report.fields import Model, depth_of, finite, readings_of, sites_of, text_at
from secant.report.guide import guide
from secant.report.path_card import is_path, path_card
from secant.report.profiles import comparison, plots
from secant.report.style import CHART_CSS, PAGE_CSS
from secant.report.summary import summary
from secant.report.tables import tables
from secant.report.time import time_plots


def render_html(report: dict[str, Any]) -> str:
    """The report as one self-contained page; every text in it is escaped."""
    models: list[Model] = list(report.get("models") or [])
    names = ", ".join(text_at(model, "name") for model in models) or "no models"
    surveyed = [model for model in models if not is_path(model)]
    cards = "".join(
        path_card(model) if is_path(model) else _card(model, surveyed) for model in models
    )
    # What is said of all surveyed models at once has nothing to say of two that are compared.
    head = summary(surveyed) if surveyed or not models else ""
    head += (comparison(surveyed) if len(surveyed) > 1 else "") + guide(surveyed)
    listed = "".join(tables(model) for model in models)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>Secant report: {escape(names)}</title><style>{PAGE_CSS}{CHART_CSS}</style></head>"
        f"<body>{_header(report)}<main>{head}"
        f'<div class="cards">{cards}</div>'
        f'<section class="card"><h2>Every reading</h2>{listed or "<p>No readings.</p>"}</section>'
        f"</main>{_footer(report)}</body></html>\n"
    )


def render_frame(report: dict[str, Any], height: int = 720) -> str:
    """The page inside a frame, for a notebook: neither's style reaches the other.

    The frame's sandbox is empty, so that nothing in it can run or reach the notebook.
    """
    page = escape(render_html(report))
    return (
        f'<iframe title="Secant report" sandbox="" srcdoc="{page}" '
        f'style="width:100%;height:{height}px;border:0"></iframe>'
    )


def _header(report: dict[str, Any]) -> str:
    return (
        "<header><h1>Secant report</h1><p>In which sense, where and how far these networks are "
        "linear: straight lines laid against each model, the gap read on held-out data, with "
        f'95&nbsp;% intervals and beside controls.</p><p class="meta">'
        f"{escape(text_at(report, 'created'))}</p></header>"
    )


def _footer(report: dict[str, Any]) -> str:
    versions = report.get("versions") or {}
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    seconds = finite((report.get("cost") or {}).get("seconds"))
    cost = "cost not recorded" if seconds is None else f"{seconds:,.1f} s"
    parts = (
        f"Schema {text_at(report, 'schema')}",
        f"seed {text_at(report, 'seed')}",
        listed or "versions not recorded",
        text_at(report, "hardware"),
        cost,
    )
    return f"<footer><p>{escape(' · '.join(parts))}</p></footer>"


def _card(model: Model, models: list[Model]) -> str:
    counts = ", ".join(f"{text_at(model, key)} {key}" for key in ("units", "rows"))
    sites = len(depth_of(model))
    about = f"{text_at(model, 'data')}: {counts}, {sites} site{'' if sites == 1 else 's'}"
    notes = "".join(f'<p class="words">{escape(str(n))}</p>' for n in model.get("notes") or [])
    return (
        f'<section class="card"><h2>{escape(text_at(model, "name"))}</h2>'
        f'<p class="meta">{escape(about)}</p>{notes}{plots(model, models)}'
        f"{time_plots(model)}{curve_plots(model, models)}{_warnings(model)}</section>"
    )


def _warnings(model: Model) -> str:
    """Warnings under their site; one that several readings share is said once."""
    found: dict[str, dict[str, list[str]]] = {}
    for one in readings_of(model):
        for warning in one.get("warnings") or []:
            at = found.setdefault(text_at(one, "site"), {}).setdefault(str(warning), [])
            at.append(f"{text_at(one, 'gauge')} {text_at(one, 'variant')}")
    if not found:
        return '<p class="words">No warnings.</p>'
    items = []
    for site in (site for site in sites_of(model) if site in found):
        lines = "".join(
            f'<li>{escape(warning)} <span class="meta">({escape(", ".join(dict.fromkeys(at)))})'
            "</span></li>"
            for warning, at in found[site].items()
        )
        items.append(f"<li><code>{escape(site)}</code><ul>{lines}</ul></li>")
    return f'<h3>Warnings</h3><ul class="warnings">{"".join(items)}</ul>'
