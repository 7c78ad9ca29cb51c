"""Sum: whether the changes that a map makes add, and whether they scale.

Holds: the functions ``sum_sums``, ``sum_from_sums``, ``homogeneity_sums`` and
``homogeneity_from_sums`` and their gauges ``Sum`` and ``Homogeneity``.
May import: torch, torchmetrics, ``secant.errors``, ``secant.gauges`` (_root_ratio, _shapes).
"""

import math

import torch
from torch import Tensor
from torchmetrics import Metric

from secant.errors import InputError
from secant.gauges._root_ratio import as_doubles, check_input_changes, root_ratio, squared_norm
from secant.gauges._shapes import Scalar


def sum_sums(
    delta_both: Tensor,
    delta_a: Tensor,
    delta_b: Tensor,
    input_change_a: Tensor | None = None,
    input_change_b: Tensor | None = None,
) -> tuple[Scalar, Scalar]:
    """Squared interaction and squared parts, summed over the batch, in float64.

    With the input changes (ρa, ρb) the parts are those of F(x) - x; the interaction is the same.
    """
    both, a, b = as_doubles("sum", delta_both=delta_both, delta_a=delta_a, delta_b=delta_b)
    interaction = squared_norm(both - a - b)
    if input_change_a is not None and input_change_b is not None:
        _, step_a, step_b = as_doubles(
            "sum", delta_a=delta_a, input_change_a=input_change_a, input_change_b=input_change_b
        )
        a, b = a - step_a, b - step_b
    elif input_change_a is not None or input_change_b is not None:
        check_input_changes(
            "sum", True, input_change_a=input_change_a, input_change_b=input_change_b
        )
    return interaction, squared_norm(a) + squared_norm(b)


def sum_from_sums(interaction: Scalar, parts: Scalar) -> Scalar:
    """Root ratio of the two sums."""
    return root_ratio("sum", interaction, parts)


def homogeneity_sums(
    delta_scaled: Tensor, delta: Tensor, scale: float, input_change: Tensor | None = None
) -> tuple[Scalar, Scalar]:
    """Squared departure from scaling and squared scaled change, summed over the batch, in float64.

    With ``input_change`` (ρu, before scaling) the change is that of F(x) - x.
    """
    if not math.isfinite(scale) or scale in (0, 1):
        raise InputError(
            f"homogeneity: `scale` must be finite and neither 0 nor 1; got {scale}. "
            "Every map passes at 0 and 1, so take another, such as 2."
        )
    scaled, change = as_doubles("homogeneity", delta_scaled=delta_scaled, delta=delta)
    departure = squared_norm(scaled - scale * change)
    if input_change is not None:
        _, step = as_doubles("homogeneity", delta=delta, input_change=input_change)
        change = change - step
    return departure, squared_norm(scale * change)


def homogeneity_from_sums(departure: Scalar, change: Scalar) -> Scalar:
    """Root ratio of the two sums."""
    return root_ratio("homogeneity", departure, change)


class Sum(Metric):
    r"""Interaction of two changes, relative to the two on their own.

    .. math:: \sqrt{\frac{\sum_n \|\Delta_{ab} - \Delta_a - \Delta_b\|^2}
                         {\sum_n (\|\Delta_a\|^2 + \|\Delta_b\|^2)}},
              \quad \Delta_u = F(x + \rho u) - F(x)

    With ``is_beyond`` the residual's share leaves the denominator: Δ_a - ρa, Δ_b - ρb.

    Update: ``delta_both``, ``delta_a``, ``delta_b``: the changes under a + b, a and b;
    real float, one shape, usually ``(batch, *features)``; with ``is_beyond`` also
    ``input_change_a``, ``input_change_b``, that is ρa and ρb, in that shape.

    Compute: scalar, float64, no unit. 0 is a map whose changes add on this sample, as an
    affine map's do; 1 is an interaction as large as both changes together. For x² at 0
    and a = b it is √2. Non-finite values give nan. A ratio estimator: consistent, biased
    by order 1/n; its standard error is found by resampling the sums of independent units.

    Raises: `InputError` if shapes differ, a tensor is not real float, an input change is
    missing or unwanted, or every change has length 0.

    Source: task arithmetic, Ilharco et al. 2023, arXiv:2212.04089; normalisation ours.
    """

    full_state_update = False
    higher_is_better = False
    interaction: Tensor
    parts: Tensor

    def __init__(self, *, is_beyond: bool = False) -> None:
        super().__init__()
        self.is_beyond = is_beyond
        for name in ("interaction", "parts"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        delta_both: Tensor,
        delta_a: Tensor,
        delta_b: Tensor,
        input_change_a: Tensor | None = None,
        input_change_b: Tensor | None = None,
    ) -> None:
        """Add a batch."""
        check_input_changes(
            "sum", self.is_beyond, input_change_a=input_change_a, input_change_b=input_change_b
        )
        interaction, parts = sum_sums(delta_both, delta_a, delta_b, input_change_a, input_change_b)
        self.interaction += interaction
        self.parts += parts

    def compute(self) -> Scalar:
        """The reading over all batches so far."""
        return sum_from_sums(self.interaction, self.parts)


class Homogeneity(Metric):
    r"""Departure of a scaled change from the change scaled, relative to the latter.

    .. math:: \sqrt{\sum_n \|\Delta_{su} - s \Delta_u\|^2 / \sum_n \|s \Delta_u\|^2},
              \quad \Delta_u = F(x + \rho u) - F(x)

    With ``is_beyond`` the residual's share leaves the denominator: s(Δ_u - ρu).

    Update: ``delta_scaled``, ``delta``, the changes under su and u; real float, one
    shape, usually ``(batch, *features)``; ``scale``, the number s, which may differ from
    batch to batch; with ``is_beyond`` also ``input_change``, ρu before scaling.

    Compute: scalar, float64, no unit. 0 is a map whose changes scale on this sample (a
    ReLU at 0 does, for s > 0, and is not linear); 1 is a departure as large as the change
    scaled. For x² it is \|s - 1\| \|u\| / \|2x + u\|. Non-finite values give nan. A ratio
    estimator: consistent, biased by order 1/n; its standard error is found by resampling
    the sums of independent units.

    Raises: `InputError` if shapes differ, a tensor is not real float, the scale is 0, 1 or
    not finite, ``input_change`` is missing or unwanted, or every change has length 0.

    Source: the second axiom of linearity, beside `Sum`; normalisation ours.
    """

    full_state_update = False
    higher_is_better = False
    departure: Tensor
    change: Tensor

    def __init__(self, *, is_beyond: bool = False) -> None:
        super().__init__()
        self.is_beyond = is_beyond
        for name in ("departure", "change"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self, delta_scaled: Tensor, delta: Tensor, scale: float, input_change: Tensor | None = None
    ) -> None:
        """Add a batch."""
        check_input_changes("homogeneity", self.is_beyond, input_change=input_change)
        departure, change = homogeneity_sums(delta_scaled, delta, scale, input_change)
        self.departure += departure
        self.change += change

    def compute(self) -> Scalar:
        """The reading over all batches so far."""
        return homogeneity_from_sums(self.departure, self.change)
