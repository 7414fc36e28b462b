"""A published site of a tiny artifact, a publisher to change it, and devices that pull from it."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from acme_fleet.deploy.delivery.publish import publish
from acme_fleet.deploy.delivery.signing import Publisher
from acme_fleet_runtime.delivery.device import Pulled, pull
from acme_fleet_runtime.runner import Runner
from tiny_artifact import write_artifact

DEVICE = "cam-1"


@dataclass
class Site:
    """A publisher's folders; devices are folders beside them."""

    root: Path

    @property
    def folder(self) -> Path:
        return self.root / "site"

    @property
    def publisher(self) -> Publisher:
        return Publisher(self.root / "publisher", datetime.now(UTC))

    def earlier(self, **by: Any) -> Publisher:
        return replace(self.publisher, now=datetime.now(UTC) - timedelta(**by))

    def artifact(self, precision: str = "float32", device: str = DEVICE, **changes: Any) -> Path:
        """An artifact; two of different ``precision`` differ in their manifests alone."""
        folder = self.root / "artifacts" / device
        write_artifact(folder, "images", name=device, precision=precision, **changes)
        return folder

    def publish(self, precision: str = "float32", publisher: Publisher | None = None) -> None:
        publish([self.artifact(precision)], self.folder, publisher or self.publisher)

    def pull(self, to: str = "device", *, where: str = "", again: bool = False) -> Pulled:
        return pull(
            where or str(self.folder),
            DEVICE,
            self.root / to,
            trust=None if (self.root / to).exists() else self.publisher.fingerprint,
            again=again,
        )

    def running(self, to: str = "device") -> str:
        """The precision in the manifest of what a device runs; it must run."""
        return Runner.open(self.root / to / "current", threads=1).manifest.precision

    def keep(self, name: str) -> Path:
        """A copy of the site as it is now."""
        return Path(shutil.copytree(self.folder, self.root / name))

    def files(self) -> list[Path]:
        return sorted((self.folder / "files").iterdir(), key=lambda path: path.stat().st_size)


class Serving(SimpleHTTPRequestHandler):
    """A file server with ranges, which may stop after some bytes of a file."""

    stop_after: int | None = None
    ranges = True
    asked: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        type(self).asked.append((self.path, wanted))
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content, start = path.read_bytes(), 0
        if wanted and self.ranges:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        stops = self.stop_after if "/files/" in self.path else None
        self.wfile.write(content[start:][:stops])

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, type[Serving]]]:
    """The URL of a folder, and the class of its server to set its habits."""

    class Handler(Serving):
        asked: list[tuple[str, str | None]] = []  # noqa: RUF012

    handler = partial(Handler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", Handler
        finally:
            server.shutdown()
            thread.join()
