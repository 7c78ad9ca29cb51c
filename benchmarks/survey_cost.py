"""Cost of a survey beside its peer: everything over the plain forward, in one process.

Run: python benchmarks/survey_cost.py MODEL_FOLDER TEXTS.txt [UNITS [REPEATS]]

Prints medians of REPEATS (3) rounds; in each round the plain forward, the watched forward, the
solves and the peer take turns, so that a slow minute of the machine is shared. Before each a few
batches go through the model untimed, so that none pays for the memory that the one before it gave
back; and one survey goes before all, for a virtual machine is slow to touch fresh memory.

The limit: a row of width d costs a block of four d x d projections and a 4 d wide MLP about
24 d² operations, attention apart. The fit gauges need x'x (float64, half of it by symmetry, shared
by neighbours), x'(y - x) and two products with the previous row (float32): 8 d² float32 operations
with x'x counted as twice its float64 ones.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
from peer import peer_score
from torch import Tensor, nn

from secant.gauges.interval import GROUPS
from secant.load.data import load_data
from secant.load.feed import Feed
from secant.load.models import load_model
from secant.maps.features import rows, watch
from secant.maps.sites import find_sites
from secant.observe import accumulate
from secant.site_sums import results_of


def peer_pass(
    feed: Feed, model: nn.Module, sites: list[str], score: Callable[[Tensor, Tensor], float]
) -> None:
    """What the peer needs: every site's rows kept, then one decomposition each."""
    inputs: dict[str, list[Tensor]] = {site: [] for site in sites}
    outputs: dict[str, list[Tensor]] = {site: [] for site in sites}
    for batch in feed.batches:
        forward, mask = feed.forward(model, batch)

        def keep(site: str, x: Tensor, y: Tensor, mask: Tensor | None = mask) -> None:
            inputs[site].append(rows(x, mask))
            outputs[site].append(rows(y, mask))

        with torch.no_grad(), watch(model, sites, keep):
            forward()
    for site in sites:
        score(torch.cat(inputs[site]), torch.cat(outputs[site]))


def settled(feed: Feed, model: nn.Module) -> float:
    """The time, after a few batches that bring allocator and caches to one state."""
    with torch.no_grad():
        for batch in feed.batches[:3]:
            feed.forward(model, batch)[0]()
    return time.perf_counter()


def main() -> None:
    loaded = load_model(sys.argv[1])
    units = load_data(sys.argv[2]).first(int(sys.argv[3]) if len(sys.argv) > 3 else 600)
    repeats = int(sys.argv[4]) if len(sys.argv) > 4 else 3
    feed = Feed(loaded, units, groups=GROUPS, batch_size=32, seed=0)
    sites = find_sites(loaded.model)
    score = peer_score()
    seconds: dict[str, list[float]] = {name: [] for name in ("plain", "watched", "solved", "peer")}
    tokens = 0
    results_of(accumulate(feed, loaded.model, sites, lambda done, total: None).sites)
    for _ in range(repeats):
        started = settled(feed, loaded.model)
        with torch.no_grad():
            for batch in feed.batches:
                feed.forward(loaded.model, batch)[0]()
        seconds["plain"].append(time.perf_counter() - started)

        started = settled(feed, loaded.model)
        observer = accumulate(feed, loaded.model, sites, lambda done, total: None)
        seconds["watched"].append(time.perf_counter() - started)

        started = settled(feed, loaded.model)
        tokens = max(result.fit.rows for result in results_of(observer.sites).values())
        seconds["solved"].append(time.perf_counter() - started)
        del observer

        started = settled(feed, loaded.model)
        peer_pass(feed, loaded.model, sites, score)
        seconds["peer"].append(time.perf_counter() - started)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    plain = median["plain"]
    print(f"rows {tokens}, sites {len(sites)}, threads {torch.get_num_threads()}")
    print(f"plain forward                    {plain:.2f} s")
    print(f"(forward + updates) / forward    {median['watched'] / plain:.2f}")
    print(f"solves / forward                 {median['solved'] / plain:.2f}")
    print(f"llm-microscope 0.0.7 / forward   {median['peer'] / plain:.2f}  (its one score)")


if __name__ == "__main__":
    main()
