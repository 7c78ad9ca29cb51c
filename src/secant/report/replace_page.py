"""A replacement as a page: loss against operations saved, beside blocks dropped otherwise.

Holds: ``render_replace_page``.
May import: the standard library, ``secant.report``, ``secant.uses.replace_result``.
"""

from __future__ import annotations

from secant.report.charts import Axis, Point, Series, escape, legend, plot
from secant.report.replace import (
    HEADS,
    INFLUENCE,
    RANDOM,
    budget_rows,
    count,
    replace_words,
    span,
)
from secant.report.style import CHART_CSS, PAGE_CSS
from secant.uses.replace_curves import Curve
from secant.uses.replace_result import Met, Replacement

ABOVE = 1.6
"""The drawn range ends at so many times the largest budget."""
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2)
MOST_TICKS = 6
LOOKS = {INFLUENCE: ("--c3", "dashed"), RANDOM: ("--c4", "faint")}
WORDS = (
    "Each point is a network with one more block or sub-block replaced, from the left. Right is "
    "cheaper, low is better: a curve below another gives more for the same loss. The band is the "
    "95 % interval over units of the rise of the loss, paired with the model's own. Dashed: whole "
    "blocks dropped, those that turn their input least first. Thin: blocks dropped at random, an "
    "order each. The level lines are the budgets; an arrow at the edge lies beyond the range."
)


def render_replace_page(found: Replacement) -> str:
    """One self-contained page without script or network; every text in it is escaped."""
    title = escape(f"Replaced in {found.model}")
    words = "".join(
        f"<p>{escape(line)}</p>" for line in replace_words(found)[: 2 + (found.healing is not None)]
    )
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in found.notes)
    foot = " · ".join([
        f"seed {found.seed}", ", ".join(f"{name} {one}" for name, one in found.versions.items()),
        f"{found.seconds:,.1f} s",
    ])  # fmt: skip
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{PAGE_CSS}{CHART_CSS}</style></head><body>"
        f'<header><h1>{title}</h1>{words}<p class="meta">{escape(found.data)}</p>{notes}</header>'
        f"<main>{_chart(found)}{_budgets(found)}{''.join(map(_set, found.budgets))}{_left(found)}"
        f"</main><footer><p>{escape(foot)}</p></footer></body></html>\n"
    )


def _chart(found: Replacement) -> str:
    widest = max(point.saved for curve in found.curves for point in curve.points) or 1.0
    top = ABOVE * found.budgets[-1].budget
    low = min(0.0, *(
        point.increase for curve in found.curves for point in curve.points
    ))  # fmt: skip
    low = max(low, -top / 4)
    ticks = tuple(sorted({0.0, *(one.budget for one in found.budgets)}))
    axis = Axis(low, top, ticks, f"rise of the loss, {found.unit}")
    series = [_series(curve, widest, top) for curve in reversed(found.curves)]
    step = next(one for one in STEPS if widest / one <= MOST_TICKS)
    ticks_of = range(int(widest / step) + 1)
    places = [(part * step / widest, f"{100 * part * step:g} %") for part in ticks_of]
    drawn = plot(series, axis, places, "matrix products saved", "Loss against products saved")
    return (
        '<section class="card"><h2>Loss against work saved</h2>'
        f"<figure>{drawn}</figure>{legend(series[::-1])}"
        f'<p class="words">{escape(WORDS)}</p></section>'
    )


def _series(curve: Curve, widest: float, top: float) -> Series:
    """The curve as far as it is drawn: its line ends where it leaves the range."""
    colour, look = LOOKS.get(curve.name, ("--c1", "curve"))
    points: list[Point] = []
    for one in curve.points:
        low, high = one.interval or (None, None)
        what = f"{one.replaced} replaced, {100 * one.saved:.1f} % saved"
        title = f"{curve.name}: {what}, loss {one.increase:+.3g}{span(one.interval)}"
        before = points[-1] if points else None
        if one.increase > top and before is not None and before.value is not None:
            reach = (top - before.value) / (one.increase - before.value)
            x = before.x + reach * (one.saved / widest - before.x)
            # A little beyond the edge, so that an arrow stands there and no dot.
            points.append(Point(x, 1.001 * top, None, None, title))
            break
        points.append(Point(one.saved / widest, one.increase, low, high, title))
    names = {RANDOM: "blocks dropped at random", INFLUENCE: "blocks dropped by influence"}
    return Series(names.get(curve.name, curve.name), tuple(points), colour, look)


def _budgets(found: Replacement) -> str:
    heads = "".join(f'<th class="n">{escape(head)}</th>' for head in HEADS)
    rows = "".join(
        "<tr>" + "".join(f'<td class="n">{escape(cell)}</td>' for cell in row) + "</tr>"
        for row in budget_rows(found)
    )
    return (
        '<section class="card"><h2>What each budget buys</h2><div class="box" tabindex="0"><table>'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
        '<p class="words">The set of a budget was chosen on other units, so its loss here may '
        "lie a little above it. Over random, over (block) influence: how many more percent "
        "points of the products the curve saves at points within the budget than that control "
        "does; the interval is a bootstrap over scored units, the same for both, with sets, maps "
        "and draws held as they are. Above 0: replacing gives more than dropping.</p></section>"
    )


def _set(met: Met) -> str:
    if not met.chosen:
        return ""
    rows = "".join(
        f"<tr><td>{escape(one.site)}</td><td>{escape(one.label)}</td>"
        f'<td class="n">{100 * one.saved:.2f} %</td>'
        f'<td class="n">{"n/a" if one.beyond is None else f"{one.beyond:.4f}"}</td></tr>'
        for one in met.chosen
    )
    work = f"{count(met.before['flops'])} → {count(met.after['flops'])} operations a unit"
    return (
        f"<details><summary>Within {met.budget:g}: {len(met.chosen)} sites, {work}</summary>"
        '<div class="box" tabindex="0"><table><thead><tr><th>site</th><th>stands in</th>'
        f'<th class="n">saved</th><th class="n">beyond scaling</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div></details>"
    )


def _left(found: Replacement) -> str:
    if not found.left:
        return ""
    items = "".join(
        f"<li><code>{escape(site)}</code>: {escape(why)}</li>" for site, why in found.left.items()
    )
    return f'<section class="card"><h2>Not tried</h2><ul class="warnings">{items}</ul></section>'
