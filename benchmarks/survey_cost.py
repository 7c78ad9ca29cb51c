"""Cost of a survey beside its peer: everything over the plain forward, in one process.

Run: python benchmarks/survey_cost.py MODEL_FOLDER TEXTS.txt [UNITS [REPEATS]]

Prints medians of REPEATS (3) rounds; in each round the plain forward, the watched forward, the
solves and the peer take turns, so that a slow minute of the machine is shared.

The limit: a row of width d costs a block about 24 d² multiply-adds with its biases and none of
its attention. The fit gauges need x'x, x'y (float64) and the two products with the previous row
(float32), 4 d² multiply-adds, of which x'x is shared by neighbours.
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


def main() -> None:
    loaded = load_model(sys.argv[1])
    units = load_data(sys.argv[2]).first(int(sys.argv[3]) if len(sys.argv) > 3 else 600)
    repeats = int(sys.argv[4]) if len(sys.argv) > 4 else 3
    feed = Feed(loaded, units, groups=GROUPS, batch_size=32, seed=0)
    sites = find_sites(loaded.model)
    score = peer_score()
    seconds: dict[str, list[float]] = {name: [] for name in ("plain", "watched", "solved", "peer")}
    tokens = 0
    for _ in range(repeats):
        started = time.perf_counter()
        with torch.no_grad():
            for batch in feed.batches:
                feed.forward(loaded.model, batch)[0]()
        seconds["plain"].append(time.perf_counter() - started)

        started = time.perf_counter()
        observer = accumulate(feed, loaded.model, sites, lambda done, total: None)
        seconds["watched"].append(time.perf_counter() - started)

        started = time.perf_counter()
        tokens = max(result.fit.rows for result in results_of(observer.sites).values())
        seconds["solved"].append(time.perf_counter() - started)
        del observer

        started = time.perf_counter()
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
