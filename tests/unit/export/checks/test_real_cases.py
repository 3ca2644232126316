"""Real cases of a TensorRT export: they validate the FP16 graphs, and the bundle keeps only hashes and outputs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from factories.cached_traces import use_cached_traces
from factories.cases import write_cohort
from factories.faulty_exporter import plant
from factories.tmi_command import CommandResult, tmi
from tmi.export.bundle.additions import real_cases_of_others
from tmi.export.bundle.context import ExportSettings
from tmi.export.bundle.writer import add_to_bundle
from tmi.export.checks.validation_set import RealCase, ValidationSet
from tmi.export.tensorrt.typed_graphs import add_typed_graphs
from tmi.runtime.bundle.reader import Bundle, open_bundle
from tmi.runtime.verification.golden_inputs import golden_from_manifest
from tmi.runtime.verification.verify import read_references
from tmi.toolkit.cases.case import find_cases
from tmi.toolkit.clinical.tokenizer import Tokenizer
from tmi.toolkit.errors import UsageError
from tmi.toolkit.preprocessing.pipeline import PreparedCase, prepare_case
from tmi.toolkit.radiomics.scaler import RadiomicsScaler
from tmi.toolkit.run_folder import RunFolder

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no package for this platform")
CASES = 2
REPORT = "Quorbly nodule beside the vespertine vein"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    folder = write_cohort(tmp_path_factory.mktemp("real") / "Wexford-clinic", cases=CASES)
    for path in folder.rglob("clinical.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "report": REPORT}))
    return folder


@pytest.fixture(scope="module")
def export(tmp_path_factory, nano_run, nano_bundle, cohort) -> tuple[CommandResult, Path]:
    folder = tmp_path_factory.mktemp("real") / "bundle"
    named = ("--engine", "trt-rtx", "--target", "sm80", "--cases", cohort)
    with pytest.MonkeyPatch.context() as patch:
        use_cached_traces(patch, nano_bundle)  # these tests start after the ONNX export
        return tmi("export", nano_run, *named, "--out", folder), folder


@pytest.fixture(scope="module")
def bundle(export) -> Bundle:
    outcome, folder = export
    assert outcome.code == 0, outcome.err
    return open_bundle(folder)


def prepared(cohort: Path, run: RunFolder) -> list[PreparedCase]:
    return [prepare_case(case, run.config, run.schema) for case in find_cases([cohort])]


def test_fp16_graphs_are_validated_on_real_cases(bundle):
    """The emulated FP16 graphs pass the real-case checks of outputs and of intermediate tensors."""
    records = [r for r in bundle.manifest.parity if r.engine == "fp16-emulation" and r.check.startswith("real-")]
    assert {r.check for r in records} == {
        "real-finite-inside", "real-finite", "real-features", "real-logits", "real-probabilities", "real-decisions",
        "real-fold-order",
    }  # fmt: skip
    assert all(r.passed for r in records)
    details = {r.graph: r.detail for r in records if r.check == "real-finite-inside"}
    assert set(details) == {g.name for g in bundle.manifest.graphs}
    assert all("FP16 tensors overflow on 2 real cases" in detail for detail in details.values())
    logits = next(r for r in records if r.check == "real-logits")
    assert logits.bound == 2.0**-6
    assert 1e-6 < (logits.measured or 0) < logits.bound, "the emulation computes in FP16"


def test_emulation_outputs_are_stored_as_evidence(bundle):
    """The evidence holds the emulation's outputs for real cases and golden inputs."""
    rows = json.loads((bundle.folder / "evidence" / "real-cases.json").read_text())["cases"]
    assert len(rows) == CASES
    for row in rows:
        assert set(row["engines"]) >= {"onnx", "openvino", "fp16-emulation"}
        emulated, eager = (np.array(output["logits"]) for output in (row["engines"]["fp16-emulation"], row["eager"]))
        assert 0 < np.abs(emulated - eager).max() < 0.05
    golden = load_file(bundle.folder / "evidence" / "fp16-emulation.safetensors")
    assert golden["logits"].shape == (4, 2, 2)
    assert "evidence/fp16-emulation.safetensors" in bundle.manifest.files


