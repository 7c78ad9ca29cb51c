"""Models by name or in person, with what a survey needs to run them.

Holds: ``Loaded`` (re-exported), ``load_model``, ``shuffled``.
May import: torch, ``secant.errors``, ``secant.load``.

Nothing here executes code that comes with weights. A factory and `--call` are the user's own
code, named by the user; a hub model's code runs only with ``trust_remote_code``.
"""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from torch import nn

from secant.errors import LoadError
from secant.load.demo import load_demo
from secant.load.factory import NAMED, import_named, load_factory
from secant.load.fresh import reinitialised, seeded
from secant.load.huggingface import load_directory, load_gguf, load_hub
from secant.load.loaded import Loaded as Loaded
from secant.load.loaded import as_asked, check_values, detached
from secant.load.options import DEFAULTS, LoadOptions

HUB_ID: Final = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def load_model(source: str | nn.Module, options: LoadOptions = DEFAULTS) -> Loaded:
    """Load a model, ready to run.

    `source` is an `nn.Module`; `demo:NAME`; a directory with a `config.json`, a hub id
    `owner/name` (both extra `hf`) or a `.gguf` file (extra `gguf`); or
    `package.module:factory`, filled with `options.weights`. A module that is in training mode,
    or that `options` move or cast, is copied first: the caller's own is never changed.

    Raises: `LoadError` for a name that is none of these, weights that are missing, cut, lying,
    in need of code, not finite, or that do not fit; `InputError` for a device or dtype that
    cannot be used.
    """
    if isinstance(source, nn.Module):
        loaded = as_asked(_from_module(source, options), options)
    else:
        options = replace(options, device=options.device or "cpu", dtype=options.dtype or "float32")
        loaded = as_asked(_by_name(source, options), options)
    if options.call is not None:
        call = options.call
        if isinstance(call, str):
            call = import_named(call, "--call")
        loaded = replace(loaded, call=call)
    check_values(loaded.name, loaded.model)
    return loaded


def _by_name(source: str, options: LoadOptions) -> Loaded:
    is_factory = bool(NAMED.fullmatch(source)) and not source.startswith("demo:")
    if options.weights is not None and not is_factory:
        raise LoadError(
            f"--weights goes with a model named package.module:factory; got {source!r}. "
            "Leave it out, or name the function that builds the model."
        )
    if source.startswith("demo:"):
        return _load_demo(source)
    if is_factory:
        return load_factory(source, options)
    path = Path(source)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise LoadError(f"model {source!r}: no such file. Check the path.")
        return load_gguf(source, options)
    if (path / "config.json").is_file():
        return load_directory(source, options)
    if HUB_ID.fullmatch(source) and not path.exists():
        return load_hub(source, options)
    raise LoadError(
        f"model {source!r}: none of demo:NAME, a directory with a config.json, a .gguf file, a "
        "hub id owner/name, or package.module:factory. Name one of these, such as demo:cnn."
    )


def _load_demo(source: str) -> Loaded:
    model = load_demo(source.removeprefix("demo:"))

    def fresh(seed: int) -> nn.Module:
        with seeded(seed):
            return type(model)()

    return Loaded(source, model, None, fresh)


def _from_module(model: nn.Module, options: LoadOptions) -> Loaded:
    if options.weights is not None:
        raise LoadError(
            "`weights` go with a model named package.module:factory; got an nn.Module. "
            "Load them into it before you pass it."
        )
    name = type(model).__name__
    changes = any(module.training for module in model.modules())
    changes |= options.device is not None or options.dtype not in (None, "keep")
    own = detached(name, model) if changes else model
    return Loaded(name, own, None, lambda seed: reinitialised(own, seed))


def shuffled(model: nn.Module, seed: int) -> nn.Module:
    """A copy whose tensors each have their entries permuted: same scale, no structure."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            order = torch.randperm(parameter.numel(), generator=generator)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return other
