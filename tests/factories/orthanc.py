"""An Orthanc with its DICOMweb plugin on loopback, with its storage in a folder of the test."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
SECONDS = 60


def is_installed() -> bool:
    """Whether Debian's packages orthanc and orthanc-dicomweb are there."""
    return shutil.which("Orthanc", path="/usr/sbin:/usr/bin") is not None and PLUGIN.exists()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Orthanc:
    """A running server."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def send(self, path: Path) -> dict[str, Any]:
        """Store one object; returns what the server states of it."""
        request = urllib.request.Request(f"{self.url}/instances", data=path.read_bytes(), method="POST")
        with urllib.request.urlopen(request, timeout=SECONDS) as response:
            stated: dict[str, Any] = json.loads(response.read())
        return stated

    def get(self, path: str) -> Any:
        """A JSON document of the server."""
        return json.loads(self.read(path))

    def read(self, path: str) -> bytes:
        """A document of the server."""
        with urllib.request.urlopen(f"{self.url}/{path}", timeout=SECONDS) as response:
            content: bytes = response.read()
        return content


@contextmanager
def orthanc(folder: Path) -> Iterator[Orthanc]:
    """Start the server; it ends with the block. It accepts REST requests from this machine only."""
    folder.mkdir()
    port = _free_port()
    settings = {
        "Name": "test", "StorageDirectory": str(folder / "storage"), "IndexDirectory": str(folder / "storage"),
        "RemoteAccessAllowed": False, "AuthenticationEnabled": False, "HttpPort": port, "DicomServerEnabled": False,
        "Plugins": [str(PLUGIN)], "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("wb") as log:
        command = [str(shutil.which("Orthanc", path="/usr/sbin:/usr/bin")), str(folder / "orthanc.json")]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    server = Orthanc(port)
    try:
        end = time.monotonic() + SECONDS
        while True:
            try:
                server.get("system")
                break
            except (urllib.error.URLError, ConnectionError):
                assert process.poll() is None, (folder / "log").read_text()[-2000:]
                assert time.monotonic() < end, (folder / "log").read_text()[-2000:]
                time.sleep(0.1)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
