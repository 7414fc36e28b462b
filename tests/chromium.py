"""Debian's chromium, driven over the DevTools protocol by a pipe: no other package is needed."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--remote-debugging-pipe"),
)
_PATIENCE_S = 60.0


class Tab:
    """One page in a browser of its own; a context manager."""

    def __init__(self, folder: Path) -> None:
        """``folder`` is the browser's, and must be new."""
        assert PROGRAM is not None
        read, self._out = os.pipe()
        self._in, write = os.pipe()
        # The protocol's descriptors are 3 and 4; both ends are moved away from there first.
        self._process = subprocess.Popen(
            [
                "/bin/bash",
                "-c",  # sh of Debian knows no descriptor above 9
                f'exec "$@" 3<&{read} 4>&{write}',
                "bash",
                PROGRAM,
                *_FLAGS,
                f"--user-data-dir={folder}",
                "about:blank",
            ],
            pass_fds=(read, write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read)
        os.close(write)
        self._numbers, self._rest = itertools.count(1), b""
        self.told: list[dict[str, Any]] = []
        """Messages of the browser's console, exceptions and refusals of the page's policy."""
        self._session: str | None = None
        pages = self.call("Target.getTargets")["targetInfos"]
        target = next(one["targetId"] for one in pages if one["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.requested: list[str] = []

    def __enter__(self) -> Tab:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=20)
        os.close(self._in)
        os.close(self._out)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + _PATIENCE_S
        while time.monotonic() < end:
            answer = self._receive(end - time.monotonic())
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)
        raise TimeoutError(method)

    def open(self, address: str, width: int = 1280, height: int = 900, **media: str) -> None:
        """Load a page in a window of this size, with media features such as a colour scheme."""
        features = [{"name": name.replace("_", "-"), "value": v} for name, v in media.items()]
        self.call("Emulation.setEmulatedMedia", media="", features=features)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        told = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def wait(self, condition: str, seconds: float = 30.0) -> None:
        """Wait until an expression is true.

        Raises:
            TimeoutError: with the page's text.
        """
        end = time.monotonic() + seconds
        while not self.run(f"Boolean({condition})"):
            if time.monotonic() > end:
                raise TimeoutError(f"{condition}: {self.run('document.body.innerText')}")
            time.sleep(0.1)

    def press(self, key: str) -> None:
        """A key goes down and up."""
        codes = {"Tab": 9, "Enter": 13, "ArrowDown": 40, "ArrowRight": 39, "Space": 32}
        text = {"Enter": "\r", "Space": " "}.get(key)
        name = {"Space": " "}.get(key, key)
        about = {"key": name, "code": key, "windowsVirtualKeyCode": codes[key]}
        down = about | ({"text": text} if text else {})
        self.call("Input.dispatchKeyEvent", type="keyDown", **down)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """A PNG of the window, or of the ``whole`` page."""
        told = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(told["data"]))

    def names(self) -> list[tuple[str, str]]:
        """Roles and names of all that a screen reader finds."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node["ignored"]
        ]

    def _receive(self, seconds: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], max(0.0, seconds))
            if not ready:
                raise TimeoutError("the browser does not answer")
            received = os.read(self._in, 2**16)
            if not received:
                raise ConnectionError("the browser has ended")
            self._rest += received
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        method, params = event.get("method"), event.get("params", {})
        if method in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
            self.told.append(params)
        elif method == "Network.requestWillBeSent":
            self.requested.append(params["request"]["url"])
