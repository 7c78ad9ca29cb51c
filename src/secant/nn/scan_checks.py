"""What a scan is given, checked once; and what came out of it, where that is not finite.

Holds: ``checked``, ``report_overflow``.
May import: torch, ``secant.errors``.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from secant.errors import InputError

# Types that may stand together: half and single precision, or double; real and complex.
SINGLE: Final = (torch.float16, torch.bfloat16, torch.float32, torch.complex64)
DOUBLE: Final = (torch.float64, torch.complex128)
# Numbers looked at in one go, so that the search for what went wrong takes little memory.
LOOKED_AT: Final = 1 << 22


def _check_types(a: Tensor, b: Tensor, initial: Tensor | None) -> None:
    named = [("a", a), ("b", b), *([] if initial is None else [("initial", initial)])]
    said = ", ".join(f"`{name}` {str(one.dtype).removeprefix('torch.')}" for name, one in named)
    for name, one in named:
        if one.dtype not in SINGLE + DOUBLE:
            raise InputError(
                f"scan: `{name}` must hold floating-point or complex numbers; got {one.dtype}. "
                "Convert it, for instance with .float()."
            )
    if len({one.dtype in DOUBLE for _, one in named}) > 1:
        raise InputError(
            f"scan: numbers must be all of single precision (or half) or all of double; got {said}."
            " Convert one, for instance with .double()."
        )
    if len({one.device for _, one in named}) > 1:
        devices = ", ".join(f"`{name}` on {one.device}" for name, one in named)
        raise InputError(f"scan: all tensors must be on one device; got {devices}. Move them.")
    if initial is not None and initial.is_complex() and not (a.is_complex() or b.is_complex()):
        raise InputError(
            f"scan: a complex `initial` needs a complex `a` or `b`; got {said}. "
            "Convert `b` with .to(initial.dtype)."
        )


def _goes_into(small: tuple[int, ...], large: tuple[int, ...]) -> bool:
    if len(small) > len(large):
        return False
    return all(n in (1, m) for n, m in zip(reversed(small), reversed(large), strict=False))


def checked(
    a: Tensor, b: Tensor, initial: Tensor | None, is_matrix: bool
) -> tuple[Tensor, Tensor | None]:
    """a with as many dimensions as b (one more for matrices), and the initial state in full.

    Raises: `InputError` for types, devices or shapes that do not fit each other.
    """
    _check_types(a, b, initial)
    least = 3 if is_matrix else 2
    if b.ndim < least:
        names = "(batch, length, ..., n)" if is_matrix else "(batch, length, ...)"
        raise InputError(
            f"scan: `b` must be {names}; got shape {tuple(b.shape)}. "
            "Add a batch of one with unsqueeze(0)."
        )
    target = (*b.shape, b.shape[-1]) if is_matrix else tuple(b.shape)
    is_square = not is_matrix or tuple(a.shape[-2:]) == target[-2:]
    if not is_square or not _goes_into(tuple(a.shape), target):
        wanted = "(batch, length, ..., n, n)" if is_matrix else "(batch, length, ...)"
        raise InputError(
            f"scan: `a` must broadcast to {wanted} = {target} of `b`; got `a` of shape "
            f"{tuple(a.shape)} and `b` of shape {tuple(b.shape)}. Time is dimension 1 of both; "
            "give coefficients without time as the dimensions after it."
        )
    first = (b.shape[0], *b.shape[2:])
    if initial is not None and not _goes_into(tuple(initial.shape), first):
        raise InputError(
            f"scan: `initial` must broadcast to {first}, which is `b` without its time; got "
            f"`initial` of shape {tuple(initial.shape)} and `b` of shape {tuple(b.shape)}. "
            "Give one state for each sequence of the batch, or one for all."
        )
    a = a.reshape((1,) * (len(target) - a.ndim) + tuple(a.shape))
    return a, None if initial is None else initial.expand(first)


def _is_finite(x: Tensor) -> bool:
    """Whether all numbers are, looked at in pieces."""
    step = max(1, LOOKED_AT * x.shape[1] // max(1, x.numel()))
    starts = range(0, x.shape[1], step)
    return all(bool(torch.isfinite(x[:, one : one + step]).all()) for one in starts)


def is_finite_at_the_end(states: Tensor, is_reverse: bool) -> bool:
    """Whether the last state is finite; in half precision, whether all are.

    What is not finite stays so, for 0 times infinity is nan: the last state tells of all before
    it. States in half precision are rounded from float32, where a later one may be small again.
    """
    if states.dtype in (torch.float16, torch.bfloat16):
        return _is_finite(states)
    return bool(torch.isfinite(states[:, 0 if is_reverse else -1]).all())


def are_finite(*given: Tensor | None) -> bool:
    """Whether what a scan was given is finite throughout."""
    return all(one is None or _is_finite(one.unsqueeze(0).flatten(0, 1)[None]) for one in given)


def report_overflow(a: Tensor, states: Tensor, is_reverse: bool) -> None:
    """Raise `InputError` that names the first step at which finite inputs left the type's range."""
    length = states.shape[1]
    step = max(1, LOOKED_AT * length // states.numel())
    starts = range(0, length, step)
    for start in reversed(starts) if is_reverse else starts:
        bad = ~torch.isfinite(states[:, start : start + step]).flatten(2).all(2)
        times = bad.any(0).nonzero()
        if len(times) == 0:
            continue
        time = start + int(times[-1 if is_reverse else 0])
        entry = int(bad[:, time - start].nonzero()[0])
        taken = length - time if is_reverse else time + 1
        most = float(a.abs().max())
        raise InputError(
            f"scan: the state must stay in the range of {str(states.dtype).removeprefix('torch.')};"
            f" finite inputs left it at time {time} (step {taken} of {length}, batch entry {entry})"
            f", where entries of `a` reach {most:.6g} in absolute value. "
            "Keep the transitions at or below 1, or scan in float64 or in shorter pieces."
        )
    raise AssertionError("report_overflow: all states are finite")
