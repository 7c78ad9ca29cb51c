"""Gating as a page: slices drawn exactly, units layer by layer, all beside fresh weights.

Holds: ``render_page``.
May import: the standard library, ``secant.report``, ``secant.slices``, ``secant.uses.gating``.
"""

from __future__ import annotations

from secant.report.charts import escape
from secant.report.gating import digits, gating_words, rows_of
from secant.report.slice_svg import (
    CSS,
    HUES,
    MOST_EDGES,
    classes,
    directions,
    hues_of,
    slice_picture,
    wheel,
)
from secant.report.style import CHART_CSS, PAGE_CSS
from secant.slices import SlicePieces
from secant.uses.gating import Gating, LayerGates

MOST_CLASSES = 20
OWN_CSS = """
.pair{display:grid;gap:1.2rem 1.6rem;
grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr))}
.bar{display:flex;width:100%;min-width:120px;height:.95rem;border-radius:3px;overflow:hidden;
background:var(--rule)}
.bar i{display:block;height:100%}
.b-on{background:var(--c1)}.b-both{background:var(--c2);opacity:.55}.b-off{background:var(--soft);
opacity:.45}
td.what{white-space:normal;min-width:8.5rem}
td.bars{width:38%;min-width:9rem}
.keys{display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;font-size:.84rem;color:var(--soft);
margin:.4rem 0}
.keys i{display:inline-block;width:.85rem;height:.85rem;border-radius:3px;margin-right:.35rem;
vertical-align:-.1rem}
"""
NAMES = {"trained": "Trained", "fresh": "Fresh weights"}


def render_page(found: Gating) -> str:
    """One self-contained page without script or network; every text in it is escaped."""
    title = escape(f"Gating of {found.model}")
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
        f"<title>{title}</title><style>{PAGE_CSS}{CHART_CSS}{CSS}{OWN_CSS}</style></head><body>"
        f"<header><h1>{title}</h1><p>{escape(gating_words(found))}</p>"
        f'<p class="meta">{found.rows:,} units of {escape(found.data)}</p>{notes}</header><main>'
        f"{_slices(found)}{_whole(found)}{_layers(found)}</main>"
        f"<footer><p>{escape(foot)}</p></footer></body></html>\n"
    )


def _slices(found: Gating) -> str:
    if not found.drawn:
        return ""
    where = "; ".join(
        f"{point['name']} is unit {point['row']}"
        + ("" if point["label"] is None else f", of class {point['label']}")
        for point in found.points
    )
    parts = [
        '<section class="card"><h2>A slice through three inputs</h2><p class="words">Every '
        "straight-edged cell is a region in which the network is exactly one affine map; nothing "
        f"is sampled. The plane goes through three inputs: {escape(where)}. Distances in it are "
        "those between inputs. Many small cells: the network changes its map often there. One "
        "large cell: it is a straight line for a long way.</p>"
    ]
    parts.append(_row(found, "Which way the output moves", directions, hues_of(HUES)))
    parts.append(
        f'<div class="wheelrow">{wheel()}<p class="words">The colour is the way in this plane '
        "along which a cell's output changes most. Neighbours of one colour: the map hardly turns "
        "from one cell to the next. A patchwork: it turns at every boundary. Grey: nothing "
        "changes.</p></div>"
    )
    outputs = found.drawn["trained"].values.shape[1]
    if 2 <= outputs <= MOST_CLASSES:
        parts.append(_row(found, "The largest output", classes, hues_of(outputs)))
        keys = "".join(
            f'<span><i class="key" style="--h:{hue:g}"></i>{i}</span>'
            for i, hue in hues_of(outputs).items()
        )
        parts.append(
            f'<p class="keys">{keys}</p><p class="words">The colour is the output that is largest '
            "in the middle of a cell: for a classifier the class that it predicts. Many cells in "
            "one colour: most decisions of units there do not decide the class.</p>"
        )
    if any(len(cut.edges[0]) > MOST_EDGES for cut in found.drawn.values()):
        parts.append(
            f'<p class="words">Where a slice has more than {MOST_EDGES:,} edges only the colours '
            "are drawn: lines would cover them.</p>"
        )
    return "".join([*parts, "</section>"])


