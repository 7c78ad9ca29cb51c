"""What every command uses: the app, output that survives pipes, progress bars.

Holds: the typer ``app``, ``say``, ``show``, ``progress_bars``, the names of the panels of help.
May import: typer, rich.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Secant says in which sense, where and how far a neural network is linear.",
)
LOADING = "Loading"
SURVEY = "Survey a model"
WEIGHTS = "Linear in the weights"
TIME = "Linear in time"
INPUTS = "Linear in the inputs"
STUDIES = "Claims as experiments"
"""Panels of ``secant --help``, and of a command's options."""
PIPE_CLOSED = 128 + 13
"""What a shell says of a program that SIGPIPE ended."""


def say(text: str) -> None:
    """Write to stdout; a reader that has gone, as `head` goes, ends the program without a word."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more as it ends, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(PIPE_CLOSED) from None


def show(*parts: RenderableType) -> None:
    """Say tables and paragraphs, in a pipe or file as wide as their numbers and names need."""
    # Names come from users: `speak:speaker: bends` is no picture of a loudspeaker.
    console = Console(emoji=False)
    if not console.is_terminal:
        options = console.options.update(max_width=10_000)
        widths = [
            Measurement.get(console, options, part).maximum
            for part in parts
            if not isinstance(part, str)
        ]
        console = Console(width=max(console.width, *widths), emoji=False)
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    say(captured.get())


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """On stderr a bar for each label that is told, with units done and total.

    Off in pipes and erased at the end: an error is then the only line on stderr.
    """
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn())
    err = Console(stderr=True)
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(label: str, done: int, total: int) -> None:
            if label not in tasks:
                tasks[label] = bars.add_task(label, total=total)
            bars.update(tasks[label], completed=done)

        yield progress
