"""Engines of ONNX Runtime and torch on a GPU: parity, batches, precision, fallback, selection."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from safetensors.numpy import load_file

from tmi.runtime.bundle.manifest import GOLDEN_FILE
from tmi.runtime.bundle.reader import Bundle, open_bundle
from tmi.runtime.engines.onnxruntime import CUDA_PROVIDER
from tmi.runtime.engines.precision import engine_precision
from tmi.runtime.engines.registry import ENGINES, missing_requirement, open_engine
from tmi.runtime.engines.selection import choose_engine
from tmi.runtime.verification.golden_inputs import GoldenInputs, golden_from_manifest
from tmi.runtime.verification.outputs import Outputs, evaluate
from tmi.runtime.verification.parity import check_engine

pytestmark = pytest.mark.gpu
NAMES = [name for name, spec in ENGINES.items() if spec.gpu and not spec.plans]
FLOAT32_NAMES = [name for name in NAMES if ENGINES[name].precision == "float32"]


@pytest.fixture(scope="module")
def bundle(graph_bundle: Path) -> Bundle:
    return open_bundle(graph_bundle)


@pytest.fixture(scope="module")
def golden(bundle: Bundle) -> GoldenInputs:
    return golden_from_manifest(bundle.manifest)


@pytest.fixture(scope="module")
def reference(bundle: Bundle) -> Outputs:
    return Outputs.from_tensors(load_file(bundle.folder / GOLDEN_FILE))


@pytest.fixture(autouse=True)
def _runs_here(request: pytest.FixtureRequest) -> None:
    name = getattr(request.node, "callspec", None) and request.node.callspec.params.get("name")
    if name is not None and (missing := missing_requirement(name)) is not None:
        pytest.skip(missing)


@pytest.mark.parametrize("name", NAMES)
def test_engine_passes_every_check(name, bundle, golden, reference):
    """The engine passes all parity checks on the GPU."""
    with open_engine(name, bundle) as engine:
        precision = engine_precision(name, bundle.manifest)
        records = check_engine(
            engine, bundle.manifest, golden, reference, artefact=ENGINES[name].artefact, precision=precision
        )
    assert records
    assert [r for r in records if not r.passed] == []


@pytest.mark.parametrize("name", NAMES)
def test_repeated_runs_are_equal_and_rows_independent(name, bundle, golden):
    """Repeated runs give equal outputs, and a case gives the same logits in a larger batch.

    TorchScript replaces its kernels after the first runs, so its outputs may change by float32's rounding error.
    """
    rows = [i % golden.count for i in range(11)]
    with open_engine(name, bundle) as engine:
        few = evaluate(engine, bundle.manifest, golden)
        many = evaluate(engine, bundle.manifest, golden.rows(rows))
        again = evaluate(engine, bundle.manifest, golden)
    np.testing.assert_allclose(again.logits_BFK, few.logits_BFK, rtol=0, atol=1e-5 if name == "torchscript-cuda" else 0)
    tolerance = 1e-4 if name in FLOAT32_NAMES else 1e-2
    np.testing.assert_allclose(many.logits_BFK, few.logits_BFK[rows], rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", FLOAT32_NAMES)
def test_float32_engine_does_not_compute_in_tf32(name, bundle, golden, reference):
    """A float32 engine's CT features differ from eager's by far less than TF32's rounding error of 5e-4."""
    expected = reference.by_graph()["ct-0"]
    with open_engine(name, bundle) as engine:
        (actual,) = engine.run("ct-0", {"ct": golden.ct_B1DHW}).values()
    assert np.abs(actual - expected).max() <= 2e-5 * np.abs(expected).max()


def test_tf32_would_be_seen(bundle, golden, reference):
    """With the provider's default, TF32, the CT features fail the comparison that the float32 engine passes."""
    if missing_requirement("onnx-cuda") is not None:
        pytest.skip("this onnxruntime has no CUDA provider")
    expected = reference.by_graph()["ct-0"]
    path = bundle.artefact(bundle.manifest.graph("ct-0"), "onnx")
    with open_engine("onnx-cuda", bundle):  # loads the CUDA libraries
        session = onnxruntime.InferenceSession(str(path), providers=[(CUDA_PROVIDER, {"use_tf32": "1"})])
        (actual,) = session.run(None, {"ct": golden.ct_B1DHW})
    assert np.abs(actual - expected).max() > 2e-5 * np.abs(expected).max()


def test_auto_uses_the_gpu(bundle):
    """`auto` selects a GPU engine where one can run."""
    if all(missing_requirement(name) is not None for name in NAMES):
        pytest.skip("neither onnxruntime nor torch has CUDA")
    assert ENGINES[choose_engine("auto", bundle)[0]].gpu
