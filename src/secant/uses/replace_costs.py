"""Products that a forward takes, the whole of it and each site's, at the lengths of the data.

Holds: ``Costs``, ``costs_of``, ``without``, ``measured_flops``.
May import: torch, ``secant.engine``, ``secant.load``, ``secant.maps``, ``secant.uses``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from secant.engine.plan import Batch
from secant.maps.calls import first_tensor
from secant.uses.replace_parts import Map, within
from secant.uses.replace_runs import Forms, Runner

MOST_LENGTHS = 12
"""Units whose forwards are counted, at even places among the lengths of all."""


@dataclass(frozen=True)
class Costs:
    """Floating-point operations of matrix products, attention's among them, a unit.

    Means over units at even places among the lengths of the data, each without padding. `rows` are
    those that a site's map is applied to.
    """

    whole: float
    sites: dict[str, float]
    rows: dict[str, float]

    def saved(self, site: str, form: Map) -> float:
        """What putting the map in place of the site spares; below 0 where it costs more."""
        return self.sites[site] - 2 * self.rows[site] * form.products()

    def share(self, forms: Forms) -> float:
        """What all of `forms` spare, of the whole."""
        return sum(self.saved(site, form) for site, form in forms.items()) / self.whole


def costs_of(runner: Runner, sites: Sequence[str]) -> Costs:
    """Count forwards of the model as it is. Cost: up to `MOST_LENGTHS` forwards of one unit."""
    lengths = runner.feed.lengths
    order = sorted(range(len(lengths)), key=lambda unit: (lengths[unit], unit))
    count = 1 if lengths[order[0]] == lengths[order[-1]] else min(MOST_LENGTHS, len(order))
    units = [order[(2 * place + 1) * len(order) // (2 * count)] for place in range(count)]
    whole, by_site = 0.0, dict.fromkeys(sites, 0.0)
    rows = dict.fromkeys(sites, 0.0)
    kind = type(runner.model).__name__

    def keep(site: str, _: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        x = first_tensor(args if args else kwargs, site, "input")
        rows[site] += x.numel() / x.shape[1 if x.ndim == 4 else -1] / count

    for unit in units:
        # Fused attention on the CPU is not known to the counter; the plain one is two products.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            runner.run(Batch(0, (unit,)), {}, sites=sites, listen=keep)
        found: Mapping[str, Mapping[Any, int]] = counter.get_flop_counts()
        whole += sum(found.get("Global", {}).values()) / count
        for site in sites:
            by_site[site] += sum(found.get(f"{kind}.{site}", {}).values()) / count
    return Costs(whole, by_site, rows)


def without(forms: Forms, site: str) -> dict[str, Map]:
    """The forms that stay where the site gets a new one: all that do not lie in it."""
    return {other: form for other, form in forms.items() if not within(other, site)}


def measured_flops(runner: Runner, forms: Forms, units: Sequence[int]) -> float:
    """A forward of each unit counted with the stand-ins in place, as a mean."""
    total = 0.0
    for unit in units:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            runner.run(Batch(0, (unit,)), forms)
        total += float(counter.get_total_flops())
    return total / len(units)
