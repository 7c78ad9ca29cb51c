"""What a survey reads of a model in its weights: how far its tangent holds, what its kernel fits.

Holds: ``EXTRAS``; ``tangent_in_weights``, ``kernel_and_labels``.
May import: torch, ``secant.errors``, ``secant.gauges``, ``secant.load``, ``secant.maps``,
``secant.curves``, ``secant.passes``, ``secant.readings``, ``secant.uses`` (first_order,
kernel_readings, pairs).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from secant.curves import readings_of
from secant.errors import InputError
from secant.gauges.interval import GROUPS
from secant.load.feed import Feed
from secant.maps.derivatives import derivatives
from secant.passes import Extra, Tell
from secant.readings import Reading
from secant.uses.first_order import Sample, Table
from secant.uses.kernel_readings import alignment, kernel_reader, one_hot, reading_of
from secant.uses.pairs import weights_of

RHOS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Lengths of the step in every tensor, as shares of that tensor's norm."""
BATCH = 16
KERNEL_BATCH = 64


def tangent_in_weights(model: nn.Module, feed: Feed, seed: int, tell: Tell) -> list[Reading]:
    """`tangent` of the outputs in the weights, along random steps, and its radius.

    Every tensor steps ρ times its own norm in a Gaussian direction of its own, and every group of
    units sees other directions: the interval then holds what another draw would have changed. In
    float64 on the sample of a survey's curves; buffers stay.

    Cost: nine evaluations and a derivative of the sample. Memory: the model in float64 and four
    vectors of its weights.
    """
    sample = Sample(model, feed, seed, batch_size=BATCH)
    w = sample.vector(weights_of(sample.model, sample.model))
    sizes = [sample.model.get_parameter(name).numel() for name in sample.names]
    table, done, group, v = Table(sample.groups), 0, None, w
    with derivatives():
        for batch, rows, weights in sample.maps():
            if batch.group != group:
                group = batch.group
                v = _random_step(w, sizes, seed, group)
            table.add_tangent(batch, rows, weights, w, v, RHOS, "random")
            done += len(batch.units)
            tell(done, sample.units)
    return readings_of(table.sums(sample.units, float(w.norm())))


def _random_step(w: Tensor, sizes: list[int], seed: int, group: int) -> Tensor:
    """A Gaussian direction for each tensor, as long as the tensor."""
    generator = torch.Generator().manual_seed((seed * GROUPS + group) % 2**63)
    parts = []
    for part in torch.split(w, sizes):
        noise = torch.randn(part.shape, generator=generator, dtype=torch.float64).to(w)
        parts.append(noise * (part.norm() / noise.norm()))
    return torch.cat(parts)


def kernel_and_labels(model: nn.Module, feed: Feed, seed: int, tell: Tell) -> list[Reading]:
    """Gauge `kernel`, variant `alignment`: of the empirical kernel with that of the classes.

    Centred alignment (`uses.motion.kernel_alignment`): 1 where small steps of the weights move
    units of one class as one, so that a linear fit in the weights needs few examples; 0 where they
    tell nothing of the classes. The kernel is the trace over outputs, in float64, on the sample
    of the curves, of outputs sketched to 16 where there are more.

    Cost: a forward of the sample, at most 16 derivatives of it and the products of all pairs.
    Raises: `InputError` where units have no classes, or the model no kernel.
    """
    labels = feed.units.labels
    if labels is None or not has_classes(feed):
        raise InputError(
            "kernel: its alignment is with the classes of the units; these have none. Name their "
            "column with --label-column."
        )
    sample = Sample(model, feed, seed, batch_size=KERNEL_BATCH)
    gram_of, details = kernel_reader(sample, feed, seed)
    gram = gram_of()
    tell(sample.units, sample.units)
    units = [member.unit for member in sample.members]
    groups = torch.tensor([member.group for member in sample.members])
    statistic = partial(alignment, gram, one_hot(labels[units]))
    return [reading_of("alignment", statistic, groups, details)]


def has_classes(feed: Feed) -> bool:
    """Whether the units have labels of whole numbers, one each."""
    labels = feed.units.labels
    return labels is not None and labels.dtype == torch.int64 and labels.ndim == 1


EXTRAS = (
    Extra("curves in weights", "tangent", tangent_in_weights, lambda feed: True),
    Extra("kernel", "kernel", kernel_and_labels, has_classes),
)
