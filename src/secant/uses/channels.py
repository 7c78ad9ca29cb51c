"""Statistics of channels along a path: BatchNorm's estimated anew, and REPAIR.

Holds: ``Channels``, ``Settled``.
May import: torch, ``secant.errors``, ``secant.engine``, ``secant.load``, ``secant.maps``.

Between two networks the channels' variances collapse, for their units point in different
directions. BatchNorm undoes that once its statistics are those of the point itself; REPAIR does
the same where there is none.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secant.engine.plan import Batch
from secant.errors import InputError
from secant.load.feed import Feed
from secant.maps.calls import first_tensor

BATCH = 256
"""Most units of a batch in which statistics are estimated; a batch is normalised by its own."""
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

Stats = dict[str, tuple[Tensor, Tensor]]
"""Mean and standard deviation of every channel of a layer, over units and positions."""


@dataclass(frozen=True)
class Settled:
    """What a point of a path needs besides its weights.

    `norms`: running mean and variance of each BatchNorm; `affine`: scale and shift of each
    layer's channels, to be folded into its weight and bias.
    """

    norms: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    affine: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def put(self, model: nn.Module) -> None:
        """Into a model that has the point's weights already."""
        with torch.no_grad():
            for name, (mean, variance) in self.norms.items():
                norm = model.get_submodule(name)
                assert isinstance(norm, _BatchNorm)
                assert norm.running_mean is not None
                assert norm.running_var is not None
                norm.running_mean.copy_(mean)
                norm.running_var.copy_(variance)
            for name, (scale, shift) in self.affine.items():
                layer = model.get_submodule(name)
                assert isinstance(layer, LAYERS)
                assert layer.bias is not None
                layer.weight *= scale.to(layer.weight).view(-1, *[1] * (layer.weight.ndim - 1))
                layer.bias.copy_(layer.bias * scale.to(layer.bias) + shift.to(layer.bias))


