"""The Python API of the four packages: lazy, documented, and with a `repr` that fits a line."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from factories.paths import ROOT
from tmi.runtime import Bundle
from tmi.toolkit.cases.loaded import load_case
from tmi.toolkit.ingest.case_importer import ImportedCase

API = {
    "tmi.toolkit": """Case CaseArrays Cohort ImportedCase Issue LoadedCase check_case import_case load_case make_cohort
        open_cohort""",
    "tmi.runtime": """Bundle CaseArrays CaseExplanation FoldPrediction InferencePipeline Issue Prediction Predictor
        RejectedCase explain open_bundle""",
    "tmi.training": "RunResult TrainingCallbacks train",
    "tmi.export": "ExportSettings export",
}
EXAMPLE = ROOT / "docs" / "examples" / "pipeline.py"
EAGER = """
import sys
import tmi.export, tmi.runtime, tmi.toolkit, tmi.training
tmi.runtime.Predictor, tmi.toolkit.load_case, tmi.toolkit.check_case, tmi.toolkit.import_case
assert not {"torch", "transformers", "monai", "lightning"} & set(sys.modules)
"""


@pytest.mark.parametrize("package", API)
def test_package_exports_its_public_names(package):
    """A package lists exactly its public names, and each has a docstring for `help`."""
    module = importlib.import_module(package)
    assert sorted(module.__all__) == sorted(API[package].split())
    objects = [getattr(module, name) for name in module.__all__]
    assert [item for item in objects if not inspect.getdoc(item)] == []
    assert inspect.getdoc(module)
    with pytest.raises(AttributeError):
        module.Forecaster  # noqa: B018


@pytest.mark.parametrize("package", API)
def test_function_documents_its_arguments(package):
    """`help` of a public function describes every argument, and names what it raises."""
    module = importlib.import_module(package)
    for name in module.__all__:
        function = getattr(module, name)
        if inspect.isfunction(function):
            text = inspect.getdoc(function) or ""
            missing = [p for p in inspect.signature(function).parameters if f"{p}:" not in text]
            assert (name, missing) == (name, [])
            assert "Raises:" in text or name == "check_case"


def test_import_loads_nothing_heavy():
    """The packages and the torch-free names are imported without torch."""
    done = subprocess.run([sys.executable, "-c", EAGER], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_function_is_no_room():
    """`tmi.runtime.explain` stays the function after the room of explanations was imported."""
    import tmi.runtime.explanation.results

    assert inspect.isfunction(tmi.runtime.explain)


def test_representations_fit_a_line(tmp_path, tiny_manifest_bundle):
    """What a notebook prints names the object, not its arrays and records."""
    case = load_case(tmp_path)
    imported = ImportedCase(case=case, findings=(), missing=(), repairs=(), source={}, label=None)
    for shown in (case, imported, tiny_manifest_bundle):
        assert len(repr(shown)) < 60 + 3 * len(str(tmp_path)), repr(shown)
    assert repr(replace(imported, case=case)).endswith("usable, 0 findings)")


@pytest.fixture
def tiny_manifest_bundle(tmp_path) -> Bundle:
    """A bundle that opens and cannot compute."""
    from factories.small_bundle import small_manifest

    return Bundle(folder=tmp_path, manifest=small_manifest(), digest="0" * 64)


def test_example_uses_public_names_alone():
    """The example imports from packages and rooms what they export."""
    imports = [n for n in ast.walk(ast.parse(EXAMPLE.read_text(encoding="utf-8"))) if isinstance(n, ast.ImportFrom)]
    for node in imports:
        if (node.module or "").startswith("tmi."):
            module = importlib.import_module(node.module or "")
            assert {alias.name for alias in node.names} <= set(module.__all__), node.module
    used = {alias.name for node in imports for alias in node.names}
    assert {"train", "export", "Predictor", "explain", "load_case", "check_case", "import_case"} <= used


@pytest.mark.slow
def test_example_runs(tmp_path):
    """The example runs from a cohort to an explanation, and prints what each step returned."""
    done = subprocess.run([sys.executable, str(EXAMPLE), str(tmp_path / "x")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for line in ("ImportedCase(", "RunResult(", "Bundle(", "Predictor(", "rejected (case-missing)", "CaseExplanation("):
        assert line in done.stdout, done.stdout


def test_tests_use_no_private_attribute_of_the_predictor():
    """Tests replace parts of a predictor through its arguments (`factories.staged_predictor`)."""
    private = re.compile(r"\b(predictor|pipeline|explainer|prefetcher)\._(?!_)[a-z]")
    files = [file for file in (ROOT / "tests").rglob("*.py") if private.search(file.read_text(encoding="utf-8"))]
    assert files == []
