"""Readers under fuzzing: the valid files of each, the file that is damaged, and the call that reads it.

A reader ends normally or with a `TmiError`; every other exception is a finding. A target imports its reader when it is
built, so that a worker without torch stays small.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from factories.cases import AFFINE, write_case, write_cohort
from factories.fuzzing import mutators as m
from factories.fuzzing.mutators import Mutator
from factories.paths import ROOT

Read = Callable[[], object]
Prepare = Callable[[Path], Read]
"""Prepare(folder) -> read: writes the valid files, and returns the call that reads them."""
PUBLISHED = ROOT / "tests" / "unit" / "runtime" / "bundle" / "data" / "tmi-bundle-2"
LABELS = b"""<?xml version="1.0"?><CaretExtension><VolumeInformation Index="0"><LabelTable>
<Label Key="1" Red="1"><![CDATA[liver]]></Label><Label Key="2" Red="0"><![CDATA[spleen]]></Label>
</LabelTable></VolumeInformation></CaretExtension>"""


@dataclass(frozen=True)
class Target:
    """One reader of one file."""

    file: str
    """The file that is damaged, in the target's folder."""
    mutate: Mutator
    """Returns the damaged bytes."""
    prepare: Prepare
    """Writes the valid files."""
    torch: bool = False
    """Whether the reader imports torch."""


TARGETS: dict[str, Target] = {}


def target(name: str, file: str, mutate: Mutator, *, torch: bool = False) -> Callable[[Prepare], Prepare]:
    """Register a reader."""

    def register(prepare: Prepare) -> Prepare:
        TARGETS[name] = Target(file, mutate, prepare, torch)
        return prepare

    return register


def _case(folder: Path) -> Any:
    from tmi.toolkit.cases.case import Case

    return Case(folder=write_case(folder / "C", seed=1, shape_xyz=(16, 14, 12)), case_id="C", mask_label=None)


# --- case and cohort


@target("record", "C/clinical.json", m.json_document)
def _record(folder: Path) -> Read:
    from tmi.toolkit.clinical.record import read_clinical
    from tmi.toolkit.clinical.rendering import render
    from tmi.toolkit.clinical.schema import load_schema
    from tmi.toolkit.clinical.units import check_units

    case, schema = _case(folder), load_schema()
    document = json.loads(case.clinical.read_text())
    document["values"]["total_bilirubin"] = {"value": 1.2, "unit": "mg/dL"}
    document |= {"report": "Known cirrhosis.", "blood_date": "2020-01-02"}
    case.clinical.write_text(json.dumps(document))

    def read() -> None:
        record = read_clinical(case, schema)
        list(check_units(record.values, schema))
        render(record, schema, "values").encode()

    return read


@target("record of an import", "clinical.json", m.json_document)
def _imported_record(folder: Path) -> Read:
    from tmi.toolkit.ingest.case_importer import import_case

    shutil.copy(_case(folder).clinical, folder / "clinical.json")
    return lambda: import_case(folder / "out", ct=None, clinical=folder / "clinical.json", force=True)


@target("case.json", "C/case.json", m.json_document)
def _case_record(folder: Path) -> Read:
    from tmi.toolkit.cases.provenance import CaseRecord, Repair, add_repair, read_case_record, write_case_record

    repair = Repair(code="ct-padding", file="ct.nii.gz", what="3 voxels")
    (folder / "C").mkdir()
    write_case_record(folder / "C", CaseRecord(source={"ct": {"kind": "nifti"}}, repairs=(repair,)))

    def read() -> None:
        read_case_record(folder / "C", case_id="C")
        add_repair(folder / "C", repair, case_id="C")

    return read


@target("radiomics.json", "C/radiomics.json", m.json_document)
def _radiomics_record(folder: Path) -> Read:
    from tmi.toolkit.radiomics.provenance import RadiomicsRecord, read_record, staleness_reason, write_record
    from tmi.toolkit.storage.hashing import sha256_file

    case = _case(folder)
    write_record(case, RadiomicsRecord(source="extracted", table_sha256=sha256_file(case.radiomics),
                                       ct_sha256=sha256_file(case.ct), mask_sha256=None, settings={"a": [1, 2.5]},
                                       versions={"numpy": "2"}))  # fmt: skip

    def read() -> None:
        staleness_reason(case)
        read_record(case)

    return read


