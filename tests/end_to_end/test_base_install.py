"""The base install of a serving machine: in a new environment it predicts with a bundle and installs no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from factories.cases import write_case
from factories.paths import ROOT

NOT_IN_BASE = (
    "torch",
    "transformers",
    "monai",
    "lightning",
    "scipy",
    "SimpleITK",
    "scikit-learn",
    "matplotlib",
    "onnx",
)
OFFLINE = ("No matching distribution found", "Temporary failure in name resolution", "Connection")


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, env={**inherited, **environment}
    )


@pytest.fixture(scope="module")
def scripts_folder(tmp_path_factory) -> Path:
    """Folder `bin` of a new virtual environment in which only the base package is installed."""
    folder = tmp_path_factory.mktemp("base") / "venv"
    assert run(sys.executable, "-m", "venv", folder).returncode == 0
    pip = (folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check")
    install = run(*pip, "install", "--quiet", "-c", ROOT / "constraints.txt", ROOT)
    if install.returncode and any(sign in install.stderr for sign in OFFLINE):
        pytest.skip("pip cannot reach a package index")
    assert install.returncode == 0, install.stderr
    return folder / "bin"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_base_package_predicts_alone(scripts_folder, tiny_bundle, tmp_path):
    """The base package predicts with an ONNX bundle, and none of the heavy packages is installed."""
    listed = run(scripts_folder / "python", "-m", "pip", "list", "--format", "json").stdout
    installed = {package["name"].lower() for package in json.loads(listed)}
    assert installed.isdisjoint(name.lower() for name in NOT_IN_BASE)
    case = write_case(tmp_path / "P000")
    prediction = run(
        scripts_folder / "tmi", "predict", case, "--bundle", tiny_bundle, "--json", TMI_CACHE=str(tmp_path / "cache")
    )
    assert prediction.returncode == 0, prediction.stderr
    (result,) = json.loads(prediction.stdout)["results"]
    assert 0.0 < result["probability"]["bad"] < 1.0
