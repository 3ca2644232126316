"""`tmi audit` passes a clean run and finds each leak that is planted here, and calls it by its name."""

from __future__ import annotations

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from factories.cases import write_cohort
from factories.tmi_command import CommandResult, tmi
from tmi.toolkit.clinical.tokenizer import Tokenizer
from tmi.toolkit.radiomics.scaler import RadiomicsScaler
from tmi.toolkit.run_folder import RunFolder
from tmi.training.data.duplicate_images import find_duplicates
from tmi.training.data.fold_dataset import FoldDataset
from tmi.training.evaluation import fold_report
from tmi.training.evaluation.calibration import Calibration
from tmi.training.leakage_audit.cohort_checks import COHORT_CHECKS
from tmi.training.loop import cross_validation
from tmi.training.loop.checkpointing import BestEpochCheckpoint

OPTIONS = ["--preset", "tiny", "--folds", "2", "--epochs", "3", "--accelerator", "cpu"]
SMALL = [
    "ct.shape_DHW=[8,16,16]",
    "clinical.vocab_size=200",
    "clinical.max_length=64",
    "network.ct_encoder.planes=[4,4,4,4]",
    "network.text_encoder.layers=1",
    "network.radiomics_encoder.hidden=8",
    "network.head.blocks=[1,1]",
]


def train(cohort: Path, out: Path, *settings: str) -> Path:
    assignments = [part for setting in (*SMALL, *settings) for part in ("--set", setting)]
    outcome = tmi("train", cohort, "--out", out, *OPTIONS, *assignments)
    assert outcome.code == 0, outcome.err
    return out


def audit(run: Path, cohort: Path | None, *more: str) -> tuple[CommandResult, dict[str, set[str]]]:
    """The outcome, and the checks of each status."""
    outcome = tmi("audit", run, *([] if cohort is None else [cohort]), "--json", *more, cwd=run)
    found: dict[str, set[str]] = {}
    if outcome.out:
        for answer in outcome.document["answers"]:
            found.setdefault(answer["status"], set()).add(answer["check"])
    return outcome, found


def two_cases_a_patient(cohort: Path) -> None:
    """Cases i and i + 2 of every four become one patient's, of one label."""
    rows = list(csv.DictReader(io.StringIO((cohort / "cohort.csv").read_text())))
    lines = ["case_id,patient_id,label"]
    for i, row in enumerate(rows):
        patient = f"P{i // 4 * 2 + i % 2:03d}"
        lines.append(f"{row['case_id']},{patient},{row['label']}")
        record = cohort / row["case_id"] / "clinical.json"
        record.write_text(json.dumps(json.loads(record.read_text()) | {"patient_id": patient}))
    (cohort / "cohort.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_cohort(tmp_path_factory.mktemp("audit") / "cohort", cases=20, with_mask=False)
    two_cases_a_patient(folder)
    return folder


@pytest.fixture(scope="module")
def clean(cohort: Path) -> Path:
    return train(cohort, cohort.parent / "clean")


@pytest.fixture
def copy(clean: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean, tmp_path / "run"))


def rewrite(run: Path, file: str, change) -> None:
    """Edit a JSON file of a run and take its fingerprints again, as somebody who hides a leak would."""
    path = run / file
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    RunFolder.open(run).finish()


def test_a_clean_run_passes_every_check(clean, cohort):
    outcome, found = audit(clean, cohort)
    assert outcome.code == 0, outcome.out
    assert set(found) == {"holds"}
    assert set(COHORT_CHECKS) < found["holds"]
    assert outcome.document["verdict"] == "clean"
    page = tmi("audit", clean, cohort)
    assert page.out.splitlines()[-1].startswith("nothing leaked (")


def test_a_system_without_a_network_is_audited_by_the_same_questions(cohort, tmp_path):
    outcome = tmi("train", cohort, "--out", tmp_path / "run", *OPTIONS, "--model", "rf")
    assert outcome.code == 0, outcome.err
    outcome, found = audit(tmp_path / "run", cohort)
    assert (outcome.code, set(found)) == (0, {"holds"})
    assert "predictions" in found["holds"]


