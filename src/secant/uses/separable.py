"""Is a labelled set linearly separable, as it is and in other coordinates?

Holds: ``separable`` and its result ``Separability``, with ``Lifted`` and ``Split``.
May import: torch, numpy, ``secant.engine``, ``secant.errors``, ``secant.gauges``, ``secant.load``,
``secant.maps``, ``secant.readings``, ``secant.surveys``, ``secant.uses``.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from secant.errors import InputError
from secant.gauges.interval import GROUPS
from secant.load.data import Units, load_data
from secant.load.feed import Feed
from secant.load.models import Loaded, load_model
from secant.load.options import LoadOptions
from secant.load.tables import SUFFIXES, read_table
from secant.maps.sites import find_sites
from secant.readings import SCHEMA, plain, write
from secant.surveys import versions
from secant.uses.combinations import Mask, free_columns
from secant.uses.cover import chance
from secant.uses.exact_signs import Array
from secant.uses.lifts import check_lifts, lifted, site_features, size_of
from secant.uses.points import Points
from secant.uses.separation import Separation, decide

Progress = Callable[[str, int, int], None]

Maker = tuple[str, int, Callable[[], Array]]
"""A lift's name, its count of features, and what makes its table."""

LARGEST_TABLE = 40_000_000
"""Numbers that a lift may make: 320 MB of float64."""

LARGEST_WHOLE = 2**53


@dataclass(frozen=True)
class Split:
    """One class against all others (`other` None), or against one other.

    `separation` holds verdict and certificate, with rows numbered as in the data; `shuffled` is
    the verdict on the same points with the labels in a random order.
    """

    name: str
    other: str | None
    rows: tuple[int, int]
    separation: Separation
    shuffled: str
    seconds: float


@dataclass(frozen=True)
class Lifted:
    """The points in one lift's coordinates, and what planes do there.

    `features` is how many there are, `rank` how many of them are free, so that Cover's dimension
    with a bias is rank + 1; `points` counts distinct rows. `chance` is Cover's probability that a
    plane could make random labels of so many points in general position.
    """

    name: str
    features: int
    rank: int
    points: int
    chance: float
    splits: list[Split]
    pairs: list[Split]
    seconds: float
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Separability:
    """Every lift, in the order asked for, with all that is needed to check it again."""

    model: str | None
    data: str
    rows: int
    classes: list[str]
    lifts: list[Lifted]
    notes: list[str]
    seed: int
    cost: dict[str, float]
    versions: dict[str, str]
    schema: int = SCHEMA

    def as_dict(self) -> dict[str, Any]:
        """Plain data; numbers that do not exist are None."""
        return plain(asdict(self))  # type: ignore[no-any-return]

    def save(self, path: Path) -> None:
        """Write the JSON whole or not at all.

        Raises: `InputError` if it cannot be written.
        """
        write(path, json.dumps(self.as_dict(), indent=1, allow_nan=False))


def separable(
    data: Any,
    *,
    labels: Tensor | None = None,
    column: str = "text",
    label_column: str | None = None,
    model: str | nn.Module | Loaded | None = None,
    sites: Sequence[str] | None = None,
    lifts: Sequence[str] | None = None,
    has_pairs: bool = False,
    rows: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress = lambda label, done, total: None,
) -> Separability:
    """Whether a plane, with a bias, has each class on one side and all others on the other.

    Every verdict has a certificate that was checked: a plane whose signs hold for every row taken
    as the rational numbers that it is; or a combination of the rows of either side that is one
    point (`secant.uses.separation.decide`). Each lift stands beside its control: Cover's
    probability for random labels, and the verdict on these labels in a random order. Where both
    say that anything is separable, a verdict says nothing of the labels.

    Args:
        data: rows of numbers with one class each: an .npz, .safetensors, .csv or .jsonl file,
            `demo:digits`, a tensor, batches, `Units`. With a `model` any data that it takes.
        labels: classes of a tensor, whole numbers.
        label_column: column or array of the labels in a file.
        model: adds the features at each of `sites` as a lift; data of texts has no other.
        sites: sites or globs; the repeated blocks if none.
        lifts: names of `secant.uses.lifts.LIFTS`; `none` alone if none.
        has_pairs: also each class against each other.
        rows: use the first so many units; all if None.

    Raises: `InputError` for data without labels, with one class, with labels that are no whole
    numbers, or with numbers that are not finite; `UndecidedError` as `decide`.

    Cost: two decisions a class and lift; 1,000 rows of 200 features take about 0.1 s each.
    """
    started = time.perf_counter()
    check_lifts(lifts or ())
    if sites and model is None:
        raise InputError(
            f"separable: a site is a place in a model; got {', '.join(sites)} and no model. "
            "Name it with --model."
        )
    loaded = None
    if model is not None:
        loaded = model if isinstance(model, Loaded) else load_model(model)
    units = _units(data, column, label_column, rows, is_table=loaded is None)
    if labels is not None:
        units = replace(units, labels=labels if rows is None else labels[:rows])
    feed = None
    if loaded is not None:
        feed = Feed(loaded, units, groups=GROUPS, batch_size=batch_size, seed=seed)
        units = feed.units
    numbers = _classes(units)
    names = _names(units, numbers)
    makers = _makers(units, feed, lifts, sites, seed, progress)
    found = _decided(makers, numbers, names, has_pairs, seed, progress)
    return Separability(
        None if loaded is None else loaded.name, units.name, len(units),
        list(names.values()), found,
        [] if feed is None else feed.notes, seed,
        {"seconds": time.perf_counter() - started}, versions(),
    )  # fmt: skip


