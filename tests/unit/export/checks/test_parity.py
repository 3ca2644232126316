"""The gates themselves, on an engine of numpy whose every fault is planted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from factories.numpy_engine import NumpyEngine, make_manifest
from tmi.runtime.bundle.check_result import CheckResult
from tmi.runtime.bundle.manifest import Manifest
from tmi.runtime.engines.registry import Arrays
from tmi.runtime.verification.golden_inputs import GoldenInputs, make_golden, trimmed
from tmi.runtime.verification.parity import (
    BOUNDS,
    FLOAT64_PREFIX,
    Outputs,
    check_engine,
    check_outputs,
    evaluate,
    relative_error,
)
from tmi.toolkit.config.schema import ClinicalConfig
from tmi.toolkit.storage.serialization import to_json

Tamper = Callable[[str, Arrays, dict[str, np.ndarray]], dict[str, np.ndarray]]


class FaultyEngine(NumpyEngine):
    """Answers as `NumpyEngine` does, then lets `tamper` have its way."""

    name = "onnx"  # the gates look its declared error up

    def __init__(self, tamper: Tamper = lambda graph, inputs, outputs: outputs) -> None:
        super().__init__()
        self.tamper = tamper

    def run(self, graph: str, inputs: Arrays) -> dict[str, np.ndarray]:
        return self.tamper(graph, inputs, super().run(graph, inputs))


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    plain = make_manifest([("ct-0", "text-0"), ("ct-1", "text-1")])
    config = replace(plain.parsed_config(), clinical=ClinicalConfig(max_length=24, vocab_size=64))
    return replace(plain, config=to_json(config))


@pytest.fixture(scope="module")
def golden(manifest: Manifest) -> GoldenInputs:
    return make_golden(manifest.parsed_config(), seed=3, count=4, folds=2, vocabularies={"text-0": 9, "text-1": 12})


@pytest.fixture(scope="module")
def reference(manifest: Manifest, golden: GoldenInputs) -> Outputs:
    return evaluate(NumpyEngine(), manifest, golden)


@pytest.fixture
def failed(manifest, golden, reference) -> Callable[[Tamper], dict[str, CheckResult]]:
    def run(tamper: Tamper) -> dict[str, CheckResult]:
        records = check_engine(FaultyEngine(tamper), manifest, golden, reference, artefact="onnx")
        return {r.gate: r for r in records if not r.passed}

    return run


def test_an_honest_engine_holds_every_gate(manifest, golden, reference):
    records = check_engine(FaultyEngine(), manifest, golden, reference, artefact="onnx")
    assert all(r.passed for r in records)
    assert {r.measured for r in records if r.gate == "features"} == {0.0}


def test_a_logit_error_above_the_bound_is_refused_and_one_below_it_is_not(failed):
    bound = BOUNDS["float32"].relative

    def off_by(share: float) -> Tamper:
        def tamper(graph, inputs, outputs):
            return {k: v * np.float32(1 + share * bound) if graph == "fusion" else v for k, v in outputs.items()}

        return tamper

    assert "logits" in failed(off_by(1.5))
    assert "logits" not in failed(off_by(0.5))


def test_a_precision_of_ten_mantissa_bits_does_not_pass_for_float32(failed):
    def tf32(graph, inputs, outputs):
        kept = {k: (v.view(np.int32) & np.int32(-(1 << 13))).view(np.float32) for k, v in outputs.items()}
        return kept if graph.startswith("ct") else outputs

    assert "features" in failed(tf32)


def test_a_weak_case_is_not_hidden_behind_a_strong_one():
    reference = np.array([[100.0, 50.0], [0.1, 0.2]])
    assert relative_error(reference + np.array([[0, 0], [0, 0.01]]), reference) == pytest.approx(0.01 / (100 / 16))
    assert relative_error(reference + np.array([[0.01, 0], [0, 0]]), reference) == pytest.approx(1e-4)


def test_an_answer_of_another_shape_or_not_finite_has_an_infinite_error():
    assert relative_error(np.ones((2, 3)), np.ones((2, 2))) == float("inf")
    assert relative_error(np.array([[np.nan]]), np.ones((1, 1))) == float("inf")


def test_outputs_that_are_not_finite_are_counted(failed):
    def overflow(graph, inputs, outputs):
        return {
            k: np.where(np.arange(v.shape[-1]) == 0, np.inf, v) if graph == "ct-1" else v for k, v in outputs.items()
        }

    records = failed(overflow)
    assert records["finite"].measured is not None
    assert "are not finite" in records["finite"].detail


@pytest.mark.parametrize(("distance", "flips"), [(5e-5, 0), (5e-4, 1)])
def test_a_decision_may_flip_only_within_the_margin_of_the_engines_declared_error(
    distance, flips, manifest, golden, reference
):
    """Eager puts one case `distance` above the threshold and the engine puts it below."""
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
    (decisions,) = [r for r in records if r.gate == "decisions"]
    assert decisions.measured == flips
    assert decisions.passed == (flips == 0)


def test_exchanged_folds_are_named(failed):
    def exchange(graph, inputs, outputs):
        return {k: v[:, ::-1].copy() for k, v in outputs.items()} if graph == "fusion" else outputs

    record = failed(exchange)["fold-order"]
    assert record.detail == "fold 0 answers like fold 1; fold 1 answers like fold 0"


def test_a_row_that_takes_from_its_neighbours_is_caught_by_batch_of_1_and_by_extreme_neighbours(failed):
    def leak(graph, inputs, outputs):
        return {k: v - 0.01 * v.mean(axis=0, keepdims=True) if graph == "ct-0" else v for k, v in outputs.items()}

    assert {"batch-of-1", "neighbours"} <= set(failed(leak))


def test_a_row_whose_answer_depends_on_its_place_is_caught_by_the_permutation(failed):
    def by_place(graph, inputs, outputs):
        place = np.arange(next(iter(outputs.values())).shape[0], dtype=np.float32)
        return {k: v + place[:, None] if graph == "text-0" else v for k, v in outputs.items()}

    assert "permutation" in failed(by_place)


def test_padding_that_counts_is_caught(failed):
    def count_padding(graph, inputs, outputs):
        extra = inputs["input_ids"].shape[1] if graph == "text-1" else 0
        return {k: v + np.float32(extra) for k, v in outputs.items()}

    assert "padding" in failed(count_padding)


@pytest.mark.parametrize("fails_at", [1, 2, 4])
def test_a_batch_that_the_engine_cannot_take_is_a_failed_gate_and_no_crash(fails_at, failed):
    def refuse(graph, inputs, outputs):
        if graph == "ct-0" and inputs["ct"].shape[0] == fails_at:
            raise RuntimeError("Got invalid dimensions for input: ct\n index: 0 Got: 1 Expected: 4")
        return outputs

    records = failed(refuse)
    gate = {1: "batch-of-1", 2: "neighbours", 4: "runs"}[fails_at]
    assert "Got invalid dimensions for input: ct index: 0" in records[gate].detail
    assert records[gate].measured is None


def test_a_graph_that_fails_only_in_the_largest_batch_is_caught(failed):
    def full(graph, inputs, outputs):
        return {k: v * np.float32(1.01) if graph == "ct-1" and len(v) == 8 else v for k, v in outputs.items()}

    records = failed(full)
    assert set(records) == {"largest-batch"}
    assert records["largest-batch"].detail == "a batch of 8, against the golden batch"


def test_float64_judges_eager_and_engine_alike_and_gives_the_multiple(manifest, golden, reference):
    def judged(share_of_eager: float, share_of_engine: float) -> CheckResult:
        """Eager and an engine that are off from the exact answer by these shares."""

        def tamper(graph, inputs, outputs):
            return {k: v * np.float32(1 + share_of_engine) if graph == "fusion" else v for k, v in outputs.items()}

        eager = replace(reference, logits_BFK=reference.logits_BFK * np.float32(1 + share_of_eager))
        records = check_engine(
            FaultyEngine(tamper), manifest, golden, eager, artefact="onnx", reference_float64=reference
        )
        return next(r for r in records if r.gate == "float64" and r.graph == "pipeline")

    near = judged(1e-6, 3e-6)
    assert near.passed
    assert near.multiple == pytest.approx(3, rel=0.2)
    assert "times eager float32's own error" in near.detail
    both_wrong = judged(2e-4, 2e-4)  # the engine agrees with eager, and both are wrong
    assert not both_wrong.passed
    assert both_wrong.multiple == pytest.approx(1, rel=0.01)


def test_the_short_form_asks_one_run_and_nothing_of_batches(manifest, golden, reference):
    engine = FaultyEngine()
    seen: list[Outputs] = []
    one = trimmed(golden.rows([0]))
    records = check_outputs(engine, manifest, one, reference.rows([0]), artefact="onnx", keep=seen.append)
    assert {r.gate for r in records} == {"finite", "features", "logits", "probabilities", "decisions", "fold-order"}
    assert all(r.passed for r in records)
    assert len(engine.calls) == 5  # two CT encoders, two text encoders, the fusion
    assert len(seen) == 1


def test_what_is_stored_of_the_reference_comes_back(reference):
    back = Outputs.from_tensors(reference.tensors())
    assert set(back.features) == {"ct-0", "ct-1", "text-0", "text-1"}
    np.testing.assert_array_equal(back.logits_BFK, reference.logits_BFK)


def test_the_arbiters_answers_are_taken_only_when_asked_for(reference):
    exact = replace(reference, logits_BFK=reference.logits_BFK + 1)
    stored = reference.tensors() | {f"{FLOAT64_PREFIX}{name}": t for name, t in exact.tensors().items()}
    assert set(Outputs.from_tensors(stored).features) == set(reference.features)
    np.testing.assert_array_equal(Outputs.from_tensors(stored).logits_BFK, reference.logits_BFK)
    np.testing.assert_array_equal(Outputs.from_tensors(stored, prefix=FLOAT64_PREFIX).logits_BFK, exact.logits_BFK)


def with_plans(manifest: Manifest, largest: int) -> Manifest:
    """As after a build of `trt` for batches up to `largest`."""
    profiles = [{"x": [[1, 3], [1, 3], [1, 3]]}, {"x": [[1, 3], [largest, 3], [largest, 3]]}]
    graphs = {g.name: {"profiles": profiles} for g in manifest.graphs}
    return replace(manifest, extra={"tensorrt": {"plans": {"trt": {"graphs": graphs}}}})


def at_the_edges(manifest: Manifest, golden: GoldenInputs, tamper: Tamper, name: str) -> list[CheckResult]:
    engine = FaultyEngine(tamper)
    engine.name = name
    reference = evaluate(NumpyEngine(), manifest, golden)
    return check_engine(engine, with_plans(manifest, 11), golden, reference, artefact=name, precision="float16")


def honest(graph: str, inputs: Arrays, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return outputs


def test_an_engine_that_runs_plans_is_asked_at_every_edge_of_its_profiles_and_others_are_not(manifest, golden):
    asked: set[tuple[str, tuple[int, ...]]] = set()

    def watch(graph: str, inputs: Arrays, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        asked.add((graph, next(iter(inputs.values())).shape[:2]))
        return outputs

    records = at_the_edges(manifest, golden, watch, "trt")
    assert all(r.passed for r in records)
    assert {shape for graph, shape in asked if graph == "text-1"} >= {(1, 1), (11, 1), (1, 24), (11, 24)}
    assert {batch for graph, (batch, _) in asked if graph == "ct-0"} >= {1, 11}
    assert "profile-edges" not in {r.gate for r in at_the_edges(manifest, golden, honest, "onnx")}


@pytest.mark.parametrize(
    ("graph", "batch", "tokens"), [("ct-1", 11, None), ("fusion", 11, None), ("text-0", 11, 1), ("text-1", 11, 24)]
)
def test_a_plan_that_is_wrong_at_an_edge_of_its_profile_is_refused(manifest, golden, graph, batch, tokens):
    def wrong(name: str, inputs: Arrays, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        first = next(iter(inputs.values()))
        here = name == graph and first.shape[0] == batch and (tokens is None or first.shape[1] == tokens)
        return {k: v * np.float32(1.1) if here else v for k, v in outputs.items()}

    failed = [r for r in at_the_edges(manifest, golden, wrong, "trt") if not r.passed]
    assert {r.gate for r in failed} == {"profile-edges"}
    assert {r.graph for r in failed} <= {graph, "pipeline"}
    assert f"a batch of {batch}" in failed[0].detail
