"""The map from a block's input features to its output features, watched in passing.

Holds: ``watch``, a context that hands (site, x, y) to a listener; ``rows``.
May import: torch, ``secant.errors``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from secant.errors import InputError

Listener = Callable[[str, Tensor, Tensor], None]


def first_tensor(value: Any, site: str, what: str) -> Tensor:
    """The leading tensor of a module's (possibly nested, possibly keyword) input or output."""
    if isinstance(value, Tensor):
        return value
    values = value.values() if isinstance(value, dict) else value
    if isinstance(values, tuple | list) or isinstance(value, dict):
        for part in values:
            if part is not None:
                return first_tensor(part, site, what)
    raise InputError(
        f"site {site!r}: expected a tensor as {what}, got {type(value).__name__}. "
        "Choose a site that takes and returns tensors."
    )


def rows(features: Tensor, mask: Tensor | None) -> Tensor:
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
def watch(model: nn.Module, sites: list[str], listener: Listener) -> Iterator[None]:
    """Call `listener(site, x, y)` with each site's input and output in every forward within."""
    handles = []
    try:
        for site in sites:

            def hook(_: nn.Module, args: Any, kwargs: Any, output: Any, site: str = site) -> None:
                x = first_tensor(args if args else kwargs, site, "input")
                y = first_tensor(output, site, "output")
                listener(site, x, y)

            handles.append(model.get_submodule(site).register_forward_hook(hook, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
