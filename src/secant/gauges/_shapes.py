"""Names of the shapes that many gauges share, executed in tests by jaxtyping and beartype.

Holds: ``Scalar``.
May import: torch, jaxtyping.

Functions that check shapes by hand, for a caller's sake, take plain tensors instead.
"""

from jaxtyping import Float64
from torch import Tensor

Scalar = Float64[Tensor, ""]
"""One number, in float64: a sum over rows, or a ratio of two."""