def test_bundle_has_no_data_of_real_cases(bundle, cohort, nano_run):
    """No name, feature, text, token or voxel of a real case is in the bundle."""
    run = RunFolder.open(nano_run)
    words = ("Wexford-clinic", "P000", "P001", "C000", "C001", "Quorbly", "vespertine")
    forbidden = [word.encode() for word in words]
    for case in prepared(cohort, run):
        voxels = case.ct_1DHW.reshape(-1)
        forbidden += [voxels[i : i + 4].tobytes() for i in np.flatnonzero((voxels > 0) & (voxels < 1))[:50:10]]
        forbidden.append(case.radiomics_F[:4].tobytes())
        for fold in (0, 1):
            scaled = RadiomicsScaler.load(run.fold(fold).scaler).transform(case.radiomics_F[None]).values_NF
            forbidden.append(scaled[0, :4].tobytes())
            ids = Tokenizer.load(run.fold(fold).tokenizer).encode([case.text], max_length=40).input_ids_BT
            # 32 tokens: the golden case's record starts with the same words
            forbidden += [ids[0, :32].tobytes(), json.dumps(ids[0, :32].tolist())[1:-1].encode()]
        forbidden += [case.text[:40].encode(), case.text[-40:].encode()]
    for path in bundle.folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert [f for f in forbidden if f in content or f.decode(errors="ignore") in path.name] == [], path.name


def test_addition_needs_the_same_real_cases(bundle, nano_run, tmp_path):
    """An engine that is added is validated on the real cases of the others, so `--cases` must give them."""
    copy = Path(shutil.copytree(bundle.folder, tmp_path / "bundle"))
    with pytest.raises(UsageError, match=r"was validated on 2 real cases, and --cases gives 0") as caught:
        add_to_bundle(nano_run, copy, artefacts=("torchscript",))
    assert "name the same cases with --cases" in caught.value.fix


def test_addition_with_the_same_real_cases_keeps_their_evidence(bundle, cohort, nano_run, nano_bundle, tmp_path):
    """With the same cases an engine is added; its outputs for them are recorded beside those of the others."""
    copy = Path(shutil.copytree(bundle.folder, tmp_path / "bundle"))
    settings = ExportSettings(cases=(cohort,))
    with pytest.MonkeyPatch.context() as patch:
        plant(patch, "torchscript", graph="none", valid_bundle=nano_bundle)
        added = add_to_bundle(nano_run, copy, artefacts=("torchscript",), settings=settings)
    rows = json.loads((copy / "evidence" / "real-cases.json").read_text())["cases"]
    assert len(rows) == CASES
    assert all({"onnx", "fp16-emulation", "torchscript"} <= set(row["engines"]) for row in rows)
    assert any(r.engine == "torchscript" and r.check.startswith("real-") for r in added.manifest.parity)


def test_evidence_of_an_engine_that_is_built_again_is_dropped(bundle):
    """A build runs no real case, so it keeps the outputs of the other engines only."""
    rows = real_cases_of_others(bundle, {"onnx"})
    assert len(rows) == CASES
    assert all("onnx" not in row["engines"] and {"openvino", "fp16-emulation"} <= set(row["engines"]) for row in rows)
    assert all({"inputs", "eager"} <= row.keys() for row in rows)


def test_overflow_on_real_case_names_tensor(bundle, tmp_path):
    """An FP16 overflow on a real case alone fails the real-case checks and names the tensor."""
    copy = Path(shutil.copytree(bundle.folder, tmp_path / "bundle"))
    golden, references = golden_from_manifest(bundle.manifest), read_references(bundle)
    one = golden.rows([0])
    overflowing = replace(one, ct_B1DHW=one.ct_B1DHW * np.float32(1e6))
    case = RealCase(inputs=overflowing, reference=references.float32.rows([0]))
    validation_set = ValidationSet(golden=golden, reference=references.float32, real_cases=[case])
    _, records = add_typed_graphs(copy, bundle.manifest, "fp16", validation_set, progress=lambda line: None)
    failed = {(r.check, r.graph): r.detail for r in records if not r.passed}
    assert (
        "overflow on 1 real cases: first ct_to_fp16 of cast_ct_to_fp16 (Cast)" in failed["real-finite-inside", "ct-0"]
    )
    assert not [check for check, _ in failed if not check.startswith("real-")]
