"""Alignment: one model's units in the order in which they are most like another's.

Holds: ``align`` and its result ``Alignment``.
May import: torch, safetensors, ``secant.engine``, ``secant.errors``, ``secant.load``,
``secant.maps``, ``secant.uses``.
"""

from __future__ import annotations

import copy
import math
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secant.engine.files import folder_for, written_whole
from secant.engine.plan import Batch
from secant.errors import InputError
from secant.load.data import Units, load_data
from secant.load.feed import Feed
from secant.load.huggingface import quiet
from secant.load.models import Loaded, load_model
from secant.load.options import LoadOptions
from secant.maps.calls import without_cache
from secant.maps.graph import AGREEMENT, export
from secant.maps.permutations import Orders, permute
from secant.maps.symmetries import Symmetries, find_symmetries
from secant.uses.activations import activation_terms
from secant.uses.dissection import Inputs
from secant.uses.matching import Term, match

METHODS = ("weights", "activations")
WEIGHTS = (".safetensors", ".pt", ".pth", ".bin")
EXAMPLE_LENGTH = 8
Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Alignment:
    """A model with its units in another order: the same function, nearer to another model.

    `orders`: for each symmetric axis where its entries come from. `before` and `after`: the
    Euclidean distance of the two models' parameters. `difference`: the largest change of an
    output that reordering made, over the largest output, on an example.
    """

    model: nn.Module
    symmetries: Symmetries
    orders: Orders
    before: float
    after: float
    difference: float
    method: str
    name: str

    def moved(self, axis: int) -> int:
        """How many entries of the axis, over all its copies, are not where they were."""
        order = self.orders[axis]
        return int((order != torch.arange(order.shape[-1])).sum())

    def save(self, folder: Path) -> None:
        """Write the model as safetensors; a Hugging Face model with what lies beside it.

        Raises: `InputError` if it cannot be written.
        """
        try:
            with folder_for(folder):
                if hasattr(self.model, "save_pretrained"):
                    self._save_pretrained(folder)
                else:
                    with written_whole(folder / "model.safetensors") as part:
                        save_model(self.model, str(part))
        except OSError as error:
            raise InputError(
                f"--out {str(folder)!r} must be a folder that can be written to; "
                f"{error.strerror or error}. Choose another, or make room."
            ) from error

    def _save_pretrained(self, folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".part") as part:
            with quiet():
                self.model.save_pretrained(part)  # type: ignore[operator]
            source = Path(getattr(self.model, "name_or_path", ""))
            if (source / "config.json").is_file():
                beside = [p for p in source.iterdir() if p.is_file() and not _is_weights(p)]
                for path in beside:  # the configuration as it was, the tokenizer, the licence
                    shutil.copy2(path, part)
            for path in Path(part).iterdir():
                os.replace(path, folder / path.name)


def _is_weights(path: Path) -> bool:
    return path.suffix in {".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack"} or (
        path.name.endswith(".index.json")
    )


