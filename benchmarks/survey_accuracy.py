"""Accuracy of a survey: its scores against float64 on stored states, and against the peer.

Run: python benchmarks/survey_accuracy.py MODEL_FOLDER TEXTS.txt [UNITS]

Stores every site's rows, computes each score from them in float64 with other routines
(`lstsq`, SVD), and prints the largest differences.
"""

import sys

import torch
from peer import peer_score
from torch import Tensor

from secant.gauges.context import ContextFit, starts_of
from secant.gauges.fit import WHITENED_CUT
from secant.gauges.interval import FOLDS, GROUPS
from secant.load.data import load_data
from secant.load.feed import Feed
from secant.load.models import load_model
from secant.maps.features import rows, watch
from secant.maps.sites import find_sites
from secant.observe import accumulate
from secant.site_sums import results_of


def solved(a: Tensor, b: Tensor, strength: float) -> Tensor:
    """Ridge weight by QR of the rows (stacked under them the penalty), never of their squares."""
    if strength > 0:
        penalty = (strength * a.square().sum() / a.shape[1]).sqrt()
        a = torch.cat([a, penalty * torch.eye(a.shape[1], dtype=a.dtype)])
        b = torch.cat([b, b.new_zeros(a.shape[1], b.shape[1])])
    return torch.linalg.lstsq(a, b, driver="gelsd").solution


def slow(x: Tensor, y: Tensor, fold: Tensor, ridges: list[float]) -> dict[str, float]:
    """The definitions, typed on stored rows."""
    rss = tss = bare = white_rss = white = 0.0
    for k in range(FOLDS):
        train, held = fold != k, fold == k
        x_mean, y_mean = x[train].mean(0), y[train].mean(0)
        a, b, p, q = x[train] - x_mean, y[train] - y_mean, x[held] - x_mean, y[held] - y_mean
        error = q - p - p @ solved(a, b - a, ridges[k])
        scale = (a * b).sum() / a.square().sum()
        _, values, right = torch.linalg.svd(b, full_matrices=False)
        kept = values.square() > WHITENED_CUT * values[0].square()
        whiten = right[kept].T / values[kept]
        rss += error.square().sum().item()
        tss += q.square().sum().item()
        bare += (q - scale * p).square().sum().item()
        white_rss += (error @ whiten).square().sum().item()
        white += (q @ whiten).square().sum().item()
    return {"raw": 1 - rss / tss, "beyond": 1 - rss / bare, "whitened": 1 - white_rss / white}


def with_context(x: Tensor, y: Tensor, starts: Tensor, fold: Tensor) -> list[tuple[Tensor, float]]:
    """Residual of each fold at each strength, on stored regressors in float64; and the total."""
    first = starts.nonzero()[:, 0]
    count = torch.diff(first, append=torch.tensor([len(starts)]))
    mean = torch.stack([one.mean(0) for one in x.split(count.tolist())])
    centred = x - x.mean(0)
    previous = centred.roll(1, 0)
    previous[first] = 0
    spread = centred.square().mean().sqrt()
    z = torch.cat([x, mean.repeat_interleave(count, 0), previous, spread * starts[:, None]], 1)
    found = []
    for strength in ContextFit.STRENGTHS:
        residual, total = torch.zeros(FOLDS, dtype=torch.float64), 0.0
        for k in range(FOLDS):
            train, held = fold != k, fold == k
            z_mean, y_mean = z[train].mean(0), y[train].mean(0)
            t_mean = (y - x)[train].mean(0)
            weight = solved(z[train] - z_mean, (y - x)[train] - t_mean, strength)
            error = (y - x)[held] - t_mean - (z[held] - z_mean) @ weight
            residual[k] = error.square().sum()
            total += (y[held] - y_mean).square().sum().item()
        found.append((residual, total))
    return found


def main() -> None:
    loaded = load_model(sys.argv[1])
    units = load_data(sys.argv[2]).first(int(sys.argv[3]) if len(sys.argv) > 3 else 300)
    feed = Feed(loaded, units, groups=GROUPS, batch_size=32, seed=0)
    sites = find_sites(loaded.model)
    score = peer_score()
    results = results_of(accumulate(feed, loaded.model, sites, lambda done, total: None).sites)
    kept: dict[str, list[tuple[Tensor, Tensor]]] = {site: [] for site in sites}
    folds, starts = [], []
    for batch in feed.batches:
        forward, mask = feed.forward(loaded.model, batch)
        assert mask is not None
        begin = starts_of(mask)
        starts.append(begin)
        folds.append(torch.full((len(begin),), batch.group % FOLDS))

        def keep(site: str, x: Tensor, y: Tensor, mask: Tensor | None = mask) -> None:
            kept[site].append((rows(x, mask), rows(y, mask)))

        with torch.no_grad(), watch(loaded.model, sites, keep):
            forward()
    fold, begins = torch.cat(folds), torch.cat(starts)
    worst: dict[str, float] = {}
    for site in sites:
        x = torch.cat([x for x, _ in kept[site]]).double()
        y = torch.cat([y for _, y in kept[site]]).double()
        fit, context = results[site].fit, results[site].context
        expected = slow(x, y, fold, fit.ridges) | {"procrustes": float(score(x, y))}
        found = {name: fit.scores[name].value for name in ("raw", "beyond", "whitened")}
        found["procrustes"] = fit.procrustes
        assert context is not None
        # Groups g and g + FOLDS make a fold, and stand side by side.
        residual = torch.tensor(context["raw"].residual, dtype=torch.float64).view(FOLDS, -1).sum(1)
        runs = with_context(x, y, begins, fold)
        nearest = torch.stack([(residual - run).abs() for run, _ in runs]).min(0).values
        expected["context raw"], found["context raw"] = 0.0, float(nearest.sum() / runs[0][1])
        line = {name: abs(found[name] - expected[name]) for name in expected}
        print(site, " ".join(f"{name} {value:.1e}" for name, value in line.items()), flush=True)
        worst = {name: max(worst.get(name, 0.0), value) for name, value in line.items()}
    print("largest:", " ".join(f"{name} {value:.1e}" for name, value in worst.items()))


if __name__ == "__main__":
    main()
