"""The engine `openvino-bf16`: used only if the processor has bfloat16 and every check passes, and always reported."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from factories import random_run
from factories.cached_traces import use_cached_traces
from factories.cases import write_case
from factories.planted_faults import reseal
from factories.tmi_command import tmi
from tmi.runtime.bundle.reader import open_bundle
from tmi.runtime.engines.openvino import OpenVinoBf16Engine
from tmi.runtime.engines.precision import rejected_at_export, validated_at_export
from tmi.runtime.engines.registry import ENGINES, missing_requirement, open_engine
from tmi.runtime.verification.parity import BOUNDS

ENGINE = "openvino-bf16"
NO_BFLOAT16 = "this processor has no bfloat16 instructions"
REQUIREMENT = "tmi.runtime.engines.registry.missing_requirement"
"""The one place that decides whether this processor can run an engine."""
needs_bfloat16 = pytest.mark.skipif(missing_requirement(ENGINE) is not None, reason=NO_BFLOAT16)


@pytest.fixture
def new_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with an empty cache of self-tests."""
    monkeypatch.setenv("TMI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_case(tmp_path_factory.mktemp("case") / "case")


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Emulate bfloat16 on any processor: the engine computes in float32 and truncates its outputs."""
    honest = OpenVinoBf16Engine._run

    def rounded(self, spec, loaded, inputs):
        outputs = honest(self, spec, loaded, inputs)
        return {k: (v.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32) for k, v in outputs.items()}

    monkeypatch.setattr(OpenVinoBf16Engine, "encoder_precision", "f32")
    monkeypatch.setattr(OpenVinoBf16Engine, "_run", rounded)
    monkeypatch.setattr(REQUIREMENT, lambda name: None if name == ENGINE else missing_requirement(name))


def without_bfloat16_records(bundle: Path, folder: Path, **changes: object) -> Path:
    """A copy of the bundle as exported on a processor without bfloat16."""
    copy = Path(shutil.copytree(bundle, folder / "bundle"))
    manifest = open_bundle(copy).manifest
    reseal(copy, parity=tuple(r for r in manifest.parity if r.engine != ENGINE), **changes)
    return copy


def predict(case: Path, bundle: Path, *more: object):
    return tmi("predict", case, "--bundle", bundle, "--threads", 1, "--json", *more)


def scale_outputs(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Make the bfloat16 engine's outputs wrong by a factor."""
    honest = OpenVinoBf16Engine._run
    monkeypatch.setattr(
        OpenVinoBf16Engine,
        "_run",
        lambda self, *a: {k: v * np.float32(1 + factor) for k, v in honest(self, *a).items()},
    )


@needs_bfloat16
def test_encoders_use_bfloat16_and_fusion_float32(nano_bundle):
    """OpenVINO compiles the encoders in bfloat16 and the fusion in float32."""
    with open_engine(ENGINE, open_bundle(nano_bundle), threads=1) as engine:
        precisions = {
            name: compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
            for name, compiled in engine._loaded.items()
        }
    assert precisions == {"ct-0": "bf16", "ct-1": "bf16", "text-0": "bf16", "text-1": "bf16", "fusion": "f32"}


@needs_bfloat16
def test_export_validates_bfloat16_with_own_bounds(nano_bundle):
    """The export runs all checks on bfloat16 with its own bounds and stores its outputs as evidence."""
    manifest = open_bundle(nano_bundle).manifest
    records = [r for r in manifest.parity if r.engine == ENGINE]
    assert {r.check for r in records} == {r.check for r in manifest.parity if r.engine == "openvino"}
    assert {r.bound for r in records if r.check == "features"} == {BOUNDS["bfloat16"].relative}
    (probabilities,) = (r for r in records if r.check == "probabilities")
    assert probabilities.bound == ENGINES[ENGINE].max_abs_err == 1e-2
    # The engine really computes in bfloat16: its error is thousands of times float32's own.
    assert max(r.multiple for r in records if r.check == "float64" and r.multiple) > 1000
    assert f"evidence/{ENGINE}.safetensors" in manifest.files


@needs_bfloat16
def test_auto_uses_bfloat16_and_fp32_does_not(nano_bundle, case, new_machine):
    """`auto` and `bf16` use the bfloat16 engine and report it; `fp32` uses the float32 engine."""
    by_option = {w: predict(case, nano_bundle, *w.split()) for w in ("--precision auto", "--precision bf16")}
    for outcome in by_option.values():
        assert outcome.code == 0, outcome.err
        engine = outcome.document["engine"]
        assert (engine["name"], engine["precision"]) == (ENGINE, "bfloat16")
        assert f"engine {ENGINE} in bfloat16" in outcome.err
    float32 = predict(case, nano_bundle, "--precision", "fp32").document
    assert (float32["engine"]["name"], float32["engine"]["precision"]) == ("openvino", "float32")
    assert f"{ENGINE}: computes in bfloat16" in float32["engine"]["reason"]
    bfloat16 = by_option["--precision auto"].document["results"][0]["probability"]["bad"]
    assert abs(bfloat16 - float32["results"][0]["probability"]["bad"]) <= 1e-2


def test_without_bfloat16_float32_is_used(nano_bundle, case, monkeypatch):
    """On a processor without bfloat16, `auto` uses float32 and reports why; a named engine is exit code 5."""
    monkeypatch.setattr(REQUIREMENT, lambda name: NO_BFLOAT16 if name == ENGINE else missing_requirement(name))
    outcome = predict(case, nano_bundle)
    assert outcome.document["engine"]["precision"] == "float32"
    assert f"{ENGINE}: {NO_BFLOAT16}" in outcome.document["engine"]["reason"]
    named = predict(case, nano_bundle, "--engine", ENGINE)
    assert named.code == 5
    assert f"engine {ENGINE} cannot run here: {NO_BFLOAT16}" in named.err
    assert predict(case, nano_bundle, "--precision", "bf16").code == 5


def test_precision_that_engine_does_not_have_is_usage_error(nano_bundle, case):
    """A precision that the named engine does not have, or an unknown one, is exit code 2."""
    outcome = predict(case, nano_bundle, "--engine", "openvino", "--precision", "bf16")
    assert outcome.code == 2
    assert "engine openvino computes in float32, not in bfloat16" in outcome.err
    unknown = predict(case, nano_bundle, "--precision", "int4")
    assert unknown.code == 2
    assert "fix: choose one of auto, bf16, fp32" in unknown.err


def test_bfloat16_not_validated_at_export_is_validated_here(nano_bundle, case, emulated, new_machine, tmp_path):
    """A bundle exported without bfloat16 is validated once on a processor that has it."""
    bundle = without_bfloat16_records(nano_bundle, tmp_path)
    assert not validated_at_export(open_bundle(bundle).manifest, ENGINE)
    skipped = predict(case, bundle, "--no-verify").document["engine"]
    assert skipped["precision"] == "float32"
    assert "it has not been validated on this processor" in skipped["reason"]
    first = predict(case, bundle).document["engine"]
    assert (first["name"], first["verified"]) == (ENGINE, "now")
    assert predict(case, bundle).document["engine"]["verified"] == "before"
    assert predict(case, bundle, "--no-verify").document["engine"]["name"] == ENGINE


@pytest.mark.long
def test_failed_bfloat16_falls_back_and_is_cached(nano_bundle, case, emulated, new_machine, tmp_path, monkeypatch):
    """If bfloat16 fails its checks here, float32 is used, and the failure is cached."""
    bundle = without_bfloat16_records(nano_bundle, tmp_path)
    scale_outputs(monkeypatch, 0.1)
    outcome = predict(case, bundle)
    assert outcome.code == 0, outcome.err
    engine = outcome.document["engine"]
    assert (engine["name"], engine["precision"], engine["verified"]) == ("openvino", "float32", "now")
    assert "does not match the validated model" in engine["reason"]
    assert f"engine {ENGINE} is skipped: " in outcome.err
    self_tests = [json.loads(f.read_text()) for f in (new_machine / "opened").iterdir()]
    assert sorted("refused" in m for m in self_tests) == [False, True]
    again = predict(case, bundle)
    assert "self-test" not in again.err
    assert again.document["engine"]["reason"] == engine["reason"]
    named = predict(case, bundle, "--engine", ENGINE)
    assert named.code == 4
    assert f"on this machine engine {ENGINE} does not match the validated model" in named.err
    verified = tmi("verify", bundle, "--threads", 1)
    assert verified.code == 0, verified.err
    assert f"engine {ENGINE} was not validated: it fails here, and predictions use another engine" in " ".join(
        verified.out.split()
    )
    named_engine = tmi("verify", bundle, "--engine", ENGINE, "--threads", 1)
    assert named_engine.code == 4


def add_cancelling_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add 2,000 to every channel of the attention outputs, which the following layer norm subtracts.

    The change is negligible in float32. bfloat16 has a spacing of 8 there, so the attention output is lost.
    """
    honest = random_run.random_model

    def shifted(config, *, seed):
        model = honest(config, seed=seed)
        with torch.no_grad():
            for name, tensor in model.text_encoder.named_parameters():
                if name.endswith("attention.output.dense.bias"):
                    tensor += 2000
                if name.endswith("attention.output.dense.weight"):
                    tensor *= 100
        return model

    monkeypatch.setattr(random_run, "random_model", shifted)


@pytest.mark.long
@needs_bfloat16
def test_model_unfit_for_bfloat16_runs_in_float32(nano_config, nano_bundle, tmp_path, monkeypatch, case):
    """A model that loses its digits in bfloat16 is exported, and its predictions use float32."""
    add_cancelling_bias(monkeypatch)
    run = random_run.write_random_run(tmp_path / "run", nano_config, folds=2, seed=5, shared_text=True)
    use_cached_traces(monkeypatch, nano_bundle)
    exported = tmi("export", run, "--engine", "onnx", "--out", tmp_path / "bundle")
    assert exported.code == 0, exported.err
    assert f"{ENGINE} rejected, predictions use the next engine: " in " ".join(exported.out.split())
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert not validated_at_export(manifest, ENGINE)
    reason = rejected_at_export(manifest, ENGINE)
    assert reason is not None
    assert "first features of text-0" in reason
    assert all(r.passed for r in manifest.parity)
    engine = predict(case, tmp_path / "bundle").document["engine"]
    assert (engine["name"], engine["precision"]) == ("openvino", "float32")
    assert f"{ENGINE}: rejected at the export: " in engine["reason"]
    named = predict(case, tmp_path / "bundle", "--precision", "bf16")
    assert named.code == 4
    assert f"engine {ENGINE} does not match the validated model on this bundle" in named.err
    assert "rejected at the export" in tmi("inspect", tmp_path / "bundle").out


def test_bfloat16_rejected_at_export_is_not_tried_again(nano_bundle, case, emulated, new_machine, tmp_path):
    """Predictions do not try bfloat16 again if the export rejected it."""
    bundle = without_bfloat16_records(nano_bundle, tmp_path, engines_rejected={ENGINE: "it was off"})
    outcome = predict(case, bundle)
    assert outcome.document["engine"]["precision"] == "float32"
    assert f"{ENGINE}: rejected at the export: it was off" in outcome.document["engine"]["reason"]
    assert f"first use of this bundle with {ENGINE}" not in outcome.err


def test_bfloat16_bound_follows_its_rounding():
    """The bfloat16 bound exceeds the float16 bound by at most the ratio of their roundings."""
    assert BOUNDS["float16"].relative < BOUNDS["bfloat16"].relative <= 8 * BOUNDS["float16"].relative
    assert replace(ENGINES[ENGINE]).optional
    assert [name for name, spec in ENGINES.items() if spec.optional and not spec.gpu] == [
        "openvino-int8",
        ENGINE,
        "onnx-int8",
    ]
