"""NVIDIA's Triton server of the wheel nvidia-pytriton, with its Python backend alone, on loopback.

The stub of this version was built before numpy 2, so its environment has numpy 1.26, on which the runtime works too.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

SERVER_PACKAGES = ("nvidia-pytriton==0.7.0", "numpy==1.26.4")
RUNTIME_PACKAGES = (
    "numpy==1.26.4", "onnxruntime", "nibabel", "safetensors", "tokenizers", "isal", "lazy-loader", "jaxtyping",
    "platformdirs", "rich", "typer", "starlette", "python-multipart", "prometheus-client",
)  # fmt: skip
"""What the runtime imports; installed without the pins of the project, which ask for numpy 2."""
SECONDS = 120


class TritonServer(NamedTuple):
    """A running server."""

    http_port: int
    grpc_port: int
    log: Path


def _free_ports(count: int) -> list[int]:
    listeners = [socket.socket() for _ in range(count)]
    for listener in listeners:
        listener.bind(("127.0.0.1", 0))
    ports = [int(listener.getsockname()[1]) for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


@contextmanager
def triton_server(python: Path, repository: Path, folder: Path) -> Iterator[TritonServer]:
    """Start the server of an environment on a repository; it ends with the block.

    Args:
        python: of the environment with the packages above.
        repository: model repository.
        folder: new folder for the server's programs and its log.
    """
    packages = python.parent.parent / "lib" / "python3.11" / "site-packages"
    source = packages / "pytriton" / "tritonserver"
    for name in ("bin", "backends", "caches"):
        shutil.copytree(source / name, folder / name)
    stub = source / "python_backend_stubs" / "3.11" / "triton_python_backend_stub"
    shutil.copy(stub, folder / "backends" / "python")
    libraries = f"{sysconfig.get_config_var('LIBDIR')}:{packages / 'nvidia_pytriton.libs'}"
    environment = {**os.environ, "LD_LIBRARY_PATH": libraries, "TMI_SITE_PACKAGES": str(packages)}
    environment.pop("PYTHONPATH", None)
    http_port, grpc_port = _free_ports(2)
    command = [
        str(folder / "bin" / "tritonserver"), f"--model-repository={repository}",
        f"--backend-directory={folder / 'backends'}", "--http-address=127.0.0.1", f"--http-port={http_port}",
        "--grpc-address=127.0.0.1", f"--grpc-port={grpc_port}", "--allow-metrics=false",
        "--backend-config=python,shm-default-byte-size=134217728",
    ]  # fmt: skip
    log = folder / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + SECONDS
        while not _is_ready(http_port):
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < end, log.read_text()[-3000:]
            time.sleep(0.2)
        yield TritonServer(http_port, grpc_port, log)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5) as response:
            return int(response.status) == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
