"""Generate synthetic cohorts: phantoms, records and features of a latent severity, and the ground truth.

Every patient and every case has its own seeded generator. The files therefore depend on the seed and the number of
cases, but not on the number of processes. The sampled variables are saved in `truth.json`, next to the cohort table:

    synthetic    always true; marks the cohort as synthetic
    best_auc     highest AUC that any method can reach, for each set of modalities
                 (`tmi.toolkit.synthetic.generative_model`)
    drawn_auc    AUC of the model's posteriors on the sampled cases
    model, seed  parameters of the generative model
    cases        per case: label, severity, signals, posteriors, build, disease signs, grid, and storage of the files
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from tmi.toolkit.cases.case import COHORT_COLUMNS, COHORT_FILE, Case, Cohort, open_cohort
from tmi.toolkit.compute.cpu import available_cores
from tmi.toolkit.compute.worker_process import initialize_worker
from tmi.toolkit.config.schema import CLASSES
from tmi.toolkit.errors import UsageError
from tmi.toolkit.storage.atomic_files import require_absent, staged_folder, write_json, write_text
from tmi.toolkit.storage.bounded_files import DOCUMENT_BYTES
from tmi.toolkit.storage.csv_files import csv_text
from tmi.toolkit.storage.documents import read_document
from tmi.toolkit.storage.outputs import output_lock
from tmi.toolkit.synthetic.clinical_record import Person, sample_information, sample_person, sample_record
from tmi.toolkit.synthetic.generative_model import (
    SIGNALS_BY_MODALITY,
    LatentSeverityModel,
    auc_ceilings,
    empirical_auc,
    modality_subsets,
    posterior,
    sample_severity,
    sample_signals,
)
from tmi.toolkit.synthetic.phantom import Body, Grid, Phantom, disease_signs, render, sample_body, sample_grid

TRUTH_FILE = "truth.json"
TRUTH_SCHEMA = "tmi-synthetic/1"
SYNTHETIC_NOTICE = "Synthetic cohort: phantoms, not patients. No figure obtained on it says anything about patients."
SECOND_VISITS = 8
"""One case in this many is a second visit of another case's patient."""
ORIENTATIONS = ("LPS", "RAS", "LAS", "LPI", "RPS", "PSR")
"""Voxel orders of the stored files."""
STORAGE_TYPES = ("int16", "int16-offset", "int32", "float32")
"""Voxel types of the stored CT files; `int16-offset` has a header intercept of -1024."""


@dataclass(frozen=True, kw_only=True)
class Patient:
    """A patient of the cohort."""

    patient_id: str
    """Starts with `syn`."""
    bad: bool
    """Outcome."""
    severity: float
    """Latent severity."""
    person: Person
    """Sex, age, size, aetiology."""
    body: Body
    """Build."""


@dataclass(frozen=True, kw_only=True)
class CasePlan:
    """Input of a worker process for one case."""

    case_id: str
    """Case id, which is also the name of the folder."""
    patient: Patient
    """Patient of the case."""
    seed: int
    """Cohort seed."""
    index: int
    """Number of the case in the cohort; seed and index determine the case's generator."""


@dataclass(frozen=True, kw_only=True)
class Storage:
    """Storage of a case's NIfTI files."""

    orientation: str
    """Voxel order of the CT."""
    mask_orientation: str
    """Voxel order of the mask; its world coordinates equal those of the CT."""
    voxels: str
    """One of `STORAGE_TYPES`."""
    tilt_deg: float
    """Rotation of the patient on the table about the body's long axis."""
    origin_mm: tuple[float, float, float]
    """World position of the phantom's centre."""
    form: str
    """Affines set in the header: `sform`, `qform` or `both`."""


def is_synthetic(cohort: Path) -> bool:
    """Return whether a cohort folder is marked as synthetic."""
    file = cohort / TRUTH_FILE
    try:
        truth = read_document(file, max_bytes=DOCUMENT_BYTES)
    except (OSError, ValueError):
        return False
    return isinstance(truth, dict) and truth.get("synthetic") is True


def make_cohort(
    out: Path,
    *,
    cases: int,
    seed: int,
    jobs: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    force: bool = False,
) -> Cohort:
    """Write a synthetic cohort with extracted radiomics.

    Args:
        out: the cohort folder; it is created atomically when all cases are complete.
        cases: number of cases, at least 2.
        seed: the same seed and number of cases give the same files.
        jobs: number of processes; None uses every core available to this process.
        progress: called with (completed cases, all cases) after each case.
        force: replace an existing synthetic cohort.

    Raises:
        UsageError: `out` exists and `force` is not set, `out` is not a synthetic cohort, is being written by another
            process or cannot be written, or a number is out of range.
        UnavailableError: the disk is full.
    """
    if not 2 <= cases <= 9999 or seed < 0 or (jobs is not None and jobs < 1):
        raise UsageError(
            f"synth: cases={cases}, seed={seed}, jobs={jobs}",
            fix="give 2 to 9999 cases, a seed of 0 or more and at least 1 job",
        )
    model = LatentSeverityModel()
    plans = plan_cohort(cases, seed, model)
    with output_lock(out, kind="cohort"):
        require_absent(out, force=force, kind="cohort")
        _require_replaceable(out)
        return _write_cohort(out, plans, model, seed=seed, jobs=jobs, progress=progress)


