"""A report, or two reports compared, as a terminal table.

Holds: ``render_terminal``, ``render_comparison``.
May import: rich, ``secant.readings``, ``secant.comparisons``, ``secant.report`` (cells, paths,
profiles, time_table).
"""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from secant.comparisons import Comparison, Difference
from secant.readings import ModelReport, Reading
from secant.report.cells import number, with_interval
from secant.report.paths import render_paths
from secant.report.profiles import common_path
from secant.report.time_table import TIME, time_table


def _control(reading: Reading | None, name: str) -> str:
    return with_interval(None if reading is None else reading.controls.get(name, {}))


def _radius(radius: Reading | None) -> str:
    """A step length, or the end of the grid that it lies beyond, over what its interval says.

    Both ends are named, for they lie apart by a factor, not by a distance.
    """
    if radius is None:
        return "n/a"
    details, value, edge = radius.details, number(radius.value), None
    if details.get("censored") is not None:
        is_past = details["censored"] == "past the grid"
        edge = details["lower"] if is_past else details["upper"]
        value = f"{'>' if is_past else '<'} {edge:g}"
    # A bound at the grid's edge says no more than the line above it.
    ends = [
        None if end is None or end == edge else _short(end)
        for end in (details.get("at_least"), details.get("at_most"))
    ]
    if None not in ends:
        return f"{value}\n{ends[0]}–{ends[1]}"
    told = [f"{sign} {end}" for sign, end in zip("≥≤", ends, strict=True) if end]
    return "\n".join([value, *told])


