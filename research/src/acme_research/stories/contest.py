"""ACME's customised models against all others of the devices' storage limits (Fig. 7a, 13a)."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from acme_fleet.config.devices import Cluster
from acme_fleet.runs.summary import ClusterSummary
from acme_research.frame.bench import Bench
from acme_research.frame.intervals import mean_interval, paired, text
from acme_research.frame.parallel import Part, shared_by_seeds
from acme_research.frame.probe import ALONE, AVERAGED, Places, accuracies, of_devices
from acme_research.frame.story import Findings, Goal
from acme_research.rivals.bounds import (
    centralised,
    dynabert,
    early_exit,
    local_only,
    torch_pruned,
    whole,
)
from acme_research.rivals.federated import federated
from acme_research.rivals.shapes import (
    NAMES,
    limit_of,
    personal_accuracies,
    pretrain_rival,
    rival_bytes,
    trained,
)

OURS, LINEAR = "ACME", "ACME's backbone, linear header"
POOLED, ADAPTED, LOCAL = "centralised", "centralised, then adapted", "local only"
WHOLE = "the whole reference, adapted"
PROBES = {way: f"probe: {way}" for way in (ALONE, AVERAGED)}
BOUNDS = (POOLED, ADAPTED, LOCAL, WHOLE)
SAME_VIT = {
    "dynabert": ("DynaBERT's recipe", dynabert),
    "torch-pruning": ("Torch-Pruning, distilled", torch_pruned),
    "early-exit": ("early exit, best header", early_exit),
    "reference": (WHOLE, whole),
}
FEDERATED = ("FedAvg", "FedAvg, then adapted", "FedPer")
Entry = dict[str, Any]


def measure(bench: Bench) -> dict[str, dict[str, Entry]]:
    """For each storage limit and model the devices' test accuracies and the size in bytes."""
    return {
        str(limit): together([_models(bench, cluster) for cluster in clusters])
        for limit, clusters in _by_limit(bench).items()
    }


def _by_limit(bench: Bench) -> dict[int, list[Cluster]]:
    groups = defaultdict(list)
    for cluster in bench.unprepared.clusters:
        groups[limit_of(cluster)].append(cluster)
    return groups


def together(tables: list[dict[str, Entry]]) -> dict[str, Entry]:
    """Clusters of one limit as one; a model that not all of them have is left out."""
    return {
        name: entry
        | {
            "accuracy": [accuracy for table in tables for accuracy in table[name]["accuracy"]],
            "size_bytes": max(table[name]["size_bytes"] for table in tables),
        }
        for name, entry in tables[0].items()
        if all(name in table for table in tables)
    }


def _models(bench: Bench, cluster: Cluster) -> dict[str, Entry]:
    own = [d for d in bench.summary.devices if d.cluster == cluster.name]
    largest = max(d.size_bytes for d in own)
    entries: dict[str, Entry | None] = {
        OURS: {"accuracy": [d.accuracy for d in own], "size_bytes": largest},
        LINEAR: {"accuracy": [d.accuracy_linear for d in own], "size_bytes": largest},
    }
    probe, measured = bench.summary.probe, accuracies(own)
    if probe and measured:
        size = {"size_bytes": probe.size_bytes_int8}
        entries |= {PROBES[way]: {"accuracy": column, **size} for way, column in measured.items()}
    for name in bench.extra["rivals"]:
        entries |= _entries(bench, cluster, name)
    return {name: entry for name, entry in entries.items() if entry}


def of_limits(bench: Bench) -> Places | None:
    """The first rival of every run on the devices of each limit, whether it fits or not."""
    places = {}
    for limit, clusters in _by_limit(bench).items():
        names = {cluster.name for cluster in clusters}
        own = [device for device in bench.summary.devices if device.cluster in names]
        figures = of_devices(bench.summary, own)
        if figures is None:
            return None
        places[_place(limit)] = figures
    return places


