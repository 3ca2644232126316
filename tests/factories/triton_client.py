"""NVIDIA's `tritonclient` in an environment of its own, and a program that calls a server with it, as a user does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
import json, sys
from pathlib import Path
import numpy as np

protocol, port, case, radiomics = sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4]
if protocol == "grpc":
    import tritonclient.grpc as triton
else:
    import tritonclient.http as triton
client = triton.InferenceServerClient(f"localhost:{port}")
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("tmi")
as_json = {"as_json": True} if protocol == "grpc" else {}
server = client.get_server_metadata(**as_json)
outputs = client.get_model_metadata("tmi", "1", **as_json)["outputs"]
inputs = []
files = {"ct": "ct.nii.gz", "liver": "liver.nii.gz", "radiomics": "radiomics.csv", "clinical": "clinical.json"}
if radiomics == "FP64":  # Triton's configuration names one datatype of an input; `tmi serve` takes the table too
    del files["radiomics"]
    values = np.loadtxt(case / "radiomics.csv", delimiter=",", skiprows=1)[None]
    inputs.append(triton.InferInput("radiomics", list(values.shape), "FP64"))
    inputs[0].set_data_from_numpy(values)
for name, file in files.items():
    inputs.append(triton.InferInput(name, [1, 1], "BYTES"))
    inputs[-1].set_data_from_numpy(np.array([[(case / file).read_bytes()]], dtype=np.object_))
found = {"server": server["name"], "outputs": [output["name"] for output in outputs]}
for binary in (True,) if protocol == "grpc" else (True, False):
    form = {} if protocol == "grpc" else {"binary_data": binary}
    wanted = [triton.InferRequestedOutput(output["name"], **form) for output in outputs]
    result = client.infer("tmi", inputs, outputs=wanted, request_id="r1")
    response = result.get_response(**as_json)
    assert response["id"] == "r1"
    found[binary] = result.as_numpy("probability").tolist() + result.as_numpy("fold_probability").tolist()
result = client.infer("tmi", inputs)
found["decision"] = result.as_numpy("decision").ravel()[0].decode()
found["issues"] = json.loads(result.as_numpy("issues").ravel()[0])
(ct,) = [given for given in inputs if given.name() == "ct"]
ct.set_data_from_numpy(np.array([[b"no image"]], dtype=np.object_))
try:
    client.infer("tmi", inputs)
except triton.InferenceServerException as error:
    found["error"], found["status"] = error.message(), error.status()
print(json.dumps(found))
"""
OFFLINE = ("No matching distribution found", "Temporary failure in name resolution", "Connection")


def make_environment(folder: Path, *packages: str) -> Path:
    """Install packages into a new environment and return its Python; skip the test without a package index."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    installed = subprocess.run([*pip, *packages], capture_output=True, text=True)
    if installed.returncode and any(sign in installed.stderr for sign in OFFLINE):
        pytest.skip("pip cannot reach a package index")
    assert installed.returncode == 0, installed.stderr
    return python


def call_server(python: Path, protocol: str, port: int, case: Path, *, radiomics: str = "BYTES") -> dict[str, Any]:
    """Call a server by `http` or `grpc`, with radiomics of a datatype; return what the program found."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    command = [python, "-c", PROGRAM, protocol, str(port), case, radiomics]
    done = subprocess.run(command, capture_output=True, text=True, env=inherited, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found