def align(
    a: str | nn.Module | Loaded,
    b: str | nn.Module | Loaded,
    data: Any = None,
    *,
    method: str = "weights",
    column: str = "text",
    rows: int | None = 512,
    batch_size: int = 32,
    seed: int = 0,
) -> Alignment:
    r"""Reorder the units of `b`, which stays the same function, to be most like those of `a`.

    The symmetries are found from the exported graph of `b`: see `secant.maps.symmetries`.
    `weights` seeks the orders P that make :math:`\sum \langle \theta_a, P \theta_b \rangle` over
    all parameters the largest, so the distance the smallest; `activations` the correlations of
    the units' activations on `data`. Both descend axis by axis: a local optimum, for which
    `seed` draws the order of the rounds.

    Args:
        a: `demo:NAME`, a Hugging Face directory, or a module in eval mode; it is not changed.
        b: one of the same architecture; it is not changed either.
        data: as in `survey`, or `Units` that were read already. `weights` needs but an example
            of the input; without data it is the digits for demo models, and random tokens or
            pixels for Hugging Face ones.

    Raises: `InputError` for models whose tensors differ, that cannot be exported, or whose
    function the reordering changes.

    Cost: an export; then for each round over the axes one linear assignment and two products
    an axis, n³ each for n units, and for heads one of each for every pair of heads.
    """
    if method not in METHODS:
        raise InputError(f"align: method must be one of {', '.join(METHODS)}; got {method!r}.")
    first, second = _as_loaded(a), _as_loaded(b)
    _check_alike(first, second)
    with without_cache(first.model), without_cache(second.model):
        if method == "activations":
            units = _units(second, data, column, rows)
            feeds = [
                Feed(each, units, groups=1, batch_size=batch_size, seed=seed)
                for each in (first, second)
            ]
            call = _call(feeds[1])
            symmetries, terms = activation_terms((feeds[0], feeds[1]))
        else:
            call = _example(second, data, column)
            symmetries = find_symmetries(export(second.model, second.name, *call), second.model)
            terms = weight_terms(first.model, second.model, symmetries)
        orders = match(symmetries, terms, torch.Generator().manual_seed(seed))
        del terms
        aligned = copy.deepcopy(second.model)
        permute(aligned, symmetries, orders)
        difference = _difference(second, aligned, call)
    return Alignment(
        aligned, symmetries, orders, distance(first.model, second.model),
        distance(first.model, aligned), difference, method, second.name,
    )  # fmt: skip


def load_pair(a: str, b: str, model: str | None) -> tuple[Loaded, Loaded]:
    """Two models by name; with `model`, a factory, two files of its weights.

    Raises: `InputError` for weights without a factory, and as `load_model` does.
    """
    if model is None and any(Path(name).suffix in WEIGHTS for name in (a, b)):
        raise InputError(
            f"align: weights files {a!r} and {b!r} need to be told their model. "
            "Give --model package.module:factory."
        )
    names = (a, b) if model is None else (model, model)
    files = (None, None) if model is None else (a, b)
    first, second = (
        load_model(name, LoadOptions(weights=file, dtype="keep"))
        for name, file in zip(names, files, strict=True)
    )
    return first, second


def _as_loaded(model: str | nn.Module | Loaded) -> Loaded:
    if isinstance(model, Loaded):
        return model
    return load_model(model, LoadOptions(dtype="keep"))


def _check_alike(first: Loaded, second: Loaded) -> None:
    """Refuse models whose tensors differ in name or shape."""
    ours, theirs = (
        {name: tuple(value.shape) for name, value in each.model.state_dict().items()}
        for each in (first, second)
    )
    names = [*ours, *(name for name in theirs if name not in ours)]
    unlike = [name for name in names if ours.get(name) != theirs.get(name)]
    if unlike:
        listed = "; ".join(
            f"{name} {ours.get(name, 'missing')} and {theirs.get(name, 'missing')}"
            for name in unlike[:10]
        )
        more = f" and {len(unlike) - 10} more" if len(unlike) > 10 else ""
        raise InputError(
            f"align: {first.name!r} and {second.name!r} must have the same tensors; "
            f"{len(unlike)} differ: {listed}{more}. Align models of one architecture."
        )


def _units(loaded: Loaded, data: Any, column: str, rows: int | None) -> Units:
    if isinstance(data, Units):
        return data.first(rows)
    if data is None and loaded.name.startswith("demo:"):
        data = "demo:digits"
    if data is None:
        raise InputError(
            f"align: model {loaded.name!r} needs data to run on; none was given. "
            "Give --data: a file, a tensor, or a DataLoader from Python."
        )
    return load_data(data, column, rows=rows)


