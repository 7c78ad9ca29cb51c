"""Forward-mode derivatives, and the setting in which torch has them.

Holds: ``derivatives`` and ``mkldnn_off``, scoped contexts; ``jvp``, value and derivative in one
evaluation; ``prepared_copy``, the copy of a model that is evaluated at points of our own.
May import: torch, ``secant.errors``.

torch's fused attention and its fused transformer layers have no forward-mode derivative, and
they round otherwise than the plain kernels do. Whatever is compared with a derivative is
therefore evaluated inside `derivatives` too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from secant.errors import InputError

DTYPES = (torch.float64, torch.float32)


@contextmanager
def derivatives() -> Iterator[None]:
    """Attention by its math kernel, mkldnn and the fused transformer layers off, no gradients.

    Restored afterwards, also after an error. Every value and every derivative that are to be
    compared belong in one such context. The switches are the process's own, so another thread
    sees them meanwhile.
    """
    fused = torch.backends.mha
    was_fused = fused.get_fastpath_enabled()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), mkldnn_off():
        try:
            fused.set_fastpath_enabled(False)
            yield
        finally:
            fused.set_fastpath_enabled(was_fused)


@contextmanager
def mkldnn_off() -> Iterator[None]:
    """Without mkldnn, whose recurrent layers have no forward derivative; restored afterwards."""
    mkldnn = torch.backends.mkldnn
    was_mkldnn = mkldnn.enabled
    try:
        mkldnn.enabled = False  # type: ignore[assignment]
        yield
    finally:
        mkldnn.enabled = was_mkldnn


def jvp(function: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """F(x) and the derivative J v, by dual numbers. Cost: about two to three evaluations.

    Raises: `InputError` if x and v differ in shape or dtype or are no floats, or if an operation
    inside has no forward-mode derivative. Call it inside `derivatives`.
    """
    if x.shape != v.shape or x.dtype != v.dtype or not x.is_floating_point():
        raise InputError(
            "jvp: `x` and `v` must be floats of one shape and dtype; got "
            f"{tuple(x.shape)} {x.dtype} and {tuple(v.shape)} {v.dtype}. "
            "Convert them, for instance with `v.to(x)`."
        )
    try:
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, v)  # type: ignore[no-untyped-call]
            value, derivative = forward_ad.unpack_dual(function(dual))  # type: ignore[no-untyped-call]
    except (NotImplementedError, InputError) as error:
        # Where a whole model runs, whoever runs it takes this for a refusal of the data.
        lacking = error.__cause__ if isinstance(error, InputError) else error
        if not isinstance(lacking, NotImplementedError):
            raise
        raise InputError(
            "jvp: every operation must have a forward-mode derivative; torch says: "
            f"{str(lacking).splitlines()[0]} Choose a site without that operation."
        ) from error
    return value, torch.zeros_like(value) if derivative is None else derivative


def prepared_copy(model: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A copy in `dtype` and eval mode, without gradients or key-value cache; casts its inputs.

    The map is then that of the weights as stored: a half-precision model is evaluated without
    its rounding, of which a difference over a short step would mostly consist. Some models
    convert to float32 inside (Llama's norms do); what that costs is for the caller to measure.
    The cache goes because a block that is called again would append to it, and `inplace`
    switches because it would write over its point. The model itself is
    not touched. Cost: the model's memory again, in `dtype`.

    Raises: `InputError` if `dtype` is neither float64 nor float32.
    """
    if dtype not in DTYPES:
        raise InputError(
            f"derivatives need float64 or float32; got {dtype}. "
            "Half precision has too few digits for differences; any model can be copied up."
        )
    twin = copy.deepcopy(model).to(dtype).eval().requires_grad_(False)
    for part in twin.modules():
        if getattr(part, "inplace", False) is True:
            part.inplace = False  # type: ignore[assignment]
        config: Any = getattr(part, "config", None)
        if getattr(config, "use_cache", False):
            config.use_cache = False

    def cast(_: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return _cast(args, dtype), _cast(kwargs, dtype)

    twin.register_forward_pre_hook(cast, with_kwargs=True)
    return twin


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _cast(item, dtype) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_cast(item, dtype) for item in value)
    return value
