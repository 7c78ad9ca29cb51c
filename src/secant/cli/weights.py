"""Commands about linearity in the weights: `compare`, `align`, `merge`, `track`, `tune`.

Holds: these commands, as ``family``.
May import: typer, ``secant.cli.console``, ``secant.errors``; a command imports its one function
inside itself, so that ``--help`` loads no torch.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from secant.cli.console import LOADING, WEIGHTS, progress_bars, say, show
from secant.errors import InputError

family = typer.Typer()


@family.command(rich_help_panel=WEIGHTS)
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


@family.command(rich_help_panel=WEIGHTS)
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


@family.command(rich_help_panel=WEIGHTS)
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


@family.command(rich_help_panel=WEIGHTS)
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


@family.command(rich_help_panel=WEIGHTS)
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
