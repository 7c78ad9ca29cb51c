"""What each operation of a model does to a value that moves along a line, or over a plane.

Holds: ``LineTensor``, a tensor known at the points of a grid and affine in between.
May import: torch, ``secant.errors``, ``secant.maps.places``.

The model sees a tensor of one input. Behind it stand the values at all points. An affine
operation is applied to every point; one with kinks first tells the grid, which adds its kinks to
the points; any other is refused by name, so that nothing that bends passes unseen.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from secant.errors import InputError
from secant.maps.places import Places

aten = torch.ops.aten
Bound = dict[str, Any]

CONSTANT = {
    aten.zeros_like, aten.ones_like, aten.full_like,
    aten.new_zeros, aten.new_ones, aten.new_full,
}  # fmt: skip
"""Operations that read only the shape and type of what moves.

Empty tensors are not among them: dropout in training mode draws its mask into one.
"""

SUMS = {aten.add, aten.sub, aten.rsub, aten.cat, aten.stack, aten.where}
"""Affine in all their tensors together; a condition never moves, for comparing is refused."""

PRODUCTS = {
    aten.mul: ("self", "other"),
    aten.mm: ("self", "mat2"),
    aten.addmm: ("mat1", "mat2"),
    aten.bmm: ("self", "mat2"),
    aten.baddbmm: ("batch1", "batch2"),
    aten.mv: ("self", "vec"),
    aten.addmv: ("mat", "vec"),
    aten.dot: ("self", "tensor"),
    aten.addcmul: ("tensor1", "tensor2"),
    aten.convolution: ("input", "weight"),
}
"""Affine as long as at most one of these factors moves; their other tensors may."""

IN_THE_FIRST = {
    aten.view, aten._unsafe_view, aten._reshape_alias, aten.expand, aten.permute, aten.transpose,
    aten.t, aten.squeeze, aten.unsqueeze, aten.slice, aten.select, aten.split,
    aten.split_with_sizes, aten.unbind, aten.clone, aten.detach, aten.alias, aten.flip,
    aten.roll, aten.repeat, aten.unfold, aten.im2col, aten.index, aten.index_select, aten.gather,
    aten.diagonal, aten.tril, aten.triu, aten.constant_pad_nd, aten.reflection_pad1d,
    aten.reflection_pad2d, aten.replication_pad1d, aten.replication_pad2d, aten.pixel_shuffle,
    aten.pixel_unshuffle, aten.channel_shuffle, aten.upsample_nearest1d, aten.upsample_nearest2d,
    aten.upsample_linear1d, aten.upsample_bilinear2d, aten.neg, aten.div, aten.sum, aten.mean,
    aten.cumsum, aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d, aten._adaptive_avg_pool2d,
    aten._adaptive_avg_pool3d, aten.masked_fill, aten._to_copy, aten.native_batch_norm,
    aten._native_batch_norm_legit_no_training, aten.cudnn_batch_norm, aten.miopen_batch_norm,
}  # fmt: skip
"""Affine in their first tensor, all else held fixed."""


def _threshold_levels(bound: Bound) -> list[Any]:
    if bound["threshold"] != bound["value"]:
        raise InputError(
            "pieces: the model must be continuous; aten.threshold with threshold "
            f"{bound['threshold']} and value {bound['value']} jumps. Make them equal."
        )
    return [bound["threshold"]]


def _bounds(bound: Bound) -> list[Any]:
    return [bound[name] for name in ("min", "max") if bound.get(name) is not None]


LEVELS: dict[Any, Callable[[Bound], list[Any]]] = {
    aten.relu: lambda bound: [0.0],
    aten.leaky_relu: lambda bound: [0.0],
    aten._prelu_kernel: lambda bound: [0.0],
    aten.abs: lambda bound: [0.0],
    aten.hardtanh: lambda bound: [bound["min_val"], bound["max_val"]],
    aten.hardsigmoid: lambda bound: [-3.0, 3.0],
    aten.softshrink: lambda bound: [-bound["lambd"], bound["lambd"]],
    aten.clamp: _bounds,
    aten.clamp_min: _bounds,
    aten.clamp_max: _bounds,
    aten.threshold: _threshold_levels,
}
"""Elementwise operations, and the levels at which they kink."""

LARGEST = {aten.maximum, aten.minimum, aten.fmax, aten.fmin}
OVER_DIMENSIONS = {aten.amax.default: 1, aten.max.dim: 1, aten.max.default: 1,
                   aten.amin.default: -1, aten.min.dim: -1, aten.min.default: -1}  # fmt: skip
POOLS = {aten.max_pool2d_with_indices: 2, aten.max_pool3d_with_indices: 3}


class LineTensor(Tensor):
    """A tensor of the model, known at the points of a grid and affine in between.

    `points` (points, *shape) are its values at version `version` of `grid`.
    """

    points: Tensor
    grid: Places
    version: int
    relatives: list[weakref.ref[LineTensor]]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, points: Tensor, grid: Places) -> LineTensor:
        """Values at the newest points of `grid`."""
        line: LineTensor = torch.Tensor._make_wrapper_subclass(
            cls, points.shape[1:], strides=points.stride()[1:], dtype=points.dtype,
            device=points.device,
        )  # fmt: skip
        line.points, line.grid, line.version = points, grid, grid.version
        line.relatives = [weakref.ref(line)]
        return line

    def __init__(self, points: Tensor, grid: Places) -> None:
        pass

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"LineTensor(shape={tuple(self.shape)}, points={len(self.points)})"

    def newest(self) -> Tensor:
        """The values at the newest points."""
        if not self.is_floating_point():
            raise InputError(
                "pieces: the model must be continuous; it computes with the index of a largest "
                "entry, which jumps. Use the entry itself, or measure the part before it."
            )
        self.points = self.grid.moved(self.points, self.version)
        self.version = self.grid.version
        return self.points

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Called by torch for every operation on a value that moves."""
        kwargs = kwargs or {}
        with _as_outside():
            if func._schema.is_mutable:
                return _in_place(func, args, kwargs)
            return _outcome(func, args, kwargs)


