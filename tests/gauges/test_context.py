"""Fit with context against stored rows, and maps whose context is known."""

import pytest
import torch
from torch import Tensor

from secant.errors import InputError
from secant.gauges.context import ContextFit, starts_of
from secant.gauges.fit import Fit, FitResult, Score
from secant.gauges.interval import FOLDS, GROUPS
from secant.gauges.moments import gram

WIDTH = 4


def sequences(count: int = 60, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 9, (count,), generator=generator).tolist()
    return [
        torch.randn(n, WIDTH, generator=generator, dtype=torch.float64).cumsum(0) + 2
        for n in lengths
    ]


def previous(x: Tensor, centre: Tensor) -> Tensor:
    return torch.cat([centre[None], x[:-1]])


def read(inputs: list[Tensor], outputs: list[Tensor]) -> tuple[FitResult, dict[str, Score]]:
    """One update for each group of sequences, sequence i in group i mod GROUPS."""
    x_centre, y_centre = torch.cat(inputs).mean(0), torch.cat(outputs).mean(0)
    fit = Fit(x_centre, y_centre)
    context = ContextFit(len(x_centre), len(y_centre))
    for group in range(GROUPS):
        chosen = range(group, len(inputs), GROUPS)
        x = gram(torch.cat([inputs[i] for i in chosen]), x_centre)
        y = gram(torch.cat([outputs[i] for i in chosen]), y_centre)
        starts = torch.cat([torch.arange(len(inputs[i])) == 0 for i in chosen])
        fit.update(x, y, group)
        context.update(x, y, starts, group)
    result = fit.compute()
    return result, context.compute(fit.sums(), result.scores)


def slow(inputs: list[Tensor], outputs: list[Tensor], ridge: float) -> tuple[Tensor, float]:
    """Stored regressors, a dense ridge solve: the residual of each fold, and the total."""
    centre = torch.cat(inputs).mean(0)
    spread = (torch.cat(inputs) - centre).square().mean().sqrt()
    firsts = [spread * (torch.arange(len(x)) == 0)[:, None] for x in inputs]
    parts = zip(inputs, firsts, strict=True)
    z = torch.cat(
        [torch.cat([x, x.mean(0).expand_as(x), previous(x, centre), f], 1) for x, f in parts]
    )
    x, y = torch.cat(inputs), torch.cat(outputs)
    fold = torch.cat([torch.full((len(one),), i % GROUPS % FOLDS) for i, one in enumerate(inputs)])
    target = y - x if x.shape == y.shape else y
    rss, tss = torch.zeros(FOLDS), 0.0
    for k in range(FOLDS):
        train, held = fold != k, fold == k
        z_mean, t_mean, y_mean = z[train].mean(0), target[train].mean(0), y[train].mean(0)
        a = z[train] - z_mean
        square = a.T @ a
        lift = ridge * square.trace() / len(square) * torch.eye(len(square), dtype=z.dtype)
        weight = torch.linalg.solve(square + lift, a.T @ (target[train] - t_mean))
        rss[k] = (target[held] - t_mean - (z[held] - z_mean) @ weight).square().sum()
        tss += (y[held] - y_mean).square().sum().item()
    return rss, tss


@pytest.mark.parametrize("width", [WIDTH, 3])
def test_scores_equal_stored_regressors(width: int) -> None:
    inputs = sequences()
    mix = torch.randn(WIDTH, width, generator=torch.Generator().manual_seed(1)).double()
    outputs = [torch.tanh(x @ mix) + x.mean(0)[:width] for x in inputs]
    _, scores = read(inputs, outputs)
    assert ("beyond" in scores) == (width == WIDTH)
    residual = torch.tensor(scores["raw"].residual).view(FOLDS, -1).sum(1)
    runs = [slow(inputs, outputs, ridge) for ridge in ContextFit.STRENGTHS]
    # Each fold chose its own strength, so each equals one of the three.
    nearest = torch.stack([(residual - rss).abs() for rss, _ in runs]).min(0).values
    assert nearest.sum() < 1e-6 * runs[0][1]
    assert scores["raw"].value == pytest.approx(1 - residual.sum().item() / runs[0][1], abs=1e-6)


def test_neighbours_are_seen_with_context_and_missed_without() -> None:
    """y_i = x_i + mean of x - 2 x_{i-1}: affine in the three, far from affine in x_i alone."""
    inputs = sequences()
    centre = torch.cat(inputs).mean(0)
    outputs = [x + x.mean(0) - 2 * previous(x, centre) for x in inputs]
    result, scores = read(inputs, outputs)
    assert result.scores["beyond"].value < 0.9
    assert scores["raw"].value == pytest.approx(1, abs=1e-6)
    assert scores["beyond"].value == pytest.approx(1, abs=1e-6)


def test_a_first_row_treated_apart_by_a_constant_is_affine() -> None:
    inputs = sequences()
    outputs = [x + 5 * (torch.arange(len(x)) == 0)[:, None] for x in inputs]
    assert read(inputs, outputs)[1]["beyond"].value == pytest.approx(1, abs=1e-6)


def test_context_that_says_nothing_adds_nothing() -> None:
    """Independent rows, y = x + x²: what the neighbours add is noise of order regressors/rows."""
    generator = torch.Generator().manual_seed(3)
    inputs = [torch.randn(20, WIDTH, generator=generator, dtype=torch.float64) for _ in range(400)]
    outputs = [x + x.square() for x in inputs]
    result, scores = read(inputs, outputs)
    assert scores["beyond"].value == pytest.approx(result.scores["beyond"].value, abs=0.01)


def test_one_batch_or_many_give_the_same_sums() -> None:
    inputs = sequences(20)
    centre = torch.cat(inputs).mean(0)
    whole, parts = ContextFit(WIDTH, WIDTH), ContextFit(WIDTH, WIDTH)
    rows = gram(torch.cat(inputs), centre)
    starts = torch.cat([torch.arange(len(x)) == 0 for x in inputs])
    whole.update(rows, rows, starts, 0)
    for x in inputs:
        one = gram(x, centre)
        parts.update(one, one, torch.arange(len(x)) == 0, 0)
    for name, state in whole.metric_state.items():
        torch.testing.assert_close(parts.metric_state[name], state, rtol=1e-6, atol=1e-5)


def test_starts_follow_the_mask_and_skip_empty_sequences() -> None:
    mask = torch.tensor([[0, 1, 1], [0, 0, 0], [1, 0, 0], [1, 1, 1]]).bool()
    assert starts_of(mask).tolist() == [True, False, True, True, False, False]


def test_starts_that_do_not_fit_are_refused() -> None:
    rows = gram(torch.ones(3, WIDTH), torch.zeros(WIDTH))
    for starts in (torch.tensor([True, False]), torch.tensor([False, True, False])):
        with pytest.raises(InputError, match="starts_of"):
            ContextFit(WIDTH, WIDTH).update(rows, rows, starts, 0)
