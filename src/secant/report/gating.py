"""Gating in the terminal: a table of layers, a table of distances and pieces, and their words.

Holds: ``render_gating``, ``gating_words``, ``rows_of``; ``digits``, numbers for reading.
May import: rich, ``secant.uses.gating``.
"""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from secant.uses.gating import Gates, Gating, Interval, LayerGates, unit_interval

CAPTION = (
    "on: units that are on for all of the data; off: for none; both: for some. share: mean share "
    "of units on, ± the half-width of its 95 % interval over the data. Of windows (max pooling) "
    "on counts those that always choose the same entry. In brackets: fresh weights."
)


def digits(value: float | None) -> str:
    """A number by three digits that count, so that short distances do not become 0.002."""
    if value is None:
        return "n/a"
    whole = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return whole.replace("-", "−")


def with_interval(value: float | None, interval: Interval | None) -> str:
    """A number and its interval in square brackets."""
    if interval is None:
        return digits(value)
    return f"{digits(value)} [{digits(interval[0])}, {digits(interval[1])}]"


def _pair(trained: object, fresh: object | None) -> str:
    return f"{trained}" if fresh is None else f"{trained} ({fresh})"


def _share(layer: LayerGates) -> str:
    if layer.share is None or layer.interval is None:
        return "-"
    return f"{layer.share:.3f} ±{(layer.interval[1] - layer.interval[0]) / 2 + 0.0005:.3f}"


def rows_of(found: Gating) -> list[tuple[str, str, str]]:
    """What is said once of each network: a name, the trained one's value, the fresh one's."""

    def both(name: str, of: object) -> tuple[str, str, str]:
        assert callable(of)
        return name, of(found.trained), "-" if found.fresh is None else of(found.fresh)

    rows = [
        both(
            "distance to the nearest boundary, median",
            lambda one: with_interval(one.radius, one.radius_interval),
        ),
        both(
            "the same, in distances between two inputs",
            lambda one: digits(one.radius / found.step if one.radius is not None else None),
        ),
        both(
            "pieces from one input to another, mean",
            lambda one: with_interval(one.pieces, one.pieces_interval),
        ),
        both(
            "pieces for each unit on the way",
            lambda one: digits(one.pieces / one.units if one.units else None),
        ),
    ]
    if found.trained.slice is not None:
        rows.append(both("pieces in the slice", lambda one: f"{one.slice['pieces']:,}"))
        rows.append(both("activation regions in it", lambda one: f"{one.slice['regions']:,}"))
    return rows


def render_gating(found: Gating) -> list[Table]:
    """The layers in the order in which they run, then what is said of the whole."""
    layers = Table(
        title=escape(f"{found.model} on {found.rows} units of {found.data}: who decides"),
        caption=CAPTION, box=SIMPLE_HEAD, padding=(0, 1, 0, 0),
    )  # fmt: skip
    layers.add_column("layer", overflow="fold", min_width=12)
    for head in ("units", "on", "off", "both", "share on"):
        layers.add_column(head, justify="right")
    fresh: list[LayerGates | None] = [None] * len(found.trained.layers)
    if found.fresh is not None:
        fresh = list(found.fresh.layers)
    for one, other in zip(found.trained.layers, fresh, strict=True):
        share = None if other is None or other.share is None else f"{other.share:.3f}"
        layers.add_row(
            escape(one.name), f"{one.units}",
            _pair(one.always, other and other.always),
            "-" if one.kind == "windows" else _pair(one.never, other and other.never),
            _pair(one.sometimes, other and other.sometimes),
            _pair(_share(one), share),
        )  # fmt: skip
    whole = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    whole.add_column("", overflow="fold")
    whole.add_column("trained", justify="right")
    whole.add_column("fresh weights", justify="right")
    for row in rows_of(found):
        whole.add_row(*row)
    return [layers, whole] if found.trained.layers else [whole]


def _units(gates: Gates) -> tuple[int, int, int]:
    """Units (not windows) of all layers: how many, how many decide, how many are never on."""
    layers = [one for one in gates.layers if one.kind == "units"]
    return (
        sum(one.units for one in layers), sum(one.sometimes for one in layers),
        sum(one.never for one in layers),
    )  # fmt: skip


def gating_words(found: Gating) -> str:
    """The finding in a sentence or three."""
    total, deciding, dead = _units(found.trained)
    if not found.trained.units:
        return f"{found.model} has no unit that can kink: it is one affine map of its input."
    said = f"{found.model}: {deciding:,} of {total:,} units decide anything on this data"
    if found.fresh is not None:
        said += f" ({_units(found.fresh)[1]:,} with fresh weights)"
    said += f"; {dead:,} are never on"
    if dead:
        most = unit_interval(0, found.rows)[1]
        said += f", though each of these may be on in up to {100 * most:.1f} % of such data"
    said += ". "
    if found.trained.radius is not None:
        share = found.trained.radius / found.step if found.step else 0.0
        said += (
            f"Around an input the network is one affine map up to a distance of "
            f"{digits(found.trained.radius)} (median), {100 * share:.2g} % of the way to "
            "another input."
        )
    return said
