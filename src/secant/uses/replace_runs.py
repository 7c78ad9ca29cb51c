"""A model run with stand-ins, from the start or from a block on, as far as it is needed.

Holds: ``Runner``, ``Forms``.
May import: torch, ``secant.engine``, ``secant.errors``, ``secant.load``, ``secant.maps``,
``secant.uses.replace_parts``.

Where the blocks are a chain, each reading what the one before it gave and nothing else doing so,
a run may begin at any of them from its input, kept from an earlier run: what lies before is the
same. That is tried on the first batch, not assumed.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from secant.engine.plan import Batch
from secant.load.feed import Feed
from secant.maps.calls import Interceptor, first_tensor, intercept, out_of_place, without_cache
from secant.uses.replace_parts import Held, Map, Place, StandIn, stand_in, standing, within

Forms = Mapping[str, Map]
"""What stands in for which site; none lies in another."""


class Enough(Exception):  # noqa: N818 - no error: how a forward is left early
    """All that was wanted of a forward has been seen."""


class Heard(NamedTuple):
    """A site's input and output, the batch's mask, and the input of the block around it."""

    x: Tensor
    y: Tensor
    mask: Tensor | None
    stream: Tensor


class Runner:
    """One model and its data, run with stand-ins put in for each run and taken out again."""

    def __init__(self, model: nn.Module, feed: Feed, blocks: Sequence[str]) -> None:
        self.model, self.feed, self.blocks = model, feed, list(blocks)
        self.places: dict[str, Place] = {}
        self.like = next(
            (one for one in model.parameters() if one.is_floating_point()), torch.zeros(1)
        )
        self.is_chain = False
        self.stands: dict[int, tuple[Map, StandIn]] = {}

    def stands_for(self, forms: Forms) -> dict[str, nn.Module]:
        """A module for each form, made once."""
        found: dict[str, nn.Module] = {}
        for site, form in forms.items():
            if id(form) not in self.stands:
                made = stand_in(form, self.places[site], self.like)
                self.stands[id(form)] = form, made
            found[site] = self.stands[id(form)][1]
        return found

    def forget(self, forms: Sequence[Map]) -> None:
        """Let all modules go but those of `forms`."""
        kept = {id(one) for one in forms}
        self.stands = {key: pair for key, pair in self.stands.items() if key in kept}

    @torch.no_grad()
    def run(
        self,
        batch: Batch,
        forms: Forms,
        *,
        start: int = 0,
        stream: Tensor | None = None,
        sites: Sequence[str] = (),
        listen: Interceptor | None = None,
    ) -> tuple[Any, Tensor | None]:
        """The model's output and the batch's mask.

        From block `start` on, which is given `stream`; `listen` hears each call of `sites`, and may
        raise `Enough`, after which the output is None.
        """
        stands = self.stands_for(forms)
        if start > 0 and stream is not None:
            before = self.blocks[:start]
            stands = {
                site: one for site, one in stands.items()
                if not any(within(site, block) for block in before)
            }  # fmt: skip
            for number, block in enumerate(before):
                inner = Held(stream if number == start - 1 else None)
                stands[block] = StandIn(inner, replace(self.places[block], is_image=False))
        model = self.model
        with standing(model, stands), out_of_place(model), without_cache(model):
            forward, mask = self.feed.forward(model, batch)
            if listen is None:
                return forward(), mask
            try:
                with intercept(model, list(sites), listen):
                    return forward(), mask
            except Enough:
                return None, mask

    def streams(self, batch: Batch, forms: Forms) -> tuple[Any, Tensor | None, list[Tensor]]:
        """Output, mask and what every block was given."""
        found: list[Tensor] = []

        def keep(site: str, _: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            found.append(first_tensor(args if args else kwargs, site, "input"))

        output, mask = self.run(batch, forms, sites=self.blocks, listen=keep)
        return output, mask, found

    def heard(
        self, batch: Batch, forms: Forms, site: str, start: int, stream: Tensor | None
    ) -> Heard:
        """One site's input and output, and what its block was given; nothing behind it is run."""
        block = self.blocks[self.places[site].block]
        found: list[Tensor] = []
        given: list[Tensor] = []

        def note(_: nn.Module, args: Any, kwargs: Any) -> None:
            given.append(first_tensor(args if args else kwargs, block, "input"))

        def keep(_: str, __: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            found.append(first_tensor(args if args else kwargs, site, "input"))
            found.append(first_tensor(output, site, "output"))
            raise Enough

        with standing(self.model, self.stands_for(forms)):
            handle = self.model.get_submodule(block).register_forward_pre_hook(
                note, with_kwargs=True
            )
        try:
            _, mask = self.run(batch, forms, start=start, stream=stream, sites=[site], listen=keep)
        finally:
            handle.remove()
        return Heard(found[0], found[1], mask, given[0])

    def find_chain(self) -> None:
        """See on the first batch whether the blocks are a chain, and remember it."""
        self.is_chain = False
        if len(self.blocks) < 2 or any(block not in self.places for block in self.blocks):
            return
        batch, pairs = self.feed.batches[0], []

        def keep(site: str, _: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            x = first_tensor(args if args else kwargs, site, "input")
            pairs.append((site, x, first_tensor(output, site, "output")))

        output, _ = self.run(batch, {}, sites=self.blocks, listen=keep)
        if [site for site, _, _ in pairs] != self.blocks:
            return
        if any(y is not x for (_, _, y), (_, x, _) in itertools.pairwise(pairs)):
            return
        whole = first_tensor(output, "(model)", "output")
        last = len(self.blocks) - 1
        output, _ = self.run(batch, {}, start=last, stream=pairs[last][1])
        self.is_chain = torch.equal(first_tensor(output, "(model)", "output"), whole)
