"""Commands about linearity in the inputs: `anatomy`, `collapse`, `gating`, `replace`, `separable`.

Holds: these commands, as ``family``.
May import: typer, ``secant.cli.console``, ``secant.errors``; a command imports its one function
inside itself, so that ``--help`` loads no torch.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from secant.cli.console import INPUTS, LOADING, progress_bars, say, show

family = typer.Typer()


@family.command(rich_help_panel=INPUTS)
def anatomy(
    model: Annotated[str, typer.Argument(help="demo:NAME or a Hugging Face directory.")],
    data: Annotated[str, typer.Option(help="demo:digits or a data file.")] = "demo:digits",
    column: Annotated[str, typer.Option(help="Text column of .jsonl and .csv.")] = "text",
    rows: Annotated[int, typer.Option(min=1, help="Use the first ROWS units.")] = 512,
    batch_size: Annotated[int, typer.Option(min=1, help="Units a forward pass.")] = 32,
    seed: Annotated[
        int, typer.Option(min=-(2**63), max=2**63 - 1, help="Seed of the split into halves.")
    ] = 0,
    out: Annotated[Path | None, typer.Option(help="Also write the readings as JSON.")] = None,
) -> None:
    """List what in MODEL is not affine, and what each such operation is worth.

    Each is replaced alone by its best affine fit, and the change of the output (and of the
    loss where the data has labels) is measured on units that the fit has not seen.

    Example: secant anatomy demo:transformer
    """
    from secant.readings import writable
    from secant.report.anatomy import notes, plain_words, render_anatomy
    from secant.uses.anatomy import anatomy

    with nullcontext() if out is None else writable(out.parent):
        with progress_bars() as progress:
            found = anatomy(
                model, data, column=column, rows=rows, batch_size=batch_size, seed=seed,
                progress=progress,
            )  # fmt: skip
        if out is not None:
            found.save(out)
    if found.readings:
        show(render_anatomy(found))
    say("".join(f"{line}\n" for line in [plain_words(found), *notes(found)]))
    if out is not None:
        say(f"{out}\n")


@family.command(rich_help_panel=INPUTS)
def collapse(
    model: Annotated[str, typer.Argument(help="As for `secant report`.")],
    out: Annotated[Path, typer.Option(help="Folder of the collapsed model.")],
    data: Annotated[str, typer.Option(help="demo:digits or a data file.")] = "demo:digits",
    column: Annotated[str, typer.Option(help="Text column of .jsonl and .csv.")] = "text",
    weights: Annotated[
        Path | None, typer.Option(help="Weights of a package.module:factory.")
    ] = None,
    rows: Annotated[int, typer.Option(min=2, help="Units that outputs are compared on.")] = 64,
    batch_size: Annotated[int, typer.Option(min=2, help="Units a forward pass.")] = 32,
    dtype: Annotated[str | None, typer.Option(help="Type of the weights; as they are.")] = None,
    untie: Annotated[
        bool, typer.Option("--untie", help="Also join weights that an embedding shares.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the batches.")] = 0,
) -> None:
    """Join everything in MODEL that is exactly affine, where that saves work, and save it.

    Linear maps, convolutions, BatchNorm, scales, linear residuals and the weights of norms are
    joined in float64 and held against the model on data. The folder holds model.safetensors and
    model.pt2, which torch.export.load runs.

    Example: secant collapse demo:linear --out collapsed
    """
    from secant.load.options import LoadOptions
    from secant.report.collapse import plain_words, render_collapse
    from secant.uses.collapse_run import collapse_to

    with progress_bars() as progress:
        found = collapse_to(
            out, model, data, column=column, loading=LoadOptions(weights=weights, dtype=dtype),
            rows=rows, batch_size=batch_size, seed=seed, is_untying=untie, progress=progress,
        )  # fmt: skip
    show(*render_collapse(found))
    say("".join(f"{line}\n" for line in plain_words(found)))
    say("".join(f"{out / name}\n" for name in [*found.files, "collapse.json"]))


@family.command(rich_help_panel=INPUTS)
def gating(
    model: Annotated[str, typer.Argument(help="As for `secant report`.")],
    data: Annotated[str, typer.Option(help="demo:digits or a file of tensors.")] = "demo:digits",
    column: Annotated[str, typer.Option(help="Array, where the file has several.")] = "text",
    rows: Annotated[int, typer.Option(min=3, help="Use the first ROWS units.")] = 512,
    batch_size: Annotated[int, typer.Option(min=1, help="Units a forward pass.")] = 64,
    seed: Annotated[
        int, typer.Option(min=0, max=2**62, help="Seed of the sample and of fresh weights.")
    ] = 0,
    has_slice: Annotated[
        bool, typer.Option("--slice", help="Also the plane through three inputs; with --out too.")
    ] = False,
    controls: Annotated[bool, typer.Option(help="Also fresh weights.")] = True,
    out: Annotated[
        Path | None, typer.Option(help="Folder for gating.json, gating.html with the slice.")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="Weights of a factory's model.", rich_help_panel=LOADING),
    ] = None,
) -> None:
    """Say which units of a piecewise linear MODEL decide anything, and how far one map reaches.

    Units on for all, some or none of the data, layer by layer; the distance from an input to the
    nearest boundary; the exact affine pieces between inputs and in a slice, drawn.

    Example: secant gating demo:mlp --out reports/gating
    """
    from secant.load.options import LoadOptions
    from secant.readings import writable
    from secant.report.gating import gating_words, render_gating
    from secant.uses.gating import gating

    with nullcontext() if out is None else writable(out):
        with progress_bars() as progress:
            found = gating(
                model, data, column=column, loading=LoadOptions(weights), rows=rows,
                batch_size=batch_size, seed=seed, has_slice=has_slice or out is not None,
                has_control=controls, progress=progress,
            )  # fmt: skip
        if out is not None:
            from secant.report.gating_page import render_page

            found.save(out, render_page(found))
    show(*render_gating(found))
    say("".join(f"{line}\n" for line in [gating_words(found), *found.notes]))
    if out is not None:
        say(f"{out / 'gating.json'}\n{out / 'gating.html'}\n")


@family.command(rich_help_panel=INPUTS)
def replace(
    model: Annotated[str, typer.Argument(help="As for `secant report`.")],
    out: Annotated[Path, typer.Option(help="Folder of the cheaper model and its report.")],
    data: Annotated[str, typer.Option(help="demo:digits or a data file.")] = "demo:digits",
    budget: Annotated[
        list[float] | None,
        typer.Option(help="How far the loss may rise; may repeat. 0.05, 0.1 and 0.2 if none."),
    ] = None,
    site: Annotated[list[str] | None, typer.Option(help="Candidate or glob; may repeat.")] = None,
    column: Annotated[str, typer.Option(help="Text column of .jsonl and .csv.")] = "text",
    label_column: Annotated[str | None, typer.Option(help="Column or array of classes.")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Weights of a package.module:factory.")
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Use the first ROWS units.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Units a forward pass.")] = 32,
    most: Annotated[int, typer.Option(min=1, help="Candidates that are tried, each alone.")] = 48,
    draws: Annotated[int, typer.Option(min=1, help="Orders of random drops.")] = 8,
    heal: Annotated[
        int, typer.Option(min=0, help="Steps that train what was put in, towards the model.")
    ] = 0,
    dtype: Annotated[str | None, typer.Option(help="Type of the weights; as they are.")] = None,
    device: Annotated[str | None, typer.Option(help="Where to run, such as cuda.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the three sets and of random drops.")] = 0,
) -> None:
    """Replace blocks of MODEL by their affine fits, or drop them, within a budget of loss.

    Maps are fitted on one set of units, the set of blocks is chosen on a second, and all that is
    told is of a third: products, parameters and time saved, beside blocks dropped at random and by
    block influence. The folder holds model.safetensors and model.pt2, which torch.export.load runs.

    Example: secant replace demo:transformer --out replaced
    """
    from secant.load.options import LoadOptions
    from secant.report.replace import render_replace, replace_words
    from secant.report.replace_page import render_replace_page
    from secant.uses.replace import BUDGETS
    from secant.uses.replace import replace as replaced

    loading = LoadOptions(weights, label_column=label_column, dtype=dtype, device=device)
    with progress_bars() as progress:
        found = replaced(
            model, data, budgets=budget or BUDGETS, sites=site, column=column, loading=loading,
            rows=rows, batch_size=batch_size, most=most, draws=draws, heal=heal, seed=seed,
            progress=progress, out=out,
        )  # fmt: skip
    found.save(out, render_replace_page(found))
    show(*render_replace(found))
    say("".join(f"{line}\n" for line in replace_words(found)))
    say("".join(f"{out / name}\n" for name in [*found.files, "replace.json", "replace.html"]))


@family.command(rich_help_panel=INPUTS)
def separable(
    data: Annotated[
        str,
        typer.Argument(
            help="Rows of numbers: .npz, .safetensors, .csv, .jsonl, demo:digits. With --model "
            "any data that it takes."
        ),
    ],
    label_column: Annotated[
        str | None, typer.Option(help="Column or array of classes, words or whole numbers.")
    ] = None,
    column: Annotated[
        str, typer.Option(help="Array of several; with --model the text column.")
    ] = "text",
    model: Annotated[
        str | None, typer.Option(help="Adds the features at its sites; as for `secant report`.")
    ] = None,
    site: Annotated[list[str] | None, typer.Option(help="Site or glob; may repeat.")] = None,
    lift: Annotated[
        list[str] | None,
        typer.Option(
            help="none, squash, tanh, degree-2, degree-3, random or random:COUNT; may repeat."
        ),
    ] = None,
    pairs: Annotated[bool, typer.Option("--pairs", help="Also each class from each.")] = False,
    rows: Annotated[int | None, typer.Option(min=1, help="Use the first ROWS units.")] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Seed of random features and shuffles.")
    ] = 0,
    out: Annotated[Path | None, typer.Option(help="Also write the certificates as JSON.")] = None,
) -> None:
    """Decide whether the classes of DATA are linearly separable, with a checked certificate.

    Each class from all others, by a plane with a bias, in each lift's coordinates.

    Example: secant separable demo:digits --lift none --lift degree-2
    """
    from secant.readings import writable
    from secant.report.separable import plain_words, render_separable
    from secant.uses.separable import separable as decided

    with nullcontext() if out is None else writable(out.parent):
        with progress_bars() as progress:
            found = decided(
                data, column=column, label_column=label_column, model=model, sites=site,
                lifts=lift, has_pairs=pairs, rows=rows, seed=seed, progress=progress,
            )  # fmt: skip
        if out is not None:
            found.save(out)
    show(render_separable(found))
    say("".join(f"{line}\n" for line in plain_words(found)))
    if out is not None:
        say(f"{out}\n")
