"""The bounded sample of an experiment: its units, their partners and the steps between them.

Holds: ``Design``, ``Member``, ``draw_sample``, ``Trial``, ``Trials``, ``towards``; ``Capture``
and ``features_at``, which say what maps are tried.
May import: torch, ``secant.errors``, ``secant.engine``, ``secant.load``, ``secant.maps``.

Everything follows from the units' contents and the seed: neither their order, nor their length,
nor how they are batched moves a step.
"""

from __future__ import annotations

import hashlib
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from secant.engine.plan import Batch
from secant.errors import InputError
from secant.load.feed import Feed
from secant.maps.derivatives import prepared_copy
from secant.maps.features import BlockMap, DecoderMap
from secant.maps.inputs import capture_with_inputs
from secant.maps.time import Transition, Unrolled

FEWEST = 3
"""Units that a group needs (a point and two partners), and groups that an interval needs."""

Map = BlockMap | DecoderMap | Transition | Unrolled
Key = tuple[str, str]
Capture = Callable[[nn.Module, Callable[[], Any], Tensor | None], Mapping[Key, Map]]
"""Every map of the model, under its variable and site, from forwards of one batch and its mask."""


def features_at(sites: Sequence[str]) -> Capture:
    """The blocks at these sites, and the whole model from its inputs as ``(model)``."""

    def capture(model: nn.Module, forward: Callable[[], Any], _: Tensor | None) -> dict[Key, Map]:
        blocks, whole = capture_with_inputs(model, sites, forward)
        maps: dict[Key, Map] = {("features", site): block for site, block in blocks.items()}
        return maps | {("inputs", "(model)"): whole}

    return capture


@dataclass(frozen=True)
class Design:
    """How the experiments are made: the sample, its batches, the number format and the seed."""

    units: int = 64
    batch_size: int = 16
    dtype: torch.dtype = torch.float64
    seed: int = 0


class Member(NamedTuple):
    """A unit of the sample, its group's place among the groups used, and its two partners."""

    unit: int
    group: int
    partners: tuple[int, int]
    code: bytes


class Trial(NamedTuple):
    """One map on one batch, and the steps from its point: `chord` leads to the first partner's.

    `a` and `b` go towards the two partners and `random` anywhere, each of the site's step length.
    `counted` says which positions of the output count, all if None; `rows` how many of the input.
    """

    map: Map
    counted: Tensor | None
    rows: int
    chord: Tensor
    a: Tensor
    b: Tensor
    random: Tensor


def draw_sample(feed: Feed, design: Design) -> list[Member]:
    """Distinct units, one from each group in turn, in the order of a hash of content and seed.

    A unit's partners are the next two of its group in that order, in the sample or not.

    Raises: `InputError` unless three groups hold three distinct units each, or for a design of
    fewer than three units or an empty batch.
    """
    if design.units < FEWEST or design.batch_size < 1:
        raise InputError(
            f"experiments need at least {FEWEST} units and batches of 1; got {design.units} and "
            f"{design.batch_size}. Take more, for instance 64 and 16."
        )
    by_group: dict[int, dict[bytes, int]] = defaultdict(dict)
    for batch in feed.batches:
        for unit in batch.units:
            code = _hash(feed.contents[unit], f"sample {design.seed}")
            by_group[batch.group].setdefault(code, unit)
    ordered = [sorted(by_group[group].items()) for group in sorted(by_group)]
    ordered = [members for members in ordered if len(members) >= FEWEST]
    if len(ordered) < FEWEST:
        distinct = sum(len(members) for members in by_group.values())
        raise InputError(
            f"experiments need {FEWEST} groups of {FEWEST} distinct units each; got "
            f"{len(ordered)} such groups from {distinct} distinct units. Give more data."
        )
    sample: list[Member] = []
    for place in range(max(map(len, ordered))):
        for group, members in enumerate(ordered):
            if place < len(members) and len(sample) < design.units:
                code, unit = members[place]
                first, second = ((place + ahead) % len(members) for ahead in (1, 2))
                partners = (members[first][1], members[second][1])
                sample.append(Member(unit, group, partners, code))
    return sample


