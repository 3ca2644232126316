"""Serving without torch: `tmi predict` on ONNX graphs neither imports heavy packages nor searches for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

HEAVY = (
    "torch", "transformers", "monai", "lightning", "pytorch_lightning", "sklearn", "pandas", "matplotlib", "captum",
    "radiomics", "SimpleITK", "onnx",
)  # fmt: skip  # scipy and pydicom are left out, because nibabel itself searches for them
PROGRAM = """
import json, sys

HEAVY = {heavy!r}
searched = []

class BlockingFinder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            searched.append(name)
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

connections = []
NETWORK = ("socket.connect", "socket.getaddrinfo")
sys.addaudithook(lambda event, _: connections.append(event) if event in NETWORK else None)
sys.meta_path.insert(0, BlockingFinder())
sys.argv = ["tmi", *sys.argv[1:]]
from tmi.toolkit.cli.main import main
codes = []
for engine in ("onnx", "openvino"):
    sys.argv[-1] = engine
    try:
        main()
    except SystemExit as stop:
        codes.append(stop.code)
packages = {{name.partition(".")[0] for name in sys.modules}}
report = {{
    "codes": codes,
    "searched": searched,
    "connections": connections,
    "heavy": sorted(packages & set(HEAVY)),
    "engines": sorted(packages & {{"onnxruntime", "openvino"}}),
}}
print(json.dumps(report), file=sys.stderr)
"""


def run(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.fixture(scope="module")
def report(tiny_bundle, good_cases, tmp_path_factory) -> dict[str, object]:
    """Report of a process that predicts with both engines while heavy packages are blocked."""
    arguments = [str(good_cases[0]), "--bundle", str(tiny_bundle), "--json", "--engine", "?"]
    # With an empty cache the startup self-test runs, which must be torch-free too.
    environment = {"TMI_CACHE": str(tmp_path_factory.mktemp("cache"))}
    process = run(PROGRAM.format(heavy=HEAVY), "predict", *arguments, **environment)
    return {**json.loads(process.stderr.splitlines()[-1]), "stdout": process.stdout}


def test_onnx_prediction_imports_nothing_heavy(report):
    """A prediction on ONNX graphs, self-test included, imports no heavy package."""
    assert report["codes"] == [0, 0]
    assert report["engines"] == ["onnxruntime", "openvino"]
    assert report["heavy"] == []


def test_onnx_prediction_searches_for_nothing_heavy(report):
    """No heavy package is even searched for on the import path."""
    assert report["searched"] == []


def test_prediction_opens_no_connection(report):
    """A prediction opens no socket."""
    assert report["connections"] == []


def test_only_json_reaches_standard_output(report):
    """With `--json` standard output holds the documents and nothing else."""
    text, decoder, documents = str(report["stdout"]), json.JSONDecoder(), []
    while text.strip():
        document, end = decoder.raw_decode(text)
        documents.append(document)
        text = text[end:].lstrip()
    assert [d["engine"]["name"] for d in documents] == ["onnx", "openvino"]


def test_import_of_the_package_is_light():
    """Importing the command imports neither engines nor image readers."""
    program = (
        "import sys, tmi.runtime, tmi.runtime.engines.registry, tmi.runtime.cli.predict\n"
        "print(sorted({'nibabel', 'tokenizers', 'onnxruntime', 'openvino', 'torch'} & set(sys.modules)))"
    )
    assert run(program).stdout.strip() == "[]"


def test_onnx_verification_is_torch_free_and_offline(tiny_bundle):
    """`tmi verify` on ONNX graphs imports no heavy package and opens no socket."""
    process = run(PROGRAM.format(heavy=HEAVY), "verify", str(tiny_bundle), "--json", "--engine", "?")
    report = json.loads(process.stderr.splitlines()[-1])
    assert report["codes"] == [0, 0]
    assert report["heavy"] == report["searched"] == report["connections"] == []