@dataclass
class _Sums:
    """Sums over what a channel gave: count, mean and squared distance from it, batch by batch."""

    count: int = 0
    mean: Tensor | float = 0.0
    squares: Tensor | float = 0.0

    def add(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Add (rows, channels); gives the mean and the variance of these alone."""
        rows = rows.double()
        mean = rows.mean(0)
        squares = (rows - mean).square().sum(0)
        whole = self.count + len(rows)
        # Chan, Golub and LeVeque 1979: no difference of two large sums.
        self.squares = (
            self.squares
            + squares
            + (mean - self.mean) ** 2 * self.count * len(rows) / max(whole, 1)
        )
        self.mean = self.mean + (mean - self.mean) * (len(rows) / max(whole, 1))
        self.count = whole
        return mean, squares / max(len(rows), 1)

    def found(self) -> tuple[Tensor, Tensor]:
        """Mean and sum of squared distances."""
        assert isinstance(self.mean, Tensor)
        assert isinstance(self.squares, Tensor)
        return self.mean, self.squares


class Channels:
    """Estimates the statistics of channels at points of a path, on the units of a feed.

    With `has_repair` every linear layer and convolution but the one that gives the output, or is
    called several times, has each channel brought to the mean and standard deviation that lie as
    far between the two ends' as the point does; the layer gets a bias if it has none.

    Source: Jordan et al. 2023, arXiv:2211.08403. As there, layers see corrected inputs while they
    are measured, each batch by its own statistics, and the correction is folded in afterwards.
    """

    def __init__(self, model: nn.Module, feed: Feed, *, has_repair: bool) -> None:
        self.model, self.feed = model, feed
        self.norms = {
            name: part
            for name, part in model.named_modules()
            if isinstance(part, _BatchNorm) and part.running_mean is not None
        }
        self.batches = _batches(feed)
        self.layers = self._inner_layers() if has_repair else {}
        if has_repair and not self.layers:
            raise InputError(
                f"REPAIR needs linear layers or convolutions before the output; "
                f"{feed.loaded.name!r} has none that is called once. Leave --repair out."
            )
        for layer in self.layers.values():
            if layer.bias is None:
                zero = torch.zeros(len(layer.weight)).to(layer.weight)
                layer.bias = nn.Parameter(zero, requires_grad=False)

    @property
    def is_needed(self) -> bool:
        """Whether any point needs more than its weights."""
        return bool(self.norms or self.layers)

    def _inner_layers(self) -> dict[str, nn.Module]:
        calls: dict[str, list[Tensor]] = {}
        layers = {
            name: part for name, part in self.model.named_modules() if isinstance(part, LAYERS)
        }

        def keep(name: str) -> Callable[..., None]:
            return lambda _, __, output: calls.setdefault(name, []).append(output)

        handles = [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]
        try:
            with torch.no_grad():
                last = first_tensor(self.feed.forward(self.model, self.feed.batches[0])[0](),
                                    "(model)", "output")  # fmt: skip
        finally:
            for handle in handles:
                handle.remove()
        owners = [id(part.weight) for part in layers.values()]
        return {
            name: layer
            for name, layer in layers.items()
            if len(calls.get(name, [])) == 1
            and calls[name][0] is not last
            and owners.count(id(layer.weight)) == 1
        }

    def settle(self, goals: tuple[Stats, Stats, float] | None = None) -> tuple[Settled, Stats]:
        """What the model's weights of now need, and the statistics that its layers had.

        `goals` are the statistics of both ends, and how far between them the weights lie; None
        leaves the layers as they are. Cost: one pass over the data.
        """
        sums = {name: _Sums() for name in [*self.norms, *self.layers]}
        mask: Tensor | None = None

        def norm_hook(name: str) -> Callable[..., None]:
            return lambda _, args: void(sums[name].add(_rows(args[0], 1)))

        def void(_: object) -> None:
            return None

        def layer_hook(name: str) -> Callable[..., Tensor | None]:
            def hook(layer: nn.Module, _: object, output: Tensor) -> Tensor | None:
                place = output.ndim - 1 if isinstance(layer, nn.Linear) else 1
                kept = mask if place == 2 and mask is not None else None
                if kept is not None and kept.shape != output.shape[:2]:
                    kept = None
                rows = output[kept] if kept is not None else _rows(output, place)
                mean, variance = sums[name].add(rows)
                if goals is None:
                    return None
                scale, shift = _towards(mean, variance.sqrt(), *(_goal(goals, name)))
                shape = [1] * output.ndim
                shape[place] = -1
                return output * scale.to(output).view(shape) + shift.to(output).view(shape)

            return hook

        handles = [part.register_forward_pre_hook(norm_hook(name))
                   for name, part in self.norms.items()]  # fmt: skip
        handles += [layer.register_forward_hook(layer_hook(name))
                    for name, layer in self.layers.items()]  # fmt: skip
        for norm in self.norms.values():
            norm.train()
        try:
            with torch.no_grad():
                for batch in self.batches:
                    forward, mask = self.feed.forward(self.model, batch)
                    forward()
        finally:
            for handle in handles:
                handle.remove()
            for norm in self.norms.values():
                norm.eval()
        return self._settled(sums, goals)

    def _settled(
        self, sums: Mapping[str, _Sums], goals: tuple[Stats, Stats, float] | None
    ) -> tuple[Settled, Stats]:
        norms, affine, stats = {}, {}, {}
        for name in self.norms:
            mean, squares = sums[name].found()
            norms[name] = mean, squares / (sums[name].count - 1)
        for name in self.layers:
            mean, squares = sums[name].found()
            stats[name] = mean, (squares / sums[name].count).sqrt()
            if goals is not None:
                affine[name] = _towards(*stats[name], *_goal(goals, name))
        return Settled(norms, affine), stats


def _goal(goals: tuple[Stats, Stats, float], name: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation as far between those of the ends as the point lies."""
    start, end, t = goals
    first, last = start[name], end[name]
    return torch.lerp(first[0], last[0], t), torch.lerp(first[1], last[1], t)


def _towards(
    mean: Tensor, spread: Tensor, goal_mean: Tensor, goal_spread: Tensor
) -> tuple[Tensor, Tensor]:
    """Scale and shift that give a channel the goal's statistics; a constant one is only moved."""
    scale = torch.where(spread > 0, goal_spread / spread, 1.0)
    return scale, goal_mean - scale * mean


def _rows(features: Tensor, place: int) -> Tensor:
    """(rows, channels), the channels being dimension `place`."""
    return features.movedim(place, -1).flatten(0, -2)


def _batches(feed: Feed) -> list[Batch]:
    """All units, mixed by their content, in equal batches of up to `BATCH`."""
    order = sorted(
        range(len(feed.contents)),
        key=lambda unit: (hashlib.blake2b(feed.contents[unit], digest_size=8).digest(), unit),
    )
    count = math.ceil(len(order) / BATCH)
    return [Batch(0, tuple(order[place::count])) for place in range(count)]
