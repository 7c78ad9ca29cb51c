"""The command line: parses, calls one public function, prints.

Holds: the typer ``app`` and ``main``.
May import: typer, rich, ``secant.errors``; a command imports its one function inside itself, so
that ``--help`` loads no torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from secant.errors import InputError, SecantError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Secant says in which sense, where and how far a neural network is linear.",
)
LOADING = "Loading"
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
    console = Console()
    if not console.is_terminal:
        options = console.options.update(max_width=10_000)
        widths = [
            Measurement.get(console, options, part).maximum
            for part in parts
            if not isinstance(part, str)
        ]
        console = Console(width=max(console.width, *widths))
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    say(captured.get())


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """On stderr a bar for each label that is told, with units done and total.

    Off in pipes and erased at the end: an error is then the only line on stderr.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    err = Console(stderr=True)
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(label: str, done: int, total: int) -> None:
            if label not in tasks:
                tasks[label] = bars.add_task(label, total=total)
            bars.update(tasks[label], completed=done)

        yield progress


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="As for `secant report`.")],
    b: Annotated[str, typer.Argument(help="Another checkpoint of the same architecture.")],
    base: Annotated[
        str | None, typer.Option(help="What both were trained from: compares task vectors.")
    ] = None,
    data: Annotated[
        str, typer.Option(help="demo:digits, a data file or a folder of images.")
    ] = "demo:digits",
    column: Annotated[str, typer.Option(help="Text column, or array of several.")] = "text",
    align: Annotated[
        bool, typer.Option("--align", help="First put B's units in the order most like A's.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Rescale channels along the path (REPAIR).")
    ] = False,
    steps: Annotated[int, typer.Option(min=2, help="Steps of the path.")] = 10,
    rows: Annotated[int | None, typer.Option(min=1, help="Use the first ROWS units.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Units a forward pass.")] = 32,
    seed: Annotated[
        int, typer.Option(min=-(2**63), max=2**63 - 1, help="Seed of groups and controls.")
    ] = 0,
    controls: Annotated[bool, typer.Option(help="Also random steps and fresh weights.")] = True,
    out: Annotated[Path | None, typer.Option(help="Folder for report.json, report.html.")] = None,
    weights: Annotated[
        list[Path] | None,
        typer.Option(
            help="Weights of a factory's models; once for each, A, B, base.",
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
        str | None, typer.Option(help="Column or array of labels.", rich_help_panel=LOADING)
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
        str, typer.Option(help="As for `secant report`.", rich_help_panel=LOADING)
    ] = "float32",
) -> None:
    """Lay a line from the weights of A to those of B: displacement, loss and barrier, first order.

    Example: secant compare runs/first runs/second --data held_out.jsonl --label-column label
    """
    from secant.load.options import LoadOptions
    from secant.report.paths import render_paths
    from secant.uses.paths import compare

    loading = LoadOptions(None, call, label_column, trust_remote_code, device, dtype)
    with progress_bars() as progress:
        found = compare(
            a, b, data, base=base, column=column, loading=loading, weights=weights or (), rows=rows,
            batch_size=batch_size, steps=steps, seed=seed, align=align, has_repair=repair,
            has_controls=controls, progress=progress, out=out,
        )  # fmt: skip
    show(*(part for model in found.models for part in render_paths(model)))
    if out is not None:
        say(f"{out / 'report.json'}\n{out / 'report.html'}\n")


@app.command()
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


@app.command()
def align(
    a: Annotated[str, typer.Argument(help="demo:NAME, a Hugging Face directory, or see --model.")],
    b: Annotated[str, typer.Argument(help="Another of the same architecture.")],
    model: Annotated[
        str | None,
        typer.Option(help="package.module:factory that A and B, two weights files, belong to."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="demo:digits or a data file; needed for activations.")
    ] = None,
    column: Annotated[str, typer.Option(help="Text column of .jsonl and .csv.")] = "text",
    method: Annotated[str, typer.Option(help="weights or activations.")] = "weights",
    rows: Annotated[int, typer.Option(min=1, help="Use the first ROWS units.")] = 512,
    seed: Annotated[int, typer.Option(help="Seed of the order of the search.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for B in its new order.")] = None,
) -> None:
    """Put the units of B, which stays the same function, in the order most like those of A.

    The symmetries are found from B's graph and listed; the outputs of B before and after are
    compared.

    Example: secant align demo:mlp other/ --out aligned
    """
    from secant.report.alignment import render_alignment
    from secant.uses.align import align, load_pair

    first, second = load_pair(a, b, model)
    found = align(first, second, data, method=method, column=column, rows=rows, seed=seed)
    if out is not None:
        found.save(out)
    show(*render_alignment(found))
    if out is not None:
        say(f"{out}\n")


def one_or_each(numbers: list[float] | None) -> float | list[float] | None:
    """A repeated option: None if not given, one number for all if given once."""
    return numbers[0] if numbers and len(numbers) == 1 else numbers or None


