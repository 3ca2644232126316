"""Tests of the parity checks, on a numpy engine with planted faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from factories.numpy_engine import NumpyEngine, make_manifest
from tmi.runtime.bundle.check_result import CheckResult
from tmi.runtime.bundle.manifest import Manifest
from tmi.runtime.bundle.manifest_records import FileSpec
from tmi.runtime.bundle.tensorrt_records import EnginePlans, PlanFeatures, PlanRecord, TensorRtRecord
from tmi.runtime.engines.registry import Arrays
from tmi.runtime.verification.golden_inputs import GoldenInputs, make_golden, trimmed
from tmi.runtime.verification.outputs import FLOAT64_PREFIX, Outputs, evaluate
from tmi.runtime.verification.parity import BOUNDS, check_engine, check_outputs, relative_error
from tmi.toolkit.config.schema import ClinicalConfig

Tamper = Callable[[str, Arrays, dict[str, np.ndarray]], dict[str, np.ndarray]]


class FaultyEngine(NumpyEngine):
    """A `NumpyEngine` whose outputs `tamper` changes."""

    name = "onnx"  # the checks use its declared error

    def __init__(self, tamper: Tamper = lambda graph, inputs, outputs: outputs) -> None:
        super().__init__()
        self.tamper = tamper

    def run(self, graph: str, inputs: Arrays) -> dict[str, np.ndarray]:
        return self.tamper(graph, inputs, super().run(graph, inputs))


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    manifest = make_manifest([("ct-0", "text-0"), ("ct-1", "text-1")])
    config = replace(manifest.config, clinical=ClinicalConfig(max_length=24, vocab_size=64))
    return replace(manifest, config=config)


@pytest.fixture(scope="module")
def golden(manifest: Manifest) -> GoldenInputs:
    return make_golden(manifest.config, seed=3, count=4, folds=2, vocabularies={"text-0": 9, "text-1": 12})


@pytest.fixture(scope="module")
def reference(manifest: Manifest, golden: GoldenInputs) -> Outputs:
    return evaluate(NumpyEngine(), manifest, golden)


@pytest.fixture
def failed(manifest, golden, reference) -> Callable[[Tamper], dict[str, CheckResult]]:
    def run(tamper: Tamper) -> dict[str, CheckResult]:
        records = check_engine(FaultyEngine(tamper), manifest, golden, reference, artefact="onnx")
        return {r.check: r for r in records if not r.passed}

    return run


def test_honest_engine_passes_every_check(manifest, golden, reference):
    """An engine that equals the reference passes every check with error 0."""
    records = check_engine(FaultyEngine(), manifest, golden, reference, artefact="onnx")
    assert all(r.passed for r in records)
    assert {r.measured for r in records if r.check == "features"} == {0.0}


def test_logit_error_is_compared_with_bound(failed):
    """A logit error above the bound fails the logits check, an error below it does not."""
    bound = BOUNDS["float32"].relative

    def off_by(share: float) -> Tamper:
        def tamper(graph, inputs, outputs):
            return {k: v * np.float32(1 + share * bound) if graph == "fusion" else v for k, v in outputs.items()}

        return tamper

    assert "logits" in failed(off_by(1.5))
    assert "logits" not in failed(off_by(0.5))


def test_tf32_rounding_fails_float32_bound(failed):
    """Features with ten mantissa bits fail the float32 bound."""

    def tf32(graph, inputs, outputs):
        truncated = {k: (v.view(np.int32) & np.int32(-(1 << 13))).view(np.float32) for k, v in outputs.items()}
        return truncated if graph.startswith("ct") else outputs

    assert "features" in failed(tf32)


def test_relative_error_is_scaled_per_case():
    """The error of a case is relative to that case's size, down to 1/16 of the largest."""
    reference = np.array([[100.0, 50.0], [0.1, 0.2]])
    assert relative_error(reference + np.array([[0, 0], [0, 0.01]]), reference) == pytest.approx(0.01 / (100 / 16))
    assert relative_error(reference + np.array([[0.01, 0], [0, 0]]), reference) == pytest.approx(1e-4)


def test_wrong_shape_or_nan_has_infinite_error():
    """An output of another shape, or with NaN, has an infinite error."""
    assert relative_error(np.ones((2, 3)), np.ones((2, 2))) == float("inf")
    assert relative_error(np.array([[np.nan]]), np.ones((1, 1))) == float("inf")


def test_non_finite_outputs_are_counted(failed):
    """The finite check counts the outputs that are not finite."""

    def overflow(graph, inputs, outputs):
        return {
            k: np.where(np.arange(v.shape[-1]) == 0, np.inf, v) if graph == "ct-1" else v for k, v in outputs.items()
        }

    records = failed(overflow)
    assert records["finite"].measured is not None
    assert "are not finite" in records["finite"].detail


