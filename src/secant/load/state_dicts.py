"""State dicts as numpy arrays over the mapped file, for those who read weights without torch.

Holds: ``mapped_arrays``.
May import: numpy, torch, ``secant.errors``, ``secant.load``.
"""

from __future__ import annotations

from pathlib import Path

import torch

from secant.errors import LoadError
from secant.load.factory import read_weights
from secant.load.kinds import KINDS, Array, Kind

BY_TORCH = {kind.torch_name: kind for kind in KINDS.values()}


def mapped_arrays(
    path: Path,
) -> tuple[dict[str, tuple[Kind, tuple[int, ...], Array]], dict[str, str]]:
    """Each tensor's type, shape and bytes; and of names that are one tensor, which the first is.

    A file of torch's old format, which cannot be mapped, is read whole.

    Raises: `LoadError` as `read_weights` does, and for tensors that are no plain arrays.
    """
    arrays: dict[str, tuple[Kind, tuple[int, ...], Array]] = {}
    shared: dict[str, str] = {}
    seen: dict[tuple[object, ...], str] = {}
    for name, tensor in read_weights(path, is_mapped=True).items():
        kind = BY_TORCH.get(str(tensor.dtype).removeprefix("torch."))
        if kind is None or tensor.layout is not torch.strided or tensor.is_quantized:
            raise LoadError(
                f"weights {str(path)!r}: {name!r} is a tensor of type {tensor.dtype}, layout "
                f"{tensor.layout}, which cannot be merged. Save it as a plain tensor of floats."
            )
        place = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and place in seen:
            shared[name] = seen[place]
        seen.setdefault(place, name)
        flat = tensor.detach().contiguous().reshape(-1)
        arrays[name] = (kind, tuple(tensor.shape), flat.view(torch.uint8).numpy())
    return arrays, shared