def _short(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def _control_radius(radius: Reading | None, name: str) -> str:
    control: dict[str, Any] = {} if radius is None else radius.controls.get(name, {})
    censored = control.get("censored")
    if censored is not None:
        return "longer" if censored == "past the grid" else "shorter"
    return number(control.get("value"))


def render_terminal(report: ModelReport) -> list[Table | str]:
    """The fits beside their controls; the curves; pieces, weights; notes, aloud; the warnings.

    Of two models compared, what `render_paths` says.
    """
    if any(reading.gauge == "displacement" for reading in report.readings):
        return render_paths(report)
    parts: list[Table | str] = []
    if any(reading.gauge == "fit" and reading.variable != TIME for reading in report.readings):
        parts.append(_fits(report))
    in_points = [one for one in report.readings if one.variable not in ("weights", TIME)]
    if any(reading.gauge in ("chord", "tangent", "sum") for reading in in_points):
        parts.append(_curves(report))
    for reading in report.readings:
        if reading.gauge == "pieces":
            parts.append(_pieces(reading))
        if reading.variable == "weights" and reading.variant == "radius":
            parts.append(_weights_radius(reading))
        if reading.gauge == "kernel":
            parts.append(_kernel(reading))
    if any(reading.variable == TIME for reading in report.readings):
        parts.append(time_table(report))
    if {reading.gauge for reading in report.readings} == {"homogeneity"}:
        parts.append("Homogeneity is a curve: see the page, or the JSON.")
    parts += [f"[bold]{escape(note)}[/bold]" for note in report.notes]
    return parts + [escape(warning) for warning in _warnings(report)]


MOST_TOLD = 8


def _warnings(report: ModelReport) -> list[str]:
    """Each warning once, with the sites it is of."""
    sites: dict[str, list[str]] = {}
    for reading in report.readings:
        for warning in reading.warnings:
            at = sites.setdefault(warning, [])
            if reading.site not in at:
                at.append(reading.site)
    told = []
    for warning, at in sites.items():
        named = ", ".join(at[:3]) + (f" and {len(at) - 3} more" if len(at) > 3 else "")
        told.append(f"{named}: {warning}")
    more = len(told) - MOST_TOLD
    if more > 0:
        told = [*told[:MOST_TOLD], f"{more} more warnings: see the page."]
    return told


def _pieces(reading: Reading) -> str:
    """The mean count in words: a sentence, for there is one a model."""
    assert reading.value is not None
    spread = ""
    if reading.interval is not None:
        spread = f" ±{reading.interval[1] - reading.value:,.0f}"
    counts = {name: control.get("value") for name, control in reading.controls.items()}
    beside = ", ".join(f"{name} {count:,.0f}" for name, count in counts.items() if count)
    return (
        f"Affine pieces between two inputs: {reading.value:,.0f}{spread}, the mean of "
        f"{reading.samples['pairs']} pairs{f' ({beside})' if beside else ''}. 1 is affine."
    )


def _weights_radius(reading: Reading) -> str:
    """How far random steps of the weights may go, beside the controls'."""
    details, norms = reading.details, "of every tensor's norm"
    if details["censored"] == "past the grid":
        reach = f"up to {details['lower']:g} {norms} and beyond"
    elif details["censored"] is not None:
        reach = f"not even up to {details['upper']:g} {norms}"
    else:
        reach = f"up to {number(reading.value)}{_span(reading)} {norms}"
    beside = ", ".join(f"{name} {_control_radius(reading, name)}" for name in reading.controls)
    told = f" ({beside})" if beside else ""
    return f"In weights the tangent holds to 10 % for random steps {reach}{told}."


def _span(reading: Reading) -> str:
    return "" if reading.interval is None else " [{:.3f}, {:.3f}]".format(*reading.interval)


def _kernel(reading: Reading) -> str:
    beside = ", ".join(
        f"{name} {number(control.get('value'))}" for name, control in reading.controls.items()
    )
    told = f"{number(reading.value)}{_span(reading)}{f' ({beside})' if beside else ''}"
    return (
        f"Alignment of the tangent kernel with the classes: {told}. 1: it moves each class as one."
    )


def _under(prefix: str) -> str:
    return f", sites under {prefix[:-1]}" if prefix else ""


def _fits(report: ModelReport) -> Table:
    prefix = common_path(report.sites)
    table = Table(
        title=escape(f"{report.name} on {report.data}: {report.units} units{_under(prefix)}"),
        caption="beyond: what an affine map adds to scaling the input, 1 is affine; with context: "
        "the same, seeing neighbours too; fresh, shuffled: `beyond` with new weights, and with "
        "each tensor's entries permuted; ±: half-width of the 95 % interval, its longer side",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("site", overflow="fold", min_width=8)
    for name in ("raw R²", "residual alone", "beyond", "with context", "fresh", "shuffled"):
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("warn", justify="right")
    by_site: dict[str, dict[str, Reading]] = {}
    for reading in report.readings:
        if reading.gauge == "fit" and reading.variable != TIME:
            by_site.setdefault(reading.site, {})[reading.variant] = reading
    for site, of_site in by_site.items():
        raw, beyond = of_site["raw"], of_site.get("beyond")
        context = of_site.get("context beyond")
        table.add_row(
            escape(site.removeprefix(prefix)),
            with_interval(raw),
            _control(raw, "residual"),
            with_interval(beyond),
            with_interval(context),
            _control(beyond, "fresh"),
            _control(beyond, "shuffled"),
            str(len(raw.warnings) or ""),
        )
    return table


def _curves(report: ModelReport) -> Table:
    """Chord at the middle and the two radii; `beyond` where the site's shapes allow it."""
    prefix = common_path(report.sites)
    table = Table(
        title=escape(f"{report.name}: bends along straight lines{_under(prefix)}"),
        caption="chord: bend halfway between two inputs, over a quarter of the chord, without the "
        "residual's share where shapes allow; 0 is affine. radius: how far, in median distances "
        "between inputs, the tangent (or adding two changes) holds to 10 %; longer is more linear. "
        "Below: half-width of the 95 % interval, or its ends; the page has those of the controls'"
        " radii too",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("site", overflow="fold", min_width=8)
    heads = ("chord", "fresh", "shuffled", "tangent radius", "fresh", "shuffled", "sum radius")
    for name in heads:
        table.add_column(name, justify="right", overflow="fold")
    found: dict[str, dict[tuple[str, str], Reading]] = {}
    for one in report.readings:
        is_elsewhere = one.gauge == "chord" and one.details.get("t") != 0.5
        if is_elsewhere or one.variable in ("weights", TIME):
            continue
        is_radius = one.variant.startswith("radius") and one.details.get("direction") == "data"
        if one.gauge == "chord" or is_radius:
            key = (one.gauge, one.variant.removeprefix("radius").strip() or "raw")
            found.setdefault(one.site, {})[key] = one
    for site, of_site in found.items():
        cells = [escape(site.removeprefix(prefix))]
        chord = of_site.get(("chord", "beyond")) or of_site.get(("chord", "raw"))
        tangent, adding = (
            of_site.get((gauge, "beyond")) or of_site.get((gauge, "raw"))
            for gauge in ("tangent", "sum")
        )
        cells.append(with_interval(chord))
        cells += [_control(chord, name) for name in ("fresh", "shuffled")]
        cells.append(_radius(tangent))
        cells += [_control_radius(tangent, name) for name in ("fresh", "shuffled")]
        cells.append(_radius(adding))
        table.add_row(*cells)
    return table


MOST_NAMED = 10
WHOLE = "(model)"
"""The site of readings from the inputs to the output; it lies under no path."""
SYMBOLS = {"rho": "ρ"}


def render_comparison(found: Comparison, threshold: float, top: int) -> list[Table | str]:
    """The `top` largest differences, those that exceed first, then what was left out and why."""
    exceeding = {id(one) for one in found.exceeding(threshold)}
    order = sorted(
        found.differences, key=lambda one: (id(one) not in exceeding, -abs(one.value or 0))
    )
    shown, parts = order[:top], list[Table | str]()
    for model in dict.fromkeys(one.model for one in shown):
        of_model = [one for one in shown if one.model == model]
        parts.append(_difference_table(model, of_model, exceeding))
    if len(order) > top:
        parts.append(f"{len(order) - top} smaller differences are not shown; see --top.")
    parts += [escape(note) for note in found.notes]
    for side, names in (("before", found.only_a), ("after", found.only_b)):
        if names:
            more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
            parts.append(escape(f"Only in {side}: {'; '.join(names[:MOST_NAMED])}{more}."))
    lost = sum((one.a is None) != (one.b is None) for one in found.differences)
    parts.append(
        f"{len(exceeding)} of {len(order)} readings differ by more than {threshold:g}"
        + (f", {lost} of them because only one report has a number there." if lost else ".")
    )
    return parts


def _difference_table(model: str, differences: list[Difference], exceeding: set[int]) -> Table:
    prefix = common_path([one.site for one in differences if one.site != WHOLE])
    table = Table(
        title=escape(f"{model}{_under(prefix)}"),
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        pad_edge=False,
        caption="change: after less before, with its 95 % interval; paired: both were read on "
        "the same groups of units; *: exceeds the threshold and its interval excludes 0",
    )
    for head in ("", "site", "reading", "before", "after", "change", "interval", ""):
        # Numbers must never be cut; names may fold, but not so often that none can be read.
        is_name = head in ("site", "reading")
        table.add_column(
            head, overflow="fold", no_wrap=not is_name, min_width=12 if is_name else None
        )
    several = len({one.variable for one in differences}) > 1
    for one in differences:
        mark = "*" if id(one) in exceeding else ""
        site = one.site.removeprefix(prefix)
        table.add_row(mark, *map(escape, (site, *_difference_row(one, several))))
    return table


def _difference_row(one: Difference, has_variable: bool) -> tuple[str, ...]:
    place = "".join(
        f" {value}" if key == "direction" else f" {SYMBOLS.get(key, key)} {value}"
        for key, value in one.place.items()
    )
    reading = f"{one.gauge} {one.variant}{place}" + (f" ({one.variable})" if has_variable else "")
    # Adding 0 turns the -0 of a small rounded number into 0.
    value = "n/a" if one.value is None else f"{round(one.value, 3) + 0.0:+.3f}"
    span, how = "none", ""
    if one.interval is not None:
        low, high = (round(end, 3) + 0.0 for end in one.interval)
        span, how = f"[{low:.3f}, {high:.3f}]", one.how
    return reading, number(one.a), number(one.b), value, span, how
