"""The gain of distilling a chosen backbone alone: the demo's fleet with and without.

    python -m acme_research.ablations.recovery --seeds 5 --out runs/recovery

Both runs of a seed share the reference, the elastic backbone and what was chosen; header search
and personalisation follow on each. Beside them stands the first rival of every run. One seed's
mean over its devices is one observation.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from acme_fleet.cli import EXAMPLE
from acme_fleet.config.fleet import Fleet
from acme_research.frame.intervals import mean_interval, paired
from acme_research.frame.probe import all_devices, probe_over_seeds
from acme_research.frame.record import write_result
from acme_research.frame.runs import finished_run, parser_of, same_cloud

# As many epochs as each of the two steps of Eq. 9 takes there.
_RECOVERY = Fleet.from_yaml(EXAMPLE).backbone.distillation.model_dump(mode="json")["recovery"]
_WHAT = ("accuracy_coarse", "accuracy_linear", "accuracy")


def demo(seed: int, recovery: dict[str, Any] | None) -> Fleet:
    """The demo's fleet; the headers that no device gets are left out."""
    content = Fleet.from_yaml(EXAMPLE).model_dump(mode="json")
    content["search"]["rivals"] = False
    content["backbone"]["distillation"]["recovery"] = recovery
    return Fleet.parse(content | {"seed": seed})


def row(seed: int, out: Path) -> dict[str, Any]:
    """Mean test accuracies over the devices."""
    plain = out / f"plain-{seed}"
    without = finished_run(demo(seed, None), plain)
    recovered = finished_run(demo(seed, _RECOVERY), out / f"rec-{seed}", same_cloud(plain))
    means = {
        name: {what: statistics.fmean(getattr(d, what) for d in s.devices) for what in _WHAT}
        for name, s in (("without", without), ("recovered", recovered))
    }
    return means | {"probe": all_devices(without)}


def main() -> None:
    options = parser_of(__doc__, "recovery").parse_args()
    rows = []
    for seed in range(options.seeds):
        rows.append(row(seed, options.out))
        print(seed, rows[-1], flush=True)
    columns = {
        what: ([r["recovered"][what] for r in rows], [r["without"][what] for r in rows])
        for what in _WHAT
    }
    result = {
        "recovery": _RECOVERY,
        "recovered": {what: mean_interval(ours) for what, (ours, _) in columns.items()},
        "without": {what: mean_interval(theirs) for what, (_, theirs) in columns.items()},
        "difference": {what: paired(*pair) for what, pair in columns.items()},
        "probe": probe_over_seeds([r["probe"] for r in rows]),
        "seeds": rows,
    }
    write_result("recovery_digits", result)


if __name__ == "__main__":
    main()
