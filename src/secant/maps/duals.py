"""Dual numbers through the layers that cost most, with fewer passes than torch's own rules.

Holds: ``fast_duals``, a scoped context.
May import: torch, ``secant.maps.derivatives``.

torch's formulas write a tangent as a sum of several tensors, and take norms and attention apart.
Here a product adds into its tangent, and the derivatives of norms and of softmax in their input,
which are symmetric, come from the fused kernels of reverse mode. Everything else keeps torch's
own formula. All rules are ordinary operations, so that reverse mode goes over them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from secant.maps.derivatives import mkldnn_off

Dual = tuple[Tensor, Tensor | None]
"""A value and its tangent; None is zero."""

RECURRENT = {torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu}
"""torch has forward derivatives of these without mkldnn alone."""


def split(value: Any) -> Any:
    """A tensor's value and tangent; None twice for an operand that is not there."""
    if not isinstance(value, Tensor):
        return value, None
    found = forward_ad.unpack_dual(value)  # type: ignore[no-untyped-call]
    return found.primal, found.tangent


def joined(value: Tensor, tangent: Tensor | None) -> Tensor:
    """The dual number of both."""
    if tangent is None:
        return value
    return forward_ad.make_dual(value, tangent)  # type: ignore[no-any-return, no-untyped-call]


def _sum(*terms: Tensor | None) -> Tensor | None:
    """The sum of those that are there; the first, which is the rule's own, is added into."""
    present = [term for term in terms if term is not None]
    if not present:
        return None
    total = present[0]
    for term in present[1:]:
        total += term
    return total


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """W x + b: dW x + db and W dx."""
    (x, dx), (w, dw), (b, db) = split(input), split(weight), split(bias)
    by_weight = None if dw is None else functional.linear(x, dw, db)
    if by_weight is None and db is not None:
        by_weight = db.expand(*x.shape[:-1], len(db)).clone()
    return joined(
        functional.linear(x, w, b),
        _sum(by_weight, None if dx is None else functional.linear(dx, w)),
    )


def _addmm(
    input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    """b + x W, as Hugging Face's Conv1D has it."""
    if beta != 1 or alpha != 1:
        return torch.addmm(input, mat1, mat2, beta=beta, alpha=alpha)
    (b, db), (x, dx), (w, dw) = split(input), split(mat1), split(mat2)
    by_weight = None if dw is None else x @ dw if db is None else torch.addmm(db, x, dw)
    if by_weight is None and db is not None:
        by_weight = db.expand(len(x), w.shape[1]).clone()
    return joined(torch.addmm(b, x, w), _sum(by_weight, None if dx is None else dx @ w))


def _convolution(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def rule(
        input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        (x, dx), (w, dw), (b, db) = split(input), split(weight), split(bias)
        value = function(x, w, b, *args, **kwargs)
        by_weight = None if dw is None else function(x, dw, db, *args, **kwargs)
        if by_weight is None and db is not None:
            by_weight = db.view(-1, *[1] * (w.ndim - 2)).expand_as(value).clone()
        by_input = None if dx is None else function(dx, w, None, *args, **kwargs)
        return joined(value, _sum(by_weight, by_input))

    return rule


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """w x̂ + b: w dx̂ and x̂ dw + db; x̂'s derivative is symmetric, so reverse mode's serves."""
    (x, dx), (w, dw), (b, db) = split(input), split(weight), split(bias)
    shape = list(normalized_shape)
    value, mean, spread = torch.native_layer_norm(x, shape, w, b, eps)
    tangent = None
    if dw is not None:
        tangent = ((x - mean) * spread).to(x.dtype) * dw
    if db is not None:
        tangent = db.expand_as(value).clone() if tangent is None else tangent.add_(db)
    if dx is not None:
        # A zero of the weight may not hide x̂'s derivative, so it is multiplied on afterwards.
        back = torch.ops.aten.native_layer_norm_backward(
            dx.contiguous(), x, shape, mean, spread, None, None, [True, False, False]
        )[0]
        if w is not None:
            back = back * w if tangent is None else torch.addcmul(tangent, back, w)
            tangent = None
        tangent = _sum(back, tangent)
    return joined(value, tangent)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """With stored statistics an affine map of each channel; else torch's own rule."""
    if training or running_mean is None or running_var is None:
        return functional.batch_norm(
            input, running_mean, running_var, weight, bias, training, momentum, eps
        )
    (x, dx), (w, dw), (b, db) = split(input), split(weight), split(bias)
    value = functional.batch_norm(x, running_mean, running_var, w, b, False, momentum, eps)
    spread = (running_var + eps).rsqrt()

    def by_channel(channel: Tensor) -> Tensor:
        return channel.to(x.dtype).view(-1, *[1] * (x.ndim - 2))

    tangent = None if dx is None else dx * by_channel(spread if w is None else w * spread)
    if dw is not None:
        slope, shift = dw * spread, -running_mean * dw * spread
        start = by_channel(shift if db is None else shift + db)
        tangent = _sum(torch.addcmul(start, x, by_channel(slope)), tangent)
    elif db is not None:
        tangent = _sum(by_channel(db).expand_as(value).clone(), tangent)
    return joined(value, tangent)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(q k' s + m) v, written out; softmax's derivative is symmetric too."""
    if dropout_p > 0 or (attn_mask is not None and split(attn_mask)[1] is not None):
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if enable_gqa:
        key, value = (
            part.repeat_interleave(query.shape[-3] // part.shape[-3], -3) for part in (key, value)
        )
    (q, dq), (k, dk), (v, dv) = split(query), split(key), split(value)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    q = q * scale
    scores = q @ k.mT
    if is_causal:
        attn_mask = scores.new_ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None:
        is_bool = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -torch.inf) if is_bool else scores + attn_mask
    # Of a row that may see nothing softmax is 0 by torch's convention, not nan.
    share = torch._safe_softmax(scores, -1)
    found = share @ v
    tangent = None if dv is None else share @ dv
    by_query = None if dq is None else (dq * scale) @ k.mT
    moved = _sum(by_query, None if dk is None else q @ dk.mT)
    if moved is not None:
        moved = torch._softmax_backward_data(moved, share, -1, share.dtype)
        tangent = _sum(moved @ v, tangent)
    return joined(found, tangent)


RULES: dict[Any, Callable[..., Tensor]] = {
    functional.linear: _linear,
    torch.addmm: _addmm,
    functional.layer_norm: _layer_norm,
    functional.batch_norm: _batch_norm,
    functional.scaled_dot_product_attention: _attention,
    **{one: _convolution(one) for one in (torch.conv1d, torch.conv2d, torch.conv3d)},
}


class _Rules(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        rule = RULES.get(func, func)
        if func in RECURRENT:
            with mkldnn_off():
                return func(*args, **(kwargs or {}))
        return rule(*args, **(kwargs or {}))


@contextmanager
def fast_duals() -> Iterator[None]:
    """Forward derivatives by these rules inside a dual level; with gradients if those are on.

    Attention goes by its math kernel and the fused transformer layers are off: neither has a
    forward derivative. The switches are the process's own, and are restored.
    """
    fused = torch.backends.mha
    was_fused = fused.get_fastpath_enabled()
    with sdpa_kernel(SDPBackend.MATH), _Rules():
        try:
            fused.set_fastpath_enabled(False)
            yield
        finally:
            fused.set_fastpath_enabled(was_fused)
