"""Exact answers of ACME's headers − the better of local-only and FedAvg of the header.

``python -m acme_research.benchmarks.lm_personalise --data clinc150``: ten devices, each asked for
the intents of one domain, which they say in words (natural split). Local-only trains the same
header as long without its neighbours; FedAvg averages the weights of a cluster's headers in each
round; both prune nothing. All begin with the same backbones and headers. The header's rival by
bytes, LoRA, stands beside by its loss. With ``--checkpoint`` the same is done on a real decoder.
"""

from typing import Any

import numpy as np

from acme_fleet.runs.summary import Summary
from acme_research.benchmarks.lm_fleet import about, read_options, run_of
from acme_research.frame.intervals import student_interval
from acme_research.frame.record import write_benchmark

_LORA = {"lora_rank": 8}
METHODS: dict[str, dict[str, Any]] = {
    "ours": _LORA,
    "local-only": {"prune_share": 0.0},
    "FedAvg": {"mix": "weights", "similarity": "none", "prune_share": 0.0},
}
"""Changes of ``personalization``. What only mixes importance and prunes nothing mixes nothing."""


def scores(summary: Summary) -> dict[str, float]:
    """Means over devices: exact answers, and loss per token."""
    found = [device.language for device in summary.devices if device.language]
    exact = [one.exact for one in found if one.exact is not None]
    lora = [one.loss_lora for one in found if one.loss_lora is not None]
    return {
        "exact": float(np.mean(exact)),
        "loss": float(np.mean([one.loss for one in found])),
        "loss as received": float(np.mean([one.loss_coarse for one in found])),
        **({"loss, LoRA": float(np.mean(lora))} if lora else {}),
    }


def main() -> None:
    options = read_options(__doc__)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in METHODS}
    for seed in range(options.seeds):
        first = None
        for name, changes in METHODS.items():
            path, summary = run_of(options, seed, name, {"personalization": changes}, first)
            first = first or path
            rows[name].append(scores(summary))
            print(f"seed {seed}  {name:<10} {rows[name][-1]}", flush=True)
    exact = {name: np.array([row["exact"] for row in of]) for name, of in rows.items()}
    rival = max(("local-only", "FedAvg"), key=lambda name: exact[name].mean())
    gain = 100 * (exact["ours"] - exact[rival])
    low, high = student_interval(gain) if len(gain) > 1 else (-100.0, 100.0)
    interval = max(low, -100.0), min(high, 100.0)
    write_benchmark(
        "lm_personalise",
        float(gain.mean()),
        interval,
        {"methods": rows, **about(options)},
        seeds=list(range(options.seeds)),
        instead={"rival": rival},
    )


if __name__ == "__main__":
    main()