def test_without_its_cohort_the_rest_is_checked_and_what_was_not_is_told(clean):
    outcome, found = audit(clean, None)
    assert outcome.code == 0
    assert found["not checked"] == set(COHORT_CHECKS)
    assert {"files", "partition", "cases", "epoch", "epoch-split", "calibration", "figures"} < found["holds"]
    assert "as far as was checked" in tmi("audit", clean, cwd=clean).out


def test_the_models_are_not_asked_where_that_is_not_wanted(clean, cohort):
    assert audit(clean, cohort, "--no-model")[1]["not checked"] == {"predictions"}


# Planted leaks


def plant_shared_patient(patch):
    real = cross_validation.make_folds
    patch.setattr(
        cross_validation,
        "make_folds",
        lambda cases, config: real([replace(c, patient_id=c.case_id) for c in cases], config),
    )


def with_fold_data(patch, change):
    real = FoldDataset.__init__

    def init(self, arrays, split, config, *, tokenizer=None, scaler=None):
        real(
            self, arrays, split, config, **({"tokenizer": tokenizer, "scaler": scaler} | change(arrays, split, config))
        )

    patch.setattr(FoldDataset, "__init__", init)


def plant_scaler_on_all(patch):
    def everyone(arrays, split, config):
        fitted = RadiomicsScaler.fit(arrays.radiomics_NF[:], config.radiomics)
        return {"scaler": replace(fitted, fitted_on=len(split.train))}  # the number is hidden, too

    with_fold_data(patch, everyone)


def plant_vocabulary_on_all(patch):
    with_fold_data(patch, lambda arrays, split, config: {"tokenizer": Tokenizer.train(list(arrays.texts), 200)})


def plant_epoch_picked_on_test(patch):
    real = BestEpochCheckpoint._validate_epoch

    def judge(self, module, epoch):
        honest = self.data.split
        self.data.split = replace(honest, validation=honest.test)
        try:
            return real(self, module, epoch)
        finally:
            self.data.split = honest

    patch.setattr(BestEpochCheckpoint, "_validate_epoch", judge)


def plant_last_epoch(patch):
    real = BestEpochCheckpoint._validate_epoch

    def judge(self, module, epoch):
        self.best_loss = float("inf")
        return real(self, module, epoch)

    patch.setattr(BestEpochCheckpoint, "_validate_epoch", judge)
    patch.setattr("tmi.training.loop.lightning_module.FoldModule.configure_optimizers", rising)


def rising(module):
    import torch

    return torch.optim.Adam(module.parameters(), lr=1e-2, maximize=True)  # each epoch is worse than the one before


def plant_threshold(patch):
    patch.setattr(fold_report, "calibrate", lambda *_: Calibration(temperature=1.0, threshold=0.4, fitted_on=3))


LEAKS = {
    "patients": (plant_shared_patient, "patient(s) in train and"),
    "scaler": (plant_scaler_on_all, "it was fitted on the whole cohort, held-out cases included"),
    "vocabulary": (plant_vocabulary_on_all, "it was trained on the texts of the whole cohort"),
    "epoch-split": (plant_epoch_picked_on_test, "the epoch was picked on the fold that is reported"),
    "epoch": (plant_last_epoch, "the lowest recorded loss is that of epoch"),
    "calibration": (plant_threshold, "the inner validation predictions give"),
}
FOLLOWS = {"calibration": {"threshold"}}
"""What else is wrong where a leak is planted: the ensemble's threshold is fitted on the folds' temperatures."""


