"""The affine maps of one site at every rank, from sums of its input and output.

Holds: ``SiteFit``, the sums; ``Fitted``, what comes of them; ``fitted``, ``ranks_for``.
May import: torch, jaxtyping, ``secant.errors``, ``secant.gauges``, ``secant.uses.replace_parts``.

No row is kept: the sums of each fold give the strength of the ridge, what is left over on held-out
units, and the best map of every rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from secant.errors import InputError
from secant.gauges.moments import (
    Gram,
    Moments,
    added,
    gram,
    moments,
    recentred,
    trained,
    update_moments,
)
from secant.gauges.ridge import (
    Eigenbases,
    cholesky_solution,
    chosen_ridges,
    lifted_cholesky,
    residual_sum,
    ridge_weight,
)
from secant.uses.replace_parts import AFFINE, DROP, RANK, SHIFT, Map

FOLDS = 3
"""Of the units that maps are fitted on; more would only cost memory, for no interval is made."""

SHARES = (1 / 16, 1 / 4)
"""Ranks that are tried, of the narrower side."""


def ranks_for(d: int, m: int) -> list[int]:
    """Ranks whose two factors have fewer products than the whole map."""
    ranks = {round(share * min(d, m)) for share in SHARES}
    return sorted(rank for rank in ranks if 0 < rank * (d + m) < d * m)


class SiteFit:
    """Sums of one site's input and output, fold by fold, about rough centres."""

    def __init__(self) -> None:
        self.centres: tuple[Tensor, Tensor] | None = None
        self.folds: list[Moments | None] = [None] * FOLDS
        self.cosines = torch.zeros((), dtype=torch.float64)

    def add(self, x: Float[Tensor, "n d"], y: Float[Tensor, "n m"], fold: int) -> None:
        """The rows of one batch. Raises: `InputError` for values that are not finite."""
        if self.centres is None:
            self.centres = x.double().mean(0), y.double().mean(0)
        found = moments(gram(x, self.centres[0]), _lengths_only(y, self.centres[1]))
        if not bool(torch.isfinite(found.xx.trace() + found.tt.trace())):
            raise InputError("it gives NaN or infinity. Look for missing values in the data")
        before = self.folds[fold]
        self.folds[fold] = found if before is None else added([before, found])
        if x.shape == y.shape:
            wide = torch.promote_types(x.dtype, torch.float32)
            cosines = torch.cosine_similarity(x.to(wide), y.to(wide), dim=1)
            self.cosines += cosines.sum(dtype=torch.float64).cpu()

    def filled(self) -> list[Moments]:
        """The sums of each fold.

        Raises: `InputError` unless every fold has rows.
        """
        found = [one for one in self.folds if one is not None]
        if len(found) < FOLDS:
            raise InputError(
                f"replace: maps are fitted on units in {FOLDS} folds; got units in {len(found)}. "
                "Give some hundred documents, images or rows."
            )
        return found


def _lengths_only(y: Float[Tensor, "n m"], centre: Float64[Tensor, " m"]) -> Gram:
    """The Gram of `y` with zeros off the diagonal of its product.

    Of y'y only the trace is read here: by residuals, and by the choice of the ridge, whose order of
    strengths a constant does not change. The other entries would double the cost of a pass.
    """
    about = y.to(torch.float64, copy=True).sub_(centre)
    return Gram(y, centre, about, about.sum(0), torch.diag(about.square().sum(0)))


@dataclass(frozen=True)
class Fitted:
    """The maps of one site, and what each leaves over.

    `errors` are sums of squares over the rows: of dropping (about no mean), of a shift (held out to
    the degree of one mean), of the affine map (held out over folds) and of each rank (that, and
    what the rank loses on the rows fitted). `total` is that of y about its mean; `scalar` what the
    best multiple of the centred x leaves of it, None where they differ in width. `influence` is
    1 less the mean cosine of input and output; None where they differ in width.
    """

    sums: list[Moments]
    centres: tuple[Tensor, Tensor]
    is_added: bool
    ridge: float
    errors: dict[str, float]
    total: float
    scalar: float | None
    rows: int
    influence: float | None

    @property
    def beyond(self) -> float:
        """What the affine map explains, held out, of what scaling the input leaves; of y's whole
        variance where the two differ in width. A residual path cannot flatter it."""
        whole = self.total if self.scalar is None else self.scalar
        return 1 - self.errors[AFFINE] / whole if whole > 0 else float("nan")

    def map(self, kind: str, rank: int | None = None, bases: Eigenbases | None = None) -> Map:
        """The best map of this kind; `rank` for those of low rank."""
        m = len(self.centres[1])
        if kind == DROP:
            return Map(kind, self.is_added, width=m)
        x_mean, t_mean, pair = trained(added(self.sums))
        x_mean, t_mean = self.centres[0] + x_mean, self.centres[1] + t_mean
        if self.is_added:
            pair, t_mean = update_moments(pair), t_mean - x_mean
        if kind == SHIFT:
            return Map(kind, self.is_added, (), t_mean, m)
        weight = ridge_weight((bases or Eigenbases())(pair.xx), pair.xt, self.ridge)
        factors: tuple[Tensor, ...] = (weight,)
        if kind == RANK:
            assert rank is not None
            factors = reduced(weight, pair.xt, rank)
        shift = t_mean
        at_mean = x_mean
        for factor in factors:
            at_mean = at_mean @ factor
        shift = t_mean - at_mean
        if kind == AFFINE and self.is_added:
            weight = weight + torch.eye(m, dtype=weight.dtype, device=weight.device)
            return Map(kind, False, (weight,), shift, m)
        return Map(kind, self.is_added, factors, shift, m)