@target("radiomics.csv", "C/radiomics.csv", m.csv_table)
def _radiomics(folder: Path) -> Read:
    from tmi.toolkit.radiomics.table import read_table

    case = _case(folder)
    return lambda: read_table(case.radiomics, case_id="C")


@target("cohort.csv", "cohort/cohort.csv", m.csv_table)
def _cohort(folder: Path) -> Read:
    from tmi.toolkit.cases.case import find_cases

    (folder / "cohort").mkdir()
    (folder / "cohort" / "cohort.csv").write_text("case_id,patient_id,label\nC0,P0,good\nC1,P1,bad\n'=C2,P2,bad\n")
    return lambda: find_cases([folder / "cohort"])


@target("ct", "C/ct.nii.gz", m.nifti)
def _ct(folder: Path) -> Read:
    from tmi.toolkit.imaging.volume import read_ct
    from tmi.toolkit.qc.image_checks import check_ct

    case = _case(folder)
    return lambda: list(check_ct(read_ct(case)))


@target("mask", "C/liver.nii.gz", m.nifti)
def _mask(folder: Path) -> Read:
    from tmi.toolkit.imaging.volume import read_ct, read_mask
    from tmi.toolkit.qc.image_checks import check_mask

    case = _case(folder)
    ct = read_ct(case)
    return lambda: list(check_mask(ct, read_mask(case, ct)))


@target("check of a cohort", "cohort/C000/clinical.json", m.json_document)
def _checked_cohort(folder: Path) -> Read:
    from factories.tmi_command import tmi

    write_cohort(folder / "cohort", cases=1, shape_xyz=(16, 14, 12))
    return lambda: _require_code(tmi("check", folder / "cohort", "--json"))


def _require_code(outcome: Any) -> None:
    """Raise if a command ended with an unexpected error."""
    if outcome.code not in (0, 2, 3, 5, 6):
        raise AssertionError(f"exit {outcome.code}: {outcome.err[-300:]}")


# --- documents


@target("clinical schema", "schema.json", m.json_document)
def _schema(folder: Path) -> Read:
    from tmi.toolkit.clinical.schema import load_schema
    from tmi.toolkit.storage.serialization import to_json

    document = to_json(load_schema())
    document["fields"] = document["fields"][:8]
    (folder / "schema.json").write_text(json.dumps({k: v for k, v in document.items() if k != "importance"}))
    return lambda: load_schema(folder / "schema.json").digest


@target("extended schema", "schema.json", m.json_document)
def _extended_schema(folder: Path) -> Read:
    from tmi.toolkit.clinical.schema import load_schema

    field = {"name": "afp", "label": "AFP", "section": "Blood", "unit": "ng/mL", "plausible": [0, 1e6],
             "accepted_units": {"kIU/L": {"factor": 1.21}}}  # fmt: skip
    document = {"extends": "liver", "schema": "tmi-clinical-schema/1", "name": "own", "version": "1",
                "sections": ["Blood"], "fields": [field], "without": ["bmi"]}  # fmt: skip
    (folder / "schema.json").write_text(json.dumps(document))
    return lambda: load_schema(folder / "schema.json").digest


@target("tmi.toml", "tmi.toml", m.text)
def _project(folder: Path) -> Read:
    from tmi.toolkit.config.project import load_project

    (folder / "tmi.toml").write_text(
        'cohort = "./cohort"\nruns = "./runs"\npreset = "paper"\nengine = "onnx"\nschema = "./pbc.json"\n'
    )
    return lambda: load_project(folder)


def _mapping(suffix: str) -> Prepare:
    def prepare(folder: Path) -> Read:
        from factories.table_workspace import MAPPING
        from tmi.toolkit.ingest.tabular.mapping import read_mapping
        from tmi.toolkit.storage.documents import parse_yaml

        path = folder / f"m.{suffix}"
        path.write_text(MAPPING if suffix == "yaml" else json.dumps(parse_yaml(MAPPING)))
        return lambda: read_mapping(path)

    return prepare


target("mapping in YAML", "m.yaml", m.text)(_mapping("yaml"))
target("mapping in JSON", "m.json", m.json_document)(_mapping("json"))


def _feature_mapping(suffix: str) -> Prepare:
    def prepare(folder: Path) -> Read:
        from tmi.toolkit.radiomics.external_table import read_mapping
        from tmi.toolkit.radiomics.feature_names import FEATURE_NAMES

        names = {f"column {i}": name for i, name in enumerate(FEATURE_NAMES[:20])}
        lines = "".join(f"{column}: {name}\n" for column, name in names.items())
        path = folder / f"map.{suffix}"
        path.write_text(lines if suffix == "yaml" else json.dumps({**names, "other": None}))
        return lambda: read_mapping(path)

    return prepare