def _example(loaded: Loaded, data: Any, column: str) -> Call:
    """Arguments for one call of the model: of the data, or made up for Hugging Face models."""
    config = getattr(loaded.model, "config", None)
    main = getattr(loaded.model, "main_input_name", None)
    if data is not None or config is None or main not in ("input_ids", "pixel_values"):
        units = _units(loaded, data, column, 2)
        return _call(Feed(loaded, units, groups=1, batch_size=2, seed=0))
    generator = torch.Generator().manual_seed(0)
    if main == "input_ids":
        text = config.get_text_config()
        ids = torch.randint(0, text.vocab_size, (2, EXAMPLE_LENGTH), generator=generator)
        names = ["input_ids", "decoder_input_ids"] if config.is_encoder_decoder else ["input_ids"]
        return (), {name: ids.to(loaded.device) for name in names}
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    pixels = torch.rand(2, config.num_channels, height, width, generator=generator)
    return (), {main: pixels.to(loaded.device, loaded.dtype)}


def _call(feed: Feed) -> Call:
    forward, _ = feed.forward(Inputs(), Batch(0, tuple(range(min(2, len(feed.units))))))
    args, kwargs = forward()
    return args, kwargs


def weight_terms(a: nn.Module, b: nn.Module, symmetries: Symmetries) -> list[Term]:
    """The parameters of two models on the axes of their symmetries."""
    relevant = {axis for s in symmetries for axis in (s.axis, *s.within)}
    ours, theirs = dict(a.named_parameters()), dict(b.named_parameters())
    terms = []
    for name, blocks in symmetries.blocks.items():
        for block in blocks if name in theirs else ():
            kept = [d for d, axis in enumerate(block.axes) if axis in relevant]
            if not kept:
                continue
            pair = []
            for value in (ours[name].detach(), theirs[name].detach()):
                wide = value if value.dtype == torch.float64 else value.float()
                front = block.read(wide.cpu()).movedim(kept, list(range(len(kept))))
                # With one dimension more than there are axes, of whatever is left.
                pair.append(front.reshape(*front.shape[: len(kept)], -1))
            terms.append(Term(tuple(block.axes[d] for d in kept), pair[0], pair[1]))
    return terms


def distance(a: nn.Module, b: nn.Module) -> float:
    """The Euclidean distance of two models' parameters."""
    theirs = dict(b.named_parameters())
    return math.sqrt(sum(
        float((p.detach().double().cpu() - theirs[name].detach().double().cpu()).square().sum())
        for name, p in a.named_parameters()
    ))  # fmt: skip


@torch.no_grad()
def _difference(loaded: Loaded, aligned: nn.Module, call: Call) -> float:
    """The largest change of an output over the largest output.

    Raises: `InputError` if it is more than sums in another order can differ by.
    """
    args, kwargs = call
    pair = []
    for model in (loaded.model, aligned):
        # Rounding of half precision would hide a wrong order.
        wide = copy.deepcopy(model).float() if loaded.dtype in _HALVES else model
        given = [_widened(v, loaded.dtype in _HALVES) for v in args]
        named = {k: _widened(v, loaded.dtype in _HALVES) for k, v in kwargs.items()}
        pair.append([
            v for v in tree_leaves(wide(*given, **named))
            if isinstance(v, Tensor) and v.is_floating_point()
        ])  # fmt: skip
    largest = 0.0
    for old, new in zip(*pair, strict=True):
        scale = old.abs().max().clamp_min(torch.finfo(old.dtype).tiny)
        largest = max(largest, float((new - old).abs().max() / scale))
    if not largest <= AGREEMENT:
        raise InputError(
            f"align: reordered, {loaded.name!r} must give the same outputs; they differ by "
            f"{largest:.1e} of the largest. Its forward pass is random or depends on what the "
            "exported graph does not hold: make it a function of its tensors."
        )
    return largest


_HALVES = (torch.bfloat16, torch.float16)


def _widened(value: Any, is_half: bool) -> Any:
    return (
        value.float()
        if is_half and isinstance(value, Tensor) and value.is_floating_point()
        else value
    )