def _row(found: Gating, title: str, colour: object, hues: dict[int, float]) -> str:
    assert callable(colour)
    cells = "".join(
        f"<figure><h3>{escape(title)}: {NAMES[what].lower()}</h3>"
        f"{slice_picture(cut, colour(cut), hues, found.points, f'{title}, {NAMES[what]}')}"
        f'<figcaption class="words">{_caption(cut)}</figcaption></figure>'
        for what, cut in found.drawn.items()
    )
    return f'<div class="pair">{cells}</div>'


def _caption(cut: SlicePieces) -> str:
    side = digits(cut.window[0][1] - cut.window[0][0])
    said = f"{cut.count:,} affine pieces in a square of side {side}"
    return said + (f"; {cut.regions:,} activation regions" if cut.regions != cut.count else "")


def _whole(found: Gating) -> str:
    rows = "".join(
        f'<tr><td class="what">{escape(name)}</td><td class="n">{escape(one)}</td>'
        f'<td class="n">{escape(other)}</td></tr>'
        for name, one, other in rows_of(found)
    )
    nearest = ", ".join(f"{name} ({many})" for name, many in found.trained.nearest.items())
    said = f" The nearest boundary was that of a unit of: {escape(nearest)}." if nearest else ""
    return (
        '<section class="card"><h2>How far one affine map reaches</h2>'
        '<div class="box" tabindex="0"><table><thead><tr><th></th><th class="n">trained</th>'
        f'<th class="n">fresh weights</th></tr></thead><tbody>{rows}</tbody></table></div>'
        '<p class="words">A long distance to the nearest boundary: the network is a straight line '
        "far around its inputs. A short one, with many pieces on the way to the next input: its "
        "units decide anew all the time. Whether they decide much is another question, which the "
        f"curves of a survey answer.{said}</p></section>"
    )


def _layers(found: Gating) -> str:
    if not found.trained.layers:
        return ""
    fresh: list[LayerGates | None] = [None] * len(found.trained.layers)
    if found.fresh is not None:
        fresh = list(found.fresh.layers)
    rows = []
    for one, other in zip(found.trained.layers, fresh, strict=True):
        share = "-" if one.share is None else f"{one.share:.3f}"
        reach = ""
        if one.interval is not None:
            reach = f" [{one.interval[0]:.3f}, {one.interval[1]:.3f}]"
        rows.append(
            f'<tr><td>{escape(one.name)}</td><td class="n">{one.units:,}</td>'
            f'<td class="bars">{_bar(one)}</td><td class="n">{share}{reach}</td>'
            f'<td class="bars">{"" if other is None else _bar(other)}</td></tr>'
        )
    return (
        '<section class="card"><h2>Which units decide</h2><p class="keys">'
        '<span><i class="b-on"></i>on for all of the data</span><span><i class="b-both"></i>on for '
        'some: these decide</span><span><i class="b-off"></i>on for none</span></p>'
        '<div class="box" tabindex="0"><table><thead><tr><th>layer</th><th class="n">units</th>'
        '<th>trained</th><th class="n">mean share on</th><th>fresh weights</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        '<p class="words">A layer whose units are all on, or all off, for all of the data is '
        "affine there and decides nothing: it could be multiplied into the next. For max pooling, "
        "on means that a window always chooses the same entry. The interval of a share is over "
        "units of the data.</p></section>"
    )


def _bar(layer: LayerGates) -> str:
    parts = (
        ("b-on", layer.always, "always"), ("b-both", layer.sometimes, "sometimes"),
        ("b-off", layer.never, "never"),
    )  # fmt: skip
    said = ", ".join(f"{many:,} {word}" for _, many, word in parts)
    blocks = "".join(
        f'<i class="{kind}" style="width:{100 * many / layer.units:.2f}%"></i>'
        for kind, many, _ in parts
        if many
    )
    text = escape(said)
    return f'<div class="bar" role="img" aria-label="{text}" title="{text}">{blocks}</div>'