target("feature mapping in YAML", "map.yaml", m.text)(_feature_mapping("yaml"))
target("feature mapping in JSON", "map.json", m.json_document)(_feature_mapping("json"))


@target("tokenizer", "tokenizer.json", m.json_document)
def _tokenizer(folder: Path) -> Read:
    from tmi.toolkit.clinical.tokenizer import Tokenizer

    path = folder / "tokenizer.json"
    Tokenizer.train(["Albumin 38 g/L", "Bilirubin 12"], 120).save(path)
    return lambda: Tokenizer.load(path).encode(["Albumin 40 g/L"], max_length=16)


@target("vocabulary", "vocab.txt", m.text)
def _vocabulary(folder: Path) -> Read:
    from tmi.toolkit.clinical.tokenizer import SPECIAL, Tokenizer

    path = folder / "vocab.txt"
    path.write_text("\n".join([*SPECIAL, "Albumin", "##in", "a", "##b", "4"]) + "\n")
    return lambda: Tokenizer.from_vocab(path).encode(["Albumin 4"], max_length=16)


@target("scaler", "scaler.json", m.json_document)
def _scaler(folder: Path) -> Read:
    from tmi.toolkit.radiomics.scaler import RadiomicsScaler

    shutil.copy(PUBLISHED / "bundle" / "scalers" / "fold0.json", folder / "scaler.json")
    return lambda: RadiomicsScaler.load(folder / "scaler.json")


@target("truth of a synthetic cohort", "truth.json", m.json_document)
def _truth(folder: Path) -> Read:
    from tmi.toolkit.synthetic.cohort import is_synthetic

    (folder / "truth.json").write_text('{"schema": "tmi-synthetic/1", "synthetic": true, "best_auc": {"ct": 0.8}}')
    return lambda: is_synthetic(folder)


# --- tables


def _table(suffix: str, separator: str = ",") -> Prepare:
    def prepare(folder: Path) -> Read:
        from tmi.toolkit.ingest.tabular.mapping import TableSpec
        from tmi.toolkit.ingest.tabular.reader import read_cells

        path = folder / f"t.{suffix}"
        rows = [("id", "sex", "alb"), ("1", "f", "3.8"), ("2", "m", "4.1"), ("3", "", "NA")]
        path.write_text("\n".join(separator.join(row) for row in rows) + "\n")
        return lambda: read_cells(path, TableSpec(), wanted=("id", "sex", "alb"))

    return prepare


target("table in CSV", "t.csv", m.csv_table)(_table("csv"))
target("table in TSV", "t.tsv", m.csv_table)(_table("tsv", "\t"))


@target("table in Excel", "t.xlsx", m.workbook)
def _workbook(folder: Path) -> Read:
    import datetime

    import openpyxl

    from tmi.toolkit.ingest.tabular.mapping import TableSpec
    from tmi.toolkit.ingest.tabular.reader import read_cells

    book = openpyxl.Workbook()
    for row in (("id", "sex", "alb", "day"), (1, "f", 3.8, datetime.date(2020, 1, 2)), (2, "m", "=C2+1", True)):
        book.active.append(row)
    book.active["C2"].number_format = "0.0%"
    book.save(folder / "t.xlsx")
    return lambda: read_cells(folder / "t.xlsx", TableSpec(), wanted=("id", "sex", "alb"))


ROWS = "1,f,3.8,0.9,dead\n2,m,4.1,NA,alive\n3,f,41,1.1,lost\n"


@target("import of a table", "t.csv", m.csv_table)
def _imported_table(folder: Path) -> Read:
    from factories.table_workspace import HEADER, Workspace

    work = Workspace(folder)
    work.table.write_text(HEADER + ROWS)

    def read() -> None:
        shutil.rmtree(work.out, ignore_errors=True)
        work.run()

    return read


@target("journal of an import", "cohort/.import-journal", m.json_lines)
def _journal(folder: Path) -> Read:
    from factories.table_workspace import Workspace

    work = Workspace(folder)
    work.run(ROWS)
    return lambda: work.run(resume=True)


