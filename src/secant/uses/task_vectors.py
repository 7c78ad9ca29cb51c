"""Task vectors: what training from a common base added, added again, combined and taken away.

Holds: ``task_vectors``.
May import: torch, ``secant.readings``, ``secant.uses`` (pairs, walks).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from secant.readings import Reading
from secant.uses.pairs import WHOLE, Line, random_line
from secant.uses.walks import Walk, Walker, mean_of, samples_of, warned

Tell = Callable[[int, int], None]


def task_vectors(
    walker: Walker,
    a: nn.Module,
    b: nn.Module,
    base: nn.Module,
    *,
    seed: int,
    has_controls: bool,
    tell: Tell,
) -> tuple[list[Reading], list[str]]:
    """Disentanglement and negation of the task vectors a - base and b - base.

    `disentanglement` (variants a, b): the share of units whose class changes when the other's task
    vector is added to this one's model. Ortiz-Jimenez et al. 2023, arXiv:2305.12827, eq. 5, sums
    the two, each on the data of its own task: with one set of data each is given alone, and the
    caller knows whose data it is. `negation` (variants a loss, a accuracy, and so on): the change
    from base to base - (a - base), Ilharco et al. 2023, arXiv:2212.04089. Both stand beside a
    random vector as long in every tensor. Needs outputs (units, classes) and a task in turn.
    """
    readings, notes = list[Reading](), list[str]()
    lines = {"a": walker.line(base, a), "b": walker.line(base, b)}
    for place, (name, other) in enumerate((("a", "b"), ("b", "a"))):
        walk, control = _both_ways(
            walker, _added(lines[name], lines[other]), seed + place, has_controls
        )
        if walk.picked is None:
            notes.append("No disentanglement error: the outputs are not (units, classes).")
            break
        reading = _disentanglement(name, walk)
        beside = None if control is None else _disentanglement(name, control)
        readings.append(_beside(reading, beside))
        tell(place + 1, 4)
    if walker.task is None:
        return readings, notes
    for place, name in enumerate(lines):
        walk, control = _both_ways(walker, _mirrored(lines[name]), seed + place, has_controls)
        others = [None, None] if control is None else _negation(name, walker, control)
        negated = _negation(name, walker, walk)
        readings += [_beside(*both) for both in zip(negated, others, strict=True)]
        tell(place + 3, 4)
    return readings, notes


def _both_ways(
    walker: Walker, line: Line, seed: int, has_controls: bool
) -> tuple[Walk, Walk | None]:
    """Both ends of a line, and of one as long in every tensor."""
    ends = (0.0, 1.0)
    walk = walker.walk(walker.stops(line, ends))
    if not has_controls:
        return walk, None
    return walk, walker.walk(walker.stops(random_line(line, seed), ends))


def _added(to_one: Line, to_other: Line) -> Line:
    """From one model to where the other's task vector leads it."""
    end = {name: value + (to_other.end[name] - to_other.start[name])
           for name, value in to_one.end.items()}  # fmt: skip
    return replace(to_one, start=to_one.end, end=end)


def _mirrored(to_one: Line) -> Line:
    """From the base, the task vector backwards; buffers stay: a variance below 0 is none."""
    end = {name: value if name in to_one.buffers else 2 * value - to_one.end[name]
           for name, value in to_one.start.items()}  # fmt: skip
    return replace(to_one, end=end)


def _disentanglement(name: str, walk: Walk) -> Reading:
    assert walk.picked is not None
    return _reading("disentanglement", name, walk, walk.picked[1], walk.members, "share")


def _negation(name: str, walker: Walker, walk: Walk) -> list[Reading]:
    assert walker.task is not None
    assert walk.loss is not None
    assert walk.right is not None
    return [
        _reading("negation", f"{name} {what}", walk, sums[1] - sums[0], walk.counts, unit)
        for what, sums, unit in (
            ("loss", walk.loss, walker.task.unit),
            ("accuracy", walk.right, "share"),
        )
    ]


def _reading(
    gauge: str, variant: str, walk: Walk, sums: Tensor, counts: Tensor, unit: str
) -> Reading:
    held = mean_of(sums, counts)
    details = {
        "unit": unit, "sum_by_group": sums.tolist(), "count_by_group": counts.tolist(),
    }  # fmt: skip
    warnings = warned(held["value"], held["interval"])
    return Reading("weights", WHOLE, gauge, variant, held["value"], held["interval"],
                   samples_of(walk), {}, warnings, details)  # fmt: skip


def _beside(reading: Reading, control: Reading | None) -> Reading:
    if control is None:
        return reading
    held = {"value": control.value, "interval": control.interval}
    return replace(reading, controls={"random": held})