def _write_cohort(
    out: Path,
    plans: list[CasePlan],
    model: LatentSeverityModel,
    *,
    seed: int,
    jobs: int | None,
    progress: Callable[[int, int], None] | None,
) -> Cohort:
    with staged_folder(out) as stage:
        entries = {}
        for completed, entry in enumerate(_make_cases(plans, stage, model, jobs or available_cores()), start=1):
            entries[entry["case_id"]] = entry
            if progress is not None:
                progress(completed, len(plans))
        rows = [(p.case_id, p.patient.patient_id, CLASSES[int(p.patient.bad)]) for p in plans]
        write_text(stage / COHORT_FILE, csv_text(COHORT_COLUMNS, rows))
        write_json(stage / TRUTH_FILE, _truth(model, seed, [entries[p.case_id] for p in plans]))
    return open_cohort(out)


def _require_replaceable(out: Path) -> None:
    """Raise unless `out` is absent, empty or a synthetic cohort; `--force` deletes nothing else."""
    if out.exists() and not (out.is_dir() and (is_synthetic(out) or not any(out.iterdir()))):
        raise UsageError(
            f"{out} is not a synthetic cohort and is not replaced, even with --force",
            fix="give another folder, or remove it yourself",
        )


def plan_cohort(cases: int, seed: int, model: LatentSeverityModel) -> list[CasePlan]:
    """Plan the cases: outcomes at the prevalence, at least one of each, and some patients with two cases."""
    second = cases // SECOND_VISITS
    count = cases - second
    rng = np.random.default_rng([seed, 0])
    n_bad = min(max(round(model.prevalence * count), 1), count - 1)
    bad = rng.permutation(np.arange(count) < n_bad)
    patients = [_patient(seed, i, bool(bad[i]), model) for i in range(count)]
    visits = rng.permutation([*range(count), *rng.choice(count, size=second, replace=False)])
    return [
        CasePlan(case_id=f"syn{seed}-{i:04d}", patient=patients[int(p)], seed=seed, index=i)
        for i, p in enumerate(visits, start=1)
    ]


def _patient(seed: int, index: int, bad: bool, model: LatentSeverityModel) -> Patient:
    rng = np.random.default_rng([seed, 1, index])
    person = sample_person(rng)
    return Patient(
        patient_id=f"syn{seed}-p{index + 1:04d}",
        bad=bad,
        severity=sample_severity(rng, bad=bad, model=model),
        person=person,
        body=sample_body(rng, female=person.sex == "female", bmi=person.bmi),
    )


def _make_cases(plans: list[CasePlan], stage: Path, model: LatentSeverityModel, jobs: int) -> Iterator[dict[str, Any]]:
    """Yield the cases' entries as they complete; on an interrupt, finish the cases in progress and start no others."""
    jobs = min(jobs, len(plans))
    if jobs == 1:
        for plan in plans:
            yield make_case(plan, stage, model)
        return
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=initialize_worker)
    try:
        for future in as_completed([pool.submit(make_case, plan, stage, model) for plan in plans]):
            yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def make_case(plan: CasePlan, stage: Path, model: LatentSeverityModel) -> dict[str, Any]:
    """Write one case folder below `stage` and return its entry in `truth.json`."""
    from tmi.toolkit.imaging.volume import read_ct, read_mask
    from tmi.toolkit.radiomics.extractor import extract
    from tmi.toolkit.radiomics.table import write_table

    # independent streams: signals and grid, storage, record, phantom
    streams = np.random.SeedSequence([plan.seed, 2, plan.index]).spawn(4)
    rng = np.random.default_rng(streams[0])
    patient = plan.patient
    signals = sample_signals(rng, patient.severity, model)
    grid = sample_grid(rng, patient.body)
    signs = disease_signs(**{k: model.standardized(k, getattr(signals, k)) for k in ("liver", "portal", "deposit")})
    storage = sample_storage(np.random.default_rng(streams[1]))
    record, blood = sample_record(
        np.random.default_rng(streams[2]),
        patient_id=patient.patient_id,
        person=patient.person,
        body=patient.body,
        blood=model.standardized("blood", signals.blood),
    )
    case = Case(folder=stage / plan.case_id, case_id=plan.case_id, patient_id=patient.patient_id)
    case.folder.mkdir()
    write_images(case, render(patient.body, signs, grid, seed=streams[3]), grid, storage)
    write_json(case.clinical, record)
    ct = read_ct(case)
    write_table(case.radiomics, extract(ct, read_mask(case, ct), jobs=1))
    observations = {k: (getattr(signals, k), model.precision(k)) for k in ("liver", "portal", "deposit")}
    observations["blood"] = model.blood_observation(*blood.observation())
    return {
        "case_id": plan.case_id,
        "patient_id": patient.patient_id,
        "label": CLASSES[int(patient.bad)],
        "severity": patient.severity,
        "signals": asdict(signals),
        "posterior": {
            name: posterior(
                [observations[s] for s in sorted({s for m in subset for s in SIGNALS_BY_MODALITY[m]})], model
            )
            for name, subset in modality_subsets().items()
        },
        "body": asdict(patient.body),
        "findings": asdict(signs),
        "grid": asdict(grid),
        "storage": asdict(storage),
    }


