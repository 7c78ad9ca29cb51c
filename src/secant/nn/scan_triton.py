"""The scan on CUDA devices: tensors as rows for the Triton kernel, and its launches.

Holds: ``absence``, ``is_interpreted``, ``width_of``, ``walked`` and the class ``TritonPasses``.
May import: triton (it comes with torch's CUDA builds), torch, ``secant.nn`` (scan_rows).

Triton's interpreter (TRITON_INTERPRET=1) runs the same kernel on the CPU, to test it.
"""

from __future__ import annotations

from contextlib import nullcontext
from importlib.util import find_spec
from typing import Final, NamedTuple, final

import torch
from torch import Tensor

from secant.nn.scan_rows import as_rows, as_type, flat_state, still_rows, work_dtype

# What a tile of b may take: all that the kernel makes of it keeps to the registers of WARPS * 32
# threads, and STAGES tiles of every input, of which the next come while one is at work, to the
# 96 KiB of shared memory that devices have from compute capability 8.0 on.
TILE_BYTES: Final = 8 << 10
STAGES: Final = 3
WARPS: Final = 4
# Lanes of a tile: in single precision a row of it is one line of 128 bytes.
WIDTH: Final = 32
# A tile of few lanes is not taken longer than this.
LONGEST: Final = 1024
# Segments shorter than so many tiles are not worth reading their inputs twice.
LEAST_TILES: Final = 4


def is_interpreted() -> bool:
    """Whether Triton runs its kernels in Python, on the CPU."""
    from triton import JITFunction

    from secant.nn.scan_triton_kernel import walk

    return not isinstance(walk, JITFunction)


def absence() -> str | None:
    """Why there is no Triton kernel, or None where there is one."""
    if find_spec("triton") is None:
        return "Triton is not installed. It comes with torch's builds for CUDA."
    try:
        found = is_interpreted()
    except ImportError as error:
        return f"Triton cannot be imported: {error}. Install the one that torch asks for."
    if found or torch.cuda.is_available():
        return None
    return "Triton's kernel runs on CUDA devices; there is none here."


def _processors(device: torch.device) -> int:
    """Programs that a device runs side by side at the least."""
    if device.type != "cuda":
        return 1
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


def _power_of_two(number: int) -> int:
    """The smallest one that is not below."""
    return 1 << max(0, number - 1).bit_length()


def width_of(lanes: int) -> int:
    """Lanes of a tile."""
    return min(WIDTH, _power_of_two(lanes))


class Tile(NamedTuple):
    """What a program takes at once, and the steps of its segment."""

    times: int
    lanes: int
    steps: int


