"""A module written so that plain torch runs it: weights, program, ONNX.

Holds: ``saved_module``; ``save_weights`` and ``save_program``, its parts.
May import: torch, safetensors, ``secant.engine``, ``secant.maps``.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import nn

from secant.engine.files import written_whole
from secant.maps.calls import without_cache


def saved_module(module: nn.Module, inputs: Any, out: Path) -> tuple[list[str], list[str]]:
    """Write weights and programs; the names of the files, and what is not there."""
    notes: list[str] = []
    program = save_program(module, inputs, out)
    save_weights(module, out)
    files = ["model.safetensors", "model.pt2"]
    if importlib.util.find_spec("onnxscript") is None:
        notes.append("model.onnx was not written: pip install 'secant[onnx]' for it.")
        return files, notes
    with (
        warnings.catch_warnings(), torch.no_grad(), without_cache(module),
        written_whole(out / "model.onnx") as part,
    ):  # fmt: skip
        warnings.simplefilter("ignore")
        torch.onnx.export(program, (), str(part), dynamo=True, verbose=False, external_data=False)
    return [*files, "model.onnx"], notes


def save_weights(module: nn.Module, out: Path) -> None:
    """Write `model.safetensors`; what two modules share is written once."""
    with written_whole(out / "model.safetensors") as part:
        part.touch()
        mode = part.stat().st_mode
        save_model(module, str(part))
        part.chmod(mode)  # safetensors makes files of its own mode


def save_program(module: nn.Module, inputs: Any, out: Path) -> torch.export.ExportedProgram:
    """Write `model.pt2`, with the batch open, and of named inputs their length.

    An output of a class of its own, as Hugging Face's are, comes out as a plain dict: the program
    would otherwise load only where that class is imported.
    """
    args, kwargs = ((), dict(inputs)) if isinstance(inputs, Mapping) else ((inputs,), {})
    open_dims = {0: torch.export.Dim.AUTO}
    if kwargs:
        open_dims[1] = torch.export.Dim.AUTO
    shapes = dict.fromkeys(kwargs, open_dims) if kwargs else (open_dims,)
    handle = module.register_forward_hook(_as_plain)
    try:
        with warnings.catch_warnings(), torch.no_grad(), without_cache(module):
            warnings.simplefilter("ignore")  # they speak of torch's own insides
            program = torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
    finally:
        handle.remove()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with written_whole(out / "model.pt2") as part, part.open("wb") as file:
            torch.export.save(program, file)
    return program


def _as_plain(module: nn.Module, args: Any, output: Any) -> Any:
    """The output, as a dict where it is a mapping of another class."""
    return dict(output) if isinstance(output, Mapping) else output
