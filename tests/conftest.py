"""Shapes in the fields of named tuples are checked in every test; the program can be run in one.

Holds: the fixture ``run``.
May import: pytest, ``shape_checks``, ``secant.gauges``, ``secant.cli``.
"""

import sys
from importlib import import_module
from pkgutil import iter_modules

import pytest

from secant import cli, gauges
from shape_checks import check_fields

for module in iter_modules(gauges.__path__, "secant.gauges."):
    check_fields(import_module(module.name))


@pytest.fixture
def run(monkeypatch, capfd):
    """Run the program with arguments; gives exit code, stdout and stderr."""

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["secant", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capfd.readouterr()
        return end.value.code or 0, out, err

    return call
