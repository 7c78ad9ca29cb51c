"""How far a model is from where it started: in its weights, to first order, and in its kernel.

Holds: ``Motion``; ``kernel_drift`` and ``kernel_alignment``, on kernels; ``displacements``;
``sketched``, outputs of which there are too many, ``in_rows``.
May import: torch, ``secant.errors``, ``secant.gauges.tangent``, ``secant.maps``,
``secant.readings``, ``secant.uses.kernel``.

All is measured on a copy in eval mode: the model, its modes, gradients and buffers
stay as they are, and torch's random states are put back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor, nn
from torch.nn import functional

from secant.errors import InputError
from secant.gauges.tangent import tangent_from_sums, tangent_sums
from secant.maps.derivatives import DTYPES, derivatives, prepared_copy
from secant.maps.weights import Batch, WeightsMap, rows_of, run
from secant.readings import number
from secant.uses.kernel import kernel

ROWS = 64
"""Most rows that are measured on; more are drawn from."""
MOST_OUTPUTS = 16
"""Outputs of a row, each of which costs a backward; more are sketched into so many."""
WHOLE = "(model)"


def kernel_drift(one: Float64[Tensor, "n n"], other: Float64[Tensor, "n n"]) -> float | None:
    r"""Turn of one kernel against the other, whatever their scales.

    .. math:: S = 1 - \langle K, K' \rangle / (|K| |K'|)

    0: proportional; 1: without a common part; None where a kernel is 0 or not finite. Taken as
    half the squared distance of the kernels at norm 1, which is the same and rounds to 0 at 0.

    Source: Fort et al. 2020, arXiv:2010.15110, sec. 3 (kernel distance).
    """
    return number(float((one / one.norm() - other / other.norm()).square().sum() / 2))


def kernel_alignment(gram: Float64[Tensor, "n n"], targets: Float64[Tensor, "n k"]) -> float | None:
    r"""Centred alignment of a kernel with the kernel of the labels.

    .. math:: \langle HKH, HYY'H \rangle / (|HKH| |HYY'H|),\quad H = 1 - 11'/n

    For one centred column y of labels and centred K this is y'Ky / (|K| |y|²). 1: the kernel is
    that of the labels; 0: no common part. None where either has no part that varies.

    Source: Cortes et al. 2012, JMLR 13, def. 4.
    """
    left, right = _centred(gram), _centred(targets @ targets.T)
    return number(float((left * right).sum() / (left.norm() * right.norm())))


def _centred(gram: Tensor) -> Tensor:
    return gram - gram.mean(0) - gram.mean(1, keepdim=True) + gram.mean()


def displacements(
    start: Mapping[str, Tensor], now: Mapping[str, Tensor]
) -> tuple[float | None, dict[str, float | None]]:
    """|w - w0| / |w0| of all parameters, and of each module that holds some; None where w0 is 0."""
    layers: dict[str, list[float]] = {}
    for name, one in start.items():
        of_layer = layers.setdefault(name.rpartition(".")[0] or WHOLE, [0.0, 0.0])
        of_layer[0] += float((now[name] - one).double().square().sum())
        of_layer[1] += float(one.double().square().sum())
    whole = [sum(one[part] for one in layers.values()) for part in (0, 1)]
    return _length(*whole), {name: _length(*one) for name, one in layers.items()}


def _length(moved: float, start: float) -> float | None:
    return number((moved / start) ** 0.5) if start > 0 else None


class Motion:
    """A model's starting point, and what is measured between it and where the model is now.

    Of more than `ROWS` rows so many are drawn by `seed`. More than `MOST_OUTPUTS` outputs a row
    are sketched into so many: each goes with a random sign, also drawn by `seed`, into a random
    one, which leaves the kernel's trace and all squared lengths right in the mean (Charikar et
    al. 2002). Models of half precision are measured in float32.

    Memory: the model and its chosen weights again. Raises: `InputError` for batches, labels or
    outputs that do not fit, and for a model whose output in eval mode changes from call to call.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Batch,
        labels: Tensor | None,
        names: Sequence[str],
        outputs: Callable[[Any], Tensor],
        seed: int,
    ) -> None:
        self.model = model
        first = dict(model.named_parameters(remove_duplicate=False))[names[0]]
        self.device, self.dtype = first.device, first.dtype
        if self.dtype not in DTYPES:
            self.dtype = torch.float32
        draw = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(rows_of(batch), generator=draw)[:ROWS].sort().values
        self.rows = len(chosen)
        self.batch = _picked(batch, chosen)
        self.targets = None if labels is None else _targets(labels, rows_of(batch), chosen)
        with self._apart():
            self.twin = prepared_copy(model, self.dtype)
            with torch.no_grad():
                self.outputs_each = in_rows(outputs(run(self.twin, self.batch))).shape[1]
            self.is_sketched = self.outputs_each > MOST_OUTPUTS
            reader = outputs
            if self.is_sketched:
                reader = sketched(outputs, self.outputs_each, draw)
            self.map = WeightsMap(
                self.twin, lambda: run(self.twin, self.batch), tuple(names), reader
            )
            self.start = self.map.at()
            self.gram = self._kernel()

    def fingerprint(self) -> str:
        """A mark of the rows that are measured on."""
        digest = hashlib.blake2b(digest_size=16)
        for one in _tensors(self.batch):
            digest.update(f"{tuple(one.shape)} {one.dtype}".encode())
            digest.update(one.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def numbers(
        self, gram: Float64[Tensor, "n n"] | None = None
    ) -> tuple[dict[str, Any], Float64[Tensor, "n n"]]:
        """What is measured of the model as it is now, and its kernel, `gram` where it is known.

        First-order error: f(w) - f(w0) - J(w - w0) over f(w) - f(w0), with the buffers of now in
        all of them. `rounding` is what the precision of the outputs alone may add to it.
        """
        with self._apart():
            self._follow()
            now = self.map.at()
            with derivatives():
                base, slope = self.map.jvp(self.start, now - self.start)
                moved = self.map.value(now)
            gram = self._kernel() if gram is None else gram
        departure, change = tangent_sums(base, moved, slope)
        first_order = rounding = None
        if change != 0:
            first_order = number(float(tangent_from_sums(departure, change)))
            eps = torch.finfo(self.dtype).eps
            rounding = number(eps * float(moved.double().norm() / change.sqrt()))
        whole, layers = displacements(self.map.named(self.start), self.map.named(now))
        drift = kernel_drift(self.gram, gram)
        found = {
            "displacement": whole,
            "layers": layers,
            "first_order": first_order,
            "rounding": rounding,
            "drift": drift,
            "alignment": None if self.targets is None else kernel_alignment(gram, self.targets),
            "richness": None if first_order is None or drift is None else max(first_order, drift),
        }
        return found, gram

    def _follow(self) -> None:
        """Take the model's weights and buffers over into the copy."""
        ours = dict(self.twin.named_parameters()) | dict(self.twin.named_buffers())
        with torch.no_grad():
            for name, one in [*self.model.named_parameters(), *self.model.named_buffers()]:
                ours[name].copy_(one)

    def _kernel(self) -> Float64[Tensor, "n n"]:
        return kernel(
            self.twin, self.batch, outputs=self.map.outputs, parameters=self.map.names
        ).to("cpu", torch.float64)

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """Random states put back afterwards, and no autocast within."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.autocast(self.device.type, enabled=False):
            yield


def in_rows(values: Tensor) -> Tensor:
    """The outputs as (n, c)."""
    return values.flatten(1) if values.ndim > 1 else values[:, None]


def sketched(
    outputs: Callable[[Any], Tensor], outputs_each: int, draw: torch.Generator
) -> Callable[[Any], Tensor]:
    """`outputs`, of which a row has `outputs_each`, sketched into `MOST_OUTPUTS` (see `Motion`)."""
    place = torch.randint(MOST_OUTPUTS, (outputs_each,), generator=draw)
    sign = torch.randint(2, (outputs_each,), generator=draw) * 2 - 1

    def reader(output: Any) -> Tensor:
        values = in_rows(outputs(output))
        empty = values.new_zeros(len(values), MOST_OUTPUTS)
        return empty.index_add(1, place.to(values.device), values * sign.to(values))

    return reader


def _tensors(batch: Batch) -> list[Tensor]:
    if isinstance(batch, Tensor):
        return [batch]
    return list(batch.values()) if isinstance(batch, Mapping) else list(batch)


def _picked(batch: Batch, rows: Tensor) -> Batch:
    """Some rows of a batch, as copies: what the caller's tensors become later is not ours."""
    if isinstance(batch, Tensor):
        return batch[rows.to(batch.device)]
    if isinstance(batch, Mapping):
        return {key: one[rows.to(one.device)] for key, one in batch.items()}
    return [one[rows.to(one.device)] for one in batch]


def _targets(labels: Tensor, count: int, rows: Tensor) -> Float64[Tensor, "n k"]:
    """Classes as columns of 0 and 1, other targets as they are."""
    if not isinstance(labels, Tensor) or labels.ndim == 0 or len(labels) != count:
        shape = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
        raise InputError(
            f"labels must be a tensor of one class or target for each of {count} rows; got "
            f"{shape}. Give as many as the batch has rows, or none."
        )
    chosen = labels.detach().cpu()[rows]
    if chosen.is_floating_point():
        return in_rows(chosen).double()
    if chosen.ndim != 1 or int(chosen.min()) < 0:
        raise InputError(
            f"labels of whole numbers must be classes 0, 1, …, one a row; got shape "
            f"{tuple(labels.shape)} with a least of {int(chosen.min())}. "
            "Give one class a row, or targets as floats."
        )
    return functional.one_hot(chosen.long()).double()
