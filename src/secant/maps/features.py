"""The map from a site's features to its output, watched in passing or taken out to be called.

Holds: ``watch``, a context that hands (site, x, y) to a listener; ``rows``; ``BlockMap`` and
``capture`` (block in to block out); ``DecoderMap`` and ``decoder`` (site to the model's output).
May import: torch, jaxtyping, ``secant.errors``, ``secant.maps`` (calls, derivatives).

The maps compare values with derivatives, so take and call them inside ``derivatives()``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jaxtyping import Shaped
from torch import Tensor, nn

from secant.errors import InputError
from secant.maps.calls import first_tensor, intercept, out_of_place, with_first
from secant.maps.derivatives import jvp

Listener = Callable[[str, Tensor, Tensor], None]


def rows(features: Tensor, mask: Tensor | None) -> Shaped[Tensor, "rows width"]:
    """Features as (rows, width): positions become rows, masked positions are left out.

    (batch, width); (batch, length, width), of which `mask` (batch, length) keeps the true
    ones; (batch, channels, height, width), one row a pixel.
    """
    if features.ndim == 2:
        return features
    if features.ndim == 3:
        if mask is None:
            return features.flatten(0, 1)
        if mask.shape != features.shape[:2]:
            raise InputError(
                f"features of shape {tuple(features.shape)} do not begin with the mask's "
                f"{tuple(mask.shape)} (batch, length). Choose another site."
            )
        return features[mask]
    if features.ndim == 4:
        return features.movedim(1, -1).flatten(0, 2)
    raise InputError(
        f"features of shape {tuple(features.shape)} are not (batch, width), "
        "(batch, length, width) or (batch, channels, height, width). Choose another site."
    )


@contextmanager
def watch(model: nn.Module, sites: Sequence[str], listener: Listener) -> Iterator[None]:
    """Call `listener(site, x, y)` with each site's input and output in every forward within.

    A module called several times in one forward is a site for each call: ``name``, ``name@2``.
    Modules with an `inplace` switch run out of place within.

    Raises: `InputError` for a site that is no module, that takes or returns no tensor, or that
    writes over its input.
    """

    def hand_over(site: str, _: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        x = first_tensor(args if args else kwargs, site, "input")
        listener(site, x, first_tensor(output, site, "output"))

    with out_of_place(model), intercept(model, sites, hand_over):
        yield


@dataclass(frozen=True)
class BlockMap:
    """One call of a module as a function of its leading tensor, the rest of the call held fixed.

    `x` and `y` are what it took and gave when it was captured.
    """

    site: str
    module: nn.Module
    args: Any
    kwargs: Any
    x: Tensor
    y: Tensor

    def value(self, x: Tensor) -> Tensor:
        """F(x), in the shape of `y`."""
        if self.args:
            output = self.module(*with_first(self.args, x), **self.kwargs)
        else:
            output = self.module(**with_first(self.kwargs, x))
        return first_tensor(output, self.site, "output")

    def jvp(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """F(x) and J(x) v. Cost: two to three evaluations."""
        return jvp(self.value, x, v)


@dataclass(frozen=True)
class DecoderMap:
    """The model's output as a function of what a site hands on: the decoder of that site.

    `forward` runs the whole model with everything else as it was; `x` is the site's output and
    `y` the model's at the capture. Each value costs a forward of the whole model.
    """

    site: str
    model: nn.Module
    forward: Callable[[], Any]
    x: Tensor
    y: Tensor

    def value(self, x: Tensor) -> Tensor:
        """F(x), in the shape of `y`."""

        def replace(_: str, __: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            return with_first(output, x)

        with intercept(self.model, [call_of(self.site)], replace):
            return first_tensor(self.forward(), "(model)", "output")

    def jvp(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """F(x) and J(x) v. Cost: two to three forwards."""
        return jvp(self.value, x, v)


def call_of(site: str) -> str:
    """The name of one call: a bare name, which stands for all, becomes its first."""
    return site if "@" in site else f"{site}@1"


def capture(
    model: nn.Module, sites: Sequence[str], forward: Callable[[], Any]
) -> dict[str, BlockMap]:
    """Every call of `sites` in one forward of the batch, as maps. Keeps their inputs and outputs.

    Raises: `InputError` for a site that is no module, is not called, or takes or returns no
    tensor.
    """
    found: dict[str, BlockMap] = {}

    def keep(site: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        x = first_tensor(args if args else kwargs, site, "input")
        y = first_tensor(output, site, "output")
        found[site] = BlockMap(site, module, args, kwargs, x, y)

    with intercept(model, sites, keep):
        forward()
    for site in sites:
        if site not in found:
            raise InputError(
                f"site {site!r} was not called in this forward pass. Choose a site that runs."
            )
    return found


def decoder(model: nn.Module, site: str, forward: Callable[[], Any]) -> DecoderMap:
    """The map from what `site` (its first call, unless named) hands on to the model's output.

    Raises: `InputError` as `capture` does.
    """
    found: list[Tensor] = []

    def keep(_: str, __: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        found.append(first_tensor(output, site, "output"))

    with intercept(model, [call_of(site)], keep):
        y = first_tensor(forward(), "(model)", "output")
    if not found:
        raise InputError(
            f"site {site!r} was not called in this forward pass. Choose a site that runs."
        )
    return DecoderMap(site, model, forward, found[0], y)
