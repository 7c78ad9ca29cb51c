"""Sites: named places in a model.

Holds: ``find_sites``, ``default_sites``.
May import: torch, ``secant.errors``.
"""

from __future__ import annotations

import difflib
from fnmatch import fnmatchcase

from torch import nn

from secant.errors import InputError


def default_sites(model: nn.Module) -> list[str]:
    """The longest run of repeated blocks: the children of the largest ModuleList or Sequential."""
    best: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        kinds = {type(child) for child in module}
        if len(kinds) == 1 and len(module) > max(len(best), 1):
            best = [f"{name}.{key}" if name else key for key, _ in module.named_children()]
    return best or [name for name, _ in model.named_children()]


def find_sites(model: nn.Module, globs: list[str] | None = None) -> list[str]:
    """Module paths that match any of `globs`, in the model's order; repeated blocks if none.

    Raises: `InputError` for a glob that matches nothing, naming the nearest sites.
    """
    if not globs:
        return default_sites(model)
    names = [name for name, _ in model.named_modules() if name]
    for pattern in globs:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.0)
            raise InputError(
                f"site {pattern!r} matches no module of this {type(model).__name__}. "
                f"Nearest: {', '.join(near)}. `secant sites MODEL` lists all."
            )
    return [name for name in names if any(fnmatchcase(name, p) for p in globs)]
