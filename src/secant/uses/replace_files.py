"""A model with stand-ins as files, and back.

Holds: ``written``, ``loaded_onto``.
May import: torch, safetensors, ``secant.errors``, ``secant.uses``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_model
from torch import nn

from secant.errors import LoadError
from secant.uses.replace_parts import Place, empty_map, installed, stand_in
from secant.uses.saved_modules import save_program, save_weights

UNEXPORTABLE = (RuntimeError, ValueError, TypeError, AttributeError)
"""What torch.export raises for a forward that it cannot follow."""


def written(module: nn.Module, inputs: Any, out: Path) -> tuple[list[str], list[str]]:
    """Write weights, and the program where the model can be exported; files, and what is not."""
    save_weights(module, out)
    try:
        save_program(module, inputs, out)
    except UNEXPORTABLE as error:
        # The model ran on this very batch before, so this is about exporting.
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        return ["model.safetensors"], [
            f"model.pt2 was not written: the model cannot be exported ({type(error).__name__}: "
            f"{reason.strip()[:200]}). Load the weights with Replacement.load."
        ]
    return ["model.safetensors", "model.pt2"], []


def loaded_onto(folder: Path, model: nn.Module) -> nn.Module:
    """See `Replacement.load`."""
    told = f"Give a folder that `secant replace` wrote, of this model; got {str(folder)!r}."
    try:
        stands = json.loads((folder / "replace.json").read_bytes())["stands"]
        forms = {
            one["site"]: (
                Place(one["site"], one["block"], one["parts"], one["is_image"],
                      (one["widths"][0], one["widths"][1]), one["layer"], one["attributes"]),
                empty_map(one["kind"], one["is_added"], one["widths"], one["rank"]),
            )
            for one in stands
        }  # fmt: skip
    except OSError as error:
        raise LoadError(f"replace.json cannot be read ({error.strerror}). {told}") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise LoadError(f"replace.json is not whole ({error!r}). {told}") from error
    like = next((one for one in model.parameters() if one.is_floating_point()), None)
    if like is None:
        raise LoadError(f"the model has no weights to lay stand-ins beside. {told}")
    try:
        made = installed(model, {
            site: stand_in(form, place, like) for site, (place, form) in forms.items()
        })  # fmt: skip
        load_model(made, str(folder / "model.safetensors"))
    except (OSError, RuntimeError, AttributeError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise LoadError(f"the weights do not fit the model ({first}). {told}") from error
    return made.eval()