def tile_of(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tile:
    """Tiles for (batch, length, lanes) that is carried in `dtype`.

    One segment where batch and lanes alone keep the device busy; else time is cut, which reads
    the inputs twice.
    """
    batch, length, lanes = shape
    width = width_of(lanes)
    longest = min(LONGEST, TILE_BYTES // (dtype.itemsize * width))
    times = max(16, min(longest, _power_of_two(length)))
    programs, processors = batch * -(-lanes // width), _processors(device)
    segments = 1
    if 4 * programs < 3 * processors:
        segments = max(1, min(2 * processors // programs, length // (LEAST_TILES * times)))
    tiles = -(-length // times)
    return Tile(times, width, -(-tiles // segments) * times)


class Owed(NamedTuple):
    """What the coefficients are owed, which the pass back makes beside the gradient of b.

    ``kind`` 1: term by term; 2: summed over each segment; 0: not asked for.
    """

    states: Tensor
    initial: Tensor | None
    terms: Tensor
    kind: int


class Ends(NamedTuple):
    """(batch, segments, lanes): the last state of each, and the product of its coefficients."""

    states: Tensor
    products: Tensor | None


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


def _launch(
    a: Tensor,
    b: Tensor,
    first: Tensor | None,
    out: Tensor | None,
    tile: Tile,
    *,
    is_reverse: bool,
    owed: Owed | None = None,
    ends: Ends | None = None,
) -> None:
    """One launch of `walk`; without `out` for the ends alone."""
    from triton import language as tl

    from secant.nn.scan_triton_kernel import walk

    batch, length, lanes = b.shape
    segments = -(-length // tile.steps)
    parts = 2 if b.is_complex() else 1
    kind = 0 if owed is None or out is None else owed.kind
    before, edge, terms = owed[:3] if owed is not None and kind else (None, None, None)
    states, products = (None, None) if ends is None else ends
    # What a pass leaves alone must be a tensor all the same.
    given = (
        b if one is None else one for one in (first, out, states, products, before, edge, terms)
    )
    # Triton launches on the current device.
    with torch.cuda.device(b.device) if b.is_cuda else nullcontext():
        walk[(batch * segments * -(-lanes // tile.lanes),)](
            *(_real(one) for one in (a, b, *given)),
            *(length, lanes, tile.steps, segments),
            *(parts * stride for one in (a, b) for stride in one.stride()),
            IS_REVERSE=is_reverse,
            IS_BACK=owed is not None,
            IS_STILL=a.stride(1) == 0,
            IS_TOTAL=out is None,
            HAS_FIRST=first is not None,
            HAS_ENDS=ends is not None,
            HAS_EDGE=edge is not None,
            TERMS=kind,
            STATE=tl.float64 if work_dtype(b.dtype).to_real() == torch.float64 else tl.float32,
            PARTS=parts,
            TIMES=tile.times,
            LANES=tile.lanes,
            STAGES=STAGES,
            num_warps=WARPS,
            enable_fp_fusion=True,
        )


def walked(
    a: Tensor,
    b: Tensor,
    initial: Tensor | None,
    out: Tensor,
    tile: Tile,
    *,
    is_reverse: bool,
    owed: Owed | None = None,
) -> Tensor:
    """The states of (batch, length, lanes) into `out`; with `owed` those of the pass back.

    Returns the ends, (batch, segments, lanes), in the type that is carried: the last state of each
    segment, and nan if one of it is not finite. Of several segments first the ends from zero; then
    from segment to segment, a short scan of its own; then each from the state that it starts in.
    """
    batch, length, lanes = b.shape
    segments = -(-length // tile.steps)
    first = None if initial is None else initial.view(batch, 1, lanes)

    def empty() -> Tensor:
        dtype = work_dtype(a.dtype, b.dtype)
        return torch.empty(batch, segments, lanes, dtype=dtype, device=b.device)

    if segments > 1:
        ends, products, states = empty(), empty(), empty()
        _launch(
            *(a, b, None, None, tile),
            is_reverse=is_reverse,
            owed=owed,
            ends=Ends(ends, products),
        )
        _launch(products, ends, first, states, tile._replace(steps=segments), is_reverse=False)
        if first is None:
            first = torch.zeros_like(states[:, :1])
        first = torch.cat([first, states[:, :-1]], dim=1)
    ends = empty()
    _launch(a, b, first, out, tile, is_reverse=is_reverse, owed=owed, ends=Ends(ends, None))
    return ends


def _rows(x: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """(batch, length, lanes), complex if the state's type is."""
    x = x.to(dtype) if dtype.is_complex and not x.is_complex() else x
    return still_rows(x, shape, x.dtype) if x.shape[1] == 1 else as_rows(x, shape)


def _flat(initial: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if initial is None else flat_state(initial, dtype)


def _terms(
    a: Tensor, shape: torch.Size, dtype: torch.dtype, tile: Tile, *, is_summed: bool
) -> Tensor:
    """Where the pass back puts what coefficients are owed; in their type, if each has its own."""
    if is_summed:
        shape = torch.Size((shape[0], -(-shape[1] // tile.steps), shape[2]))
        return torch.empty(shape, dtype=torch.promote_types(dtype, torch.float64), device=a.device)
    is_own = a.numel() == shape.numel() and a.is_complex() == dtype.is_complex
    return torch.empty(shape, dtype=a.dtype if is_own else dtype, device=a.device)


@final
class TritonPasses:
    """Both passes by the Triton kernel; see ``secant.nn.scan_rows.Passes`` for the contract."""

    def forward(
        self, a: Tensor, b: Tensor, initial: Tensor | None, *, is_reverse: bool
    ) -> Tensor | None:
        """The states of h_t = a_t h_{t-1} + b_t; None if one is not finite."""
        shape, dtype = b.shape, work_dtype(a.dtype, b.dtype)
        out = torch.empty(shape, dtype=torch.promote_types(a.dtype, b.dtype), device=b.device)
        rows_a, rows_b = (_rows(one, shape, dtype) for one in (a, b))
        tile = tile_of(rows_b.shape, dtype, b.device)
        first, flat = _flat(initial, dtype), out.view(rows_b.shape)
        ends = walked(rows_a, rows_b, first, flat, tile, is_reverse=is_reverse)
        # In half precision a state may leave the range that it is carried in elsewhere.
        told = ends if out.dtype == dtype else out
        return out if bool(torch.isfinite(told).all()) else None

    def backward(
        self,
        a: Tensor,
        b_dtype: torch.dtype,
        upstream: Tensor,
        states: Tensor,
        initial: Tensor | None,
        *,
        is_reverse: bool,
        needs_a: bool,
    ) -> tuple[Tensor | None, Tensor, Tensor] | None:
        """Gradients of a, b and the initial state; None if one of b's is not finite."""
        shape, dtype = states.shape, work_dtype(a.dtype, b_dtype)
        rows_a, rows_up = (_rows(one, shape, dtype) for one in (a, upstream))
        tile = tile_of(rows_up.shape, dtype, a.device)
        made = dtype if dtype.is_complex else b_dtype
        grad_b = torch.empty(rows_up.shape, dtype=made, device=a.device)
        terms, kind = grad_b, 0
        if needs_a:
            kind = 2 if a.shape[1] == 1 else 1
            terms = _terms(a, rows_up.shape, dtype, tile, is_summed=kind == 2)
        ends = walked(
            *(rows_a, rows_up, None, grad_b, tile),
            is_reverse=not is_reverse,
            owed=Owed(states.contiguous(), _flat(initial, dtype), terms, kind),
        )
        if not bool(torch.isfinite(ends).all()):
            return None
        first = a[:, -1 if is_reverse else 0].conj() * ends[:, -1].view_as(states[:, 0])
        grad_a = None
        if needs_a:
            terms = terms.sum(1, keepdim=True) if kind == 2 else terms
            full = terms.view(shape[0], -1, *shape[2:])
            grad_a = as_type(full.sum_to_size(a.shape), a.dtype)
        return grad_a, as_type(grad_b.view(shape), b_dtype), first
