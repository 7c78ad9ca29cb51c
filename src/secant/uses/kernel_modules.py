"""What the modules with parameters do with them, for kernels.

Holds: ``Watched``, ``Call``, ``watched_modules``, ``factor_of``.
May import: torch, ``secant.uses`` (kernel_factors, kernel_tables).

Four kinds: linear maps, convolutions, tables, and norms, whose weight and bias act entry by entry.
A kind is a guess from the module's class, which the tape holds against autograd.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from secant.uses.kernel_factors import Dense, Factor, Outer, Rows
from secant.uses.kernel_tables import Tokens


class Call(NamedTuple):
    """A call of a module: its input, its output's shape and type, and J of that output.

    `back` is (n, c, *shape), and None where the output has other rows than the model's.
    """

    module: nn.Module
    into: Tensor
    shape: torch.Size
    dtype: torch.dtype
    back: Tensor | None


class Watched(NamedTuple):
    """Parameters whose gradients are taken together: of `owners`, which all use the same ones."""

    module: nn.Module
    owners: tuple[nn.Module, ...]
    slots: dict[str, str]
    """The module's own name of each parameter, and the model's."""

    @property
    def names(self) -> tuple[str, ...]:
        """The model's names of the parameters."""
        return tuple(self.slots.values())

    def as_written(self, gradients: Mapping[str, Tensor]) -> list[Tensor]:
        """Gradients of the parameters in the order in which the factor writes them out."""
        of = {slot: gradients[name] for slot, name in self.slots.items()}
        if "weight" not in of or not (is_linear(self.module) or is_convolution(self.module)):
            return [one.flatten() for one in of.values()]
        weight = of["weight"].T if is_turned(self.module) else of["weight"].flatten(1)
        return [weight.flatten(), *([of["bias"]] if "bias" in of else [])]


def is_turned(module: nn.Module) -> bool:
    """Whether it is transformers' Conv1D, a linear map whose weight is (in, out)."""
    return type(module).__name__ == "Conv1D" and not isinstance(module, _ConvNd)


def is_linear(module: nn.Module) -> bool:
    """Whether it is a linear map of the last dimension."""
    return isinstance(module, nn.Linear) or is_turned(module)


def is_convolution(module: nn.Module) -> bool:
    """Whether it is a convolution over one or two dimensions."""
    return isinstance(module, nn.Conv1d | nn.Conv2d)


def is_norm(module: nn.Module) -> bool:
    """Whether it is a norm with a weight and perhaps a bias that act entry by entry."""
    own = dict(module.named_parameters(recurse=False))
    return "Norm" in type(module).__name__ and "weight" in own and own.keys() <= {"weight", "bias"}