@target("table of features", "f.csv", m.csv_table)
def _external_table(folder: Path) -> Read:
    from tmi.toolkit.radiomics.external_table import read_external_table
    from tmi.toolkit.radiomics.feature_names import FEATURE_NAMES

    rows = ["case_id," + ",".join(FEATURE_NAMES), "C," + ",".join(["1.5"] * 1781), "D," + ",".join(["2"] * 1781)]
    (folder / "f.csv").write_text("\n".join(rows) + "\n")
    return lambda: read_external_table(folder / "f.csv").values_of("C")


# --- images


def _image(name: str, kind: str) -> Prepare:
    def prepare(folder: Path) -> Read:
        from tmi.toolkit.ingest.image_files import read_image

        write_image(folder, name, kind)
        return lambda: read_image(folder / name, kind=kind, case_id="C")

    return prepare


def write_image(folder: Path, name: str, kind: str) -> None:
    """Write a small volume in any format."""
    import SimpleITK

    array = np.random.default_rng(3).integers(-1000, 1000, (6, 7, 8)).astype(np.int16)
    if kind == "mask":
        array = (array > 0).astype(np.uint8) + (array > 500).astype(np.uint8)
    if ".nii" in name:
        image = nib.Nifti1Image(array, AFFINE)
        if kind == "mask":
            image.header.extensions.append(nib.nifti1.Nifti1Extension(0, LABELS))
        nib.save(image, folder / name)
        return
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing((1.5, 2.0, 3.0))
    if kind == "mask":
        for key, value in {"Segment0_Name": "liver", "Segment0_LabelValue": "1", "Segment1_Name": "spleen",
                           "Segment1_LabelValue": "2"}.items():  # fmt: skip
            image.SetMetaData(key, value)
    SimpleITK.WriteImage(image, str(folder / name), not name.endswith("hd"))


target("CT in NIfTI", "ct.nii", m.plain_nifti)(_image("ct.nii", "ct"))
target("mask with names", "mask.nii", m.any_bytes)(_image("mask.nii", "mask"))
for _name in ("ct.nrrd", "ct.nhdr", "ct.mha", "ct.mhd"):
    _end = b"\n\n" if _name.startswith("ct.n") else b"ElementDataFile"
    target(f"CT in {_name[3:]}", _name, m.header_and_data(_end))(_image(_name, "ct"))
target("mask in seg.nrrd", "mask.seg.nrrd", m.header_and_data(b"\n\n"))(_image("mask.seg.nrrd", "mask"))


def _series_spec() -> Any:
    from factories.dicom_series import SeriesSpec

    return SeriesSpec(slices=5, rows=12, columns=16, spacing_mm=(22.0, 22.0), step_mm=28.0)


@target("DICOM slice", "series/IM0002.dcm", m.dicom)
def _dicom(folder: Path) -> Read:
    from factories.dicom_series import make_slices, write_slices
    from tmi.toolkit.ingest.dicom.ct import read_dicom_ct

    write_slices(folder / "series", make_slices(_series_spec()))
    return lambda: read_dicom_ct(folder / "series", series=None, fixes=(), case_id="C")


def _dicom_mask(name: str) -> Prepare:
    def prepare(folder: Path) -> Read:
        from factories.dicom_series import (
            liver_contour,
            liver_masks,
            make_slices,
            write_rtstruct,
            write_seg,
            write_slices,
        )
        from tmi.toolkit.ingest.dicom.ct import read_dicom_ct
        from tmi.toolkit.ingest.mask_importer import import_mask

        spec = _series_spec()
        write_slices(folder / "series", make_slices(spec))
        ct = read_dicom_ct(folder / "series", series=None, fixes=(), case_id="C")
        if name == "seg.dcm":
            write_seg(folder / name, make_slices(spec), [liver_masks(spec)], ["hepar"])
        else:
            contours = [c for k in range(spec.slices) if (c := liver_contour(spec, k, points=20)) is not None]
            write_rtstruct(folder / name, make_slices(spec)[0], {"liver": contours})
        return lambda: import_mask(folder / name, ct, wanted=None, fixes=(), case_id="C")

    return prepare


target("DICOM SEG", "seg.dcm", m.dicom)(_dicom_mask("seg.dcm"))
target("RTSTRUCT", "rt.dcm", m.dicom)(_dicom_mask("rt.dcm"))


# --- runs, bundles, caches


