"""Nothing that a command or the Python interface runs looks up another host, or stores an id for such reports."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import pytest

from factories.cases import write_cohort
from factories.nano import NANO_OPTIONS
from factories.network_trap import NetworkTrap, make_network_trap, without_signs_of_tests
from factories.paths import ROOT

COMMANDS = """
import sys
from tmi.toolkit.cli.main import main

for words in sys.argv[1].split("\\n"):
    sys.argv = ["tmi", *words.split("\\t")]
    try:
        main()
    except SystemExit as stop:
        if stop.code:
            raise SystemExit(f"{sys.argv}: exit code {stop.code}")
"""
"""Runs several commands in one process, in which packages are imported once."""
REPORTERS = ("intel", ".cache/Microsoft", ".config/mlflow", ".cache/huggingface")
"""What the packages leave in a home folder when they report."""
REPORTING_PACKAGES = {"onnxruntime", "openvino", "mlflow", "monai", "lightning", "transformers", "huggingface_hub"}
"""Packages that report, and those that import one that does."""


@pytest.fixture
def trap(tmp_path: Path) -> NetworkTrap:
    return make_network_trap(tmp_path / "trap")


def run(trap: NetworkTrap, program: str, *arguments: str, **environment: str) -> None:
    """Run a Python program in the trap; fails if it fails."""
    settings: Mapping[str, str] = {"OMP_NUM_THREADS": "1", "TMI_CACHE": str(trap.home / "tmi-cache"), **environment}
    process = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**without_signs_of_tests(), **trap.environment, **settings},
    )
    assert process.returncode == 0, process.stderr[-2000:]


def require_reports() -> None:
    """Skip if OpenVINO's reporting package is not installed; it is disabled in this process, so it is not imported."""
    try:
        metadata.distribution("openvino-telemetry")
    except metadata.PackageNotFoundError:
        pytest.skip("openvino-telemetry is not installed: pip install 'tmi-clnet[openvino]'")


def require_silence(trap: NetworkTrap) -> None:
    """Fail if anything was looked up or left."""
    assert trap.lookups() == []
    assert [name for name in REPORTERS if (trap.home / name).exists()] == []


def tmi(trap: NetworkTrap, *commands: tuple[object, ...]) -> None:
    """Run commands in the trap, and require that they look nothing up."""
    run(trap, COMMANDS, "\n".join("\t".join(str(word) for word in words) for words in commands))
    require_silence(trap)


def test_trap_catches_python_and_native_code(trap):
    """The trap records a look-up by Python and, where it could be compiled, one by native code."""
    python = "import urllib.request as u\ntry: u.urlopen('http://host.invalid/')\nexcept OSError: pass"
    run(trap, python)
    assert trap.lookups() == ["socket.getaddrinfo host.invalid"]
    if not trap.native:
        pytest.skip("no C compiler: look-ups of native code are not trapped")
    native = "ctypes.CDLL(None).getaddrinfo(b'native.invalid', None, None, ctypes.byref(ctypes.c_void_p()))"
    run(trap, f"import ctypes\n{native}")
    assert trap.lookups()[1:] == ["getaddrinfo native.invalid"]


def test_trap_catches_the_reports_themselves(trap):
    """Without `disable_telemetry` OpenVINO's import is caught, so the silence of the other tests means something."""
    require_reports()
    run(trap, "import openvino")
    assert any("google-analytics" in line for line in trap.lookups())
    assert (trap.home / "intel").exists()


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_serving_looks_nothing_up(trap, nano_bundle, synthetic_cohort, engine):
    """`predict`, `verify`, `bench` and `inspect` with either engine, whatever the environment sets."""
    case = next(path for path in sorted(synthetic_cohort.iterdir()) if path.is_dir())
    tmi(
        trap,
        ("inspect", nano_bundle),
        ("predict", case, "--bundle", nano_bundle, "--engine", engine, "--json"),
        ("verify", nano_bundle, "--engine", engine),
        ("bench", nano_bundle, "--engine", engine, "--repeat", 1, "--ct", "64x64x32"),
    )