def _pretraining(benches: Sequence[Bench]) -> list[tuple[Bench, Part]]:
    """Of the reference and the rivals, which all seeds share."""
    first = benches[0]
    trainings = [
        partial(pretrain_rival, shape, limit)
        for shape in _of_own_shape(first)
        for limit in _by_limit(first)
    ]
    # Rivals' parts must not ask for the fleet: it is the first part that pre-trains its reference.
    return [*shared_by_seeds(benches), *((first, training) for training in trainings)]


def _runs(benches: Sequence[Bench]) -> list[tuple[Bench, Part]]:
    """The seeds' runs; beside them rivals that do not start from what a run makes."""
    return [*((bench, _run) for bench in benches), *_parts(benches, _of_own_shape)]


def _run(bench: Bench) -> None:
    """With it what clusters share: DynaBERT's recipe may recover one backbone for several."""
    _ = bench.summary
    if "dynabert" in bench.extra["rivals"]:
        _contest(bench.fleet.clusters, "dynabert", bench)


def _contests(benches: Sequence[Bench]) -> list[tuple[Bench, Part]]:
    """All that start from what a run makes."""
    return _parts(benches, _of_the_run)


def _parts(
    benches: Sequence[Bench], names: Callable[[Bench], list[str]]
) -> list[tuple[Bench, Part]]:
    """Clusters of one limit share rivals, so they take turns."""
    return [
        (bench, partial(_contest, clusters, name))
        for bench in benches
        for clusters in _by_limit(bench).values()
        for name in names(bench)
    ]


def _of_own_shape(bench: Bench) -> list[str]:
    return [name for name in bench.extra["rivals"] if name in NAMES]


def _of_the_run(bench: Bench) -> list[str]:
    return [name for name in bench.extra["rivals"] if name not in (*NAMES, "dynabert")]


def _contest(clusters: list[Cluster], name: str, bench: Bench) -> None:
    for cluster in clusters:
        _entries(bench, cluster, name)


STAGES = (_pretraining, _runs, _contests)
"""What :func:`measure` reads from disk then."""


def _entries(bench: Bench, cluster: Cluster, name: str) -> dict[str, Entry | None]:
    """The result of one piece of work for a cluster."""

    def summary() -> ClusterSummary:
        return next(told for told in bench.summary.clusters if told.name == cluster.name)

    def piece(work: Callable[[], Any]) -> Any:
        return bench.piece(f"contest/{cluster.name}-{name}", work)

    if name in SAME_VIT:
        title, made = SAME_VIT[name]
        return {title: piece(lambda: made(cluster, bench))}
    if name == "centralised":
        bound = piece(lambda: centralised(cluster, summary(), bench))
        size = bound["size_bytes"]
        return {
            POOLED: {"accuracy": bound["pooled"], "size_bytes": size},
            ADAPTED: {"accuracy": bound["pooled, then adapted"], "size_bytes": size},
        }
    if name == "local-only":
        return {LOCAL: piece(lambda: local_only(cluster, summary(), bench))}
    if name == "federated":
        told = piece(lambda: federated(cluster, summary(), bench)) or {}
        size = told.get("size_bytes")
        return {m: {"accuracy": told[m], "size_bytes": size} for m in FEDERATED if told}
    return {NAMES[name]: piece(lambda: _light_weight(name, cluster, bench))}


def _light_weight(shape: str, cluster: Cluster, bench: Bench) -> Entry | None:
    limit = limit_of(cluster)
    rival = trained(shape, limit, bench)
    if rival is None:
        return None
    accuracies = personal_accuracies(rival, cluster, bench, shape)
    return {"accuracy": accuracies, "size_bytes": rival_bytes(rival, limit, bench)}


