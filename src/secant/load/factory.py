"""Models made by the user's own function, and the weights files that fill them.

Holds: ``import_named``, ``load_factory``, ``read_weights``.
May import: torch, safetensors, ``secant.errors``, ``secant.load``.

A name `package.module:function` is imported, which runs the user's code: giving the name is
the consent. A weights file is only data: a pickle that needs code is refused.
"""

from __future__ import annotations

import difflib
import importlib
import pickle
import re
import struct
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from secant.errors import LoadError
from secant.load.fresh import reinitialised, seeded
from secant.load.loaded import Loaded
from secant.load.options import LoadOptions

NAMED: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
NESTED_KEYS: Final = ("state_dict", "model_state_dict")
# What torch's restricted unpickler and zip reader raise on files that are cut or corrupt.
UNREADABLE: Final = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError,
    AttributeError, AssertionError, struct.error, OSError, SafetensorError, OverflowError,
)  # fmt: skip


@contextmanager
def _here_importable() -> Iterator[None]:
    """Let modules of the current directory be imported within, as `python -m` does."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:  # the imported code may have edited the path itself
            sys.path.remove(here)


def import_named(name: str, what: str) -> Callable[..., Any]:
    """The callable `package.module:function`, from the current directory or an installed package.

    Raises: `LoadError` for a name of another form, a module that cannot be imported, or a
    function that is not in it. Other errors of the imported code are left as they are.
    """
    if not NAMED.fullmatch(name):
        raise LoadError(
            f"{what} must be named package.module:function; got {name!r}. "
            "Write the module's import path, a colon and the function's name."
        )
    module_name, _, path = name.partition(":")
    try:
        with _here_importable():
            found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise LoadError(
            f"{what} {name!r}: module {module_name!r} cannot be imported ({error}). "
            "Run where the module lies, or install its package."
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), n=1)
            hint = f"Did you mean {near[0]!r}?" if near else "Name a function that it defines."
            raise LoadError(f"{what} {name!r}: no {part!r} in {module_name!r}. {hint}")
        found = getattr(found, part)
    if not callable(found):
        raise LoadError(
            f"{what} {name!r} must be a function; got {type(found).__name__}. "
            "Name a function, or a class, that can be called."
        )
    return found  # type: ignore[no-any-return]


def load_factory(source: str, options: LoadOptions) -> Loaded:
    """The `nn.Module` that the factory returns, filled with `options.weights` if given.

    Fresh copies call the factory again under the seed; without a weights file under the next one,
    for the model itself is its draw of seed 0. A factory that loads weights itself gives them
    again: then its modules draw theirs anew, as those of a module without a factory do.

    Raises: `LoadError` if it returns anything else, or if the weights do not fit.
    """
    factory = import_named(source, "model")

    def build() -> nn.Module:
        with _here_importable():
            model = factory()
        if not isinstance(model, nn.Module):
            raise LoadError(
                f"model {source!r} must return an nn.Module; got {type(model).__name__}. "
                "Name a function without arguments that builds the model."
            )
        return model

    def fresh(seed: int) -> nn.Module:
        with seeded(seed):
            return build()

    model = fresh(0)
    if options.weights is None:
        own = _sums(model)

        def another(seed: int) -> nn.Module:
            other = fresh(seed + 1)
            return reinitialised(other, seed) if _sums(other) == own else other

        return Loaded(source, model, None, another)
    path = Path(options.weights)
    fill(model, read_weights(path), str(path), keeps_dtype=options.dtype == "keep")
    return Loaded(f"{source} ({path.name})", model, None, fresh)


def _sums(model: nn.Module) -> list[float]:
    """What tells two draws of the parameters apart."""
    lazy = nn.parameter.UninitializedParameter
    known = (one.detach() for one in model.parameters() if not isinstance(one, lazy))
    return [float(one.double().sum()) for one in known]


def read_weights(path: Path, *, is_mapped: bool = False) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pt, .pth or .bin file, by name; no code is run.

    A checkpoint that keeps them under `state_dict` or `model_state_dict` is unwrapped. With
    `is_mapped` values are read from the file when they are used, if torch's format allows it.

    Raises: `LoadError` for a file that is missing, cut, corrupt, holds objects other than
    tensors, or needs code to load.
    """
    if not path.is_file():
        raise LoadError(f"weights {str(path)!r}: no such file. Give a file with --weights.")
    if path.suffix not in {".safetensors", ".pt", ".pth", ".bin"}:
        raise LoadError(
            f"weights {str(path)!r}: unknown kind {path.suffix!r}. "
            "Use .safetensors, or .pt, .pth or .bin as torch.save writes them."
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():  # it warns of pickle protocols before it refuses
            warnings.simplefilter("ignore")
            is_mapped = is_mapped and zipfile.is_zipfile(path)
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)
    except pickle.UnpicklingError as error:
        raise LoadError(
            f"weights {str(path)!r} hold more than tensors ({_gist(error)}) and would need code "
            "to load, which is refused. Save model.state_dict() alone, best as .safetensors."
        ) from error
    except UNREADABLE as error:
        raise LoadError(
            f"weights {str(path)!r} cannot be read ({_gist(error)}). "
            "The file is cut, corrupt or of another kind; write it again."
        ) from error
    for key in NESTED_KEYS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found:
        raise LoadError(
            f"weights {str(path)!r} must hold tensors by name; got {type(found).__name__}. "
            "Save model.state_dict()."
        )
    for key, value in found.items():
        if not isinstance(value, Tensor):
            raise LoadError(
                f"weights {str(path)!r} must hold tensors by name; {key!r} is a "
                f"{type(value).__name__}. Save model.state_dict() alone."
            )
    return {str(key): value for key, value in found.items()}


def _gist(error: BaseException) -> str:
    """The telling line of a message; torch buries the reason below advice to load unsafely."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "Unsupported" in line or "GLOBAL" in line]
    return (telling or lines or [type(error).__name__])[0][:160]


def fill(model: nn.Module, weights: Mapping[str, Tensor], file: str, *, keeps_dtype: bool) -> None:
    """Copy `weights` into `model`, all of them and nothing missing.

    A tensor that the model shares under several names may be given under one. With
    `keeps_dtype` the model takes the type that all floating weights have in common.

    Raises: `LoadError` naming the first names or shapes that do not agree.
    """
    own = model.state_dict()
    given = {own[key].data_ptr() for key in weights if key in own and own[key].numel()}
    missing = [k for k, v in own.items() if k not in weights and v.data_ptr() not in given]
    unexpected = [key for key in weights if key not in own]
    if missing or unexpected:
        raise LoadError(
            f"weights {file!r} do not fit {type(model).__name__}: missing {_few(missing)}, "
            f"unexpected {_few(unexpected)}. Build the model that they were saved from."
        )
    for key, value in weights.items():
        if value.shape != own[key].shape:
            raise LoadError(
                f"weights {file!r}: {key!r} must have shape {tuple(own[key].shape)} for "
                f"{type(model).__name__}; got {tuple(value.shape)}. "
                "Build the model with the sizes that it was saved with."
            )
    if keeps_dtype:
        kinds = {value.dtype for value in weights.values() if value.is_floating_point()}
        if len(kinds) == 1:
            model.to(kinds.pop())
    model.load_state_dict(dict(weights), strict=False)  # names and shapes agree, ties aside


def _few(names: list[str]) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more