def watched_modules(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> list[Watched]:
    """The chosen parameters of modules of a known kind, with all modules that hold them."""
    name_of = {id(one): name for name, one in parameters.items()}
    held: dict[tuple[str, ...], list[tuple[nn.Module, dict[str, str]]]] = {}
    modules = list(dict.fromkeys(model.modules()))
    counts = Counter(
        name_of[id(one)]
        for module in modules
        for one in module._parameters.values()
        if one is not None and id(one) in name_of
    )
    for module in modules:
        known = is_linear(module) or is_convolution(module) or is_norm(module)
        if not known and not isinstance(module, nn.Embedding):
            continue
        slots = {
            slot: name_of[id(one)]
            for slot, one in module._parameters.items()
            if one is not None and id(one) in name_of
        }
        if not slots:
            continue
        # A tied parameter is summed over its modules, so it is taken apart from its neighbours.
        is_tied = any(counts[name] > 1 for name in slots.values())
        parts = [{slot: name} for slot, name in slots.items()] if is_tied else [slots]
        for part in parts:
            held.setdefault(tuple(part.values()), []).append((module, part))
    return [
        Watched(users[0][0], tuple(module for module, _ in users), users[0][1])
        for users in held.values()
    ]


def factor_of(watched: Watched, calls: Sequence[Call]) -> Factor | None:
    """J of the watched parameters over all calls of their modules.

    None if a module was not called, or with other rows than the model was.
    """
    mine = [call for call in calls if any(call.module is one for one in watched.owners)]
    found: list[Factor] = []
    for call in mine:
        if call.back is None or len(call.into) != len(call.back):
            return None
        found.append(_factor(call.module, call.into, call.back, set(watched.slots)))
    if len(found) < 2:
        return found[0] if found else None
    if all(isinstance(one, Rows) for one in found):
        pieces = zip(*(one.pieces for one in found if isinstance(one, Rows)), strict=True)
        return Rows(tuple(torch.stack(piece).sum(0) for piece in pieces))
    outers = [one for one in found if isinstance(one, Outer)]
    if len(outers) == len(found):
        return Outer(
            torch.cat([one.into for one in outers], 1),
            torch.cat([one.back for one in outers], 2),
            outers[0].has_bias,
        )
    tables = [one for one in found if isinstance(one, Tokens)]
    if len(tables) == len(found):
        return Tokens(
            torch.cat([one.ids for one in tables], 1),
            torch.cat([one.back for one in tables], 2),
            tables[0].size,
        )
    return Dense(found)


def _factor(module: nn.Module, into: Tensor, back: Tensor, names: set[str]) -> Factor:
    """J of one call's parameters `names`; `back` is (n, c, *shape of the output)."""
    if isinstance(module, nn.Embedding):
        if module.padding_idx is not None:  # autograd leaves this entry without gradient
            back = back * (into != module.padding_idx)[:, None, ..., None]
        return Tokens(into.flatten(1), back.flatten(2, -2), module.num_embeddings)
    if is_norm(module):
        return Rows((_norm(module, into, back, names),))
    if is_linear(module):
        into = into.reshape(len(into), -1, into.shape[-1])
        back = back.reshape(*back.shape[:2], -1, back.shape[-1])
    else:
        assert isinstance(module, nn.Conv1d | nn.Conv2d)
        into, back = patches(module, into), back.flatten(3).transpose(2, 3)
        if module.groups > 1:
            return Rows((_grouped(module, into, back, names),))
    if "weight" not in names:
        return Rows((back.sum(2),))
    return Outer(into, back, "bias" in names)


def _norm(module: nn.Module, into: Tensor, back: Tensor, names: set[str]) -> Tensor:
    """J of a norm's weight and bias: of what they multiply and add to, summed over positions."""
    own = dict(module.named_parameters(recurse=False))
    width = own["weight"].shape
    ones = {name: torch.zeros_like(one) for name, one in own.items()}
    zero = functional_call(module, ones, (into,))
    normed = functional_call(module, ones | {"weight": torch.ones_like(own["weight"])}, (into,))
    normed = normed - zero
    is_channels = isinstance(module, _NormBase | nn.GroupNorm)
    found = []
    for slot in own:
        if slot not in names:
            continue
        each = back * normed[:, None] if slot == "weight" else back
        each = each.flatten(3).sum(3) if is_channels and each.ndim > 3 else each
        if not is_channels:
            each = each.reshape(*each.shape[:2], -1, *width).sum(2)
        found.append(each.flatten(2))
    return torch.cat(found, 2)


def patches(module: nn.Conv1d | nn.Conv2d, images: Tensor) -> Tensor:
    """What each output pixel of a convolution reads, (n, pixels, channels x kernel)."""
    pads = module._reversed_padding_repeated_twice
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    images = functional.pad(images, pads, mode=mode)
    kernel, dilation, stride = module.kernel_size, module.dilation, module.stride
    if isinstance(module, nn.Conv1d):
        images = images[:, :, None]
        kernel, dilation, stride = (1, *kernel), (1, *dilation), (1, *stride)
    return functional.unfold(
        images, tuple(kernel), dilation=tuple(dilation), stride=tuple(stride)
    ).transpose(1, 2)


def _grouped(module: nn.Conv1d | nn.Conv2d, into: Tensor, back: Tensor, names: set[str]) -> Tensor:
    """J of a convolution in groups, written out; `into` (n, t, r), `back` (n, c, t, l)."""
    found = []
    if "weight" in names:
        by_group = into.reshape(*into.shape[:2], module.groups, -1)
        backs = back.reshape(*back.shape[:3], module.groups, -1)
        found.append(torch.einsum("ncthl,nthr->nchlr", backs, by_group).flatten(2))
    if "bias" in names:
        found.append(back.sum(2))
    return torch.cat(found, 2)
