"""OpenVINO in bfloat16: taken where the processor has it and every gate holds, never elsewhere, and always said."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from factories import random_run
from factories.cases import write_case
from factories.planted_faults import reseal
from factories.tmi_command import tmi
from factories.traced_once import use_cached_traces
from tmi.runtime.bundle.reader import open_bundle
from tmi.runtime.engines.openvino import OpenVinoBf16Engine
from tmi.runtime.engines.precision import rejected_at_export, validated_at_export
from tmi.runtime.engines.registry import ENGINES, missing_requirement, open_engine
from tmi.runtime.verification.parity import BOUNDS

ENGINE = "openvino-bf16"
NO_BFLOAT16 = "this processor has no bfloat16 instructions"
needs_bfloat16 = pytest.mark.skipif(missing_requirement(ENGINE) is not None, reason=NO_BFLOAT16)


@pytest.fixture
def new_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that has not seen any bundle yet."""
    monkeypatch.setenv("TMI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_case(tmp_path_factory.mktemp("case") / "case")


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any machine passes for one with bfloat16: its engine computes in float32, then rounds what it answers."""
    honest = OpenVinoBf16Engine._run

    def rounded(self, spec, loaded, inputs):
        answers = honest(self, spec, loaded, inputs)
        return {k: (v.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32) for k, v in answers.items()}

    monkeypatch.setattr(OpenVinoBf16Engine, "encoder_precision", "f32")
    monkeypatch.setattr(OpenVinoBf16Engine, "_run", rounded)
    for module in ("engine", "engine_choice", "verification"):
        monkeypatch.setattr(f"tmi.runtime.{module}.missing_requirement", lambda name: None)


def unjudged(bundle: Path, folder: Path, **extra: object) -> Path:
    """The bundle as a processor without bfloat16 would have exported it."""
    copy = Path(shutil.copytree(bundle, folder / "bundle"))
    manifest = open_bundle(copy).manifest
    reseal(
        copy,
        parity=tuple(r for r in manifest.parity if r.engine != ENGINE),
        extra={**manifest.extra, **extra},
    )
    return copy


def predict(case: Path, bundle: Path, *more: object):
    return tmi("predict", case, "--bundle", bundle, "--threads", 1, "--json", *more)


def off(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """The bfloat16 of this machine is off by a factor."""
    honest = OpenVinoBf16Engine._run
    monkeypatch.setattr(
        OpenVinoBf16Engine,
        "_run",
        lambda self, *a: {k: v * np.float32(1 + factor) for k, v in honest(self, *a).items()},
    )


@needs_bfloat16
def test_encoders_run_in_bfloat16_and_the_fusion_in_float32(nano_bundle):
    with open_engine(ENGINE, open_bundle(nano_bundle), threads=1) as engine:
        said = {
            name: compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
            for name, compiled in engine._loaded.items()
        }
    assert said == {"ct-0": "bf16", "ct-1": "bf16", "text-0": "bf16", "text-1": "bf16", "fusion": "f32"}


@needs_bfloat16
def test_the_export_judges_bfloat16_with_bounds_of_its_own_and_keeps_the_evidence(nano_bundle):
    manifest = open_bundle(nano_bundle).manifest
    mine = [r for r in manifest.parity if r.engine == ENGINE]
    assert {r.gate for r in mine} == {r.gate for r in manifest.parity if r.engine == "openvino"}
    assert {r.bound for r in mine if r.gate == "features"} == {BOUNDS["bfloat16"].relative}
    (probabilities,) = (r for r in mine if r.gate == "probabilities")
    assert probabilities.bound == ENGINES[ENGINE].max_abs_err == 1e-2
    # it is bfloat16, not float32 under another name: its error is thousands of times float32's own
    assert max(r.multiple for r in mine if r.gate == "float64" and r.multiple) > 1000
    assert f"evidence/{ENGINE}.safetensors" in manifest.files


@needs_bfloat16
def test_auto_takes_it_and_says_so_and_fp32_asks_for_the_other(nano_bundle, case):
    by_name = {w: predict(case, nano_bundle, *w.split()) for w in ("--precision auto", "--precision bf16")}
    for outcome in by_name.values():
        assert outcome.code == 0, outcome.err
        engine = outcome.document["engine"]
        assert (engine["name"], engine["precision"]) == (ENGINE, "bfloat16")
        assert f"engine {ENGINE} in bfloat16" in outcome.err
    plain = predict(case, nano_bundle, "--precision", "fp32").document
    assert (plain["engine"]["name"], plain["engine"]["precision"]) == ("openvino", "float32")
    assert f"{ENGINE}: computes in bfloat16" in plain["engine"]["reason"]
    ours = by_name["--precision auto"].document["results"][0]["probability"]["bad"]
    assert abs(ours - plain["results"][0]["probability"]["bad"]) <= 1e-2


def test_without_such_a_processor_float32_answers_and_the_reason_is_told(nano_bundle, case, monkeypatch):
    for module in ("engine", "engine_choice", "verification"):
        monkeypatch.setattr(
            f"tmi.runtime.{module}.missing_requirement", lambda name: NO_BFLOAT16 if name == ENGINE else None
        )
    outcome = predict(case, nano_bundle)
    assert outcome.document["engine"]["precision"] == "float32"
    assert f"{ENGINE}: {NO_BFLOAT16}" in outcome.document["engine"]["reason"]
    named = predict(case, nano_bundle, "--engine", ENGINE)
    assert named.code == 5
    assert f"engine {ENGINE} cannot run here: {NO_BFLOAT16}" in named.err
    assert predict(case, nano_bundle, "--precision", "bf16").code == 5


def test_a_precision_that_the_named_engine_has_not_is_wrong_usage(nano_bundle, case):
    outcome = predict(case, nano_bundle, "--engine", "openvino", "--precision", "bf16")
    assert outcome.code == 2
    assert "engine openvino computes in float32, not in bfloat16" in outcome.err
    unknown = predict(case, nano_bundle, "--precision", "int4")
    assert unknown.code == 2
    assert "fix: choose one of auto, bf16, fp32" in unknown.err


def test_a_bundle_from_another_processor_is_judged_here_on_all_golden_cases(
    nano_bundle, case, emulated, new_machine, tmp_path
):
    bundle = unjudged(nano_bundle, tmp_path)
    assert not validated_at_export(open_bundle(bundle).manifest, ENGINE)
    skipped = predict(case, bundle, "--no-verify").document["engine"]
    assert skipped["precision"] == "float32"
    assert "nobody has judged it on such a processor yet" in skipped["reason"]
    first = predict(case, bundle).document["engine"]
    assert (first["name"], first["verified"]) == (ENGINE, "now")
    assert predict(case, bundle).document["engine"]["verified"] == "before"
    assert predict(case, bundle, "--no-verify").document["engine"]["name"] == ENGINE


def test_where_bfloat16_fails_here_float32_answers_and_the_failure_is_remembered(
    nano_bundle, case, emulated, new_machine, tmp_path, monkeypatch
):
    bundle = unjudged(nano_bundle, tmp_path)
    off(monkeypatch, 0.1)
    outcome = predict(case, bundle)
    assert outcome.code == 0, outcome.err
    engine = outcome.document["engine"]
    assert (engine["name"], engine["precision"], engine["verified"]) == ("openvino", "float32", "now")
    assert "does not answer like the validated model" in engine["reason"]
    assert f"engine {ENGINE} is not taken: " in outcome.err
    memories = [json.loads(f.read_text()) for f in (new_machine / "opened").iterdir()]
    assert sorted("refused" in m for m in memories) == [False, True]
    again = predict(case, bundle)
    assert "first opening" not in again.err
    assert again.document["engine"]["reason"] == engine["reason"]
    named = predict(case, bundle, "--engine", ENGINE)
    assert named.code == 4
    assert f"on this machine engine {ENGINE} does not answer like the validated model" in named.err
    verified = tmi("verify", bundle, "--threads", 1)
    assert verified.code == 0, verified.err
    assert f"engine {ENGINE} was not judged: it does not hold here, and predictions do without it" in " ".join(
        verified.out.split()
    )
    asked = tmi("verify", bundle, "--engine", ENGINE, "--threads", 1)
    assert asked.code == 4


def cancelling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models whose attention answers with 2,000 on every channel, which the layer norm after it takes out again.

    To float32 nearly the same as without; bfloat16 has steps of 8 there, and what the attention said is gone.
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


@needs_bfloat16
def test_a_model_that_cancels_in_bfloat16_is_exported_and_runs_in_float32(
    nano_config, nano_bundle, tmp_path, monkeypatch, case
):
    cancelling(monkeypatch)
    run = random_run.write_random_run(tmp_path / "run", nano_config, folds=2, seed=5, shared_text=True)
    use_cached_traces(monkeypatch, nano_bundle)
    exported = tmi("export", run, "--engine", "onnx", "--out", tmp_path / "bundle")
    assert exported.code == 0, exported.err
    told = " ".join(exported.out.split())
    assert f"{ENGINE} refused, predictions take the next engine: " in told
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert not validated_at_export(manifest, ENGINE)
    reason = rejected_at_export(manifest, ENGINE)
    assert reason is not None
    assert "first features of text-0" in reason
    assert all(r.passed for r in manifest.parity)
    engine = predict(case, tmp_path / "bundle").document["engine"]
    assert (engine["name"], engine["precision"]) == ("openvino", "float32")
    assert f"{ENGINE}: refused at the export: " in engine["reason"]
    named = predict(case, tmp_path / "bundle", "--precision", "bf16")
    assert named.code == 4
    assert f"engine {ENGINE} does not answer like the validated model with this bundle" in named.err
    assert "refused at the export" in tmi("inspect", tmp_path / "bundle").out


def test_a_bundle_that_refused_bfloat16_is_not_asked_again(nano_bundle, case, emulated, new_machine, tmp_path):
    bundle = unjudged(nano_bundle, tmp_path, engines_refused={ENGINE: "it was off"})
    outcome = predict(case, bundle)
    assert outcome.document["engine"]["precision"] == "float32"
    assert f"{ENGINE}: refused at the export: it was off" in outcome.document["engine"]["reason"]
    assert f"first opening of this bundle with {ENGINE}" not in outcome.err


def test_the_bound_of_bfloat16_is_wider_than_float16s_by_less_than_its_rounding():
    assert BOUNDS["float16"].relative < BOUNDS["bfloat16"].relative <= 8 * BOUNDS["float16"].relative
    assert replace(ENGINES[ENGINE]).optional
    assert [name for name, spec in ENGINES.items() if spec.optional] == [ENGINE]
