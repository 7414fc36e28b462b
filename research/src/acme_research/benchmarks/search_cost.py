"""Training a header alone ÷ the search's time for each header that it evaluates.

``python -m acme_research.benchmarks.search_cost``: default budget and fine-tuning, CPU time of one
thread; see ``search_setup.py`` for the shapes.
"""

import time

import numpy as np
import torch

from acme_fleet.edge.strategies import Fitting
from acme_research.benchmarks.search_setup import make_contest, make_search
from acme_research.frame.intervals import bootstrap_interval
from acme_research.frame.record import write_benchmark

ALONE = 12


def main() -> None:
    torch.set_num_threads(1)
    backbone, contest, draw = make_contest()
    start = time.process_time()
    search = make_search(backbone, contest, draw)
    while len(search.rewards) < contest.settings.steps:
        search.step()
    result = search.choose()
    per_header = (time.process_time() - start) / result.evaluated

    fitting, known = Fitting(contest.space, contest.fits), contest.features(backbone)
    alone = []
    for _ in range(ALONE):
        header = contest.fresh(contest.space.plan(fitting.uniform(draw)), draw)
        start = time.process_time()
        contest.fine_tune(header, *known, draw)
        alone.append(time.process_time() - start)
    ratios = np.array(alone) / per_header
    low, high = bootstrap_interval(lambda picks: ratios[picks].mean(axis=1), ALONE)
    details = {
        "seconds per evaluated header": per_header,
        "seconds alone": float(np.mean(alone)),
        "headers evaluated": result.evaluated,
    }
    write_benchmark("search_cost", float(ratios.mean()), (low, high), details)


if __name__ == "__main__":
    main()