def find(rows: list[dict[str, dict[str, Entry]]]) -> Findings:
    """One mean over devices for each seed; differences are paired by seed."""
    numbers: dict[str, Any] = {}
    goals, parts = [], []
    for limit in rows[0]:
        names = [name for name in rows[0][limit] if all(name in row[limit] for row in rows)]
        by_name = {n: [statistics.fmean(r[limit][n]["accuracy"]) for r in rows] for n in names}
        table = {
            name: {
                **mean_interval(values),
                "size_bytes": max(row[limit][name]["size_bytes"] for row in rows),
                "ACME - it": paired(by_name[OURS], values),
            }
            for name, values in by_name.items()
        }
        numbers[limit] = table
        rivals = [name for name in names if _competes(name, table, int(limit))]
        best = max(rivals, key=lambda name: table[name]["mean"])
        place = _place(int(limit))
        lead = table[best]["ACME - it"]
        goals.append(
            Goal(
                f"{place}: no rival of its size is shown to be better than ACME by half a point: "
                f"{text(table[OURS])} against {text(table[best])} of {best} (difference "
                f"{text(lead)})",
                lead["mean"],
                _low(lead) >= -0.005,
                f"{len(rivals)} rivals, those that ship one model with classifiers adapted like "
                f"ACME's headers; where settings have recovery, rivals from scratch have as many "
                f"epochs more{_told(table, WHOLE, '; the whole reference has')}",
            )
        )
        if scratch := [name for name in rivals if name in NAMES.values()]:
            light = max(scratch, key=lambda name: table[name]["mean"])
            lead = table[light]["ACME - it"]
            goals.append(
                Goal(
                    f"{place}: at least 3 points above the best light-weight model from scratch, "
                    f"{light}: {text(lead)}",
                    lead["mean"],
                    lead["mean"] >= 0.03,
                    ", ".join(scratch),
                )
            )
        part = f"{place}: ACME {text(table[OURS])} %, best rival {best} {text(table[best])}"
        if POOLED in table:
            bound = max((POOLED, ADAPTED), key=lambda name: table[name]["mean"])
            gap = table[bound]["ACME - it"]
            goals.append(
                Goal(
                    f"{place}: within 3 points of {bound} training ({text(table[bound])}; "
                    f"difference {text(gap)})",
                    gap["mean"],
                    gap["mean"] >= -0.03,
                    "backbones stay frozen on devices"
                    + _told(table, "FedPer", "; FedPer, which trains them too, has"),
                )
            )
            part += f", {bound} {text(table[bound])}"
        part += _told(table, WHOLE, f", {WHOLE}") + _told(table, LOCAL, f", {LOCAL}")
        parts.append(part)
    return Findings("; ".join(parts), numbers, goals)


def _low(difference: dict[str, Any]) -> float:
    """The lower end of a difference's interval; of one seed the difference itself."""
    return (difference["interval"] or [difference["mean"]])[0]


def _place(limit: int) -> str:
    return f"limit {limit / 1e6:.2f} MB"


def _competes(name: str, table: dict[str, Any], limit: int) -> bool:
    """A rival; the whole reference is one where it fits."""
    if name in PROBES.values():
        return table[name]["size_bytes"] <= limit
    return name not in (OURS, LINEAR, *BOUNDS)


def _told(table: dict[str, Any], name: str, words: str) -> str:
    return f"{words} {text(table[name])}" if name in table else ""


def draw(figure: Figure, result: dict[str, Any]) -> None:
    """Accuracy over size for each limit."""
    tables = result["numbers"]
    (places,) = figure.subplots(1, len(tables), sharey=True, squeeze=False)
    for axes, (limit, table) in zip(places, tables.items(), strict=True):
        for i, (name, told) in enumerate(table.items()):
            error = 100 * (told["interval"][1] - told["mean"]) if told["interval"] else 0
            mark = "*" if name == OURS else "_" if name in BOUNDS else "o"
            mark = "P" if name in PROBES.values() else mark
            axes.errorbar(
                told["size_bytes"] / 1e6,
                100 * told["mean"],
                yerr=error,
                marker=mark,
                markersize=9,
                linestyle="",
                color=f"C{i % 10}",
                label=name,
            )
        axes.axvline(int(limit) / 1e6, color="grey", linestyle=":")
        axes.set_xlabel("size, MB")
        axes.set_ylabel("mean test accuracy of the devices, %")
        axes.grid(alpha=0.3)
    places[-1].legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
