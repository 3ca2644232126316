"""Headless Chromium, controlled with the DevTools protocol over a pipe; it needs no driver, websocket or port.

A message is a JSON document followed by a zero byte. The browser reads messages from its file descriptor 3 and writes
to its 4 (`--remote-debugging-pipe`).
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Self

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--mute-audio",
    "--remote-debugging-pipe",
)  # fmt: skip
TIMEOUT_S = 60.0


def find_chromium() -> str | None:
    """Path of an installed browser, or None."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


class Browser:
    """One page in one browser. Use as a context manager."""

    def __init__(self, profile: Path, *, width: int = 1100, height: int = 1500) -> None:
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        program = find_chromium()
        assert program is not None
        # the shell moves the two pipe ends to descriptors 3 and 4
        line = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        arguments = [program, *FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", line, *arguments],
            pass_fds=(to_read, to_write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.faults: list[str] = []
        """Errors and warnings of the console and the log, and requests to anything but the disk."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._session = None
            self.call("Browser.close")
        finally:
            os.close(self._write)
            os.close(self._read)
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; events that arrive before it are recorded."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            reply = self._next()
            if reply.get("id") == self._number:
                assert "error" not in reply, (method, reply["error"])
                return dict(reply["result"])
            self._record(reply)

    def open(self, page: Path) -> None:
        """Load a page from disk and wait until it is complete."""
        self.call("Page.navigate", url=page.resolve().as_uri())
        end = time.monotonic() + TIMEOUT_S
        while self.run("document.readyState + location.protocol") != "completefile:":
            assert time.monotonic() < end, "the page did not load"
            time.sleep(0.05)

    def run(self, script: str) -> Any:
        """Evaluate a JavaScript expression and return its value; promises are awaited."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def press(self, key: str) -> None:
        """Press and release a key in the focused element."""
        codes = {"ArrowRight": 39, "ArrowLeft": 37, "ArrowDown": 40, "End": 35, "Tab": 9, " ": 32}
        for kind in ("rawKeyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code="Space" if key == " " else key,
                windowsVirtualKeyCode=codes[key],
            )  # fmt: skip

    def screenshot(self, *, whole: bool = False) -> bytes:
        """PNG of the visible part, or of the whole page."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        return base64.b64decode(data)

    def pdf(self) -> bytes:
        """PDF of the page as it is printed."""
        reply = self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=False)
        return base64.b64decode(reply["data"])

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + TIMEOUT_S
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser did not reply in time"
            data = os.read(self._read, 1 << 20)
            assert data, "the browser closed the pipe"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        value: dict[str, Any] = json.loads(message)
        return value

    def _record(self, event: dict[str, Any]) -> None:
        kind, details = event.get("method"), event.get("params", {})
        if kind == "Runtime.exceptionThrown":
            self.faults.append(f"exception: {details['exceptionDetails'].get('text')}")
        elif kind == "Runtime.consoleAPICalled" and details["type"] in ("error", "warning", "assert"):
            self.faults.append(f"console: {details['args']}")
        elif kind == "Log.entryAdded" and details["entry"]["level"] in ("error", "warning"):
            self.faults.append(f"log: {details['entry']['text']}")
        elif kind == "Network.requestWillBeSent" and not details["request"]["url"].startswith(("file:", "data:")):
            self.faults.append(f"request: {details['request']['url']}")
