"""A tangent model fitted in closed form: ridge regression in the weights' step.

Holds: ``fit_tangent`` and its result ``TangentFit``; ``left_out``, exact leave-one-example-out;
``Krylov``, conjugate gradients for all ridges at once.
May import: torch, jaxtyping, ``secant.engine``, ``secant.errors``, ``secant.maps``,
``secant.uses`` (kernel, kernel_operator, linearize).

The step is Δw = J'α with (K + λ) α = y - f(x; w₀): as many unknowns as rows times outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.nn.functional import one_hot

from secant.engine.plan import group_of
from secant.errors import InputError
from secant.maps.weights import Batch, rows_of
from secant.uses.kernel import kernel, room
from secant.uses.kernel_operator import Jacobian
from secant.uses.linearize import Linearised

Progress = Callable[[str, int, int], None]
Matrix = Float64[Tensor, "n c"]

RIDGES = tuple(10.0 ** (half / 2) for half in range(-12, 9))
"""Strengths in units of the kernel's mean diagonal: half decades from 1e-6 to 1e4.

The largest eigenvalue is up to rows × outputs times the mean, so the last takes nearly all away.
"""

DENSE = 2048
"""Rows times outputs up to which the kernel is formed: 34 MB and seconds for its eigenbasis."""

FOLDS = 5
MEASURED = 64
"""Rows on which the mean diagonal is taken where the kernel is not formed, evenly spread."""

TOLERANCE = 1e-6
"""Residual, relative to the targets, at which an iterative solution counts as one."""


@dataclass(frozen=True)
class TangentFit:
    """How a tangent model was fitted.

    `ridge` is the chosen strength in units of the kernel's mean diagonal, `strength` what was
    added to its diagonal. `losses` are the mean squared errors (summed over outputs) of rows left
    out, by ridge; on `how` they were found: each row alone, or in folds. `iterations` are those
    of the last solve, 0 for the dense one.
    """

    ridge: float
    strength: float
    losses: dict[float, float]
    how: str
    iterations: int


def fit_tangent(
    linearised: Linearised,
    data: Batch,
    labels: Tensor,
    *,
    ridges: Sequence[float] = RIDGES,
    dense_limit: int = DENSE,
    iterations: int = 300,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress = lambda label, done, total: None,
) -> TangentFit:
    r"""Set Δw to the ridge regression of the labels on the tangent features.

    .. math:: \min_{\Delta w} \sum_n \| f(x_n; w_0) + J_n \Delta w - y_n \|^2
        + \lambda \|\Delta w\|^2

    Up to `dense_limit` rows times outputs the kernel is formed, and λ is the one that predicts
    best the rows left out, each alone with all its outputs, exactly. From there on conjugate
    gradients solve for all λ together with products alone; λ is chosen on held-out folds of rows
    (rows of one content share a fold), among those that have converged.

    Args:
        data: as the model is called; the first dimension of every tensor is the row.
        labels: whole numbers, one class a row, fitted as one-hot rows; or floats in the shape of
            the model's outputs.
        ridges: strengths to choose among, positive, in units of the kernel's mean diagonal.
        iterations: the most that conjugate gradients may take.

    Returns: what was chosen, and the losses it was chosen by.

    Cost: dense, the kernel's and about (n·c)³; else a product (a backward, three forwards of all
    rows) an iteration, for each fold and for the end.

    Raises: `InputError` for labels or ridges that do not fit, and if no ridge has converged.
    """
    names = [name for name, _ in linearised.delta.named_parameters()]
    if not ridges or min(ridges) <= 0:
        raise InputError(f"ridges must be positive; got {list(ridges)}. Give at least one.")
    tangent = Jacobian(linearised.model, data, parameters=names, batch_size=batch_size)
    start = tangent.values()
    residual = targets(labels, start) - start
    if not bool(torch.isfinite(residual).all()):
        raise InputError("labels and the model's outputs must be finite. Take out what is not.")
    if residual.numel() <= dense_limit:
        gram = kernel(
            linearised.model, data, outputs="full", parameters=names, progress=progress,
            memory_bytes=room(start.device),
        )  # fmt: skip
        alpha, found = _dense(gram.double(), residual, ridges)
    else:
        alpha, found = _iterative(tangent, residual, ridges, iterations, seed, progress)
    step = tangent.named(tangent.transposed(alpha))
    with torch.no_grad():
        for name, one in linearised.delta.named_parameters():
            one.copy_(step[name])
    return found


def targets(labels: Tensor, outputs: Matrix) -> Matrix:
    """Labels as rows of targets: one-hot classes, or the values themselves.

    Raises: `InputError` for labels that do not fit the outputs.
    """
    rows, width = outputs.shape
    if labels.is_floating_point():
        if len(labels) == rows and labels.numel() == outputs.numel():
            return labels.reshape(rows, width).to(outputs)
    elif labels.shape == (rows,) and int(labels.min()) >= 0 and int(labels.max()) < width:
        return one_hot(labels.long(), width).to(outputs)
    raise InputError(
        f"labels must be one class below {width} for each of {rows} rows, or floats of as many "
        f"values as the outputs, {(rows, width)}; got {tuple(labels.shape)} of {labels.dtype}. "
        "Give a model with as many outputs as there are classes."
    )


class Eigen(NamedTuple):
    """A kernel's eigenbasis, rows before outputs, negative rounding taken as 0."""

    values: Float64[Tensor, " k"]
    vectors: Float64[Tensor, "k k"]


