"""A serving machine has no torch: `tmi predict` on ONNX graphs neither imports it nor asks whether it is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

HEAVY = (
    "torch", "transformers", "monai", "lightning", "pytorch_lightning", "sklearn", "pandas", "matplotlib", "captum",
    "radiomics", "SimpleITK", "onnx",
)  # fmt: skip  # nibabel itself looks for scipy and pydicom
PROGRAM = """
import json, sys

HEAVY = {heavy!r}
asked = []

class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            asked.append(name)
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

dialled = []
sys.addaudithook(lambda event, _: dialled.append(event) if event in ("socket.connect", "socket.getaddrinfo") else None)
sys.meta_path.insert(0, Wall())
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
    "asked": asked,
    "dialled": dialled,
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
    """What one process with a wall around the heavy packages has to tell after predicting with both engines."""
    arguments = [str(good_cases[0]), "--bundle", str(tiny_bundle), "--json", "--engine", "?"]
    environment = {"TMI_CACHE": str(tmp_path_factory.mktemp("cache"))}  # the first opening must be torch-free too
    done = run(PROGRAM.format(heavy=HEAVY), "predict", *arguments, **environment)
    return {**json.loads(done.stderr.splitlines()[-1]), "stdout": done.stdout}


def test_predicting_with_onnx_graphs_imports_nothing_heavy(report):
    assert report["codes"] == [0, 0]
    assert report["engines"] == ["onnxruntime", "openvino"]
    assert report["heavy"] == []


def test_predicting_with_onnx_graphs_does_not_even_look_for_anything_heavy(report):
    assert report["asked"] == []


def test_predicting_opens_no_connection(report):
    # OpenVINO comes with a telemetry package, which it imports; only its model converter would send anything.
    assert report["dialled"] == []


def test_nothing_but_the_documents_reaches_standard_output(report):
    text, decoder, documents = str(report["stdout"]), json.JSONDecoder(), []
    while text.strip():
        document, end = decoder.raw_decode(text)
        documents.append(document)
        text = text[end:].lstrip()
    assert [d["engine"]["name"] for d in documents] == ["onnx", "openvino"]


def test_importing_the_package_is_light():
    program = (
        "import sys, tmi.runtime, tmi.runtime.engines.registry, tmi.runtime.cli.predict\n"
        "print(sorted({'nibabel', 'tokenizers', 'onnxruntime', 'openvino', 'torch'} & set(sys.modules)))"
    )
    assert run(program).stdout.strip() == "[]"


def test_verifying_onnx_graphs_imports_nothing_heavy_and_opens_no_connection(tiny_bundle):
    done = run(PROGRAM.format(heavy=HEAVY), "verify", str(tiny_bundle), "--json", "--engine", "?")
    said = json.loads(done.stderr.splitlines()[-1])
    assert said["codes"] == [0, 0]
    assert said["heavy"] == said["asked"] == said["dialled"] == []