def _run(folder: Path) -> Any:
    """A run of one fold, without weights."""
    from tmi.toolkit.clinical.schema import load_schema
    from tmi.toolkit.config.presets import tiny
    from tmi.toolkit.run_folder import FoldSplit, RunFolder
    from tmi.toolkit.storage.atomic_files import write_json

    split = FoldSplit(fold=0, train=("A", "B"), validation=("C",), test=("D",))
    run = RunFolder.create(folder / "run", name="r", config=tiny(), schema=load_schema(), folds=[split],
                           cohort={"cases": 4, "fingerprint": "f", "synthetic": True}, versions={"torch": "2"},
                           vocabulary={"min_patients": 5})  # fmt: skip
    fold = run.fold(0)
    fold.folder.mkdir()
    shutil.copy(PUBLISHED / "bundle" / "scalers" / "fold0.json", fold.scaler)
    shutil.copy(PUBLISHED / "bundle" / "tokenizers" / "text-0.json", fold.tokenizer)
    fold.model.write_bytes(b"weights")
    write_json(fold.metrics, {"calibration": {"temperature": 1.5}, "test": {"roc_auc": 0.5}})
    write_json(folder / "run" / "summary.json", {"calibration": {"threshold": 0.4}, "mean": {"roc_auc": 0.5}})
    run.finish()
    return run


def _run_document(name: str) -> Prepare:
    def prepare(folder: Path) -> Read:
        from tmi.toolkit.config.project import Project, newest_finished_run
        from tmi.toolkit.run_folder import RunFolder

        path = _run(folder).path

        def read() -> None:
            newest_finished_run(Project(root=folder, runs="."))
            run = RunFolder.open(path)
            _ = run.rendering_version, run.vocabulary, run.finished, run.threshold
            _ = [run.fold(s.fold).temperature for s in run.folds]
            run.require_finished()

        return read

    return prepare


for _name in ("run.json", "config.json", "folds.json", "clinical_schema.json", "fold0/metrics.json", "summary.json"):
    target(f"run: {_name}", f"run/{_name}", m.json_document)(_run_document(_name))


def _bundle(name: str, *, sealed: bool = True) -> Prepare:
    """The published bundle; a forger computes the digests of a damaged file again."""

    def prepare(folder: Path) -> Read:
        from tmi.runtime.bundle.contents import bundled_scaler, bundled_schema, bundled_tokenizer
        from tmi.runtime.bundle.manifest import DIGEST_FILE, MANIFEST_FILE
        from tmi.runtime.bundle.reader import open_bundle
        from tmi.runtime.verification.golden_inputs import first_golden_input
        from tmi.runtime.verification.preprocessing_check import check_preprocessing
        from tmi.runtime.verification.verify import read_references
        from tmi.toolkit.storage.hashing import sha256_bytes

        bundle_folder = folder / "bundle"
        shutil.copytree(PUBLISHED / "bundle", bundle_folder)
        manifest, file = bundle_folder / MANIFEST_FILE, bundle_folder / name
        valid = manifest.read_bytes()

        def read() -> None:
            if name != MANIFEST_FILE:
                document, data = json.loads(valid), file.read_bytes()
                document["files"][name] = {"sha256": sha256_bytes(data), "bytes": len(data)}
                manifest.write_text(json.dumps(document))
            digest = sha256_bytes(manifest.read_bytes())
            (bundle_folder / DIGEST_FILE).write_text(f"{digest}  {MANIFEST_FILE}\n")
            bundle = open_bundle(bundle_folder)
            bundled_schema(bundle)
            for fold in bundle.manifest.folds:
                if fold.scaler is not None:
                    bundled_scaler(bundle, fold.scaler)
            for graph in bundle.manifest.graphs:
                if graph.tokenizer is not None:
                    bundled_tokenizer(bundle, graph.tokenizer)
            if name.endswith(".safetensors"):
                read_references(bundle)
                check_preprocessing(bundle)
            elif name == MANIFEST_FILE:
                first_golden_input(bundle.manifest)

        return read

    return prepare


for _name in ("manifest.json", "clinical_schema.json", "scalers/fold0.json", "tokenizers/text-0.json"):
    target(f"bundle: {_name}", f"bundle/{_name}", m.json_document)(_bundle(_name))
for _name in ("golden.safetensors", "golden-case.safetensors"):
    target(f"bundle: {_name}", f"bundle/{_name}", m.safetensors)(_bundle(_name))


@target("inspection of a bundle", "bundle/manifest.json", m.json_document)
def _inspected(folder: Path) -> Read:
    from factories.tmi_command import tmi
    from tmi.toolkit.storage.hashing import sha256_file

    shutil.copytree(PUBLISHED / "bundle", folder / "bundle")
    manifest = folder / "bundle" / "manifest.json"

    def read() -> None:
        (folder / "bundle" / "manifest.json.sha256").write_text(f"{sha256_file(manifest)}  manifest.json\n")
        _require_code(tmi("inspect", folder / "bundle"))

    return read


