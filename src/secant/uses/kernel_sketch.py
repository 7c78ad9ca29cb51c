"""The kernel from random projections of the Jacobian, with its standard error.

Holds: ``sketch_kernel`` and its result ``KernelSketch``.
May import: torch, jaxtyping, ``secant.errors``, ``secant.maps``, ``secant.uses``
(kernel_operator).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from secant.errors import InputError
from secant.maps.weights import Batch
from secant.uses.kernel_operator import Jacobian

Progress = Callable[[str, int, int], None]


class KernelSketch(NamedTuple):
    """An estimate of the kernel traced over outputs, and of its entries' standard errors."""

    values: Float64[Tensor, "n m"]
    standard_error: Float64[Tensor, "n m"]
    projections: int


def sketch_kernel(
    model: nn.Module,
    x1: Batch,
    x2: Batch | None = None,
    outputs: str | Callable[[Any], Tensor] = "full",
    parameters: Sequence[str] | None = None,
    *,
    projections: int,
    seed: int = 0,
    batch_size: int = 32,
    progress: Progress = lambda label, done, total: None,
) -> KernelSketch:
    r"""The kernel summed over outputs, for models where the exact one is too dear.

    .. math:: \hat K_{nm} = \frac1k \sum_{j=1}^k \sum_c (J_{nc}\, g_j)(J_{mc}\, g_j),
        \qquad g_j \sim N(0, I)

    Unbiased. For one output an entry's variance is (K_nn K_mm + K_nm²) / k: about √(2/k) of an
    entry on the diagonal, and √(1/k) of √(K_nn K_mm) where rows have no kernel. With several
    outputs it is Σ_cc' (K_nn^cc' K_mm^cc' + K_nm^cc' K_nm^c'c) / k. `standard_error` is the
    unbiased estimate of that variance from the projections themselves, its root; with k of them
    it is itself known to about 1/√k of its size or worse, for products have heavy tails.

    Args:
        outputs: "full" for all, "logit i" or a function; always summed over.
        projections: how many, k; at least 2.
        Others as `secant.KernelOperator`; the same `seed` draws the same g.

    Cost: k forward derivatives of all rows, two to three forwards each, and products of
    (n, c) and (m, c). Memory: five (n, m) matrices, a batch's, and a vector of weights.

    Raises: `InputError` as `secant.KernelOperator`, and for fewer than 2 projections.
    """
    if projections < 2:
        raise InputError(
            f"projections must be at least 2, for an error to be known; got {projections}. "
            "Give some hundreds."
        )
    left = Jacobian(model, x1, outputs, parameters, batch_size=batch_size)
    right = left if x2 is None else Jacobian(model, x2, outputs, parameters, batch_size=batch_size)
    draw = torch.Generator().manual_seed(seed)
    mean = torch.zeros(left.rows, right.rows, dtype=torch.float64, device=left.at.device)
    spread = torch.zeros_like(mean)
    for done in range(1, projections + 1):
        # On the CPU whatever the device, so that a seed means one draw everywhere.
        direction = torch.randn(len(left.at), generator=draw, dtype=torch.float64).to(left.at)
        one = left.product(direction)
        sample = one @ (one if right is left else right.product(direction)).T
        # Welford's update: squares of large entries would cancel.
        gap = sample - mean
        mean += gap / done
        spread += gap * (sample - mean)
        progress("sketch", done, projections)
    return KernelSketch(mean, (spread / (projections - 1) / projections).sqrt(), projections)