def sample_storage(rng: np.random.Generator) -> Storage:
    """Sample the storage of one case's files; the readers must map every variant to the same frame."""
    orientation = str(rng.choice(ORIENTATIONS))
    return Storage(
        orientation=orientation,
        mask_orientation=orientation if rng.random() < 0.7 else str(rng.choice(ORIENTATIONS)),
        voxels=str(rng.choice(STORAGE_TYPES, p=[0.5, 0.2, 0.15, 0.15])),
        tilt_deg=float(rng.choice([0.0, round(float(rng.uniform(-4.0, 4.0)), 1)])),
        origin_mm=tuple(round(float(v), 1) for v in rng.uniform(-120.0, 120.0, 3)),  # type: ignore[arg-type]
        form=str(rng.choice(["both", "sform", "qform"], p=[0.6, 0.2, 0.2])),
    )


def write_images(case: Case, phantom: Phantom, grid: Grid, storage: Storage) -> None:
    """Write CT and mask as NIfTI."""
    affine = affine_of(grid, storage)
    ct = phantom.hu_XYZ
    if storage.voxels in ("int32", "float32"):
        ct = ct.astype(storage.voxels)
    elif storage.voxels == "int16-offset":
        ct = ct + np.int16(1024)  # nibabel stores raw values if the header already has a scaling
    image = _reorient(nib.Nifti1Image(ct, affine), storage.orientation, storage.form)
    if storage.voxels == "int16-offset":
        image.header.set_slope_inter(1.0, -1024.0)
    nib.save(image, case.ct)
    mask = nib.Nifti1Image(phantom.liver_XYZ.astype(np.uint8), affine)
    nib.save(_reorient(mask, storage.mask_orientation, storage.form), case.mask)


def affine_of(grid: Grid, storage: Storage) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the affine from voxel index (x, y, z) to RAS+ mm: centre at `origin_mm`, rotated by `tilt_deg` about z."""
    angle = math.radians(storage.tilt_deg)
    rotation = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation * np.array(grid.spacing_XYZ_mm)
    affine[:3, 3] = np.array(storage.origin_mm) - affine[:3, :3] @ ((np.array(grid.shape_XYZ) - 1) / 2)
    return affine


def _reorient(image: nib.Nifti1Image, orientation: str, form: str) -> nib.Nifti1Image:
    """Return the image in another voxel order, with the affines given by `form` set in the header."""
    target = nib.orientations.axcodes2ornt(tuple(orientation))
    reoriented = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), target))
    affine = reoriented.affine
    reoriented.set_qform(affine, code=1)
    reoriented.set_sform(affine, code=1)
    if form == "qform":
        reoriented.set_sform(None, code=0)
    elif form == "sform":
        reoriented.set_qform(None, code=0)
    reoriented.header.set_xyzt_units("mm")
    reoriented.header["descrip"] = b"synthetic phantom, no patient"
    return reoriented


def _truth(model: LatentSeverityModel, seed: int, entries: list[dict[str, Any]]) -> dict[str, Any]:
    bad = [e["label"] == CLASSES[1] for e in entries]
    # its own fixed seed: the bounds depend on the model only, not on the cohort
    best = auc_ceilings(model, sample_information(np.random.default_rng(20_000), 20_000))
    empirical = {n: empirical_auc([e["posterior"][n] for e in entries], bad) for n in modality_subsets()}
    return {
        "schema": TRUTH_SCHEMA,
        "synthetic": True,
        "statement": SYNTHETIC_NOTICE,
        "seed": seed,
        "n_cases": len(entries),
        "model": asdict(model) | {"threshold": model.threshold},
        "modalities": {name: list(signals) for name, signals in SIGNALS_BY_MODALITY.items()},
        "best_auc": {name: round(value, 4) for name, value in best.items()},
        "drawn_auc": {name: None if value is None else round(value, 4) for name, value in empirical.items()},
        "cases": entries,
    }
