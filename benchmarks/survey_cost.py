"""Cost of a survey: (forward + state updates) / forward, and solves / forward.

Run: python benchmarks/survey_cost.py MODEL_FOLDER TEXTS.txt [UNITS]

One process, three repeats of each in turn, medians. MODEL_FOLDER is a Hugging Face encoder.
"""

import statistics
import sys
import time

import torch

from secant.gauges.interval import GROUPS
from secant.load.data import load_data
from secant.load.feed import Feed
from secant.load.models import load_model
from secant.maps.sites import find_sites
from secant.observe import accumulate, results_of

REPEATS = 3


def main() -> None:
    loaded = load_model(sys.argv[1])
    units = load_data(sys.argv[2]).first(int(sys.argv[3]) if len(sys.argv) > 3 else 600)
    feed = Feed(loaded, units, groups=GROUPS, batch_size=32, seed=0)
    sites = find_sites(loaded.model)
    plain, watched, solved = [], [], []
    with torch.inference_mode():
        for _ in range(REPEATS):
            started = time.perf_counter()
            for batch in feed.batches:
                feed.forward(loaded.model, batch)[0]()
            plain.append(time.perf_counter() - started)
            started = time.perf_counter()
            observer = accumulate(feed, loaded.model, sites, lambda done, total: None)
            watched.append(time.perf_counter() - started)
            started = time.perf_counter()
            rows = {site: result.fit.rows for site, result in results_of(observer).items()}
            solved.append(time.perf_counter() - started)
    forward = statistics.median(plain)
    print(f"rows {max(rows.values())}, sites {len(sites)}, forward {forward:.2f} s")
    print(f"(forward + updates) / forward  {statistics.median(watched) / forward:.2f}")
    print(f"solves / forward               {statistics.median(solved) / forward:.2f}")


if __name__ == "__main__":
    main()
