"""The command `study`: one claim of the debate as an experiment.

Holds: these commands, as ``family``.
May import: typer, ``secant.cli.console``, ``secant.errors``; a command imports its one function
inside itself, so that ``--help`` loads no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secant.cli.console import STUDIES as PANEL
from secant.cli.console import progress_bars, say, show
from secant.errors import InputError
from secant.studies import STUDIES

family = typer.Typer()


@family.command(rich_help_panel=PANEL)
def study(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(STUDIES)}.")],
    out: Annotated[Path, typer.Option(help="Folder for study.json, study.html.")],
    data: Annotated[
        str | None,
        typer.Option(help="demo:digits or a data file, for rounding; demo:digits if none."),
    ] = None,
    column: Annotated[str, typer.Option(help="Array of the rows in --data.")] = "x",
    label_column: Annotated[
        str | None, typer.Option(help="Column or array of classes in --data.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31, help="Seed of data and weights.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run that was cut off in --out.")
    ] = False,
) -> None:
    """Try a claim of the debate: a verdict, its numbers, and the published figure beside them.

    Example: secant study wide-nets --out reports/wide-nets
    """
    from importlib import import_module

    from secant.report.findings import finding_table
    from secant.studies import ON_DATA

    if name not in STUDIES:
        raise InputError(f"no study is called {name!r}. There is: {', '.join(STUDIES)}.")
    if name not in ON_DATA and (data is not None or label_column is not None):
        raise InputError(
            f"study {name!r} makes its own data; got --data or --label-column. Leave both out. "
            f"On data of yours run: {', '.join(sorted(ON_DATA))}."
        )
    more = {"data": data or "demo:digits", "column": column, "label_column": label_column}
    try:
        with progress_bars() as progress:
            found = import_module(STUDIES[name]).study(
                seed=seed, out=out, resume=resume, progress=progress,
                **(more if name in ON_DATA else {}),
            )  # fmt: skip
    except KeyboardInterrupt:
        typer.echo("secant: stopped. The same command with --resume goes on.", err=True)
        raise typer.Exit(130) from None
    show(finding_table(found.as_dict()), found.words)
    say(f"{out / 'study.json'}\n{out / 'study.html'}\n")
