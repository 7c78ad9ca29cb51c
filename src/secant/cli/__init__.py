"""The command line: parses, calls one public function, prints. One file a family of commands.

Holds: ``app`` with all its commands, and ``main``.
May import: typer, ``secant.errors``, the files of this folder.
"""

from __future__ import annotations

import sys

import typer

from secant.cli import inputs, recurrences, studying, surveying, weights
from secant.cli.console import app
from secant.errors import SecantError

for each in (surveying, inputs, weights, recurrences, studying):
    app.add_typer(each.family)


def main() -> None:
    """Run the program; an error that secant raises on purpose is one line and exit code 2."""
    try:
        app()
    except SecantError as error:
        typer.echo(f"secant: {' '.join(str(error).split())}", err=True)
        sys.exit(2)
