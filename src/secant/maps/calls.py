"""Calls of modules inside one forward: told apart, watched, and changed.

Holds: ``intercept``, ``out_of_place`` and ``without_cache``, contexts; ``version_of``;
``first_tensor`` and ``with_first``, which read and replace the leading tensor of what a module
takes or returns.
May import: torch, ``secant.errors``.

A call of the model numbers the calls of each module within it: the first of module ``name`` is
the site ``name``, the second ``name@2``, and so on. A shared module thus has a site for each call.
"""

from __future__ import annotations

import copy
import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from secant.errors import InputError, ListenerError, SecantError

Interceptor = Callable[[str, nn.Module, Any, Any, Any], Any]


def first_tensor(value: Any, site: str, what: str) -> Tensor:
    """The leading tensor of a module's (possibly nested, possibly keyword) input or output."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, tuple | list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            if part is not None:
                return first_tensor(part, site, what)
    raise InputError(
        f"site {site!r}: expected a tensor as {what}, got {type(value).__name__}. "
        "Choose a site that takes and returns tensors."
    )


def with_first(value: Any, new: Tensor) -> Any:
    """The same structure with its leading tensor, as `first_tensor` finds it, replaced."""
    if isinstance(value, Tensor):
        return new
    if isinstance(value, dict):
        key = next(key for key, part in value.items() if part is not None)
        other = copy.copy(value)  # keeps the class: a Hugging Face output is an ordered dict
        other[key] = with_first(value[key], new)
        return other
    place = next(place for place, part in enumerate(value) if part is not None)
    parts = [*value[:place], with_first(value[place], new), *value[place + 1 :]]
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def split_call(site: str) -> tuple[str, int | None]:
    """Module path and number of the call in a site's name; None if it names no call."""
    name, at, number = site.rpartition("@")
    return (name, int(number)) if at and number.isdecimal() else (site, None)


def module_at(model: nn.Module, site: str) -> nn.Module:
    """The module of a site, or an `InputError` that names the nearest ones."""
    name, number = split_call(site)
    modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    if name not in modules or number == 0:
        near = difflib.get_close_matches(name, list(filter(None, modules)), n=3, cutoff=0.0)
        raise InputError(
            f"site {site!r} is no module of this {type(model).__name__}, or no call of one. "
            f"Nearest: {', '.join(near)}. Calls count from 1: name, name@2."
        )
    return modules[name]


@contextmanager
def out_of_place(model: nn.Module) -> Iterator[None]:
    """Modules with an `inplace` switch (ReLU and its kin) keep their input within, same values.

    Otherwise a site's input would be its output by the time that it can be read.
    """
    switched = [part for part in model.modules() if getattr(part, "inplace", False) is True]
    try:
        for part in switched:
            part.inplace = False  # type: ignore[assignment]
        yield
    finally:
        for part in switched:
            part.inplace = True  # type: ignore[assignment]


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written to; torch does not count for inference tensors."""
    return -1 if tensor.is_inference() else tensor._version


def _version_of_leading(value: Any) -> int | None:
    """The version of the leading tensor, None if there is none to speak of."""
    if isinstance(value, Tensor):
        return version_of(value)
    if isinstance(value, tuple | list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            if part is not None:
                return _version_of_leading(part)
    return None


@contextmanager
def intercept(model: nn.Module, sites: Sequence[str], interceptor: Interceptor) -> Iterator[None]:
    """Call `interceptor(site, module, args, kwargs, output)` after each call of a site within.

    A bare name stands for every call of its module, ``name@2`` for the second alone. What the
    interceptor returns, unless None, replaces the output. Hooks go at the end, also by an error.
    What the interceptor raises leaves the model's forward as a `ListenerError`, which whoever
    runs the model does not take for the model's own, and leaves this context as it was.

    Raises: `InputError` for a site that is no module of the model, or writes over its input.
    """
    wanted: dict[str, set[int | None]] = {}
    modules: dict[str, nn.Module] = {}
    for site in sites:
        name, number = split_call(site)
        wanted.setdefault(name, set()).add(number)
        modules[name] = module_at(model, site)
    counts: Counter[str] = Counter()
    versions: list[int | None] = []  # of the calls under way, the innermost last
    handles = []
    try:

        def begin(*_: Any) -> None:
            counts.clear()
            versions.clear()  # what an error in the last forward left

        handles.append(model.register_forward_pre_hook(begin))
        for name, numbers in wanted.items():

            def note(module: nn.Module, args: Any, kwargs: Any) -> None:
                versions.append(_version_of_leading(args if args else kwargs))

            def hook(
                module: nn.Module, args: Any, kwargs: Any, output: Any,
                name: str = name, numbers: set[int | None] = numbers,
            ) -> Any:  # fmt: skip
                counts[name] += 1
                call, version = counts[name], versions.pop()
                if _version_of_leading(args if args else kwargs) != version:
                    raise InputError(
                        f"site {name!r} writes over its own input, which can then not be read. "
                        "Choose the module around it, or write the operation out of place."
                    )
                if not numbers & {None, call}:
                    return None
                site = name if call == 1 else f"{name}@{call}"
                try:
                    return interceptor(site, module, args, kwargs, output)
                except (SecantError, ListenerError):
                    raise
                except Exception as error:
                    raise ListenerError(error) from error

            handles.append(modules[name].register_forward_pre_hook(note, with_kwargs=True))
            handles.append(modules[name].register_forward_hook(hook, with_kwargs=True))
        yield
    except ListenerError as error:
        raise error.cause from error.cause.__cause__
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """A decoder does not return its keys and values within: they would count as outputs."""
    config = getattr(model, "config", None)
    had = getattr(config, "use_cache", None)
    if had is None:
        yield
        return
    assert config is not None
    try:
        config.use_cache = False
        yield
    finally:
        config.use_cache = had