def _decided(
    makers: list[Maker], numbers: Tensor, names: dict[int, str], has_pairs: bool, seed: int,
    progress: Progress,
) -> list[Lifted]:  # fmt: skip
    """Every lift's table made, and let go again, with its verdicts."""
    turns = len(names) if len(names) > 2 else 1
    turns += has_pairs * len(names) * (len(names) - 1) // 2
    found = []
    for place, (name, size, make) in enumerate(makers):
        done = place * turns

        def tell(count: int, done: int = done) -> None:
            progress("separable", done + count, turns * len(makers))

        if len(numbers) * size > LARGEST_TABLE:
            found.append(_left_out(name, size, len(numbers)))
            continue
        found.append(_lift(name, make(), numbers, names, has_pairs, seed, tell))
    return found


def _units(
    data: Any, column: str, label_column: str | None, rows: int | None, *, is_table: bool
) -> Units:
    path = Path(data) if isinstance(data, str | Path) else None
    if is_table and path is not None and path.suffix in SUFFIXES and path.is_file():
        return read_table(path, label_column, rows)
    return load_data(data, column, LoadOptions(label_column=label_column), rows)


def _classes(units: Units) -> Tensor:
    """One whole number a unit."""
    labels = units.labels
    if labels is None:
        raise InputError(
            f"separable: data {units.name!r} must have one class a unit; got no labels. "
            "Name their column with --label-column."
        )
    if labels.ndim != 1 or labels.is_complex():
        raise InputError(
            f"separable: data {units.name!r} must have one class a unit; got labels of shape "
            f"{tuple(labels.shape)}. Give a whole number or a word for each."
        )
    if labels.is_floating_point() and not bool((labels == labels.round()).all()):
        odd = int((labels != labels.round()).nonzero()[0])
        raise InputError(
            f"separable: data {units.name!r} must have whole numbers as classes; unit {odd + 1} "
            f"has {float(labels[odd]):g}. Give classes, not values."
        )
    numbers = labels.long()
    if len(set(numbers.tolist())) < 2:
        raise InputError(
            f"separable: data {units.name!r} must have two classes; all {len(units)} units have "
            f"{int(numbers[0])}. Give data with more, or more --rows."
        )
    return numbers


def _names(units: Units, numbers: Tensor) -> dict[int, str]:
    """The classes that are there, by number."""
    names = units.classes
    return {n: str(n) if names is None else names[n] for n in sorted(set(numbers.tolist()))}


