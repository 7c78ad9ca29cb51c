"""Products with the empirical neural tangent kernel, which is never formed.

Holds: ``KernelOperator``; ``Jacobian``, a model's derivative in its weights over many rows.
May import: torch, numpy, scipy, jaxtyping, ``secant.errors``, ``secant.maps``,
``secant.uses.kernel``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn

from secant.errors import InputError
from secant.maps.derivatives import jvp
from secant.maps.duals import fast_duals
from secant.maps.weights import (
    Batch,
    WeightsMap,
    check_fixed,
    chosen_parameters,
    part_of,
    rows_of,
    run,
)
from secant.uses.kernel import read_outputs


class Jacobian:
    """J of n rows and c outputs in the chosen weights, at the model's own, by products alone.

    Cost: a product takes two to three forwards of all rows, a transposed one a forward and a
    backward. Memory: one batch's, and a vector of weights.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Batch,
        outputs: str | Callable[[Any], Tensor] = "full",
        parameters: Sequence[str] | None = None,
        *,
        batch_size: int = 32,
    ) -> None:
        if outputs == "trace":
            raise InputError(
                "outputs: a product sums over weights, so each output has its own row; got "
                "'trace'. Ask for 'full', 'logit i' or a function."
            )
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1; got {batch_size}. Give more.")
        self.model, self.batch, self.batch_size = model, batch, batch_size
        self.names = tuple(chosen_parameters(model, parameters))
        self.rows = rows_of(batch)
        check_fixed(model, part_of(batch, 0, 2))
        pick = read_outputs(outputs)
        self.outputs = lambda output: pick(output).flatten(1)
        self.at = self._map(part_of(batch, 0, 1)).at()
        self.width = self._map(part_of(batch, 0, 1)).value(self.at).shape[1]

    def _map(self, batch: Batch) -> WeightsMap:
        return WeightsMap(self.model, lambda: run(self.model, batch), self.names, self.outputs)

    def _maps(self) -> Iterator[tuple[slice, WeightsMap]]:
        for start in range(0, self.rows, self.batch_size):
            place = slice(start, start + self.batch_size)
            yield place, self._map(part_of(self.batch, start, place.stop))

    def named(self, v: Float[Tensor, " p"]) -> dict[str, Tensor]:
        """The pieces of a vector of weights, by name, in the parameters' shapes."""
        return self._map(self.batch).named(v)

    def values(self) -> Float64[Tensor, "n c"]:
        """The model's outputs."""
        with torch.no_grad(), fast_duals():
            return torch.cat([one.value(self.at).double() for _, one in self._maps()])

    def product(self, v: Float[Tensor, " p"]) -> Float64[Tensor, "n c"]:
        """J v."""
        v = v.to(self.at)
        with torch.no_grad(), fast_duals():
            return torch.cat([jvp(one.value, self.at, v)[1].double() for _, one in self._maps()])

    def transposed(self, u: Float[Tensor, "n c"]) -> Float64[Tensor, " p"]:
        """J'u."""
        if u.shape != (self.rows, self.width):
            raise InputError(
                f"expected one weight for each row and output, {(self.rows, self.width)}; "
                f"got {tuple(u.shape)}. Reshape it."
            )
        found = torch.zeros_like(self.at, dtype=torch.float64)
        with fast_duals():
            for place, one in self._maps():
                if bool(u[place].any()):
                    found += one.vjp(self.at, u[place].to(self.at))[1]
        return found


class KernelOperator(LinearOperator):
    r"""K v = J₁ (J₂' v) over batches, as a scipy operator and on tensors.

    K is the matrix of `secant.kernel(..., "full")` with rows before outputs, (n·c, m·c); `outputs`
    of "logit i" or a function takes those alone. scipy's side is float64 vectors of n·c entries;
    `product` takes and gives tensors (m, c) and (n, c).

    Args: as `secant.kernel`; `batch_size` rows run at a time.

    Cost: a product takes a forward and a backward of x2 and two to three forwards of x1.

    Raises: `InputError` for batches, parameters or outputs that do not fit, and for a model
    whose output changes from call to call or normalises by its batch.
    """

    def __init__(
        self,
        model: nn.Module,
        x1: Batch,
        x2: Batch | None = None,
        outputs: str | Callable[[Any], Tensor] = "full",
        parameters: Sequence[str] | None = None,
        *,
        batch_size: int = 32,
    ) -> None:
        self.left = Jacobian(model, x1, outputs, parameters, batch_size=batch_size)
        self.right = self.left
        if x2 is not None:
            self.right = Jacobian(model, x2, outputs, parameters, batch_size=batch_size)
        sizes = [one.rows * one.width for one in (self.left, self.right)]
        super().__init__(dtype=np.dtype(np.float64), shape=tuple(sizes))

    def product(self, v: Float[Tensor, "m c"]) -> Float64[Tensor, "n c"]:
        """K v. Raises: `InputError` for another shape."""
        return self.left.product(self.right.transposed(v))

    def _matvec(self, v: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return _on_arrays(self.left, self.right, v)

    def _rmatvec(self, v: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return _on_arrays(self.right, self.left, v)


def _on_arrays(left: Jacobian, right: Jacobian, v: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    tensor = torch.from_numpy(np.ascontiguousarray(v, dtype=np.float64)).to(right.at.device)
    found = left.product(right.transposed(tensor.view(right.rows, right.width)))
    return found.flatten().cpu().numpy()