@pytest.mark.parametrize(("distance", "flips"), [(5e-5, 0), (5e-4, 1)])
def test_decision_may_flip_only_within_margin(distance, flips, manifest, golden, reference):
    """A decision may flip only if eager is within the engine's declared error of the threshold."""
    logits = np.zeros((4, 2, 2), np.float32)
    logits[:, :, 1] = [[-1.0], [4 * distance], [1.0], [2.0]]

    def lower(graph, inputs, outputs):
        if graph != "fusion":
            return outputs
        below = logits.copy()
        below[1, :, 1] = -1e-3
        return {"logits": below[: len(inputs["radiomics"])]}

    eager = replace(reference, logits_BFK=logits)
    records = check_engine(FaultyEngine(lower), manifest, golden, eager, artefact="onnx")
    (decisions,) = [r for r in records if r.check == "decisions"]
    assert decisions.measured == flips
    assert decisions.passed == (flips == 0)


def test_exchanged_folds_are_named(failed):
    """The fold-order check names the folds whose logits are exchanged."""

    def exchange(graph, inputs, outputs):
        return {k: v[:, ::-1].copy() for k, v in outputs.items()} if graph == "fusion" else outputs

    record = failed(exchange)["fold-order"]
    assert record.detail == "fold 0 matches fold 1; fold 1 matches fold 0"


def test_leaking_rows_fail_batch_checks(failed):
    """Rows that depend on each other fail the checks batch-of-1 and neighbours."""

    def leak(graph, inputs, outputs):
        return {k: v - 0.01 * v.mean(axis=0, keepdims=True) if graph == "ct-0" else v for k, v in outputs.items()}

    assert {"batch-of-1", "neighbours"} <= set(failed(leak))


def test_row_dependent_output_fails_permutation(failed):
    """An output that depends on its row fails the permutation check."""

    def add_row_index(graph, inputs, outputs):
        row = np.arange(next(iter(outputs.values())).shape[0], dtype=np.float32)
        return {k: v + row[:, None] if graph == "text-0" else v for k, v in outputs.items()}

    assert "permutation" in failed(add_row_index)


def test_padding_dependent_output_fails_padding(failed):
    """A text feature that depends on the padded length fails the padding check."""

    def count_padding(graph, inputs, outputs):
        extra = inputs["input_ids"].shape[1] if graph == "text-1" else 0
        return {k: v + np.float32(extra) for k, v in outputs.items()}

    assert "padding" in failed(count_padding)


@pytest.mark.parametrize("fails_at", [1, 2, 4])
def test_engine_error_is_failed_check(fails_at, failed):
    """An engine's exception on a batch is a failed record with its text, not a crash."""

    def fail(graph, inputs, outputs):
        if graph == "ct-0" and inputs["ct"].shape[0] == fails_at:
            raise RuntimeError("Got invalid dimensions for input: ct\n index: 0 Got: 1 Expected: 4")
        return outputs

    records = failed(fail)
    check = {1: "batch-of-1", 2: "neighbours", 4: "runs"}[fails_at]
    assert "Got invalid dimensions for input: ct index: 0" in records[check].detail
    assert records[check].measured is None


def test_largest_batch_error_is_detected(failed):
    """A graph that is wrong only in the largest batch fails the largest-batch check."""

    def full(graph, inputs, outputs):
        return {k: v * np.float32(1.01) if graph == "ct-1" and len(v) == 8 else v for k, v in outputs.items()}

    records = failed(full)
    assert set(records) == {"largest-batch"}
    assert records["largest-batch"].detail == "a batch of 8, against the golden batch"


def test_float64_check_states_multiple_of_float32_error(manifest, golden, reference):
    """The float64 check measures eager and engine against float64 and states the ratio of their errors."""

    def float64_record(share_of_eager: float, share_of_engine: float) -> CheckResult:
        """The record for an eager model and an engine that differ from float64 by these shares."""

        def tamper(graph, inputs, outputs):
            return {k: v * np.float32(1 + share_of_engine) if graph == "fusion" else v for k, v in outputs.items()}

        eager = replace(reference, logits_BFK=reference.logits_BFK * np.float32(1 + share_of_eager))
        records = check_engine(
            FaultyEngine(tamper), manifest, golden, eager, artefact="onnx", reference_float64=reference
        )
        return next(r for r in records if r.check == "float64" and r.graph == "pipeline")

    small_error = float64_record(1e-6, 3e-6)
    assert small_error.passed
    assert small_error.multiple == pytest.approx(3, rel=0.2)
    assert "times eager float32's own error" in small_error.detail
    both_wrong = float64_record(2e-4, 2e-4)  # the engine agrees with eager, and both are wrong
    assert not both_wrong.passed
    assert both_wrong.multiple == pytest.approx(1, rel=0.01)


