"""What a survey needs: `report`, `sites`, `diff`.

Holds: these commands, as ``family``.
May import: typer, ``secant.cli.console``, ``secant.errors``; a command imports its one function
inside itself, so that ``--help`` loads no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secant.cli.console import LOADING, SURVEY, progress_bars, say, show

family = typer.Typer()


@family.command(rich_help_panel=SURVEY)
def report(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="demo:NAME; a Hugging Face directory or hub id owner/name; a .gguf file; or "
            "package.module:factory, your own function, which is imported and called. "
            "All demo models if none."
        ),
    ] = None,
    data: Annotated[
        str, typer.Option(help="demo:digits, a data file or a folder of images.")
    ] = "demo:digits",
    column: Annotated[
        str, typer.Option(help="Text column of the records, or array of several.")
    ] = "text",
    base: Annotated[
        str | None,
        typer.Option(
            help="What MODELS were trained from, as MODELS are named; for a factory, its file of "
            "weights. Adds what lies between the two, as `secant compare BASE MODEL` reads it."
        ),
    ] = None,
    site: Annotated[list[str] | None, typer.Option(help="Site or glob; may repeat.")] = None,
    gauge: Annotated[
        list[str] | None,
        typer.Option(help="fit, chord, tangent, sum, homogeneity, pieces or kernel; all if none."),
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Use the first ROWS units.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Units a forward pass.")] = 32,
    seed: Annotated[
        int, typer.Option(min=-(2**63), max=2**63 - 1, help="Seed of folds and controls.")
    ] = 0,
    controls: Annotated[bool, typer.Option(help="Also survey fresh and shuffled weights.")] = True,
    out: Annotated[Path, typer.Option(help="Folder for report.json, report.html.")] = Path(
        "reports/latest"
    ),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run that was cut off in --out.")
    ] = False,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Weights of a factory's model: .safetensors, or .pt, .pth, .bin without code.",
            rich_help_panel=LOADING,
        ),
    ] = None,
    call: Annotated[
        str | None,
        typer.Option(
            help="package.module:function(model, batch) in place of model(batch); your own code.",
            rich_help_panel=LOADING,
        ),
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option(help="Column or array of labels.", rich_help_panel=LOADING),
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code",
            help="Run Python code that comes with a Hugging Face model.",
            rich_help_panel=LOADING,
        ),
    ] = False,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:1: what has float64.", rich_help_panel=LOADING)
    ] = "cpu",
    dtype: Annotated[
        str,
        typer.Option(
            help="float32, float64, bfloat16, float16, or keep for the checkpoint's own.",
            rich_help_panel=LOADING,
        ),
    ] = "float32",
) -> None:
    """Survey MODELS: how far each block is from a straight line, beside its controls.

    Example: secant report demo:cnn demo:linear --out reports/first
    """
    from secant.load.demo import DEMOS
    from secant.load.options import LoadOptions
    from secant.report.terminal import render_terminal
    from secant.uses.survey import survey

    loading = LoadOptions(weights, call, label_column, trust_remote_code, device, dtype)
    try:
        with progress_bars() as progress:
            found = survey(
                models or [f"demo:{name}" for name in DEMOS], data, base=base,
                column=column, loading=loading, sites=site, gauges=gauge, rows=rows,
                batch_size=batch_size, seed=seed, has_controls=controls, progress=progress,
                out=out, resume=resume,
            )  # fmt: skip
    except KeyboardInterrupt:
        typer.echo("secant: stopped. The same command with --resume goes on.", err=True)
        raise typer.Exit(130) from None
    show(*(part for model in found.models for part in render_terminal(model)))
    say(f"{out / 'report.json'}\n{out / 'report.html'}\n")


@family.command(rich_help_panel=SURVEY)
def sites(
    model: Annotated[str, typer.Argument(help="As for `secant report`.")],
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Run Python code that comes with the model."),
    ] = False,
) -> None:
    """List the sites of MODEL; those surveyed when none is named are marked with a star."""
    from secant.load.models import load_model
    from secant.load.options import LoadOptions
    from secant.maps.sites import default_sites

    module = load_model(model, LoadOptions(trust_remote_code=trust_remote_code)).model
    chosen = set(default_sites(module))
    for name, part in module.named_modules():
        if name:
            say(f"{'*' if name in chosen else ' '} {name}  {type(part).__name__}\n")


@family.command(rich_help_panel=SURVEY)
def diff(
    before: Annotated[Path, typer.Argument(help="A report.json.")],
    after: Annotated[Path, typer.Argument(help="Another, of the same sites.")],
    threshold: Annotated[
        float, typer.Option(min=0, help="Largest difference that counts as none.")
    ] = 0.02,
    gauge: Annotated[list[str] | None, typer.Option(help="Gauge; may repeat.")] = None,
    variant: Annotated[list[str] | None, typer.Option(help="Variant; may repeat.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Show the TOP largest differences.")] = 40,
) -> None:
    """Compare two reports: what AFTER reads less what BEFORE reads.

    Exit code 1 if a difference is larger than the threshold and its 95 % interval excludes 0, or
    if only one report has a number where both have a reading; 0 if none; 2 for bad input.
    Readings that only one report has are named and not counted.

    Example: secant diff before/report.json after/report.json --gauge fit --variant beyond
    """
    from secant.comparisons import diff as difference
    from secant.readings import Report
    from secant.report.terminal import render_comparison

    found = difference(Report.load(before), Report.load(after), gauges=gauge, variants=variant)
    exceeding = found.exceeding(threshold)
    show(*render_comparison(found, threshold, top))
    if exceeding:
        raise typer.Exit(1)