def reduced(
    weight: Float64[Tensor, "d m"], cross: Float64[Tensor, "d m"], rank: int
) -> tuple[Float64[Tensor, "d r"], Float64[Tensor, "r m"]]:
    """The map of this rank with the least squared residual (with the ridge's penalty), as factors.

    With B the ridge solution and x't = `cross` about the means, B'x't is the covariance of what B
    explains, in the metric of x'x and the penalty; B is projected on its leading eigenvectors.
    Source: Izenman 1975, J. Multivar. Anal. 5; with a ridge Mukherjee and Zhu 2011, Stat. Anal.
    Data Min. 4.
    """
    _, vectors = torch.linalg.eigh(symmetric(weight, cross))
    leading = vectors[:, -rank:]
    return weight @ leading, leading.T.contiguous()


def symmetric(weight: Tensor, cross: Tensor) -> Float64[Tensor, "m m"]:
    """What the map explains, as a matrix over outputs; symmetric but for rounding."""
    explained = weight.T @ cross
    return (explained + explained.T) / 2


def about_zero(sums: Moments, centre: Tensor) -> float:
    """Σ‖t‖², of sums about `centre`."""
    at_centre = sums.rows * (centre @ centre)
    return float((sums.tt.trace() + 2 * sums.t @ centre + at_centre).clamp_min(0))


def fitted(site: SiteFit, ranks: list[int], is_added: bool | None = None) -> Fitted:
    """Solve one site.

    `is_added` None: the map is added to x where x is nearer to y than 0 is.

    Raises: `InputError` as `SiteFit.filled`. Cost: FOLDS + 2 Cholesky factors for each strength of
    the ridge and FOLDS + 1 more, and for `ranks` one eigenproblem of the output's width.
    """
    folds = site.filled()
    assert site.centres is not None
    x_centre, y_centre = site.centres
    whole = added(folds)
    zero, identity = about_zero(whole, y_centre), float("inf")
    if whole.x.shape == whole.t.shape:
        identity = about_zero(update_moments(whole), y_centre - x_centre)
    if is_added is None:
        is_added = identity <= zero
    targets = [update_moments(one) for one in folds] if is_added else folds
    everything = update_moments(whole) if is_added else whole
    ridges = chosen_ridges(targets)
    ridge = sorted(ridges)[len(ridges) // 2]
    held_out = 0.0
    for fold in targets:
        x_mean, t_mean, pair = trained(everything.minus(fold))
        weight = cholesky_solution(pair.xt, lifted_cholesky(pair.xx, ridge))
        held_out += float(residual_sum(fold, weight, x_mean, t_mean).clamp_min(0))
    _, t_mean, pair = trained(everything)
    errors = {
        DROP: identity if is_added else zero, SHIFT: float(pair.tt.trace()), AFFINE: held_out
    }  # fmt: skip
    if ranks:
        weight = cholesky_solution(pair.xt, lifted_cholesky(pair.xx, ridge))
        values = torch.linalg.eigvalsh(symmetric(weight, pair.xt)).flip(0).clamp_min(0)
        for rank in ranks:
            errors[f"{RANK} {rank}"] = held_out + float(values[rank:].sum())
    about = recentred(whole, whole.x / whole.rows, whole.t / whole.rows)
    total, scalar = float(about.tt.trace()), None
    is_square = whole.x.shape == whole.t.shape
    if is_square and float(about.xx.trace()) > 0:
        # Of the difference first: where y is nearly x the two traces would cancel.
        apart = update_moments(about)
        best = apart.xt.trace() ** 2 / apart.xx.trace()
        scalar = float((apart.tt.trace() - best).clamp_min(0))
    return Fitted(
        folds, site.centres, is_added, ridge, errors, total, scalar, int(whole.rows),
        1 - float(site.cosines) / float(whole.rows) if is_square else None,
    )  # fmt: skip
