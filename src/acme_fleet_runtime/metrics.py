"""Counts of a server in Prometheus' text format."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_TIMED = frozenset({"/predict", "/v1/completions", "/v1/chat/completions"})
_SAMPLES = (1, 2, 4, 8, 16, 32, 64)


class _Histogram:
    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds, self.counts = bounds, [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.total += value
        place = next((n for n, bound in enumerate(self.bounds) if value <= bound), len(self.bounds))
        self.counts[place] += 1

    def lines(self, name: str) -> list[str]:
        lines, so_far = [], 0
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            so_far += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {so_far}')
        return [*lines, f"{name}_sum {self.total:.6f}", f"{name}_count {so_far}"]


class Metrics:
    """Requests, batches and their times. Threads may share it."""

    def __init__(self, about: Mapping[str, str]) -> None:
        """Begin at zero; ``about`` are labels of the artifact."""
        self._lock = threading.Lock()
        self._about = about
        self._requests: dict[tuple[str, int], int] = defaultdict(int)
        self._request_seconds = _Histogram(_SECONDS)
        self._batch_seconds, self._batch_samples = _Histogram(_SECONDS), _Histogram(_SAMPLES)

    def request(self, path: str, code: int, seconds: float) -> None:
        """Count an answered request."""
        with self._lock:
            self._requests[path, code] += 1
            if path in _TIMED:
                self._request_seconds.add(seconds)

    def batch(self, samples: int, seconds: float) -> None:
        """Count a batch that has run."""
        with self._lock:
            self._batch_samples.add(samples)
            self._batch_seconds.add(seconds)

    def text(self, waiting: int, connections: int) -> str:
        """The page of ``/metrics``; the numbers are of now."""
        about = ",".join(f'{name}="{_escaped(value)}"' for name, value in self._about.items())
        with self._lock:
            requests = [
                f'acme_requests_total{{path="{path}",code="{code}"}} {count}'
                for (path, code), count in sorted(self._requests.items())
            ]
            parts = [
                ("acme_artifact_info", "gauge", [f"acme_artifact_info{{{about}}} 1"]),
                ("acme_requests_total", "counter", requests),
                ("acme_waiting_samples", "gauge", [f"acme_waiting_samples {waiting}"]),
                ("acme_connections", "gauge", [f"acme_connections {connections}"]),
                *(
                    (name, "histogram", histogram.lines(name))
                    for name, histogram in (
                        ("acme_request_seconds", self._request_seconds),
                        ("acme_batch_seconds", self._batch_seconds),
                        ("acme_batch_samples", self._batch_samples),
                    )
                ),
            ]
        lines = [line for name, kind, of in parts for line in (f"# TYPE {name} {kind}", *of)]
        return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
