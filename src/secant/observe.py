"""Observational gauges over a model's sites, in one forward pass.

Holds: ``Observer``, ``accumulate``.
May import: torch, ``secant.errors``, ``secant.engine``, ``secant.load``, ``secant.maps``,
``secant.gauges``, ``secant.site_sums``.

A block's output is often the next block's input: such a tensor is centred and squared once.
Rows wait until a few batches of one group have come together, for products of many rows are faster.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from secant.engine.checkpoint import Checkpoint
from secant.engine.memory import free_bytes
from secant.errors import InputError
from secant.gauges.context import ContextFit, starts_of
from secant.gauges.fit import Fit
from secant.gauges.moments import Gram, gram
from secant.load.feed import Feed
from secant.load.loaded import device_of
from secant.maps.calls import module_at, version_of
from secant.maps.features import rows, watch
from secant.maps.receptive import patch_rows
from secant.site_sums import Site, Waiting

CHUNK = 1024
"""Rows of one group that a site waits for before it takes their products."""

SHARED = 4
"""Grams kept at hand: a tensor is soon met again, as the next block's input or beside its norm."""


class Grams:
    """The Gram of rows about a centre, made once for sites that share both."""

    def __init__(self) -> None:
        self.made: list[tuple[list[Tensor], Tensor, Gram]] = []

    def __call__(self, parts: list[Tensor], centre: Tensor) -> Gram:
        """Of the rows of several batches, one under another."""
        for known, about, found in self.made:
            is_same = len(known) == len(parts) and all(map(operator.is_, known, parts))
            if is_same and torch.equal(about, centre):
                return found
        made = gram(parts[0] if len(parts) == 1 else torch.cat(parts), centre)
        self.made = [*self.made[1 - SHARED :], (parts, centre, made)]
        return made

    def forget(self) -> None:
        """Let the rows go."""
        self.made = []