_OUTSIDE = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()


def _as_outside() -> Any:
    """The dispatch state of ordinary code; torch switches vmap off inside a dispatch."""
    return torch._C._ForceDispatchKeyGuard(*_OUTSIDE)


def _outcome(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What `func` returns for tensors of which some move."""
    packet = func.overloadpacket
    if packet in CONSTANT:
        return func(*tree_map(_stand_in, args), **kwargs)
    bound = _bind(func, args, kwargs)
    moving = [name for name, value in bound.items() if _is_moving(value)]
    if packet in LEVELS and moving == ["self"]:
        return _elementwise(func, args, kwargs, bound)
    if packet in LARGEST:
        gap = _applied(aten.sub.Tensor, (bound["self"], bound["other"]), {})
        _refine(gap, lambda grid, z: grid.levels(_name(func), z, [0.0]))
    elif func in OVER_DIMENSIONS:
        sign = OVER_DIMENSIONS[func]
        table = _dimension_windows(bound["self"], bound.get("dim"))
        _refine(
            bound["self"], lambda grid, z: grid.envelope(_name(func), sign * z, table), len(table)
        )
    elif packet in POOLS:
        table = _pool_windows(func, bound, POOLS[packet])
        _refine(bound["self"], lambda grid, z: grid.envelope(_name(func), z, table), len(table))
    elif not _is_affine(packet, bound, moving):
        # Composite operations reach this place whole inside `torch.inference_mode`.
        parts = func.decompose(*args, **kwargs)
        if parts is NotImplemented:
            raise _refusal(func, bound, moving)
        return parts
    if func is aten.addmm.default and moving == ["mat1"]:
        return _linear_layer(func, bound, kwargs)
    is_bent = packet in LARGEST or func in OVER_DIMENSIONS or packet in POOLS
    return _applied(func, args, kwargs, is_bent=is_bent)


def _linear_layer(func: Any, bound: Bound, kwargs: dict[str, Any]) -> LineTensor:
    """One product for all points and rows: what vmap does, without its cost, for the usual case."""
    line = bound["mat1"]
    points = func(bound["self"], line.newest().flatten(0, 1), bound["mat2"], **kwargs)
    line.grid.admit(points.numel() // len(line.points))
    return LineTensor(points.unflatten(0, line.points.shape[:2]), line.grid)


def _is_affine(packet: Any, bound: Bound, moving: list[str]) -> bool:
    """Whether the operation is affine in all tensors that move, taken together."""
    if bound.get("training") or bound.get("rounding_mode"):
        return False
    if bound.get("dtype") not in (None, torch.float64):
        return False
    if packet in SUMS:
        return True
    if packet in PRODUCTS:
        return sum(name in PRODUCTS[packet] for name in moving) <= 1
    return packet in IN_THE_FIRST and moving == [next(iter(bound))]


def _applied(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, is_bent: bool = False
) -> Any:
    """`func` at every point, by torch.vmap over the points; `is_bent` if it has kinks."""
    flat, form = tree_flatten((args, kwargs))
    places = [i for i, value in enumerate(flat) if isinstance(value, LineTensor)]
    lines = [flat[i] for i in places]
    grid = lines[0].grid

    def at_points(*values: Tensor) -> Any:
        for place, value in zip(places, values, strict=True):
            flat[place] = value
        args, kwargs = tree_unflatten(flat, form)
        return func(*args, **kwargs)

    # The index of a largest entry may change its shape, but be used in no other way.
    is_shape_of_index = func.is_view and not lines[0].is_floating_point()
    values = [line.points if is_shape_of_index else line.newest() for line in lines]
    batched = torch.vmap(at_points, chunk_size=grid.chunk)
    points = grid.bent(batched, values) if is_bent else batched(*values)
    out = tree_map(lambda p: LineTensor(p, grid) if isinstance(p, Tensor) else p, points)
    for line in tree_flatten(out)[0]:
        if isinstance(line, LineTensor):
            grid.admit(line.numel())
            if func.is_view:
                line.relatives = lines[0].relatives
                line.relatives.append(weakref.ref(line))
    return out


def _elementwise(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], bound: Bound) -> Any:
    levels = LEVELS[func.overloadpacket](bound)
    is_upper = func.overloadpacket is aten.clamp and bound["min"] is None
    name = "clamp_max" if is_upper else _name(func)
    _refine(bound["self"], lambda grid, z: grid.levels(name, z, levels))
    line = bound["self"]
    # vmap would cost more than the operation, and constants broadcast from behind without it.
    if func is aten.relu.default and line.version != line.grid.version:
        # The usual case at half the memory: on its way to the new points the input is a copy.
        return LineTensor(line.grid.moved(line.points, line.version).relu_(), line.grid)
    points = line.grid.bent(lambda z: func(z, *args[1:], **kwargs), [line.newest()])
    return LineTensor(points, line.grid)


def _in_place(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The operation of that name that returns its result, written back to its first tensor."""
    target, bound = args[0], _bind(func, args, kwargs)
    if bound.get("training"):
        raise _refusal(func, bound, [])
    name = func._schema.name.removeprefix("aten::")
    packet = getattr(aten, name[:-1], None) if name.endswith("_") else None
    twin = getattr(packet, func._overloadname, None)
    if twin is None or not isinstance(target, LineTensor):
        raise InputError(
            f"pieces: the model must not write a moving value into a constant tensor; {func} does. "
            "Build the result with torch.cat or torch.stack instead; of torch's recurrent modules, "
            "which do so, `secant report` reads what is linear in time."
        )
    others = [other() for other in target.relatives]
    if any(other is not None and other is not target for other in others):
        raise InputError(
            f"pieces: a tensor that shares memory with another must not be changed in place; "
            f"{func} does. Use the operation that returns a new tensor."
        )
    out = _outcome(twin, args, kwargs)
    target.points, target.version = out.points, out.version
    return target


def _refine(
    line: LineTensor, tell: Callable[[Places, Tensor], None], units: int | None = None
) -> None:
    """Tell the grid of the kinks in `line`, a layer of so many units."""
    points = line.newest()
    low, high = points.aminmax()
    line.grid.see(line.numel() if units is None else units, max(-low.item(), high.item()))
    tell(line.grid, points)


def _name(func: Any) -> str:
    """What a reader calls the operation: relu, max_pool2d."""
    name = str(func._schema.name).removeprefix("aten::").removeprefix("_")
    return name.removesuffix("_kernel").removesuffix("_with_indices")


def _dimension_windows(line: LineTensor, dim: int | list[int] | None) -> Tensor:
    """(count, width) positions over which a maximum over dimensions runs."""
    dims = [dim] if isinstance(dim, int) else list(dim or range(line.ndim))
    places = torch.arange(line.numel(), device=line.device).view(line.shape)
    width = math.prod(line.shape[dim] for dim in dims)
    return places.movedim(dims, list(range(-len(dims), 0))).reshape(-1, width)


def _pool_windows(func: Any, bound: Bound, rank: int) -> Tensor:
    """(count, width) positions over which max pooling of `rank` dimensions runs, -1 padding."""
    line = bound["self"]
    options = [bound[name] for name in ("stride", "padding", "dilation", "ceil_mode")]
    plain = torch.empty(line.shape, device="meta", dtype=line.dtype)
    out_shape = func(plain, bound["kernel_size"], *options)[0].shape
    kernel, padding, dilation = (
        [*bound[name]] * (rank // len(bound[name]))
        for name in ("kernel_size", "padding", "dilation")
    )
    stride = [*bound["stride"]] * (rank // max(len(bound["stride"]), 1)) or kernel
    places = torch.zeros(1, 1, dtype=torch.int64, device=line.device)
    is_inside = torch.ones_like(places, dtype=torch.bool)
    for axis in range(rank):
        size, count = line.shape[axis - rank], out_shape[axis - rank]
        starts = torch.arange(count, device=line.device) * stride[axis] - padding[axis]
        reach = torch.arange(kernel[axis], device=line.device) * dilation[axis]
        place = starts[:, None] + reach
        fits = (place >= 0) & (place < size)
        places = (places[:, None, :, None] * size + place[:, None, :]).flatten(2).flatten(0, 1)
        is_inside = (is_inside[:, None, :, None] & fits[:, None, :]).flatten(2).flatten(0, 1)
    size = math.prod(line.shape[-rank:])
    planes = torch.arange(line.numel() // size, device=line.device) * size
    return torch.where(is_inside, planes[:, None, None] + places, -1).flatten(0, 1)


def _bind(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Bound:
    """Arguments by their names in the operation's schema, defaults filled in."""
    declared = func._schema.arguments
    named = {a.name: a.default_value for a in declared if a.has_default_value()}
    order = [a.name for a in declared]
    bound = dict(zip(order, args, strict=False)) | kwargs
    return {name: bound.get(name, named.get(name)) for name in order}


def _is_moving(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_is_moving(part) for part in value)
    return isinstance(value, LineTensor)


def _stand_in(value: Any) -> Any:
    if isinstance(value, LineTensor):
        return torch.empty(value.shape, dtype=value.dtype, device=value.device)
    return value


def _refusal(func: Any, bound: Bound, moving: list[str]) -> InputError:
    """Why `func` cannot stand in a piecewise affine model, and what to do."""
    packet, why, what = func.overloadpacket, "", "Measure a part of the model without it."
    is_draw = any(part in func._schema.name for part in ("dropout", "empty", "bernoulli", "rand"))
    if is_draw or bound.get("training"):
        why = " in training mode (dropout, batch norm)"
        what = "Call `model.eval()` first; batch norm needs running statistics."
    elif packet in PRODUCTS or packet is aten.div:
        why = f" where {' and '.join(moving)} depend on the input together"
    elif packet is aten._to_copy:
        why = f" when it casts to {bound['dtype']}"
        what = "Leave the cast out, the model is run in float64."
    elif packet in (aten._local_scalar_dense, aten.item):
        why = ", and a branch on a value may jump"
    return InputError(
        f"pieces: the model must be piecewise affine in its input; {func} is not{why}. {what}"
    )