@target("log of results", "p.json.unfinished.jsonl", m.json_lines)
def _result_log(folder: Path) -> Read:
    from tmi.runtime.serving.result_log import ResultLog
    from tmi.runtime.serving.results import RejectedCase

    cases = [_case(folder)]
    path, identity = folder / "p.json.unfinished.jsonl", {"bundle": "b", "engine": "onnx", "threshold": 0.5}
    with ResultLog.begin(path, identity, cases) as log:
        log.append(RejectedCase(case_id="C", code="ct-nan", what="NaN", fix="export again"))

    def read() -> None:
        with ResultLog.resume(path, identity, cases):
            pass

    return read


@target("cached self-test", "cache/opened.json", m.json_document)
def _self_test(folder: Path) -> Read:
    import os

    from tmi.runtime.bundle.reader import inspect_bundle
    from tmi.runtime.verification import self_test
    from tmi.toolkit.storage.hashing import sha256_json
    from tmi.toolkit.storage.private_files import write_private

    bundle = inspect_bundle(PUBLISHED / "bundle")
    key = self_test.self_test_key(bundle, "onnx")
    write_private(folder / "cache" / "opened.json", [json.dumps({"combination": key, "seconds": 1.0}).encode()])

    def read() -> None:
        os.environ["TMI_CACHE"] = str(folder / "cache")
        entry = folder / "cache" / "opened" / f"{sha256_json(key)}.json"
        write_private(entry, [(folder / "cache" / "opened.json").read_bytes()])
        self_test.cached_result(bundle, "onnx")

    return read


@target("cached case", "entry", m.length_prefixed_json)
def _cached_case(folder: Path) -> Read:
    from tmi.toolkit.config.schema import N_RADIOMICS, CtConfig
    from tmi.toolkit.preprocessing import cache

    config = CtConfig(shape_DHW=(16, 16, 16))
    images = cache.PreparedImages(ct_1DHW=np.zeros((1, 16, 16, 16), np.float32), warnings=("a",),
                                  radiomics_F=np.zeros(N_RADIOMICS))  # fmt: skip
    (folder / "entry").write_bytes(cache._encode(images))
    return lambda: cache._decode((folder / "entry").read_bytes(), config, extract=True)


@target("predictions of a fold", "predictions.csv", m.csv_table, torch=True)
def _predictions(folder: Path) -> Read:
    from tmi.training.evaluation.prediction_tables import COLUMNS, read_predictions

    row = {"case_id": "A", "label": "bad"}
    lines = [",".join(COLUMNS), ",".join(row.get(c, "0.5") for c in COLUMNS)]
    (folder / "predictions.csv").write_text("\n".join(lines) + "\n")
    return lambda: read_predictions(folder / "predictions.csv")


def _bert(folder: Path) -> Read:
    from factories.pretrained_files import write_bert
    from tmi.toolkit.config.presets import tiny
    from tmi.training.pretrained.text_weights import bert_settings, bert_tokenizer, read_text_weights

    write_bert(folder / "bert")
    config = tiny().network.text_encoder

    def read() -> None:
        bert_tokenizer(folder / "bert")
        read_text_weights(folder / "bert", bert_settings(folder / "bert", config))

    return read


BERT: Mapping[str, Mutator] = {"config.json": m.json_document, "vocab.txt": m.text}
for _name, _mutate in BERT.items():
    target(f"BERT: {_name}", f"bert/{_name}", _mutate, torch=True)(_bert)


@target("weights in safetensors", "w.safetensors", m.safetensors, torch=True)
def _safetensors(folder: Path) -> Read:
    import torch
    from safetensors.torch import save_file

    from tmi.training.pretrained.weight_file import read_weights

    save_file({"a.weight": torch.ones(3, 4), "b": torch.zeros(2)}, folder / "w.safetensors")
    return lambda: read_weights(folder / "w.safetensors")


@target("weights of torch", "w.pt", m.any_bytes, torch=True)
def _torch_weights(folder: Path) -> Read:
    import torch

    from tmi.training.pretrained.weight_file import read_weights

    torch.save({"state_dict": {"a.weight": torch.ones(3, 4)}}, folder / "w.pt")
    return lambda: read_weights(folder / "w.pt")
