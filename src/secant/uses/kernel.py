"""The empirical neural tangent kernel, exact, without the Jacobian.

Holds: ``kernel``; ``read_outputs``, which outputs a caller asks for; ``room``, how much memory
it may take where it is the main work.
May import: torch, ``secant.engine``, ``secant.errors``, ``secant.maps``, ``secant.uses``
(kernel_factors, kernel_tape).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secant.engine.memory import free_bytes
from secant.errors import InputError
from secant.maps.weights import (
    Batch,
    check_fixed,
    chosen_parameters,
    first_output,
    part_of,
    rows_of,
)
from secant.uses.kernel_factors import Factor
from secant.uses.kernel_tape import Tape

Progress = Callable[[str, int, int], None]

FEWEST_ROWS = 64
"""Rows of a chunk below which fewer outputs at a time are better than fewer rows."""
LEAST_ROOM = 1 << 30
"""Bytes that factors may take however little is free: with less, products are of few rows."""

TILE = 512
"""Rows that are mirrored at once, so that a tile and its mirror stay in cache."""


def kernel(
    model: nn.Module,
    x1: Batch,
    x2: Batch | None = None,
    outputs: str | Callable[[Any], Tensor] = "trace",
    parameters: Sequence[str] | None = None,
    *,
    memory_bytes: int = LEAST_ROOM,
    progress: Progress = lambda label, done, total: None,
) -> Tensor:
    r"""Products of the gradients of a model's outputs in its weights, for all pairs of rows.

    .. math:: K_{nm}^{cc'} = \sum_p \partial_p f_c(x_n)\, \partial_p f_{c'}(x_m)

    Exact, at the model's own weights. The Jacobian is never held: linear maps, convolutions,
    embeddings and norms give products of their inputs and of the gradients of their outputs; what
    is used in any other way is taken from per-row gradients, with a warning that says how.

    Args:
        model: in eval mode; its rows must not see each other.
        x1, x2: tensors, or mappings or sequences of tensors (keyword or positional arguments),
            whose first dimension is the row; (n, …) and (m, …). `x2` is `x1` if None, and the
            kernel then costs about half as much.
        outputs: "trace" sums over outputs c = c', shape (n, m). "full" keeps them, shape
            (n, m, c, c), with all dimensions of the output but the first as one. "logit 3" is
            that of output 3 alone. A function of what the model returns, to a tensor of one row
            an input, has its own outputs traced.
        parameters: names or globs; those that require gradients if None.
        memory_bytes: what factors may hold; rows and outputs are taken in chunks that fit.

    Returns: float64 for models of float64, else float32; products are taken in the model's
    precision (float32 for half), sums over parameters and long products in float64.

    Cost: a forward and a backward for each output, and for each layer of weight (l, r) over t
    positions about n·m·(r + c·l) products where t is 1, else the cheaper of pairs of positions
    and of gradients written out, n·c·t·l·r + n·m·c·l·r.

    Raises: `InputError` for batches, parameters or outputs that do not fit, and for a model
    whose output changes from call to call or normalises by its batch.

    Source: Jacot et al. 2018, arXiv:1806.07572, eq. 4; by layers after Novak et al. 2022,
    arXiv:2206.08720, sec. 3.
    """
    names = chosen_parameters(model, parameters)
    check_fixed(model, part_of(x1, 0, max(2, rows_of(x1) // 64)))
    pick, is_full = read_outputs(outputs), outputs == "full"
    tape = Tape(model, names, pick, x1)
    rows, columns = rows_of(x1), rows_of(x1 if x2 is None else x2)
    width = tape.outputs_each
    size, span = _chunks(tape, rows, columns, memory_bytes, is_square=x2 is None, is_full=is_full)
    spans = [slice(c, min(width, c + span)) for c in range(0, width, span)]
    double = _dtype(tape) == torch.float64
    dtype = torch.float64 if double or not is_full else torch.float32
    k = width if is_full else 1
    found: Tensor | None = None
    firsts, seconds = range(0, rows, size), range(0, columns, size)
    is_square, source = x2 is None, x1 if x2 is None else x2
    pairs = sum(not is_square or j >= i for i in firsts for j in seconds)
    done, total = 0, pairs * len(spans) ** (2 if is_full else 1)
    for i in firsts:
        left = tape.open(part_of(x1, i, i + size), span)
        for j in seconds:
            if is_square and j < i:
                continue
            is_one = is_square and i == j
            right = left if is_one else tape.open(part_of(source, j, j + size), span)
            for one in spans:
                ours = left.factors(one)
                for other in spans if is_full else [one]:
                    done += 1
                    if is_one and other.start < one.start:
                        continue
                    theirs = ours if is_one and one == other else right.factors(other)
                    tell = partial(_tell, progress, done - 1, total)
                    block = _block(ours, theirs, dtype, is_full=is_full, tell=tell)
                    if total == 1:
                        found = block  # the whole: a copy would double the memory
                        continue
                    if found is None:
                        found = block.new_zeros(rows, k, columns, k)
                    where = (slice(i, i + size), one if is_full else slice(0, 1))
                    there = (slice(j, j + size), other if is_full else slice(0, 1))
                    into = found[*where, *there]
                    into += block.view(into.shape)
                    if is_square and (i, where[1].start) != (j, there[1].start):
                        found[*there, *where] += block.view(into.shape).permute(2, 3, 0, 1)
    assert found is not None
    found = found.view(rows, k, columns, k)
    if is_full:
        return found.permute(0, 2, 1, 3)
    return found[:, 0, :, 0].to(torch.float64 if double else torch.float32)


def room(device: torch.device) -> int:
    """Bytes for factors where the kernel is the main work: a quarter of what is free there.

    With more room there are fewer chunks, and gradients are written out less often.
    """
    free = None
    if device.type == "cpu":
        free = free_bytes()
    elif device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    return LEAST_ROOM if free is None else max(LEAST_ROOM, free // 4)


def _tell(progress: Progress, before: int, total: int, done: int, blocks: int) -> None:
    """Progress in blocks of parameters, `blocks` for each of `total` parts of the kernel."""
    progress("kernel", before * blocks + done, total * blocks)


def _block(
    left: Sequence[Factor],
    right: Sequence[Factor],
    dtype: torch.dtype,
    *,
    is_full: bool,
    tell: Callable[[int, int], None],
) -> Tensor:
    """The kernel of two sides, summed over parameters; symmetric where they are one."""
    rows, columns = (side[0].rows * (side[0].outputs if is_full else 1) for side in (left, right))
    total = torch.zeros(rows, columns, dtype=dtype, device=left[0].device)
    for done, (a, b) in enumerate(zip(left, right, strict=True), 1):
        if is_full:
            a.add_full(total, b)
        else:
            a.add_trace(total, b)
        tell(done, len(left))
    if left is right:  # what is below the diagonal may not have been computed
        for start in range(0, rows, TILE):
            end = min(rows, start + TILE)
            corner = total[start:end, start:end].triu()
            total[start:end, start:end] = corner + corner.triu(1).T
            total[end:, start:end] = total[start:end, end:].T
    return total


def read_outputs(outputs: str | Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
    """What takes a model's output to the outputs asked for."""
    if not isinstance(outputs, str):
        return outputs
    if outputs in {"trace", "full"}:
        return first_output
    word, _, number = outputs.partition(" ")
    if word != "logit" or not number.isdecimal():
        raise InputError(
            f"outputs must be 'trace', 'full', 'logit i' or a function; got {outputs!r}. "
            "Write 'logit 3' for the fourth output."
        )
    place = int(number)

    def one(output: Any) -> Tensor:
        values = first_output(output).flatten(1)
        if place >= values.shape[1]:
            raise InputError(
                f"outputs: 'logit {place}' of {values.shape[1]} outputs does not exist. "
                f"Choose 0 to {values.shape[1] - 1}."
            )
        return values[:, place : place + 1]

    return one


def _chunks(
    tape: Tape, rows: int, columns: int, memory_bytes: int, *, is_square: bool, is_full: bool
) -> tuple[int, int]:
    """Rows and outputs taken at once.

    A trace takes fewer outputs before it takes fewer rows, for outputs then cost nothing twice;
    a full kernel, whose outputs meet, keeps `FEWEST_ROWS` before it takes fewer outputs.
    """
    longest, span = max(rows, columns), tape.outputs_each

    def fits(sides: int) -> int:
        cost = tape.cost
        kept = cost.intos + (cost.forward if span < tape.outputs_each else 0)
        return memory_bytes // max(1, sides * (kept + span * cost.factors))

    wanted = min(longest, FEWEST_ROWS) if is_full else longest
    while fits(1 if is_square and wanted == longest else 2) < wanted and span > 1:
        span = -(-span // 2)
    if is_square and fits(1) >= longest:
        return longest, span
    return max(1, min(longest, fits(2))), span


def _dtype(tape: Tape) -> torch.dtype:
    return next(iter(tape.parameters.values())).dtype
