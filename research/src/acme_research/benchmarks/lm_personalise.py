"""Exact answers of ACME's headers − the better of local-only and FedAvg of the header.

``python -m acme_research.benchmarks.lm_personalise --data clinc150``: devices are asked for the
intents of one domain, which they say in words (natural splits): ten, a domain each, which have no
neighbour to learn from, and twenty, two of each domain; with all texts and with thirty a device.
The result is that of twenty with all texts. Of several rules of Algorithm 2 that with the most
exact answers on the devices' validation texts, over all seeds, is compared. Both rivals train the
same headers as long, see :mod:`acme_fleet.simulation.header_rivals`, with a rule's rounds; the best
of them by *test* texts is the rival. With ``--checkpoint`` the same is done on a real decoder.
"""

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

from acme_fleet.config.fleet import Fleet
from acme_fleet.data.partition import load_world
from acme_fleet.models.shipped import load_device_model
from acme_fleet.runs.summary import Summary
from acme_fleet.tasks.generation import GENERATION
from acme_fleet.training.answers import answered
from acme_research.benchmarks.lm_fleet import Shares, about, read_options, run_of
from acme_research.frame.intervals import student_interval
from acme_research.frame.record import write_benchmark
from acme_research.frame.runs import same_cloud, same_search

_OFTEN = {"mix": "both", "rounds": 7, "local": {"epochs": 2}, "last_epochs": 4, "prune_share": 0.03}
RULES: dict[str, dict[str, Any]] = {
    "importance, 2 rounds": {"rivals": True},
    "weights too, 7 rounds": {"rivals": True, **_OFTEN},
    "weights too, 7 rounds, nearer neighbours": {"temperature": 0.03, **_OFTEN},
}
"""Changes of ``personalization``. A device trains for 18 epochs in all, and loses about as many
neurons; rivals do not depend on what neighbours send, but on rounds."""
FLEETS = {
    "ten, all texts": Shares(),
    "ten, thirty texts": Shares(own=30),
    "twenty, all texts": Shares(persons=2),
    "twenty, thirty texts": Shares(own=60, persons=2),
}
_REPORTED = "twenty, all texts"
RIVALS = ("alone", "FedAvg")
_Row = dict[str, float]


def scores(path: Path, summary: Summary) -> _Row:
    """Means over devices: exact answers on test texts and on validation texts, and losses."""
    world = load_world(Fleet.from_yaml(path / "fleet.yaml"))
    validation = []
    for device in summary.devices:
        model = load_device_model(path / "devices" / device.name)
        own = answered(GENERATION, model, world.private[device.name].validation)
        validation.append(own.exact or 0.0)
    found = [device.language for device in summary.devices if device.language]
    row = {
        "validation": float(np.mean(validation)),
        "exact": float(np.mean([one.exact or 0.0 for one in found])),
        "loss": float(np.mean([one.loss for one in found])),
        "loss as received": float(np.mean([one.loss_coarse for one in found])),
        "loss, linear change": float(np.mean([one.loss_linear for one in found])),
    }
    for name in RIVALS if summary.personalization.rivals else ():
        rivals = [device.rivals[name] for device in summary.devices]
        row[name] = float(np.mean([rival.exact or 0.0 for rival in rivals]))
        row[f"loss, {name}"] = float(np.mean([rival.loss or 0.0 for rival in rivals]))
    return row


def measured(options: Namespace) -> dict[str, dict[str, list[_Row]]]:
    """Scores by fleet and by rule, a row a seed."""
    rows = {fleet: {rule: list[_Row]() for rule in RULES} for fleet in FLEETS}
    for seed in range(options.seeds):
        cloud = dict[int, Path]()  # by the count of devices
        for fleet, shares in FLEETS.items():
            first = None
            for rule, changes in RULES.items():
                asked = {"personalization": {"rivals": False} | changes}
                same = cloud.get(shares.persons)
                begin = same_search(first) if first else same and same_cloud(same)
                path, summary = run_of(options, seed, f"{fleet}, {rule}", asked, begin, shares)
                first = first or path
                cloud.setdefault(shares.persons, path)
                rows[fleet][rule].append(scores(path, summary))
                print(f"seed {seed}  {fleet}, {rule}  {rows[fleet][rule][-1]}", flush=True)
    return rows


def compared(of: dict[str, list[_Row]]) -> tuple[np.ndarray, dict[str, Any]]:
    """The rule of most exact answers on validation texts − the best rival, in points by seed."""

    def each(rule: str, name: str) -> np.ndarray:
        return np.array([row[name] for row in of[rule]])

    rule = max(of, key=lambda rule: each(rule, "validation").mean())
    rival = max(
        ((other, name) for other in of for name in RIVALS if name in of[other][0]),
        key=lambda one: each(*one).mean(),
    )
    gain = 100 * (each(rule, "exact") - each(*rival))
    return gain, {"rule": rule, "rival": " of ".join(rival[::-1]), "points": gain.tolist()}


def main() -> None:
    options = read_options(__doc__)
    rows = measured(options)
    found = {fleet: compared(of) for fleet, of in rows.items()}
    for fleet, (_, told) in found.items():
        print(f"{fleet}: {told}")
    gain, told = found[_REPORTED]
    low, high = student_interval(gain) if len(gain) > 1 else (-100.0, 100.0)
    write_benchmark(
        "lm_personalise",
        float(gain.mean()),
        (max(low, -100.0), min(high, 100.0)),
        {"compared": {fleet: told for fleet, (_, told) in found.items()}}
        | {"rows": rows, **about(options)},
        seeds=list(range(options.seeds)),
        instead={"rival": told["rival"]},
    )


if __name__ == "__main__":
    main()
