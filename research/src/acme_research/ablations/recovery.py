"""What distilling a chosen backbone alone is worth: the demo's fleet with and without.

    python experiments/recovery.py --seeds 5 --out runs/recovery

Both runs of a seed share the reference, the elastic backbone and what was chosen; header search
and personalisation follow on each. Beside them stands the first rival of every run. One seed's
mean over its devices is one observation.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import acme_fleet
from acme_fleet.cli import EXAMPLE
from acme_fleet.config.fleet import Fleet
from acme_fleet.runs.summary import Summary
from acme_research.frame.probe import all_devices
from acme_research.frame.story import (
    RESULTS,
    commit,
    hardware,
    mean_interval,
    paired,
    probe_over_seeds,
)

# As many epochs as each of the two steps of Eq. 9 takes there.
_RECOVERY = Fleet.from_yaml(EXAMPLE).backbone.distillation.model_dump(mode="json")["recovery"]
_WHAT = ("accuracy_coarse", "accuracy_linear", "accuracy")


def demo(seed: int, recovery: dict[str, Any] | None) -> Fleet:
    """The demo's fleet; the headers that no device gets are left out."""
    content = Fleet.from_yaml(EXAMPLE).model_dump(mode="json")
    content["search"]["rivals"] = False
    content["backbone"]["distillation"]["recovery"] = recovery
    return Fleet.parse(content | {"seed": seed})


def finished(fleet: Fleet, path: Path, cloud: Path | None) -> Summary:
    """A whole run, with the cloud's stages of another where there is one."""
    if (path / "summary.json").exists():
        return Summary.read(path / "summary.json")
    if cloud is not None and not path.exists():
        path.mkdir(parents=True)
        (path / "fleet.yaml").write_text(fleet.to_yaml())
        shutil.copytree(cloud, path / "cloud")
    return acme_fleet.customize(fleet, path, resume=path.exists())


def row(seed: int, out: Path) -> dict[str, Any]:
    """Mean test accuracies over the devices."""
    without = finished(demo(seed, None), out / f"plain-{seed}", None)
    recovered = finished(
        demo(seed, _RECOVERY), out / f"rec-{seed}", out / f"plain-{seed}" / "cloud"
    )
    means = {
        name: {what: statistics.fmean(getattr(d, what) for d in s.devices) for what in _WHAT}
        for name, s in (("without", without), ("recovered", recovered))
    }
    return means | {"probe": all_devices(without)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/recovery"))
    options = parser.parse_args()
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
        "hardware": hardware(),
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    (RESULTS / "recovery_digits.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
