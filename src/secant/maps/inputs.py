"""The map from the model's inputs to its output.

Holds: ``inputs_map``, and ``capture_with_inputs``, which takes sites along in the same forward.
May import: torch, ``secant.errors``, ``secant.maps.calls``, ``secant.maps.features``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from secant.errors import InputError
from secant.maps.features import BlockMap, DecoderMap, capture


def inputs_map(model: nn.Module, forward: Callable[[], Any]) -> BlockMap | DecoderMap:
    """x to the model's output; for a model that takes tokens, its input embeddings to the output.

    The embeddings are those of `get_input_embeddings`; position and type embeddings are added
    after them and so belong to the map. `forward` is one call of the model on a batch.

    Raises: `InputError` if a model takes integers and does not name its input embeddings.
    """
    return capture_with_inputs(model, [], forward)[1]


def capture_with_inputs(
    model: nn.Module, sites: Sequence[str], forward: Callable[[], Any]
) -> tuple[dict[str, BlockMap], BlockMap | DecoderMap]:
    """The maps of `sites`, as `capture` gives them, and `inputs_map`, from one forward."""
    table = _embedding(model)
    found = capture(model, [*sites, *({"", table} - {None} - set(sites))], forward)  # type: ignore[list-item]
    blocks = {site: block for site, block in found.items() if site not in {"", table}}
    blocks |= {site: found[site] for site in sites if site in {"", table}}
    whole = found[""]
    if whole.x.is_floating_point():
        return blocks, whole
    if table is None:
        raise InputError(
            f"{type(model).__name__} takes {whole.x.dtype} and has no `get_input_embeddings` "
            "that returns one of its modules, so its inputs cannot be moved. "
            "Give the model that method."
        )
    return blocks, DecoderMap(table, model, forward, found[table].y, whole.y)


def _embedding(model: nn.Module) -> str | None:
    """The path of the module that the model names as its input embeddings, if it names one."""
    embed = getattr(model, "get_input_embeddings", None)
    table = embed() if callable(embed) else None
    names = (name for name, module in model.named_modules() if module is table)
    return next(names, None)
