"""The gain of distilling a chosen backbone alone, and of choosing after a share of it.

    python -m acme_research.ablations.recovery --seeds 5 --out runs/recovery

All runs of a seed are of ``examples/digits.yaml``; they share reference and elastic backbone. The
first two share what was chosen too; the third tries several finalists. Header search and
personalisation follow on each. Beside them stands the first rival of every run. One seed's mean
over its devices is one observation.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from acme_fleet.config.fleet import Fleet
from acme_research.frame.intervals import mean_interval, paired
from acme_research.frame.probe import all_devices, probe_over_seeds
from acme_research.frame.record import write_result
from acme_research.frame.runs import digits, finished_run, parser_of, same_cloud

# As many epochs as each of the two steps of Eq. 9 takes there.
_RECOVERY = digits(0).backbone.distillation.model_dump(mode="json")["recovery"]
_FINALISTS = 3
_WHAT = ("accuracy_coarse", "accuracy_linear", "accuracy", "size_bytes")


def variant(seed: int, recovery: dict[str, Any] | None, finalists: int = 1) -> Fleet:
    """The digits' fleet; the headers that no device gets are left out."""
    content = digits(seed).model_dump(mode="json")
    content["search"]["rivals"] = False
    content["backbone"]["distillation"]["recovery"] = recovery
    content["selection"]["finalists"] = finalists
    return Fleet.parse(content)


def row(seed: int, out: Path) -> dict[str, Any]:
    """Mean test accuracies over the devices."""
    plain = out / f"plain-{seed}"
    without = finished_run(variant(seed, None), plain)
    recovered = finished_run(variant(seed, _RECOVERY), out / f"rec-{seed}", same_cloud(plain))
    fleet = variant(seed, _RECOVERY, _FINALISTS)
    tried = finished_run(fleet, out / f"tried-{seed}", same_cloud(plain))
    means = {
        name: {what: statistics.fmean(getattr(d, what) for d in s.devices) for what in _WHAT}
        for name, s in (("without", without), ("recovered", recovered), ("tried", tried))
    }
    return means | {"probe": all_devices(without)}


def main() -> None:
    options = parser_of(__doc__, "recovery").parse_args()
    rows = []
    for seed in range(options.seeds):
        rows.append(row(seed, options.out))
        print(seed, rows[-1], flush=True)

    def values(arm: str, what: str) -> list[float]:
        return [seen[arm][what] for seen in rows]

    def against(arm: str, rival: str) -> dict[str, Any]:
        return {what: paired(values(arm, what), values(rival, what)) for what in _WHAT}

    arms = ("recovered", "tried", "without")
    result = {
        "recovery": _RECOVERY,
        "finalists": _FINALISTS,
        **{arm: {what: mean_interval(values(arm, what)) for what in _WHAT} for arm in arms},
        "difference": against("recovered", "without"),
        "difference_tried": against("tried", "recovered"),
        "probe": probe_over_seeds([r["probe"] for r in rows]),
        "seeds": rows,
    }
    write_result("recovery_digits", result)


if __name__ == "__main__":
    main()
