"""Readers of a case, a cohort and documents of a user."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from factories.cases import write_cohort
from factories.fuzzing import mutators as m
from factories.fuzzing.registry import PUBLISHED, Prepare, Read, require_code, small_case, target


@target("record", "C/clinical.json", m.json_document)
def _record(folder: Path) -> Read:
    from tmi.toolkit.clinical.record import read_clinical
    from tmi.toolkit.clinical.rendering import render
    from tmi.toolkit.clinical.schema import load_schema
    from tmi.toolkit.clinical.units import check_units

    case, schema = small_case(folder), load_schema()
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

    shutil.copy(small_case(folder).clinical, folder / "clinical.json")
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

    case = small_case(folder)
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

    case = small_case(folder)
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

    case = small_case(folder)
    return lambda: list(check_ct(read_ct(case)))


@target("mask", "C/liver.nii.gz", m.nifti)
def _mask(folder: Path) -> Read:
    from tmi.toolkit.imaging.volume import read_ct, read_mask
    from tmi.toolkit.qc.image_checks import check_mask

    case = small_case(folder)
    ct = read_ct(case)
    return lambda: list(check_mask(ct, read_mask(case, ct)))


@target("check of a cohort", "cohort/C000/clinical.json", m.json_document)
def _checked_cohort(folder: Path) -> Read:
    from factories.tmi_command import tmi

    write_cohort(folder / "cohort", cases=1, shape_xyz=(16, 14, 12))
    return lambda: require_code(tmi("check", folder / "cohort", "--json"))


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


@target("trust statistics", "trust.safetensors", m.safetensors)
def _trust(folder: Path) -> Read:
    import numpy as np

    from tmi.toolkit.trust.statistics import FoldTrust, PartStatistics

    part = PartStatistics(
        mean_D=np.zeros(3), scale_D=np.ones(3), directions_KD=np.eye(2, 3), variances_K=np.ones(2), residual=0.5
    )
    scores = {"radiomics": np.arange(4.0), "joint": np.arange(4.0)}
    FoldTrust(fold=0, fitted_on=9, parts={"radiomics.features": part}, calibration=scores).save(
        folder / "trust.safetensors"
    )

    def read() -> None:
        trust = FoldTrust.load(folder / "trust.safetensors", fold=0)
        found = trust.scores({name: np.ones((1, p.mean_D.shape[0])) for name, p in trust.parts.items()})
        assert all(np.isfinite(values).all() for values in found.values()), "accepted statistics give finite scores"

    return read
