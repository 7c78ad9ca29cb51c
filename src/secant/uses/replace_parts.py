"""What takes the place of a block: an affine map that is called, and answers, as the block was.

Holds: ``Map``, what is put in place; ``Place``, where and how it is called; ``Affine``, ``Held``,
``StandIn``, the modules; ``label_of``, ``place_of``, ``stand_in``, ``parent_of``, ``empty_map``;
``standing``, a context; ``installed``; ``within``.
May import: torch, ``secant.errors``, ``secant.maps``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secant.maps.calls import first_tensor, module_at

DROP, SHIFT, RANK, AFFINE = "drop", "shift", "rank", "affine"
KINDS = (DROP, SHIFT, RANK, AFFINE)
"""The block gone; gone but for a constant; a map of low rank; the whole affine map."""


@dataclass(frozen=True, eq=False)
class Map:
    """y = [x +] x·factors + shift, over the last dimension, in float64.

    `is_added` says whether x itself is added: the block then holds a residual path, and dropping
    it is the identity; else dropping it gives zeros. `factors` are none, one (d, m), or two of low
    rank, (d, r) and (r, m).
    """

    kind: str
    is_added: bool
    factors: tuple[Tensor, ...] = ()
    shift: Tensor | None = None
    width: int = 0

    @property
    def rank(self) -> int | None:
        """Of a map of low rank; None for others."""
        return self.factors[0].shape[1] if self.kind == RANK else None

    @property
    def label(self) -> str:
        """In words."""
        return label_of(self.kind, self.rank, self.is_added)

    def products(self) -> int:
        """Multiplications a row."""
        return sum(one.numel() for one in self.factors)


def label_of(kind: str, rank: int | None, is_added: bool) -> str:
    """A map in words."""
    if kind == DROP:
        return "dropped (identity)" if is_added else "dropped (zero)"
    if kind == RANK:
        return f"rank {rank}"
    return "dropped but for a shift" if kind == SHIFT else "affine"


@dataclass(frozen=True)
class Place:
    """A site that can be stood in for, and how it is called there.

    `block` is the number of the block that it is or lies in. `parts` is the length of the tuple
    that it returns, None for a tensor; `is_image` says that the features are (batch, channels,
    height, width). `layer` is its number in a cache of keys and values. `attributes` are the plain
    ones that the code around it may read.
    """

    site: str
    block: int
    parts: int | None
    is_image: bool
    widths: tuple[int, int]
    layer: int | None
    attributes: dict[str, Any]


class Affine(nn.Module):
    """A `Map` as a module, in one dtype."""

    def __init__(self, form: Map, like: Tensor) -> None:
        super().__init__()
        self.is_added, self.width = form.is_added, form.width
        self.factors = nn.ParameterList(
            nn.Parameter(one.to(like), requires_grad=False) for one in form.factors
        )
        self.shift: nn.Parameter | None = None
        if form.shift is not None:
            self.shift = nn.Parameter(form.shift.to(like), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) to (..., m)."""
        made: Tensor | None = None
        for factor in self.factors:
            made = (x if made is None else made) @ factor
        if self.is_added:
            made = x if made is None else x + made
        if made is None:
            made = x.new_zeros(*x.shape[:-1], self.width)
        return made if self.shift is None else made + self.shift


class Held(nn.Module):
    """Answers with one tensor, whatever it is given: a value that is known from an earlier run."""

    def __init__(self, value: Tensor | None = None) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        """The tensor; of a Held without one, what it was given."""
        return x if self.value is None else self.value


class StandIn(nn.Module):
    """Calls `map` on the leading tensor of a block's arguments and answers as the block did.

    Further parts of a tuple are None. Whatever else the block was called with is not used, but for
    a cache of keys and values: it is told the number of tokens, one zero each, for some caches
    count them by a layer that may be this one.
    """

    def __init__(self, inner: nn.Module, place: Place) -> None:
        super().__init__()
        self.map = inner
        self.parts, self.is_image, self.layer = place.parts, place.is_image, place.layer
        self.site = place.site
        for name, value in place.attributes.items():
            if not hasattr(self, name):
                setattr(self, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Any arguments, for a block may be called with any."""
        x = first_tensor(args if args else kwargs, self.site, "input")
        self._count(x, (*args, *kwargs.values()))
        y = self.map(x.movedim(1, -1)).movedim(-1, 1) if self.is_image else self.map(x)
        return y if self.parts is None else (y, *[None] * (self.parts - 1))

    def _count(self, x: Tensor, given: tuple[Any, ...]) -> None:
        for one in given:
            if self.layer is not None and hasattr(one, "update") and hasattr(one, "get_seq_length"):
                token = x.new_zeros(x.shape[0], 1, x.shape[1], 1)
                one.update(token, token, self.layer)
                return


def place_of(model: nn.Module, site: str, block: int, x: Tensor, output: Any) -> Place:
    """How the site is called, from one call of it."""
    module = module_at(model, site)
    y = first_tensor(output, site, "output")
    layers = [vars(part).get("layer_idx") for part in module.modules()]
    plain = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, str | int | float) and not name.startswith("_") and name != "training"
    }
    is_image = x.ndim == 4
    axis = 1 if is_image else -1
    return Place(
        site, block, None if isinstance(output, Tensor) else len(output), is_image,
        (x.shape[axis], y.shape[axis]), next((one for one in layers if isinstance(one, int)), None),
        plain,
    )  # fmt: skip


def stand_in(form: Map, place: Place, like: Tensor) -> StandIn:
    """The module, in the dtype and on the device of `like`."""
    return StandIn(Affine(form, like), place).eval()


def parent_of(model: nn.Module, site: str) -> tuple[nn.Module, str]:
    """The module that holds the site's, and its name there."""
    name, _, leaf = site.rpartition(".")
    return model.get_submodule(name), leaf


@contextmanager
def standing(model: nn.Module, stands: Mapping[str, nn.Module]) -> Iterator[None]:
    """The model with modules put in place of its sites, within; as it was afterwards."""
    was: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for site, module in stands.items():
            parent, leaf = parent_of(model, site)
            was.append((parent, leaf, getattr(parent, leaf)))
            setattr(parent, leaf, module)
        yield
    finally:
        for parent, leaf, module in was:
            setattr(parent, leaf, module)


def installed(model: nn.Module, stands: Mapping[str, nn.Module]) -> nn.Module:
    """A copy of the model with modules in place of its sites; what they replace is not copied."""
    with standing(model, stands):
        return copy.deepcopy(model)


def within(site: str, other: str) -> bool:
    """Whether the site is the other or lies in it."""
    return site == other or site.startswith(f"{other}.")


def empty_map(kind: str, is_added: bool, widths: tuple[int, int], rank: int | None) -> Map:
    """A map of this form, all zero, whose numbers are to be loaded."""
    d, m = widths
    shapes = {DROP: [], SHIFT: [], AFFINE: [(d, m)]}.get(kind, [(d, rank), (rank, m)])
    factors = tuple(torch.zeros(*shape) for shape in shapes)  # type: ignore[arg-type]
    return Map(kind, is_added, factors, None if kind == DROP else torch.zeros(m), m)