class Trials:
    """The maps of a model's prepared copy, with the steps in which they are tried."""

    def __init__(self, model: nn.Module, feed: Feed, capture: Capture, design: Design) -> None:
        self.model = prepared_copy(model, design.dtype)
        self.feed, self.capture, self.design = feed, capture, design
        self.forwards_by_unit = 0

    def maps(self, units: Sequence[int]) -> tuple[Mapping[Key, Map], Tensor | None]:
        """Every map on a batch of these units, and the batch's mask."""
        forward, mask = self.feed.forward(self.model, Batch(0, tuple(units)))
        self.forwards_by_unit += len(units)
        try:
            maps = self.capture(self.model, forward, mask)
        except InputError as error:
            raise InputError(
                f"in {self.design.dtype}, in which curves are taken: {error} "
                "A model that makes tensors of its own type has no curves there."
            ) from error
        for (_, site), found in maps.items():
            for what, features in (("input", found.x), ("output", found.y)):
                if features.ndim == 0 or len(features) != len(units):
                    raise InputError(
                        f"site {site!r}: expected its {what} to begin with the {len(units)} units "
                        f"of the batch; got shape {tuple(features.shape)}. Choose another site."
                    )
        return maps, mask

    def steps(self, batches: Sequence[Sequence[Member]]) -> dict[Key, float]:
        """The median distance between a unit and its first partner, for each map.

        Only of maps that every batch has: a layer that some units never reach has no partners.
        """
        distances: dict[Key, list[float]] = defaultdict(list)
        everywhere: set[Key] | None = None
        for batch in batches:
            here, mask = self.maps([member.unit for member in batch])
            there, other_mask = self.maps([member.partners[0] for member in batch])
            both = {key for key in here if key in there}
            everywhere = both if everywhere is None else everywhere & both
            for key, found in here.items():
                if key not in there:
                    continue
                there_x, site = there[key].x, key[1]
                change = towards(
                    found.x, mask_of(found, mask), there_x, mask_of(there[key], other_mask), site
                )
                distances[key] += _norms(change).tolist()
        return {
            key: statistics.median(values)
            for key, values in distances.items()
            if key in (everywhere or ())
        }

    def of(self, batch: Sequence[Member], steps: dict[Key, float]) -> Iterator[tuple[Key, Trial]]:
        """The trial of each map on one batch."""
        here, mask = self.maps([member.unit for member in batch])
        ends = [self.maps([member.partners[which] for member in batch]) for which in (0, 1)]
        for key, found in here.items():
            if key not in steps or any(key not in maps for maps, _ in ends):
                continue
            x, site, own = found.x, key[1], mask_of(found, mask)
            chord, other = (
                towards(x, own, maps[key].x, mask_of(maps[key], end_mask), site)
                for maps, end_mask in ends
            )
            counted = positions(x, own, site)
            codes = [_hash(member.code, f"{self.design.seed} {site}") for member in batch]
            trial = Trial(
                found,
                positions(found.y, own, site),
                _rows(x) if counted is None else int(counted.sum()),
                chord,
                _scaled(chord, steps[key]),
                _scaled(other, steps[key]),
                _scaled(_gaussian(x, counted, codes), steps[key]),
            )
            yield key, trial


def mask_of(found: Map, mask: Tensor | None) -> Tensor | None:
    """The batch's mask as this map has its positions: a recurrence has its steps in its order."""
    if isinstance(found, Unrolled):
        return found.taken
    return found.counted(mask) if isinstance(found, Transition) else mask


def positions(features: Tensor, mask: Tensor | None, site: str) -> Tensor | None:
    """The mask if the features have positions, (batch, length, ...); None if every entry counts.

    Raises: `InputError` if they have other positions than the mask.
    """
    if mask is None or features.ndim < 3:
        return None
    if features.shape[:2] != mask.shape:
        raise InputError(
            f"site {site!r}: features of shape {tuple(features.shape)} must begin with the mask's "
            f"{tuple(mask.shape)} (batch, length), or padding would count. Choose another site."
        )
    return mask


def towards(
    x: Tensor, mask: Tensor | None, other: Tensor, other_mask: Tensor | None, site: str
) -> Tensor:
    """The change that leads from each unit of `x` to that of `other`, zero where masked.

    A text's k-th counted position goes to the other's k-th, counted on from the start again
    where the other is shorter.
    """
    here, there = positions(x, mask, site), positions(other, other_mask, site)
    if here is None or there is None:
        if x.shape != other.shape:
            raise InputError(
                f"site {site!r}: two units must have one shape; got {tuple(x.shape[1:])} and "
                f"{tuple(other.shape[1:])}. Choose another site."
            )
        return other - x
    change = torch.zeros_like(x)
    for place, (kept, other_kept) in enumerate(zip(here, there, strict=True)):
        start, ends = x[place, kept], other[place, other_kept]
        change[place, kept] = ends[torch.arange(len(start)) % len(ends)] - start
    return change


def _rows(x: Tensor) -> int:
    """Rows as `maps.features.rows` makes them: positions or pixels; one a unit otherwise."""
    if x.ndim == 4:
        return len(x) * x.shape[2] * x.shape[3]
    return len(x) * x.shape[1] if x.ndim == 3 else len(x)


def _norms(change: Tensor) -> Tensor:
    """The norm over each unit."""
    return change.double().flatten(1).square().sum(1).sqrt()


def _scaled(change: Tensor, length: float) -> Tensor:
    """Each unit's change at this length; no change where there was none."""
    norms = _norms(change)
    factors = torch.where(norms > 0, length / norms, 0.0)
    return change * factors.to(change.dtype).view(-1, *[1] * (change.ndim - 1))


def _gaussian(x: Tensor, counted: Tensor | None, codes: Sequence[bytes]) -> Tensor:
    """Isotropic Gaussian entries at counted positions, from one seed a unit, so batches agree."""
    change = torch.zeros_like(x)
    for place, code in enumerate(codes):
        generator = torch.Generator().manual_seed(int.from_bytes(code, "little"))
        kept = slice(None) if counted is None else counted[place]
        part = change[place, kept]
        noise = torch.randn(part.shape, dtype=torch.float64, generator=generator)
        change[place, kept] = noise.to(part)
    return change


def _hash(content: bytes, key: str) -> bytes:
    # A key has at most 64 bytes and a site's name may be longer, so it is hashed along instead.
    return hashlib.blake2b(key.encode() + b"\0" + content, digest_size=8).digest()
