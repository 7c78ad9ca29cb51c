"""Models by name, with what a survey needs to run them.

Holds: ``Loaded`` and ``load_model``.
May import: torch, transformers (extra ``hf``), ``secant.errors``, ``secant.load.demo``.

Nothing here executes code that comes with weights: demo models and Hugging Face directories
are read from safetensors, and remote code stays off.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secant.errors import LoadError


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode, its name, its tokenizer if it reads text, and fresh copies of it."""

    name: str
    model: nn.Module
    tokenizer: Any | None
    fresh: Callable[[int], nn.Module]


def load_model(source: str) -> Loaded:
    """Load `demo:NAME` or a local Hugging Face directory (extra `hf`).

    Raises: `LoadError` for an unknown name, a directory without `config.json`, weights that
    cannot be read or are not finite.
    """
    if source.startswith("demo:"):
        loaded = _load_demo(source)
    elif (Path(source) / "config.json").is_file():
        loaded = _load_hf(source)
    else:
        raise LoadError(
            f"model {source!r}: neither demo:NAME nor a directory with a config.json. "
            "Name a demo model (demo:cnn) or a local Hugging Face directory."
        )
    for name, parameter in loaded.model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise LoadError(
                f"model {source!r}: parameter {name!r} holds values that are not finite. "
                "Load a checkpoint from before training diverged."
            )
    return loaded


def _load_demo(source: str) -> Loaded:
    from secant.load.demo import load_demo

    model = load_demo(source.removeprefix("demo:"))

    def fresh(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return type(model)().eval()

    return Loaded(source, model, None, fresh)


def _load_hf(source: str) -> Loaded:
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise LoadError(
            f"model {source!r} is a Hugging Face directory, which needs transformers. "
            "Install it with `pip install 'secant[hf]'`."
        ) from error
    from safetensors import SafetensorError

    try:
        model = AutoModel.from_pretrained(source, local_files_only=True, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError, SafetensorError) as error:
        raise LoadError(
            f"model {source!r} cannot be loaded ({str(error).splitlines()[0]}). "
            "The directory needs config.json, model.safetensors and a tokenizer."
        ) from error

    def fresh(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return AutoModel.from_config(copy.deepcopy(model.config)).eval()  # type: ignore[no-any-return]

    return Loaded(Path(source).name or source, model.float().eval(), tokenizer, fresh)


def shuffled(model: nn.Module, seed: int) -> nn.Module:
    """A copy whose tensors each have their entries permuted: same scale, no structure."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            order = torch.randperm(parameter.numel(), generator=generator)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return other
