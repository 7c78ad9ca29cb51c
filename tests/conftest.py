"""Shapes in the fields of named tuples are checked in every test.

Holds: nothing to import.
May import: ``shape_checks``, ``secant.gauges``.
"""

from importlib import import_module
from pkgutil import iter_modules

from secant import gauges
from shape_checks import check_fields

for module in iter_modules(gauges.__path__, "secant.gauges."):
    check_fields(import_module(module.name))