@pytest.mark.long
def test_explaining_and_export_look_nothing_up(trap, nano_run, nano_bundle, synthetic_cohort, tmp_path):
    """`explain`, `report` and `export`, which import torch, MONAI and every engine."""
    case = next(path for path in sorted(synthetic_cohort.iterdir()) if path.is_dir())
    tmi(
        trap,
        ("report", case, "--bundle", nano_bundle, "--out", tmp_path / "report"),
        ("explain", case, "--bundle", nano_bundle, "--quick", "--out", tmp_path / "explained"),
        ("export", nano_run, "--out", tmp_path / "bundle"),
    )


@pytest.mark.long
def test_training_and_audit_look_nothing_up(trap, synthetic_cohort, tmp_path):
    """`check`, `train` with MLflow's tracker if it is installed, `audit`."""
    pytest.importorskip("mlflow")
    cohort = write_cohort(tmp_path / "cohort", cases=12)
    short = ("--epochs", 1, "--folds", 2, "--preset", "tiny", "--accelerator", "cpu", *NANO_OPTIONS)
    tmi(
        trap,
        ("check", synthetic_cohort),
        ("train", cohort, "--out", tmp_path / "run", "--track", "mlflow", *short),
        ("audit", tmp_path / "run", cohort),
    )


def test_python_interface_looks_nothing_up(trap, nano_bundle):
    """Importing engines and opening a predictor in one's own program is as silent as the commands."""
    run(
        trap,
        "import sys\nfrom tmi.runtime import Predictor\n"
        "for engine in ('openvino', 'onnx'):\n"
        "    with Predictor.open(sys.argv[1], engine=engine, threads=1): pass",
        str(nano_bundle),
        ORT_DISABLE_TELEMETRY="0",
    )
    require_silence(trap)


@pytest.mark.long
@pytest.mark.parametrize(
    "module",
    [
        "tmi.runtime.engines.openvino",
        "tmi.runtime.engines.onnxruntime",
        "tmi.export.tensorrt.fp16_simulation",
        "tmi.export.graphs.onnx",
        "tmi.toolkit.models.factory",
        "tmi.training.loop.fold_training",
    ],
)
def test_import_of_a_module_looks_nothing_up(trap, module):
    """The modules that import reporting packages switch their reports off, without any command."""
    run(trap, f"import {module}")
    require_silence(trap)


def test_packages_imported_earlier_report_no_more(trap, nano_bundle):
    """After `disable_telemetry`, a package that was imported before it sends nothing more."""
    require_reports()
    run(trap, "import openvino_telemetry, openvino\nprint(1)")
    before = len(trap.lookups())
    assert before > 0
    run(
        trap,
        "import openvino_telemetry\n"
        "from tmi.runtime import Predictor\nimport tmi.runtime.engines.openvino\n"
        "openvino_telemetry.Telemetry('name', 'version', 'id').send_event('a', 'b', 'c')",
    )
    assert len(trap.lookups()) == before


def test_every_room_of_a_reporting_package_switches_it_off():
    """The `__init__.py` of a room, or of a room around it, runs before the room's modules import such a package."""
    modules = {path for part in ("toolkit", "runtime", "training", "export") for path in (ROOT / part).rglob("*.py")}
    rooms = {path.parent for path in modules if REPORTING_PACKAGES & imported_packages(path)}
    assert {room.name for room in rooms} >= {"engines", "encoders", "loop", "tensorrt"}
    for room in rooms:
        around = [folder / "__init__.py" for folder in (room, room.parent)]
        assert any("\ndisable_telemetry()\n" in file.read_text() for file in around if file.exists()), room


def imported_packages(path: Path) -> set[str]:
    """Top-level names of what a module imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").partition(".")[0])
    return names