def left_out(eigen: Eigen, residual: Matrix, strength: float) -> tuple[Matrix, Matrix]:
    """α, and the residuals of each row under the fit to all the others.

    With A = (K + λ)⁻¹ and α = A r, row n's residual by the fit without it is (A_nn)⁻¹ α_n, A_nn
    the block of the row's outputs: no fit is made anew.
    """
    n, c = residual.shape
    inverse = 1 / (eigen.values + strength)
    alpha = eigen.vectors @ (inverse * (eigen.vectors.T @ residual.flatten()))
    by_row = eigen.vectors.view(n, c, -1)
    blocks = (by_row * inverse) @ by_row.mT
    alpha = alpha.view(n, c)
    return alpha, torch.linalg.solve(blocks, alpha[..., None])[..., 0]


def _dense(
    gram: Float64[Tensor, "n n c c"], residual: Matrix, ridges: Sequence[float]
) -> tuple[Matrix, TangentFit]:
    k = residual.numel()
    values, vectors = torch.linalg.eigh(gram.permute(0, 2, 1, 3).reshape(k, k))
    eigen = Eigen(values.clamp_min(0), vectors)
    unit = _unit(float(values.sum()) / k)
    solved = {ridge: left_out(eigen, residual, ridge * unit) for ridge in ridges}
    losses = {ridge: float(errors.square().sum(1).mean()) for ridge, (_, errors) in solved.items()}
    best = min(losses, key=losses.__getitem__)
    return solved[best][0], TangentFit(best, best * unit, losses, "leave one out", 0)


def _unit(mean: float) -> float:
    if not mean > 0:
        raise InputError(
            "the outputs do not depend on the chosen weights: the kernel is 0. Choose others."
        )
    return mean


class Krylov:
    """(K + λ) α = r on the rows `used`, for any λ from one run of products.

    Lanczos from r, kept orthogonal in full: what conjugate gradients give after as many steps,
    for every λ at once. What products say of the other rows is kept as well, so that their
    predictions cost nothing. Memory: two matrices of rows × outputs a step.
    """

    def __init__(
        self, product: Callable[[Matrix], Matrix], residual: Matrix, used: Tensor, strength: float,
        iterations: int, step: Callable[[int], None],
    ) -> None:  # fmt: skip
        """Run until the solution for `strength`, the least, has converged."""
        self.used = used
        start = torch.where(used[:, None], residual, 0.0)
        self.length = float(start.norm())
        self.basis: list[Matrix] = []
        self.images: list[Matrix] = []
        self.diagonal: list[float] = []
        self.beside: list[float] = []
        new, size = start, self.length
        # With no residual there is nothing to solve; a direction of rounding alone ends it too.
        while size > 1e-13 * self.length and len(self.basis) < iterations:
            vector = new / size
            image = product(vector)
            self.basis.append(vector)
            self.images.append(image)
            new = torch.where(used[:, None], image, 0.0)
            self.diagonal.append(float((vector * new).sum()))
            known = torch.stack(self.basis).flatten(1)
            for _ in range(2):
                new = new - (known.T @ (known @ new.flatten())).view_as(new)
            size = float(new.norm())
            self.beside.append(size)
            step(len(self.basis))
            if self.gap(strength) <= TOLERANCE:
                break

    def _weights(self, strength: float) -> Float64[Tensor, " j"]:
        small = torch.diag(torch.tensor(self.diagonal, dtype=torch.float64) + strength)
        off = torch.tensor(self.beside[:-1], dtype=torch.float64)
        small = small + torch.diag(off, 1) + torch.diag(off, -1)
        right = torch.zeros(len(small), dtype=torch.float64)
        right[0] = self.length
        found: Tensor = torch.linalg.solve(small, right)
        return found

    def gap(self, strength: float) -> float:
        """‖(K + λ) α - r‖ / ‖r‖, from the small system."""
        if not self.basis:
            return 0.0
        return abs(self.beside[-1] * float(self._weights(strength)[-1])) / self.length

    def solution(self, strength: float) -> tuple[Matrix, Matrix]:
        """α, 0 on rows not used, and K α on all rows."""
        weights = self._weights(strength).to(self.basis[0].device)
        found = [torch.tensordot(weights, torch.stack(of), 1) for of in (self.basis, self.images)]
        return found[0], found[1]


