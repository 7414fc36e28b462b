"""Seeds and rivals side by side: each process makes pieces, which stay on disk for all.

A piece is trained on ``--threads`` threads wherever it is made, so the figures are the same.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import attrgetter

import torch
from joblib import Parallel, delayed
from rich.progress import track

from acme_research.frame.bench import Bench, Options

Part = Callable[[Bench], object]
Stage = Callable[[Sequence[Bench]], Sequence[tuple[Bench, Part]]]
"""What can be done side by side for these seeds, once the stages before are finished."""


def of_each_seed(part: Part) -> Stage:
    """The stage that is this part of every seed."""
    return lambda benches: [(bench, part) for bench in benches]


def shared_by_seeds(benches: Sequence[Bench]) -> list[tuple[Bench, Part]]:
    """The stage that leaves on disk generated data and the pre-trained reference."""
    return [(benches[0], attrgetter("fleet"))]


def make_pieces(stages: Sequence[Stage], benches: Sequence[Bench]) -> None:
    """Let ``--jobs`` processes do the parts of all seeds, at least one, stage after stage."""
    workers = Parallel(  # parts take from none to many minutes: they are not handed out in batches
        n_jobs=benches[0].options.jobs,
        batch_size=1,  # type: ignore[arg-type]
        return_as="generator_unordered",
    )
    for number, stage in enumerate(stages, 1):
        work = [
            delayed(_do)(part, bench.options, bench.seed, bench.story)
            for bench, part in stage(benches)
        ]
        title = f"{benches[0].story}, stage {number} of {len(stages)}"
        for _ in track(workers(work), title, len(work)):
            pass


def _do(part: Part, options: Options, seed: int, story: str) -> None:
    torch.set_num_threads(options.threads)
    part(_bench(options, seed, story))


@lru_cache(maxsize=1)
def _bench(options: Options, seed: int, story: str) -> Bench:
    """A process often does several parts of one seed: its data are read once."""
    return Bench(options, seed, story)
