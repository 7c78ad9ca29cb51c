"""A model's first-order expansion in its weights, as a module that trains.

Holds: ``linearize`` and what it makes, ``Linearised``.
May import: torch, ``secant.errors``, ``secant.maps``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.utils._pytree import tree_map

from secant.errors import InputError
from secant.maps.calls import first_tensor
from secant.maps.duals import fast_duals, joined, split
from secant.maps.weights import chosen_parameters


class Linearised(nn.Module):
    r"""A model at its weights w₀ and the tangent there.

    .. math:: x \mapsto f(x; w_0) + J(x; w_0)\, \Delta w

    `delta` holds Δw: one parameter for each chosen one of the model, under its name, 0 at first;
    `model` holds w₀, which does not train. `state_dict` has both. Every tensor of floats in what
    the model returns is expanded, and the structure is the model's own. The model stays in eval
    mode whatever mode this module is in: f is one function, so dropout is off and batch norm
    uses its stored statistics.

    Cost: a linear layer's dual number takes three products where the plain layer takes one (two
    at the first), so about two and a half to three forwards; a backward costs what the model's
    own does. Attention is evaluated by its math kernel.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.trained = tuple(name for name, one in model.named_parameters() if one.requires_grad)
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.delta = nn.Module()
        every = dict(self.model.named_parameters())
        for name in names:
            *path, last = name.split(".")
            place = self.delta
            for part in path:
                if part not in place._modules:
                    place.add_module(part, nn.Module())
                place = place.get_submodule(part)
            place.register_parameter(last, nn.Parameter(torch.zeros_like(every[name])))

    def train(self, mode: bool = True) -> Linearised:
        """As any module's, but the model within stays in eval mode."""
        super().train(mode)
        self.model.eval()
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The expansion at what the model would be called with.

        Raises: `InputError` if the model returns a loss (its expansion is no loss of the
        expanded outputs) or meets an operation without a forward derivative.
        """
        with fast_duals(), without_cache(self.model), forward_ad.dual_level():
            at = dict(self.model.named_parameters())
            duals = {
                name: joined(at[name].detach(), step)
                for name, step in self.delta.named_parameters()
            }
            try:
                output = functional_call(self.model, duals, args, kwargs)
            except NotImplementedError as error:
                raise InputError(
                    "linearize: every operation must have a forward-mode derivative; torch says: "
                    f"{str(error).splitlines()[0]} Leave its parameters out with `parameters`."
                ) from error
            first_tensor(output, "(model)", "output")
            if isinstance(output, dict) and output.get("loss") is not None:
                raise InputError(
                    "linearize: the model returned a loss, whose expansion is not the loss of "
                    "the expanded outputs. Call without labels and take the loss of the outputs."
                )
            return tree_map(_expanded, output)

    def merged(self) -> nn.Module:
        """The ordinary model at w₀ + Δw, a copy in eval mode that trains what trained before."""
        found = copy.deepcopy(self.model)
        every = dict(found.named_parameters())
        with torch.no_grad():
            for name, step in self.delta.named_parameters():
                every[name].add_(step)
        for name in self.trained:
            every[name].requires_grad_()
        return found


def linearize(model: nn.Module, parameters: Sequence[str] | None = None) -> Linearised:
    """f(x; w₀) + J Δw of a model at its weights, as a module whose parameters are Δw.

    `parameters` are names or globs, those that require gradients if None. The model is copied;
    a tied weight has one Δw and moves in all its places.

    Raises: `InputError` if a name matches nothing or no floats, or nothing is left.
    """
    return Linearised(model, chosen_parameters(model, parameters))


def _expanded(value: Any) -> Any:
    """f + J Δw of a dual number; other tensors and plain values as they are."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if not isinstance(value, Tensor):
        raise InputError(
            f"linearize: the model returned a {type(value).__name__}, which cannot be expanded. "
            "Have it return tensors, in tuples, lists or mappings, and no key-value cache."
        )
    if not value.is_floating_point():
        return value
    at, step = split(value)
    return at if step is None else at + step


@contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """Hugging Face models give no key-value cache within: its tangents would be lost in it."""
    configs: dict[int, Any] = {}
    for part in model.modules():
        config = getattr(part, "config", None)
        if getattr(config, "use_cache", False) is True:
            configs[id(config)] = config
    try:
        for config in configs.values():
            config.use_cache = False
        yield
    finally:
        for config in configs.values():
            config.use_cache = True