@pytest.mark.parametrize("leak", LEAKS)
def test_a_planted_leak_is_found_and_called_by_its_name(leak, cohort, tmp_path, monkeypatch):
    plant, text = LEAKS[leak]
    with monkeypatch.context() as patch:
        plant(patch)
        run = train(cohort, tmp_path / "run")
    outcome, found = audit(run, cohort)
    assert outcome.code == 6
    assert outcome.document["verdict"] == "leak"
    assert {leak} <= found["leak"] <= {leak} | FOLLOWS.get(leak, set())
    assert any(text in a["detail"] for a in outcome.document["answers"] if a["check"] == leak)
    assert "cannot be trusted" in tmi("audit", run, cohort).out


@pytest.mark.parametrize("form", ["a copy", "saved mirrored", "with a little noise"])
def test_a_duplicate_ct_under_two_ids_is_found_across_a_border_of_a_split(form, clean, tmp_path):
    """The copy gets into a cohort of its own; whoever holds out one of the two has trained on the other."""
    cohort = write_cohort(tmp_path / "cohort", cases=10, with_mask=False)
    run = train(cohort, tmp_path / "dry")
    test = json.loads((run / "folds.json").read_text())["folds"][0]["test"]
    original, twin = test[0], next(f"C{i:03d}" for i in range(10) if f"C{i:03d}" not in test)
    image = nib.load(cohort / original / "ct.nii.gz")
    voxels, affine = np.asarray(image.dataobj), image.affine
    if form == "saved mirrored":
        flip = np.diag([-1.0, 1.0, 1.0, 1.0])
        flip[0, 3] = voxels.shape[0] - 1
        voxels, affine = voxels[::-1], affine @ flip
    elif form == "with a little noise":
        voxels = voxels + (np.random.default_rng(0).uniform(size=voxels.shape) < 0.05).astype(voxels.dtype)
    nib.save(nib.Nifti1Image(np.ascontiguousarray(voxels), affine), cohort / twin / "ct.nii.gz")
    run = train(cohort, tmp_path / "run")
    outcome, found = audit(run, cohort)
    assert (outcome.code, found["leak"]) == (6, {"duplicates"})
    (detail,) = [a["detail"] for a in outcome.document["answers"] if a["check"] == "duplicates"]
    assert original in detail
    assert twin in detail
    assert ("nearly the same CT" in detail) == (form == "with a little noise")


def test_images_that_differ_are_not_called_the_same():
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
    "a better figure": (
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
def test_a_run_that_was_edited_and_sealed_again_is_found_out_without_the_cohort(edit, copy):
    file, change, check = EDITS[edit]
    rewrite(copy, file, change)
    outcome, found = audit(copy, None)
    assert outcome.code == 6
    assert check in found["leak"]


def test_other_weights_than_those_that_predicted_are_found(copy, cohort):
    shutil.copyfile(copy / "fold1" / "model.safetensors", copy / "fold0" / "model.safetensors")
    RunFolder.open(copy).finish()
    outcome, found = audit(copy, cohort)
    assert (outcome.code, found["leak"]) == (6, {"predictions"})


def test_a_file_that_was_changed_is_damage_before_anything_is_believed(copy):
    with (copy / "fold0" / "history.csv").open("a") as stream:
        stream.write("\n")
    outcome = tmi("audit", copy)
    assert outcome.code == 6
    assert "fold0/history.csv was changed after the training" in outcome.err


def test_another_cohort_is_wrong_usage(clean, tmp_path):
    other = write_cohort(tmp_path / "other", cases=3, with_mask=False)
    outcome = tmi("audit", clean, other)
    assert outcome.code == 2
    assert "is not the one that run" in outcome.err


def test_a_released_run_is_told_to_be_optimistic_and_why(cohort, tmp_path):
    run = train(cohort, tmp_path / "run", "train.protocol=released", "radiomics.fit_on=cohort")
    outcome, found = audit(run, cohort)
    assert outcome.code == 6
    assert outcome.document["verdict"] == "optimistic"
    assert "leak" not in found
    assert {"protocol", "epoch-split", "scaler", "scaler-count"} <= found["declared"]
    page = tmi("audit", run, cohort)
    assert "the best epoch is picked on the very fold that is reported" in page.out
    assert "optimistic by the run's own protocol" in page.out
