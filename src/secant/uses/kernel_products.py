"""Products of the gradients of many rows, and gradients that outputs share.

Holds: ``add_product``, ``shared``, ``by_shares``, ``wide``.
May import: torch, jaxtyping.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

LENGTH = 1 << 16
"""Terms of a product that are summed in its own precision; from there on sums are float64."""

FEWEST, MOST = 64, 256
"""Rows of a symmetric product taken at once: half of them where that is not too few or many."""

FEW = 4
"""Rows that tell most derivatives that outputs do not share."""

BLOCK = 1 << 17
"""Derivatives that are looked at at once."""


def add_product(
    total: Float[Tensor, "n m"],
    a: Float[Tensor, "n k"],
    b: Float[Tensor, "m k"],
    beside: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Add a b' to `total`; where `a` is `b`, at least all that is not below the diagonal.

    With `beside` (u, v), each entry is multiplied by that of u v' first; u and v may have fewer
    rows, each of which stands for as many in turn of a and b. Half precision becomes float32.
    """
    is_half = a is b
    a, b = wide(a), wide(b)
    u, v = (wide(beside[0]), wide(beside[1])) if beside is not None else (None, None)
    each = len(a) // len(u) if u is not None else 1
    step = min(MOST, max(FEWEST, len(a) // 2)) if is_half else MOST * 4
    step = -(-step // each) * each
    for start in range(0, len(a), step):
        first, end = start if is_half else 0, min(len(a), start + step)
        tile = _product(a[start:end], b[first:])
        if u is not None and v is not None:
            pairs = u[start // each : end // each] @ v[first // each :].T
            shape = len(pairs), each, pairs.shape[1], each
            tile = (tile.view(shape) * pairs[:, None, :, None]).view(tile.shape)
        total[start:end, first:] += tile


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a b', in float64 where the sums are long."""
    if a.shape[1] <= LENGTH:
        return a @ b.T
    found = torch.zeros(len(a), len(b), dtype=torch.float64, device=a.device)
    for first in range(0, a.shape[1], LENGTH):
        found += a[:, first : first + LENGTH] @ b[:, first : first + LENGTH].T
    return found


def wide(a: Tensor) -> Tensor:
    """Half precision as float32."""
    return a.float() if a.dtype in (torch.float16, torch.bfloat16) else a


def shared(
    back: Float[Tensor, "n c t l"],
) -> tuple[Float[Tensor, "n 1 t l"], Float[Tensor, "c l"]] | None:
    """m and v with derivatives m v, where outputs differ by a factor of each unit alone.

    So it is behind a last linear map, and behind an activation before it: there output c has the
    derivative w_ck f'(z_nk). None where derivatives are not of this form to within rounding, or in
    half precision, whose rounding would hide that they are not.
    """
    if back.shape[1] == 1 or back.dtype not in (torch.float32, torch.float64):
        return None
    if by_shares(back[:FEW], _shares(back[:FEW])) is None:
        return None
    shares = _shares(back)
    found = by_shares(back, shares)
    return None if found is None else (found, shares)


def _shares(back: Float[Tensor, "n c t l"]) -> Float[Tensor, "c l"]:
    """The derivatives of each unit by output, where they are largest."""
    sizes = torch.cat([torch.square(part, out=room).sum(1) for part, room in _blocks(back)])
    place = sizes.flatten(0, 1).argmax(0)
    t = back.shape[2]
    units = torch.arange(back.shape[3], device=back.device)
    return back[place // t, :, place % t, units].T


def by_shares(
    back: Float[Tensor, "n c t l"], shares: Float[Tensor, "c l"]
) -> Float[Tensor, "n 1 t l"] | None:
    """m of derivatives m v, for v = `shares`; None where a row is not of this form."""
    each = shares[:, None]
    # A unit without derivatives has m = 0, whatever this is.
    sizes = each.square().sum(0)
    sizes = torch.where(sizes == 0, torch.ones_like(sizes), sizes)
    bound = 32 * torch.finfo(back.dtype).eps
    found = []
    for part, room in _blocks(back):
        one = (torch.mul(part, each, out=room).sum(1) / sizes)[:, None]
        rest = _norms(torch.addcmul(part, one, each, value=-1, out=room))
        if not bool((rest <= bound * _norms(part)).all()):
            return None
        found.append(one)
    return torch.cat(found)


def _norms(rows: Tensor) -> Tensor:
    found: Tensor = rows.flatten(1).norm(dim=1)
    return found


def _blocks(back: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of derivatives, and room for something of their shape that stays in cache."""
    step = max(1, BLOCK // max(1, back[0].numel()))
    room = torch.empty_like(back[:step])
    for start in range(0, len(back), step):
        part = back[start : start + step]
        yield part, room[: len(part)]