@app.command()
def merge(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Two or more of: a Hugging Face directory, a .safetensors file, an index of "
            "shards, a state dict (.pt, .pth, .bin). All of one architecture and one vocabulary."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="New folder for the merged model.")] = Path("merged"),
    method: Annotated[
        str | None,
        typer.Option(
            help="linear: the weighted mean. slerp: along the arc from A to B. task_arithmetic: "
            "base plus weighted changes. ties: changes trimmed, a sign elected for each value. "
            "dare_linear, dare_ties: changes dropped at random, the rest scaled up. "
            "linear if none.",
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Where the models' changes are counted from.")
    ] = None,
    weight: Annotated[
        list[float] | None,
        typer.Option(help="Weight of all models, or once for each in order; 1 if none."),
    ] = None,
    density: Annotated[
        list[float] | None,
        typer.Option(help="Share of changes that ties and dare keep; as --weight."),
    ] = None,
    t: Annotated[float | None, typer.Option(help="For slerp: 0 is A, 1 is B.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML recipe in mergekit's form, in place of models and numbers."),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=-(2**63), max=2**63 - 1, help="Seed of what dare drops.")
    ] = 0,
    data: Annotated[
        str | None, typer.Option(help="Judge the merge on demo:digits or a data file.")
    ] = None,
    column: Annotated[str, typer.Option(help="Text column, or array of several.")] = "text",
    label_column: Annotated[str | None, typer.Option(help="Column or array of labels.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Judge on the first ROWS units.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="package.module:factory that plain weights belong to, to judge them."),
    ] = None,
) -> None:
    """Merge MODELS into one: new weights of the same architecture, with configuration and card.

    Tensors are read, merged and written piece by piece, so a model may be larger than memory.
    What does not fit together is refused before anything is written. With --data, loss and
    accuracy of the merged model stand beside its parents', with the barrier between two of them.

    Example: secant merge tuned-a tuned-b --base pretrained --method ties --density 0.3 --out both
    """
    from secant.uses.merge import Merge, merge_recipe, recipe_of

    options = {
        "MODELS": models, "--method": method, "--base": base, "--weight": weight,
        "--density": density, "--t": t,
    }  # fmt: skip
    given = [name for name, value in options.items() if value not in (None, [])]
    if config is not None and given:
        raise InputError(
            f"--config has models and numbers of its own; got {', '.join(given)} as well. "
            "Leave these out, or write them into the file."
        )
    if config is not None:
        from secant.uses.recipe_files import read_recipe

        recipe = read_recipe(config)
    else:
        recipe = recipe_of(
            models or [], method=method or "linear", base=base, t=t,
            weight=one_or_each(weight), density=one_or_each(density),
        )  # fmt: skip
    made: list[Merge] = []
    judged = None
    with progress_bars() as progress:

        def write() -> Path:
            made.append(merge_recipe(recipe, out, seed=seed, progress=progress))
            return out

        if data is None:
            write()
        else:
            from secant.uses.judge import judge

            judged = judge(
                write, recipe.parents, data, base=recipe.origin, factory=model, column=column,
                label_column=label_column, rows=rows, seed=seed, progress=progress,
            )  # fmt: skip
    (done,) = made
    say("".join(f"{note}\n" for note in done.notes))
    say(f"{done.tensors} tensors, {done.bytes / 1e6:.1f} MB -> {done.folder}\n")
    if judged is not None:
        from secant.report.judge import render_judgement

        show(*render_judgement(judged.models[0]))
        say(f"{out / 'judgement.json'}\n")


@app.command()
def study(
    name: Annotated[str, typer.Argument(help="cover, pieces, rounding or wide-nets.")],
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

    from secant.errors import InputError
    from secant.report.findings import finding_table
    from secant.studies import ON_DATA, STUDIES

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


@app.command()
def track(
    run: Annotated[Path, typer.Argument(help="What `Tracker.save` wrote.")],
    out: Annotated[Path | None, typer.Option(help="Also write a page with the curves.")] = None,
) -> None:
    """Show a training run that `secant.Tracker` watched.

    Example: secant track run.json --out run.html
    """
    from dataclasses import asdict

    from secant.readings import writable, write
    from secant.report.track import render_track, track_table, track_words
    from secant.uses.track import Track

    found = asdict(Track.load(run))
    if out is not None:
        with writable(out.parent):
            write(out, render_track(found))
    show(track_table(found), track_words(found))
    if out is not None:
        say(f"{out}\n")


@app.command()
def tune(
    model: Annotated[str, typer.Argument(help="As for `secant report`.")],
    data: Annotated[str, typer.Option(help="demo:digits or a data file.")] = "demo:digits",
    column: Annotated[str, typer.Option(help="Text column of .jsonl and .csv.")] = "text",
    label_column: Annotated[
        str | None, typer.Option(help="Column or array of classes, words or whole numbers.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Use the first ROWS units.")] = 512,
    batch_size: Annotated[int, typer.Option(min=1, help="Units a forward pass.")] = 32,
    seed: Annotated[
        int, typer.Option(min=-(2**62), max=2**62, help="Seed of the split and of new layers.")
    ] = 0,
    out: Annotated[Path | None, typer.Option(help="Also write the readings as JSON.")] = None,
) -> None:
    """Fit MODEL to labelled data in closed form, beside its last layer alone and fine-tuning.

    Half of the units are fitted, by each way the same; accuracies are those on the other half.

    Example: secant tune FOLDER --data reviews.csv --label-column label
    """
    from secant.readings import writable
    from secant.report.tune import plain_words, render_tune
    from secant.uses.tune import tune

    with nullcontext() if out is None else writable(out.parent):
        with progress_bars() as progress:
            found = tune(
                model, data, column=column, label_column=label_column, rows=rows,
                batch_size=batch_size, seed=seed, progress=progress,
            )  # fmt: skip
        if out is not None:
            found.save(out)
    show(render_tune(found))
    say("".join(f"{line}\n" for line in plain_words(found)))
    if out is not None:
        say(f"{out}\n")


@app.command()
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


@app.command()
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


@app.command()
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


def main() -> None:
    """Run the program; an error that secant raises on purpose is one line and exit code 2."""
    try:
        app()
    except SecantError as error:
        typer.echo(f"secant: {' '.join(str(error).split())}", err=True)
        sys.exit(2)