class Observer:
    """Listens to a model's sites, one batch after another, and keeps their sums.

    With `skips` a site that cannot be fitted is passed over, and `skipped` says why.
    Call `settle` after the last batch.
    """

    def __init__(self, model: nn.Module, sites: Sequence[str], *, skips: bool = False) -> None:
        self.model = model
        self.sites = {site: Site(module_at(model, site)) for site in sites}
        self.group = 0
        self.mask: Tensor | None = None
        self.starts: Tensor | None = None
        self.flat: dict[tuple[int, int], tuple[Tensor, Tensor, bool]] = {}
        self.grams = Grams()
        self.free, self.promised = free_bytes(), 0
        self.skips = skips
        self.skipped: dict[str, str] = {}

    def begin(self, group: int, mask: Tensor | None) -> None:
        """The next batch is of this group, with true in `mask` at the positions to count."""
        if group != self.group:
            self.settle()
        self.group, self.mask = group, mask
        self.starts = None if mask is None else starts_of(mask)
        self.flat.clear()
        self.grams.forget()  # sites that share a tensor settle in one batch

    def listen(self, name: str, x: Tensor, y: Tensor) -> None:
        """Add one site's batch, or pass over a site that cannot be fitted if that is allowed."""
        if name in self.skipped:
            return
        try:
            self._add(name, x, y)
        except InputError as error:
            is_new = name not in self.sites or self.sites[name].fit is None
            if not self.skips or not is_new:
                raise
            self.skipped[name] = str(error)
            self.sites.pop(name, None)

    def settle(self) -> None:
        """Add all rows that wait to the sums of their group."""
        for site in self.sites.values():
            self._settle(site)
        self.grams.forget()

    def _add(self, name: str, x: Tensor, y: Tensor) -> None:
        """Add one site's batch. Units with values that are not finite are left out and counted."""
        if name not in self.sites:  # a further call of a module that is called several times
            self.sites[name] = Site(module_at(self.model, name))
        site, mask, starts = self.sites[name], self.mask, self.starts
        (left, left_good), (right, right_good) = self._rows(x), self._rows(y)
        if not (left_good and right_good):
            good = torch.isfinite(x).flatten(1).all(1) & torch.isfinite(y).flatten(1).all(1)
            site.left_out += int((~good).sum())
            if not good.any():
                return
            x, y, mask = x[good], y[good], None if mask is None else mask[good]
            starts = None if mask is None else starts_of(mask)
            left, right = rows(x, mask), rows(y, mask)
        if len(left) != len(right):
            raise InputError(
                f"site {name!r} turns {len(left)} rows into {len(right)} rows "
                "(it pools, strides or flattens), so that no row has an output of its own. "
                "Choose another site."
            )
        if site.fit is None:
            site.make(x, y, left.double().mean(0), right.double().mean(0))
            self._check_room(name, site)
        assert site.fit is not None
        widths, found = site.widths(), (left.shape[1], right.shape[1])
        if found != widths:
            raise InputError(
                f"site {name!r} has rows of widths {found} in this batch, and had {widths} in the "
                "first (its width follows the length of a sequence). Choose another site."
            )
        if site.context is None:
            starts = left.new_empty(0, dtype=torch.bool)
        elif starts is None:
            starts = starts_of(x.new_ones(x.shape[:2], dtype=torch.bool))
        site.waiting.append(Waiting(left, right, starts))
        if site.patches is not None:
            site.patches.update(patch_rows(x, site.width), right, self.group)
        if sum(len(one.x) for one in site.waiting) >= CHUNK:
            self._settle(site)

    def _settle(self, site: Site) -> None:
        """Take the products of the rows that wait at one site."""
        if not site.waiting:
            return
        assert site.fit is not None
        lefts, rights, starts = (list(part) for part in zip(*site.waiting, strict=True))
        site.waiting = []
        x = self.grams(lefts, site.fit.x_centre)
        y = self.grams(rights, site.fit.y_centre)
        site.fit.update(x, y, self.group)
        if site.context is not None:
            site.context.update(x, y, torch.cat(starts), self.group)

    def _rows(self, features: Tensor) -> tuple[Tensor, bool]:
        """The rows that count, and whether all their values are finite; made once a batch."""
        name = (id(features), version_of(features))
        if name not in self.flat:
            flat = rows(features, self.mask)
            if flat.untyped_storage().data_ptr() == features.untyped_storage().data_ptr():
                flat = flat.clone()  # the model may write over its own tensor while rows wait
            # A finite sum has finite terms; if large terms overflow it, each value is looked at.
            summed = flat.sum(dtype=torch.promote_types(flat.dtype, torch.float32))
            is_finite = bool(torch.isfinite(summed))
            self.flat[name] = features, flat, is_finite
        return self.flat[name][1:]

    def _check_room(self, name: str, site: Site) -> None:
        """Refuse before the sums of all sites outgrow the memory, not after hours.

        Raises: `InputError` if they would.
        """
        self.promised += site.bytes()
        if self.free is None or not site.is_on_cpu() or self.promised <= self.free:
            return
        raise InputError(
            f"the sums of the sites up to {name!r} need {self.promised / 1e9:.1f} GB and "
            f"{self.free / 1e9:.1f} GB are free. Name fewer sites with --site."
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that `restore` needs: tensors, and plain notes for each site."""
        sums: dict[str, Tensor] = {}
        notes: dict[str, Any] = {}
        for place, (name, site) in enumerate(self.sites.items()):
            notes[name] = {"note": site.note, "left_out": site.left_out, "gauges": {}}
            for kind, gauge in site.gauges().items():
                centres = [gauge.x_centre, gauge.y_centre] if isinstance(gauge, Fit) else []
                widths = gauge.widths if isinstance(gauge, ContextFit) else None
                notes[name]["gauges"][kind] = widths
                named = dict(gauge.metric_state) | {f"centre_{i}": c for i, c in enumerate(centres)}
                sums |= {f"{place}.{kind}.{key}": cast(Tensor, one) for key, one in named.items()}
            if site.waiting:
                parts = zip(*site.waiting, strict=True)
                for key, part in zip(Waiting._fields, parts, strict=True):
                    sums[f"{place}.waiting.{key}"] = torch.cat(part)
        return sums, {"sites": notes, "skipped": self.skipped, "group": self.group}

    def restore(self, sums: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Take up the state that `state` gave for the same model and sites."""
        place = device_of(self.model)
        self.skipped, self.group = dict(notes["skipped"]), notes["group"]
        for name in self.skipped:
            self.sites.pop(name, None)
        for number, (name, kept) in enumerate(notes["sites"].items()):
            site = self.sites.setdefault(name, Site(module_at(self.model, name)))
            site.note, site.left_out = kept["note"], kept["left_out"]
            for kind, widths in kept["gauges"].items():
                prefix = f"{number}.{kind}."
                mine = {key[len(prefix) :]: t for key, t in sums.items() if key.startswith(prefix)}
                gauge: Fit | ContextFit
                if widths is not None:
                    gauge = ContextFit(*widths)
                else:
                    gauge = Fit(mine.pop("centre_0"), mine.pop("centre_1"))
                for key, tensor in mine.items():
                    setattr(gauge, key, tensor.to(place))
                gauge._update_count = 1  # else torchmetrics warns that nothing was added
                setattr(site, kind, gauge.to(place))
            if f"{number}.waiting.x" in sums:
                parts = [sums[f"{number}.waiting.{key}"].to(place) for key in Waiting._fields]
                site.waiting = [Waiting(*parts)]


def accumulate(
    feed: Feed,
    model: nn.Module,
    sites: Sequence[str],
    progress: Callable[[int, int], None],
    checkpoint: Checkpoint | None = None,
    step: str = "pass",
    *,
    skips: bool = False,
) -> Observer:
    """One pass: the sums of every site.

    `skips` as for `Observer`. With a `checkpoint` the pass goes on behind the last batch kept
    under `step`, to the same bits as a pass that was never cut off.
    """
    if not sites:
        raise InputError(
            f"{type(model).__name__} has no modules inside it, so there is no site to fit. Wrap it "
            "in `nn.Sequential(model)`."
        )
    observer = Observer(model, sites, skips=skips)
    kept = None if checkpoint is None else checkpoint.sums(step)
    start = 0
    if checkpoint is not None and kept is not None:
        try:
            observer.restore(*kept)
            start = kept[1]["batches"]
        except (KeyError, TypeError) as error:
            raise checkpoint.spoiled(step, error) from error
    done = sum(len(batch.units) for batch in feed.batches[:start])
    total = sum(len(batch.units) for batch in feed.batches)
    with torch.no_grad(), watch(model, sites, observer.listen):
        for number, batch in enumerate(feed.batches[start:], start + 1):
            forward, mask = feed.forward(model, batch)
            observer.begin(batch.group, mask)
            forward()
            done += len(batch.units)
            is_last = number == len(feed.batches)
            if is_last:
                observer.settle()
            if checkpoint is not None and (is_last or checkpoint.is_due()):
                sums, notes = observer.state()
                checkpoint.save_sums(step, sums, notes | {"batches": number})
            progress(done, total)
    for name in [name for name, site in observer.sites.items() if site.fit is None]:
        left_out = observer.sites[name].left_out
        observer.skipped[name] = (
            f"site {name!r} gave NaN or infinity for every one of {left_out} units. Look for "
            "missing values in the data, or give a wider --dtype."
            if left_out
            else f"site {name!r} was never called in a forward pass. Choose a site that runs."
        )
        del observer.sites[name]
        if not skips:
            raise InputError(observer.skipped[name])
    if not observer.sites:
        raise InputError(next(iter(observer.skipped.values())))
    return observer
