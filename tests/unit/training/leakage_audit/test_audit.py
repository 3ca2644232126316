"""`tmi audit` passes a clean run and reports each planted leak under the matching check."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from factories.audited_run import OPTIONS, audit, plant_shared_patient, train
from factories.cases import write_cohort
from factories.tmi_command import tmi
from tmi.toolkit.cases.case import open_cohort
from tmi.toolkit.clinical.tokenizer import Tokenizer
from tmi.toolkit.radiomics.scaler import RadiomicsScaler
from tmi.toolkit.run_folder import RunFolder
from tmi.training.data.duplicate_images import find_duplicates
from tmi.training.data.fold_dataset import FoldDataset
from tmi.training.evaluation import fold_report, trust_fitting
from tmi.training.evaluation.calibration import Calibration
from tmi.training.leakage_audit.cohort_checks import COHORT_CHECKS
from tmi.training.loop import fold_training
from tmi.training.loop.checkpointing import BestEpochCheckpoint


def rewrite(run: Path, file: str, change) -> None:
    """Edit a JSON file of a run and update the run's digests, as somebody who hides a leak would."""
    path = run / file
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    RunFolder.open(run).finish()


def test_clean_run_passes_every_check(clean, cohort):
    """Every check of a clean run holds, and the exit code is 0."""
    outcome, checks = audit(clean, cohort)
    assert outcome.code == 0, outcome.out
    assert set(checks) == {"holds"}
    assert set(COHORT_CHECKS) < checks["holds"]
    assert outcome.document["verdict"] == "clean"
    page = tmi("audit", clean, cohort)
    assert page.out.splitlines()[-1].startswith("no leak found by these checks (")
    for limit in outcome.document["cannot_see"]:
        assert f"  - {limit}\n" in page.out
    assert any("unknown origin" in limit for limit in outcome.document["cannot_see"])


def test_sklearn_model_passes_the_same_checks(cohort, tmp_path):
    """A model without a network is audited by the same checks."""
    outcome = tmi("train", cohort, "--out", tmp_path / "run", *OPTIONS, "--model", "rf")
    assert outcome.code == 0, outcome.err
    outcome, checks = audit(tmp_path / "run", cohort)
    assert (outcome.code, set(checks)) == (0, {"holds"})
    assert "predictions" in checks["holds"]


def test_cohort_checks_are_skipped_without_cohort(clean):
    """Without a cohort the checks of the run folder run, and the others are reported as not checked."""
    outcome, checks = audit(clean, None)
    assert outcome.code == 0
    assert checks["not checked"] == set(COHORT_CHECKS)
    assert {"files", "partition", "cases", "epoch", "epoch-split", "calibration", "figures"} < checks["holds"]
    assert f"{len(COHORT_CHECKS)} not checked)" in tmi("audit", clean, cwd=clean).out


def test_no_model_skips_predictions_check(clean, cohort):
    """`--no-model` skips the check that runs the saved models."""
    assert audit(clean, cohort, "--no-model")[1]["not checked"] == {"predictions"}


# Planted leaks


def with_fold_data(patch, change):
    original = FoldDataset.__init__

    def init(self, arrays, split, config, *, tokenizer=None, scaler=None):
        original(
            self, arrays, split, config, **({"tokenizer": tokenizer, "scaler": scaler} | change(arrays, split, config))
        )

    patch.setattr(FoldDataset, "__init__", init)


def plant_scaler_on_all(patch):
    def fit_on_all(arrays, split, config):
        fitted = RadiomicsScaler.fit(arrays.radiomics_NF[:], config.radiomics)
        return {"scaler": replace(fitted, fitted_on=len(split.train))}  # hides the number of cases as well

    with_fold_data(patch, fit_on_all)


def plant_vocabulary_on_all(patch):
    with_fold_data(patch, lambda arrays, split, config: {"tokenizer": Tokenizer.train(list(arrays.texts), 200)})


def plant_epoch_picked_on_test(patch):
    original = BestEpochCheckpoint._validate_epoch

    def validate(self, module, epoch):
        split = self.data.split
        self.data.split = replace(split, validation=split.test)
        try:
            return original(self, module, epoch)
        finally:
            self.data.split = split

    patch.setattr(BestEpochCheckpoint, "_validate_epoch", validate)


def plant_last_epoch(patch):
    original = BestEpochCheckpoint._validate_epoch

    def validate(self, module, epoch):
        self.best_criterion = float("inf")
        return original(self, module, epoch)

    patch.setattr(BestEpochCheckpoint, "_validate_epoch", validate)
    patch.setattr("tmi.training.loop.lightning_module.FoldModule.configure_optimizers", maximising_optimiser)


def maximising_optimiser(module):
    import torch

    return torch.optim.Adam(module.parameters(), lr=1e-2, maximize=True)  # each epoch is worse than the previous one