def _makers(
    units: Units, feed: Feed | None, lifts: Sequence[str] | None, sites: Sequence[str] | None,
    seed: int, progress: Progress,
) -> list[Maker]:  # fmt: skip
    """The lifts of the rows, then the sites of the model."""
    found: list[Maker] = []
    if units.tensor is not None:
        table = _table(units)
        for name in lifts or ["none"]:
            size = size_of(name, table.shape[1])
            found.append((name, size, partial(lifted, name, table, seed)))
    elif feed is None or lifts:
        raise InputError(
            f"separable: data {units.name!r} must hold rows of numbers for "
            f"{', '.join(lifts or ['a plane'])}; it holds texts, images or fields. Name a --model "
            "that reads them, and no --lift."
        )
    if feed is not None:
        chosen = find_sites(feed.loaded.model, list(sites) if sites else None)

        def tell(done: int, total: int) -> None:
            progress(feed.loaded.name, done, total)

        for site, features in site_features(feed, chosen, tell).items():
            _check_finite(features, f"site {site!r}")
            found.append((f"site {site}", features.shape[1], partial(_kept, features)))
    return found


def _kept(features: Array) -> Array:
    return features


def _table(units: Units) -> Array:
    """The rows as float64, exactly, flattened."""
    assert units.tensor is not None
    rows = units.tensor.reshape(len(units), -1)
    if not rows.is_floating_point() and bool((rows.abs() > LARGEST_WHOLE).any()):
        raise InputError(
            f"separable: whole numbers in data {units.name!r} must be at most 2^53, or they lose "
            f"digits as float64; got {int(rows.abs().max())}. Take a constant off, or scale them."
        )
    table: Array = rows.double().numpy()
    _check_finite(table, f"data {units.name!r}")
    return table


def _check_finite(table: Array, what: str) -> None:
    bad = np.flatnonzero(~np.isfinite(table).all(1))
    if bad.size:
        raise InputError(
            f"separable: {what} must hold finite numbers; {bad.size} of {len(table)} rows hold NaN "
            f"or infinity, first row {bad[0] + 1}. Fill them in, or leave these rows out."
        )


def _left_out(name: str, size: int, rows: int) -> Lifted:
    note = (
        f"Not made: {size:,} features of {rows:,} rows are more than {LARGEST_TABLE:,} numbers. "
        "Give fewer --rows."
    )
    return Lifted(name, size, 0, rows, float("nan"), [], [], 0.0, [note])


def _lift(
    name: str, table: Array, numbers: Tensor, names: dict[int, str], has_pairs: bool, seed: int,
    tell: Callable[[int], None],
) -> Lifted:  # fmt: skip
    started = time.perf_counter()
    labels = numbers.numpy()
    points, rank = Points(table), _rank(table)
    order = np.random.default_rng(seed).permutation(len(labels))
    classes = list(names)
    splits, pairs = [], []
    for one in classes if len(classes) > 2 else classes[1:]:
        splits.append(_split(points, labels == one, order, names[one], None))
        tell(len(splits))
    if has_pairs:
        for one, other in itertools.combinations(classes, 2):
            places = np.flatnonzero((labels == one) | (labels == other))
            mixed = order[np.isin(order, places)]
            mixed = np.argsort(np.argsort(mixed))
            found = _split(
                Points(table[places]), labels[places] == one, mixed, names[one], names[other]
            )
            pairs.append(replace(found, separation=_renumbered(found.separation, places)))
            tell(len(splits) + len(pairs))
    return Lifted(
        name, table.shape[1], rank, len(points.first), float(chance(len(points.first), rank + 1)),
        splits, pairs, time.perf_counter() - started,
    )  # fmt: skip


def _rank(table: Array) -> int:
    """How many free features there are, in float64: no more than the rows less one."""
    part = table[:, free_columns(table)]
    if part.shape[1] == 0:
        return 0
    part = part - part.mean(0)
    part /= np.maximum(np.abs(part).max(0), np.finfo(np.float64).tiny)
    if part.shape[1] >= len(part):
        part = part @ part.T
    return int(np.linalg.matrix_rank(part, tol=1e-10 * float(np.linalg.norm(part))))


def _split(points: Points, is_one: Mask, order: Any, name: str, other: str | None) -> Split:
    started = time.perf_counter()
    found = decide(points, is_one)
    seconds = time.perf_counter() - started
    shuffled = decide(points, is_one[order], is_widest=False).verdict
    counts = int(is_one.sum()), int((~is_one).sum())
    return Split(name, other, counts, found, shuffled, seconds)


def _renumbered(found: Separation, places: Any) -> Separation:
    """With the certificate's rows numbered in the whole data."""
    rows = found.certificate.rows
    if rows is None:
        return found
    proof = replace(found.certificate, rows=[int(places[row]) for row in rows])
    return replace(found, certificate=proof)