def test_check_outputs_runs_once(manifest, golden, reference):
    """`check_outputs` runs each graph once and has no checks of batches or padding."""
    engine = FaultyEngine()
    recorded: list[Outputs] = []
    one = trimmed(golden.rows([0]))
    records = check_outputs(engine, manifest, one, reference.rows([0]), artefact="onnx", keep=recorded.append)
    assert {r.check for r in records} == {"finite", "features", "logits", "probabilities", "decisions", "fold-order"}
    assert all(r.passed for r in records)
    assert len(engine.calls) == 5  # two CT encoders, two text encoders, the fusion
    assert len(recorded) == 1


def test_outputs_round_trip_through_tensors(reference):
    """`Outputs.from_tensors` restores what `tensors` returned."""
    restored = Outputs.from_tensors(reference.tensors())
    assert set(restored.features) == {"ct-0", "ct-1", "text-0", "text-1"}
    np.testing.assert_array_equal(restored.logits_BFK, reference.logits_BFK)


def test_float64_tensors_need_their_prefix(reference):
    """`Outputs.from_tensors` reads the float64 outputs only with their prefix."""
    exact = replace(reference, logits_BFK=reference.logits_BFK + 1)
    stored = reference.tensors() | {f"{FLOAT64_PREFIX}{name}": t for name, t in exact.tensors().items()}
    assert set(Outputs.from_tensors(stored).features) == set(reference.features)
    np.testing.assert_array_equal(Outputs.from_tensors(stored).logits_BFK, reference.logits_BFK)
    np.testing.assert_array_equal(Outputs.from_tensors(stored, prefix=FLOAT64_PREFIX).logits_BFK, exact.logits_BFK)


def with_plans(manifest: Manifest, largest: int) -> Manifest:
    """The manifest after a build of `trt` for batches up to `largest`."""
    profiles = ({"x": ((1, 3), (1, 3), (1, 3))}, {"x": ((1, 3), (largest, 3), (largest, 3))})
    plan = PlanRecord(builder="", features=PlanFeatures(), profiles=profiles, plan=FileSpec(sha256="00", bytes=2))
    plans = {"trt": EnginePlans(graphs={g.name: plan for g in manifest.graphs})}
    return replace(manifest, tensorrt=TensorRtRecord(plans=plans))


def check_with_plans(manifest: Manifest, golden: GoldenInputs, tamper: Tamper, name: str) -> list[CheckResult]:
    engine = FaultyEngine(tamper)
    engine.name = name
    reference = evaluate(NumpyEngine(), manifest, golden)
    return check_engine(engine, with_plans(manifest, 11), golden, reference, artefact=name, precision="float16")


def honest(graph: str, inputs: Arrays, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return outputs


def test_plan_engine_runs_at_profile_edges(manifest, golden):
    """An engine with plans runs at every edge of its profiles; other engines do not."""
    shapes: set[tuple[str, tuple[int, ...]]] = set()

    def record_shape(graph: str, inputs: Arrays, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        shapes.add((graph, next(iter(inputs.values())).shape[:2]))
        return outputs

    records = check_with_plans(manifest, golden, record_shape, "trt")
    assert all(r.passed for r in records)
    assert {shape for graph, shape in shapes if graph == "text-1"} >= {(1, 1), (11, 1), (1, 24), (11, 24)}
    assert {batch for graph, (batch, _) in shapes if graph == "ct-0"} >= {1, 11}
    assert "profile-edges" not in {r.check for r in check_with_plans(manifest, golden, honest, "onnx")}


@pytest.mark.parametrize(
    ("graph", "batch", "tokens"), [("ct-1", 11, None), ("fusion", 11, None), ("text-0", 11, 1), ("text-1", 11, 24)]
)
def test_plan_wrong_at_profile_edge_is_rejected(manifest, golden, graph, batch, tokens):
    """A plan that is wrong only at an edge of its profile fails the profile-edges check."""

    def wrong(name: str, inputs: Arrays, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        first = next(iter(inputs.values()))
        at_edge = name == graph and first.shape[0] == batch and (tokens is None or first.shape[1] == tokens)
        return {k: v * np.float32(1.1) if at_edge else v for k, v in outputs.items()}

    failed = [r for r in check_with_plans(manifest, golden, wrong, "trt") if not r.passed]
    assert {r.check for r in failed} == {"profile-edges"}
    assert {r.graph for r in failed} <= {graph, "pipeline"}
    assert f"a batch of {batch}" in failed[0].detail