def plant_threshold(patch):
    patch.setattr(fold_report, "calibrate", lambda *_: Calibration(temperature=1.0, threshold=0.4, fitted_on=3))


def plant_trust_on_held_out(patch):
    original = trust_fitting.fit_trust

    def fit(arrays, data, features):
        return original(arrays, data, features, fitted_on=(*data.split.train, *data.split.test))

    patch.setattr(trust_fitting, "fit_trust", fit)
    patch.setattr(trust_fitting, "MIN_CASES", 1)  # this cohort's folds are too small for statistics of their own


def plant_conformal_on_held_out(patch):
    original = trust_fitting.write_trust

    def write(*words, validation, test, temperature):
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(trust_fitting, "MIN_CASES", 1)  # this cohort's folds are too small for statistics
            both = replace(
                validation,
                labels_N=np.concatenate([validation.labels_N, test.labels_N]),
                logits_NK=np.concatenate([validation.logits_NK, test.logits_NK]),
            )
            original(*words, validation=both, test=test, temperature=temperature)

    patch.setattr(fold_training, "write_trust", write)


LEAKS = {
    "conformal": (plant_conformal_on_held_out, "are those of held-out cases"),
    "trust": (plant_trust_on_held_out, "they were fitted on the held-out cases too"),
    "patients": (plant_shared_patient, "patient(s) in train and"),
    "scaler": (plant_scaler_on_all, "it was fitted on the whole cohort, held-out cases included"),
    "vocabulary": (plant_vocabulary_on_all, "it was trained on the texts of the whole cohort"),
    "epoch-split": (plant_epoch_picked_on_test, "the epoch was selected on the reported fold"),
    "epoch": (plant_last_epoch, "the lowest recorded loss is that of epoch"),
    "calibration": (plant_threshold, "the inner validation predictions give"),
}
FOLLOWS = {"calibration": {"threshold"}, "conformal": {"trust"}}
"""Checks that fail together with the planted one: the ensemble's threshold depends on the folds' temperatures; a cohort
that is too small for statistics has none to compare."""


@pytest.mark.parametrize("leak", LEAKS)
def test_planted_leak_is_reported_by_its_check(leak, cohort, tmp_path, monkeypatch):
    """A planted leak fails the matching check and no unrelated one."""
    plant, text = LEAKS[leak]
    with monkeypatch.context() as patch:
        plant(patch)
        run = train(cohort, tmp_path / "run")
    outcome, checks = audit(run, cohort)
    assert outcome.code == 6
    assert outcome.document["verdict"] == "leak"
    assert {leak} <= checks["leak"] <= {leak} | FOLLOWS.get(leak, set())
    assert any(text in a["detail"] for a in outcome.document["answers"] if a["check"] == leak)
    assert "cannot be trusted" in tmi("audit", run, cohort).out


@pytest.mark.parametrize("form", ["copy", "mirrored", "noisy"])
def test_duplicate_ct_across_split_is_reported(form, tmp_path):
    """A CT that occurs under two ids, one in training and one held out, fails `duplicates`."""
    cohort = write_cohort(tmp_path / "cohort", cases=10, with_mask=False)
    run = train(cohort, tmp_path / "dry")
    test = json.loads((run / "folds.json").read_text())["folds"][0]["test"]
    original, twin = test[0], next(f"C{i:03d}" for i in range(10) if f"C{i:03d}" not in test)
    image = nib.load(cohort / original / "ct.nii.gz")
    voxels, affine = np.asarray(image.dataobj), image.affine
    if form == "mirrored":
        flip = np.diag([-1.0, 1.0, 1.0, 1.0])
        flip[0, 3] = voxels.shape[0] - 1
        voxels, affine = voxels[::-1], affine @ flip
    elif form == "noisy":
        voxels = voxels + (np.random.default_rng(0).uniform(size=voxels.shape) < 0.05).astype(voxels.dtype)
    nib.save(nib.Nifti1Image(np.ascontiguousarray(voxels), affine), cohort / twin / "ct.nii.gz")
    run = train(cohort, tmp_path / "run")
    outcome, checks = audit(run, cohort)
    assert (outcome.code, checks["leak"]) == (6, {"duplicates"})
    (detail,) = [a["detail"] for a in outcome.document["answers"] if a["check"] == "duplicates"]
    assert original in detail
    assert twin in detail
    assert ("nearly the same CT" in detail) == (form == "noisy")


