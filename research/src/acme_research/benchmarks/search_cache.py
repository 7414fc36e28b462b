"""A search step on cached features ÷ the same step that runs the frozen backbone on each batch.

``python -m acme_research.benchmarks.search_cache``; see ``search_setup.py`` for the shapes.
"""

from acme_fleet.models.features import feature_samples
from acme_research.benchmarks.search_setup import make_contest, make_search
from acme_research.frame.record import cpu_times, write_ratio

REPETITIONS = 20


def main() -> None:
    backbone, contest, draw = make_contest()
    cached, uncached = (make_search(backbone, contest, draw) for _ in range(2))
    uncached.training = contest.data.weights

    def run_backbone_too() -> None:
        for _ in range(contest.settings.weight_updates_per_step):
            uncached.update_weights(feature_samples(backbone, uncached.next_batch()))
        uncached.reward_data = feature_samples(backbone, contest.data.reward)
        uncached.update_strategy()

    times = cpu_times({"cached": cached.step, "uncached": run_backbone_too}, REPETITIONS)
    details = {name: float(seconds.mean()) for name, seconds in times.items()}
    write_ratio("search_cache", times["cached"], times["uncached"], details)


if __name__ == "__main__":
    main()
