"""What executes the shapes in annotations while the tests run.

Holds: ``checked``, the checker that pytest's ``--jaxtyping-packages`` applies to every function;
``check_fields``, the same for the fields of named tuples.
May import: beartype, jaxtyping.
"""

from types import ModuleType
from typing import get_type_hints

from beartype import BeartypeConf, beartype
from jaxtyping import jaxtyped

# An int is a float here, as it is to mypy.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check_fields(module: ModuleType) -> None:
    """Check the named tuples of `module` when they are made.

    The import hook sees to functions and dataclasses. A named tuple's `__new__` is generated, so
    no hook sees it.
    """
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and hasattr(value, "_fields")
        and value.__module__ == module.__name__
    ]
    for kind in found:
        kind.__new__.__annotations__ = get_type_hints(kind)
        kind.__new__ = jaxtyped(kind.__new__, typechecker=checked)