def test_shifted_ct_under_another_patient_is_reported(synthetic_cohort, tmp_path):
    """One CT under two patient ids, shifted by a voxel and brighter, fails `duplicates` only."""
    cohort = tmp_path / "cohort"
    cases = open_cohort(synthetic_cohort).cases
    rows = ["case_id,patient_id,label"]
    for i, case in enumerate(cases):  # twice as many patients: the second of each pair has another CT
        for copy, name in enumerate((f"C{i}", f"D{i}")):
            folder = Path(shutil.copytree(case.folder, cohort / name))
            (folder / "liver.nii.gz").unlink(missing_ok=True)
            record = json.loads((folder / "clinical.json").read_text()) | {"patient_id": name}
            (folder / "clinical.json").write_text(json.dumps(record))
            image = nib.load(folder / "ct.nii.gz")
            voxels = np.asarray(image.dataobj)
            if copy and i == 0:
                voxels = np.roll(voxels, 1, axis=0) + 10
            elif copy:
                voxels = np.random.default_rng(i).permuted(voxels, axis=2)
            nib.save(nib.Nifti1Image(voxels.astype(np.int16), image.affine), folder / "ct.nii.gz")
            rows.append(f"{name},{name},{'bad' if i % 2 == 0 else 'good'}")
    (cohort / "cohort.csv").write_text("\n".join(rows) + "\n")
    outcome, checks = audit(train(cohort, tmp_path / "run", "ct.shape_DHW=[24,48,48]", "train.seed=3"), cohort)
    assert (outcome.code, checks["leak"]) == (6, {"duplicates"}), outcome.out
    (detail,) = [a["detail"] for a in outcome.document["answers"] if a["check"] == "duplicates"]
    assert "the same CT, shifted, flipped or rescaled" in detail
    assert {"C0", "D0"} <= set(detail.split())


def test_different_images_are_not_duplicates():
    """Images 2 HU apart differ; equal and nearly equal images are duplicates."""
    random = np.random.default_rng(0)
    ct = random.uniform(0, 1, (4, 1, 8, 16, 16)).astype(np.float32)
    ct[3] = ct[1] + 0.01  # 2 HU apart everywhere
    assert list(find_duplicates(ct, span=1.0)) == []
    ct[3] = ct[1]
    ct[2] = ct[0] + 2e-4
    assert list(find_duplicates(ct, span=1.0)) == [(0, 2, False), (1, 3, True)]


EDITS = {
    "a case trained and held out": (
        "folds.json",
        lambda d: {"folds": [{**f, "train": [*f["train"], f["test"][0]]} for f in d["folds"]]},
        "cases",
    ),
    "a case held out twice": (
        "folds.json",
        lambda d: {
            "folds": [d["folds"][0], {**d["folds"][1], "test": [*d["folds"][1]["test"], d["folds"][0]["test"][0]]}]
        },
        "partition",
    ),
    "a better metric": (
        "fold0/metrics.json",
        lambda d: d | {"test": d["test"] | {"accuracy": 0.99}},
        "figures",
    ),
    "another ensemble threshold": (
        "summary.json",
        lambda d: d | {"calibration": {"threshold": 0.123}},
        "threshold",
    ),
    "another number of cases": ("fold1/scaler.json", lambda d: d | {"fitted_on": 20}, "scaler-count"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edited_run_is_detected_without_cohort(edit, copy):
    """An edited run with updated digests fails the matching check, without the cohort."""
    file, change, check = EDITS[edit]
    rewrite(copy, file, change)
    outcome, checks = audit(copy, None)
    assert outcome.code == 6
    assert check in checks["leak"]


def test_exchanged_weights_are_detected(copy, cohort):
    """Weights that do not reproduce the recorded predictions fail `predictions`."""
    shutil.copyfile(copy / "fold1" / "model.safetensors", copy / "fold0" / "model.safetensors")
    RunFolder.open(copy).finish()
    outcome, checks = audit(copy, cohort)
    assert (outcome.code, checks["leak"]) == (6, {"predictions"})


def test_changed_file_is_exit_code_6(copy):
    """A file whose digest changed ends the audit before any check."""
    with (copy / "fold0" / "history.csv").open("a") as stream:
        stream.write("\n")
    outcome = tmi("audit", copy)
    assert outcome.code == 6
    assert "fold0/history.csv was changed after the training" in outcome.err


def test_different_cohort_is_wrong_usage(clean, tmp_path):
    """A cohort that the run was not trained on is exit code 2."""
    other = write_cohort(tmp_path / "other", cases=3, with_mask=False)
    outcome = tmi("audit", clean, other)
    assert outcome.code == 2
    assert "is not the cohort that run" in outcome.err


def test_released_run_is_reported_as_optimistic(cohort, tmp_path):
    """The leaks of the `released` protocol are declared, with their reasons, and the exit code is 6."""
    run = train(cohort, tmp_path / "run", "train.protocol=released", "radiomics.fit_on=cohort")
    outcome, checks = audit(run, cohort)
    assert outcome.code == 6
    assert outcome.document["verdict"] == "optimistic"
    assert "leak" not in checks
    assert {"protocol", "epoch-split", "scaler", "scaler-count"} <= checks["declared"]
    page = tmi("audit", run, cohort)
    assert "the best epoch is picked on the very fold that is reported" in page.out
    assert "optimistic by the run's own protocol" in page.out
