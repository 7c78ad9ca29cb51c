"""What a tensor that is known at several places asks of them, whatever they are.

Holds: the protocol ``Places``.
May import: torch.

The places are the points of a line (`line_grid.Grid`), the corners of the cells of a plane
(`slice_mesh.Mesh`), or inputs with their affine surroundings (`frame.Frame`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Places(Protocol):
    """Where a tensor is known; a version is added whenever places are."""

    @property
    def version(self) -> int:
        """The newest version's number."""

    @property
    def chunk(self) -> int | None:
        """How many places one batched operation may take at a time; None for all."""

    def moved(self, points: Tensor, version: int) -> Tensor:
        """`points` of an earlier version, (places then, *shape), at the newest places."""

    def admit(self, elements: int) -> None:
        """Stop a tensor of `elements` numbers a place that is too large."""

    def see(self, units: int, magnitude: float) -> None:
        """Note a layer of so many units that can kink, fed with values up to `magnitude`."""

    def levels(self, name: str, points: Tensor, levels: Sequence[float | Tensor]) -> None:
        """Every entry of `points` kinks where it passes one of `levels`."""

    def envelope(self, name: str, points: Tensor, windows: Tensor) -> None:
        """The largest entry of each window, (count, width) positions, -1 padding, kinks."""

    def bent(self, function: Callable[..., Any], values: Sequence[Tensor]) -> Any:
        """An operation with kinks, already told of, on its tensors (places, *shape)."""
