"""A short training of the stand-ins alone, towards what the model itself gives.

Holds: ``healed``.
May import: torch, ``secant.engine``, ``secant.errors``, ``secant.maps``, ``secant.uses``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from secant.engine.plan import Batch
from secant.errors import InputError
from secant.maps.calls import first_tensor, out_of_place, without_cache
from secant.uses.replace_parts import Affine, Map, StandIn, stand_in, standing
from secant.uses.replace_runs import Forms, Runner

RATE = 0.02
"""The first step, of each tensor's root mean square; it falls to 0 along a half cosine."""


def healed(
    runner: Runner, forms: Forms, batches: Sequence[Batch], steps: int, *, is_classes: bool,
    seed: int, tell: Callable[[int, int], None],
) -> dict[str, Map]:  # fmt: skip
    """The forms after `steps` of Adam, one batch each, all else in the model held as it is.

    The loss is the Kullback-Leibler divergence of the outputs from the model's own where they are
    `is_classes` (units or tokens, classes), else their squared distance. No label is looked at.

    Raises: `InputError` for a model in half precision, whose steps would be lost in rounding, and
    if the loss is not finite.

    Cost: a step is two forwards and a backward of one batch.
    """
    like = runner.like
    if like.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"replace: healing takes steps that {like.dtype} cannot hold. Give --dtype float32, or "
            "leave --heal out."
        )
    stands = {site: stand_in(form, runner.places[site], like) for site, form in forms.items()}
    trained = [one for stand in stands.values() for one in stand.parameters()]
    if not trained:
        return dict(forms)
    rates = [RATE * float(one.square().mean().sqrt()) for one in trained]
    groups = [
        {"params": [one.requires_grad_()], "lr": rate}
        for one, rate in zip(trained, rates, strict=True)
    ]
    optimiser = torch.optim.Adam(groups)
    generator = torch.Generator().manual_seed(seed)
    order = [
        place for _ in range(math.ceil(steps / len(batches)))
        for place in torch.randperm(len(batches), generator=generator).tolist()
    ]  # fmt: skip
    for step, place in enumerate(order[:steps]):
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * (1 + math.cos(math.pi * step / steps)) / 2
        batch = batches[place]
        output, mask = runner.run(batch, {})
        loss = _distance(
            _given(runner, batch, stands), first_tensor(output, "(model)", "output"), mask,
            is_classes,
        )  # fmt: skip
        if not bool(torch.isfinite(loss)):
            raise InputError(
                f"replace: healing diverged at step {step + 1} of {steps}. Leave --heal out."
            )
        if not loss.requires_grad:
            return dict(forms)  # a later stand-in lets nothing through, and has nothing to train
        # Gradients of the stand-ins alone: those of the model are nobody's to touch. What stands
        # before one that gives zeros has none.
        slopes = torch.autograd.grad(loss, trained, allow_unused=True)
        for one, slope in zip(trained, slopes, strict=True):
            one.grad = slope
        optimiser.step()
        tell(step + 1, steps)
    return {site: _form(stands[site], form) for site, form in forms.items()}


def _given(runner: Runner, batch: Batch, stands: dict[str, StandIn]) -> Tensor:
    modules: dict[str, nn.Module] = dict(stands)
    with (
        torch.enable_grad(), standing(runner.model, modules),
        out_of_place(runner.model), without_cache(runner.model),
    ):  # fmt: skip
        forward, _ = runner.feed.forward(runner.model, batch)
        return first_tensor(forward(), "(model)", "output")


def _distance(made: Tensor, true: Tensor, mask: Tensor | None, is_classes: bool) -> Tensor:
    if mask is not None and made.ndim == 3 and mask.shape == made.shape[:2]:
        made, true = made[mask], true[mask]
    if not is_classes:
        return (made - true).square().sum() / true.square().sum()
    made, true = (one.flatten(0, -2) for one in (made, true))
    return functional.kl_div(
        made.log_softmax(-1), true.log_softmax(-1), reduction="batchmean", log_target=True
    )


def _form(stand: StandIn, form: Map) -> Map:
    inner = stand.map
    assert isinstance(inner, Affine)
    return replace(
        form,
        factors=tuple(one.detach().double() for one in inner.factors),
        shift=None if inner.shift is None else inner.shift.detach().double(),
    )
