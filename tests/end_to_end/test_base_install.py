"""What a serving machine installs: the base package in a new environment predicts a bundle, and brings no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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


def called(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, env={**clean, **environment}
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """The folder of commands of an environment that holds the base package alone."""
    folder = tmp_path_factory.mktemp("base") / "venv"
    assert called(sys.executable, "-m", "venv", folder).returncode == 0
    pip = (folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check")
    done = called(*pip, "install", "--quiet", "-c", ROOT / "constraints.txt", ROOT)
    if done.returncode and any(sign in done.stderr for sign in OFFLINE):
        pytest.skip("pip reaches no package index from here")
    assert done.returncode == 0, done.stderr
    return folder / "bin"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_base_package_predicts_alone(base, tiny_bundle, good_cases, tmp_path):
    listed = called(base / "python", "-m", "pip", "list", "--format", "json").stdout
    installed = {package["name"].lower() for package in json.loads(listed)}
    assert installed.isdisjoint(name.lower() for name in NOT_IN_BASE)
    done = called(
        base / "tmi", "predict", good_cases[0], "--bundle", tiny_bundle, "--json", TMI_CACHE=str(tmp_path / "cache")
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)["results"][0]
    assert 0.0 < answer["probability"]["bad"] < 1.0
