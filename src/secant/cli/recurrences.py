"""Commands about linearity in time: `linearize-state`.

Holds: these commands, as ``family``.
May import: typer, ``secant.cli.console``, ``secant.errors``; a command imports its one function
inside itself, so that ``--help`` loads no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secant.cli.console import TIME, progress_bars, say, show

family = typer.Typer()


@family.command(rich_help_panel=TIME)
def linearize_state(
    model: Annotated[str, typer.Argument(help="As for `secant report`.")],
    out: Annotated[Path, typer.Option(help="Folder of the model with linear states.")],
    data: Annotated[str, typer.Option(help="demo:digits or a data file.")] = "demo:digits",
    column: Annotated[str, typer.Option(help="Text column of .jsonl and .csv.")] = "text",
    label_column: Annotated[
        str | None, typer.Option(help="Column or array of classes, words or whole numbers.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Weights of a package.module:factory.")
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(min=0, help="Most by which the loss may grow in all; no bound if none."),
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Use the first ROWS units.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Units a forward pass.")] = 32,
    seed: Annotated[int, typer.Option(min=0, max=2**62, help="Seed of the two halves.")] = 0,
) -> None:
    """Replace the RNNs, GRUs and LSTMs of MODEL by the linear recurrences that fit them best.

    Each layer is fitted on half of the units and runs as a scan; the other half says what that
    costs. `secant report` says beforehand how linear each layer's steps are.

    Example: secant linearize-state demo:gru --out linear
    """
    from secant.load.options import LoadOptions
    from secant.readings import writable
    from secant.report.linear_state import plain_words, render_linear_state
    from secant.uses.linearize_state import linearize_state as linearized

    with writable(out), progress_bars() as progress:
        found = linearized(
            model, data, column=column,
            loading=LoadOptions(weights=weights, label_column=label_column), budget=budget,
            rows=rows, batch_size=batch_size, seed=seed, progress=progress,
        )  # fmt: skip
        files = found.save(out)
    show(render_linear_state(found))
    say("".join(f"{line}\n" for line in [*plain_words(found), *map(str, files)]))
