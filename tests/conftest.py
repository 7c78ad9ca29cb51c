"""Shapes in the fields of named tuples are checked in every test; the program can be run in one.

Laws are drawn from a fixed seed, so that one commit has one verdict; ``make soak`` draws new ones.

Holds: the fixture ``run``, the Hypothesis profiles ``steady`` and ``soak``.
May import: hypothesis, pytest, torch, ``shape_checks``, ``secant.gauges``, ``secant.cli``.
"""

import os
import sys
from importlib import import_module
from pkgutil import iter_modules

import pytest
import torch
from hypothesis import settings

from secant import cli, gauges
from shape_checks import check_fields

# Without a device Triton's kernels are run by its interpreter; asked before triton is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

for module in iter_modules(gauges.__path__, "secant.gauges."):
    check_fields(import_module(module.name))

settings.register_profile("steady", derandomize=True, deadline=None)
settings.register_profile("soak", max_examples=1000, deadline=None)
settings.load_profile("steady")


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
