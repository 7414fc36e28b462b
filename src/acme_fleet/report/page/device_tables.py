"""Tables of devices: a column for what is known of them; one without any value is left out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from acme_fleet.report.words import accuracy_text, bytes_text, duration_text, perplexity_text
from acme_fleet.runs.summary import DeviceSummary, Rival, Summary

_NONE = "–"
_LARGE = 10_000_000  # bytes; a table of such models has megabytes


@dataclass(frozen=True)
class Table:
    """Names of columns, and the cells of each row."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    @staticmethod
    def of(rows: Iterable[Mapping[str, str]]) -> Table:
        """From rows with the same columns, of which those with a value stay."""
        made = list(rows)
        columns = [name for name in made[0] if any(row[name] != _NONE for row in made)]
        return Table(columns, [[row[name] for name in columns] for row in made])

    def without(self, *names: str) -> Table:
        """The table without these columns."""
        kept = [number for number, name in enumerate(self.columns) if name not in names]
        rows = [[row[number] for number in kept] for row in self.rows]
        return Table([self.columns[number] for number in kept], rows)


def device_table(devices: Sequence[DeviceSummary], summary: Summary) -> Table:
    """Sizes, shares of right answers and samples of these devices, which are at least one."""
    large = max(device.size_bytes for device in devices) >= _LARGE
    unit, scale = ("MB", 1e6) if large else ("kB", 1e3)
    return Table.of(_row(each, summary.sent.get(each.name), unit, scale) for each in devices)


def _row(
    device: DeviceSummary, sent: Mapping[str, Sequence[int]] | None, unit: str, scale: float
) -> dict[str, str]:
    return {
        "device": device.name,
        "cluster": device.cluster,
        "fits": "yes" if device.size_bytes <= device.capacity_bytes else "NO",
        f"size {unit}": f"{device.size_bytes / scale:.1f}",
        f"limit {unit}": f"{device.capacity_bytes / scale:.6g}",
        "right %": _percent(device.accuracy),
        "reference %": _percent(device.accuracy_reference),
        "linear %": _percent(device.accuracy_linear),
        "ten lines %": _percent(device.accuracy_probe),
        "test samples": str(device.test_samples),
        "classes": str(len(device.classes) or _NONE),
        "training samples": str(device.train_samples or _NONE),
        "ms": f"{1000 * device.latency_s:.2f}",
        "sent kB": f"{sum(map(sum, sent.values())) / 1000:.1f}" if sent else _NONE,
    }


def language_table(devices: Iterable[DeviceSummary]) -> Table | None:
    """Perplexities, speed and answers of language models; none where no device has one."""
    rows = [_written(device) for device in devices if device.language]
    return Table.of(rows) if rows else None


def _written(device: DeviceSummary) -> dict[str, str]:
    own = device.language
    assert own is not None
    return {
        "device": device.name,
        "coarse": perplexity_text(own.loss_coarse),
        "linear": perplexity_text(own.loss_linear),
        "LoRA": _NONE if own.loss_lora is None else perplexity_text(own.loss_lora),
        "final": perplexity_text(own.loss),
        "loss per token": f"{own.loss:.3f}",
        "tokens": f"{own.tokens}",
        "first token": duration_text(own.first_token_s),
        "tokens/s": f"{own.tokens_per_s:.0f}",
        "memory": _NONE if own.peak_bytes is None else bytes_text(own.peak_bytes),
        "answers": str(own.answers or _NONE),
        "right, coarse": accuracy_text(own.exact_coarse),
        "right, final": accuracy_text(own.exact),
    }


def rivals_table(devices: Iterable[DeviceSummary]) -> Table | None:
    """Perplexity and share of right answers of each rival and of the shipped model.

    None where no device has a rival. Of a language model the share is of answers that are exactly
    right, where there are any.
    """
    rows = [_beside(device) for device in devices if device.rivals]
    return Table.of(rows) if rows else None


def rivals_sizes(devices: Sequence[DeviceSummary]) -> dict[str, float]:
    """Mean bytes of each rival, by its name."""
    sizes = defaultdict[str, list[int]](list)
    for device in devices:
        for name, rival in device.rivals.items():
            sizes[name].append(rival.size_bytes)
    return {name: sum(of) / len(of) for name, of in sizes.items()}


def _beside(device: DeviceSummary) -> dict[str, str]:
    own = device.language
    loss, exact = (own.loss, own.exact) if own else (None, None)
    shipped = Rival(device.accuracy, device.size_bytes, loss, exact)
    every = {**device.rivals, "final": shipped}
    return {"device": device.name} | {name: _judged(rival) for name, rival in every.items()}


def _judged(rival: Rival) -> str:
    if rival.loss is None:
        return f"{_percent(rival.accuracy)} %"
    exact = "" if rival.exact is None else f"; {_percent(rival.exact)} %"
    return perplexity_text(rival.loss) + exact


def _percent(share: float | None) -> str:
    return _NONE if share is None else f"{100 * share:.1f}"
