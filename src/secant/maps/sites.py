"""Sites: named places in a model.

Holds: ``find_sites``, ``default_sites``.
May import: torch, ``secant.errors``, ``secant.maps.calls``.
"""

from __future__ import annotations

import difflib
from fnmatch import fnmatchcase

from torch import nn

from secant.errors import InputError
from secant.maps.calls import split_call


def default_sites(model: nn.Module) -> list[str]:
    """The repeated blocks: the members of the largest group of ModuleLists or Sequentials.

    A group is one container that lies in no other; or sibling containers whose members are all
    of one class with parts of its own (the stages of a ResNet); or such containers that stand
    directly in the members of another (the blocks in the stages of a Swin), which win a tie.
    A Sequential of several classes is a group if it has more members than the model has children.
    The model's children if there is no group.
    """
    children = [name for name, _ in model.named_children()]
    groups: dict[tuple[str, str], list[str]] = {}
    for name, container in _outermost(model, ""):
        members = [(_join(name, key), child) for key, child in container.named_children()]
        least = 1
        if isinstance(container, nn.Sequential):
            is_mixed = len({type(child) for _, child in members}) > 1
            least = len(children) + 1 if is_mixed else 2
        if len(members) >= least:
            _add(groups, name, container)
        for path, child in members:
            inner = [(path, child)] if _is_container(child) else _direct(path, child)
            for inner_name, part in inner:
                if _kind(part):
                    _add(groups, inner_name, part, within=name)
    # Inner groups come after their outer one, so the last of the longest is the innermost;
    # among unrelated groups the first wins.
    best: list[str] = []
    for names in groups.values():
        is_inner = bool(best) and names[0].startswith(f"{best[0]}.")
        if len(names) > len(best) or (len(names) == len(best) and is_inner):
            best = names
    return best or children


def _is_container(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList | nn.Sequential)


def _direct(name: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Containers that are children of the module."""
    children = module.named_children()
    return [(_join(name, key), child) for key, child in children if _is_container(child)]


def _outermost(module: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    """Containers that lie in no other, with their paths; the module itself if it is one."""
    if _is_container(module):
        return [(name, module)]
    found = []
    for key, child in module.named_children():
        found += _outermost(child, _join(name, key))
    return found


def _add(
    groups: dict[tuple[str, str], list[str]],
    name: str,
    container: nn.Module,
    within: str | None = None,
) -> None:
    """Add the container's members to its group: with its siblings' if all are of one class."""
    kind = _kind(container)
    place = name.rpartition(".")[0] if within is None else within
    key = (f"{place}/{within is None}", kind) if kind else (name, "")
    names = groups.setdefault(key, [])
    names += [_join(name, member) for member, _ in container.named_children()]


def _kind(container: nn.Module) -> str:
    """The class of the members if they are all of one class and have parts; else empty."""
    children = list(container.children())
    kinds = {type(child).__qualname__ for child in children}
    is_composite = all(any(True for _ in child.children()) for child in children)
    return kinds.pop() if len(kinds) == 1 and is_composite else ""


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def find_sites(model: nn.Module, globs: list[str] | None = None) -> list[str]:
    """Module paths that match any of `globs`, in the model's order; repeated blocks if none.

    A star matches dots too: ``*.attention`` is every attention. An ending ``@2`` keeps the second
    call alone of a module that one forward calls several times; a bare name stands for all calls.

    Raises: `InputError` for a glob that matches nothing, naming the nearest sites.
    """
    if not globs:
        return default_sites(model)
    names = [name for name, _ in model.named_modules() if name]
    wanted: dict[str, list[str]] = {name: [] for name in names}
    for pattern in globs:
        path, number = split_call(pattern)
        call = "" if number is None else f"@{number}"
        matches = [name for name in names if fnmatchcase(name, path)]
        if not matches or number == 0:
            near = difflib.get_close_matches(path, names, n=3, cutoff=0.0)
            raise InputError(
                f"site {pattern!r} matches no module of this {type(model).__name__}. "
                f"Nearest: {', '.join(near)}. `secant sites MODEL` lists all."
            )
        for name in matches:
            wanted[name].append(name + call)
    return [site for sites in wanted.values() for site in dict.fromkeys(sites)]