def _iterative(
    tangent: Jacobian, residual: Matrix, ridges: Sequence[float], iterations: int, seed: int,
    progress: Progress,
) -> tuple[Matrix, TangentFit]:  # fmt: skip
    def product(u: Matrix) -> Matrix:
        return tangent.product(tangent.transposed(u))

    # Every row's diagonal would cost as much as the fit; a unit need not be exact, only the same.
    every = max(1, tangent.rows // MEASURED)
    few = _every(tangent.batch, every)
    diagonal = kernel(tangent.model, few, parameters=tangent.names).diagonal()
    unit = _unit(float(diagonal.double().mean()) / tangent.width)
    fold = folds(tangent.batch, seed).to(residual.device)
    places = sorted(set(fold.tolist()))
    if len(places) < 2:
        raise InputError("fit_tangent: the rows are all one, and none can be held out. Give more.")
    held: dict[float, float] = dict.fromkeys(ridges, 0.0)
    for k in places:

        def step(done: int, k: int = k) -> None:
            progress(f"held-out fold {k + 1}", done, iterations)

        run = Krylov(product, residual, fold != k, min(ridges) * unit, iterations, step)
        for ridge in list(held):
            if run.gap(ridge * unit) > TOLERANCE:
                del held[ridge]
                continue
            missed = residual
            if run.basis:
                missed = missed - run.solution(ridge * unit)[1]
            held[ridge] += float(missed[fold == k].square().sum())
    if not held:
        raise InputError(
            f"fit_tangent: after {iterations} iterations no ridge has converged; the largest is "
            f"{max(ridges):g}. Give larger `ridges` or more `iterations`."
        )
    losses = {ridge: total / len(residual) for ridge, total in held.items()}
    best = min(losses, key=losses.__getitem__)
    last = Krylov(
        product, residual, torch.ones_like(fold, dtype=torch.bool), best * unit, iterations,
        lambda done: progress("all rows", done, iterations),
    )  # fmt: skip
    if last.gap(best * unit) > TOLERANCE:
        raise InputError(
            f"fit_tangent: ridge {best:g} did not converge on all rows within {iterations} "
            "iterations. Give more `iterations`."
        )
    alpha = last.solution(best * unit)[0] if last.basis else torch.zeros_like(residual)
    how = f"{FOLDS} held-out folds"
    return alpha, TangentFit(best, best * unit, losses, how, len(last.basis))


def _every(data: Batch, step: int) -> Batch:
    """Each `step`-th row."""
    if isinstance(data, Tensor):
        return data[::step]
    if isinstance(data, Mapping):
        return {key: one[::step] for key, one in data.items()}
    return [one[::step] for one in data]


def folds(data: Batch, seed: int) -> Tensor:
    """The fold of each row, by its content."""
    if isinstance(data, Tensor):
        tensors = [data]
    else:
        tensors = list(data.values() if isinstance(data, Mapping) else data)
    rows = [
        b"".join(one[row].detach().cpu().double().numpy().tobytes() for one in tensors)
        for row in range(rows_of(data))
    ]
    return torch.tensor([group_of(content, seed, FOLDS) for content in rows])
