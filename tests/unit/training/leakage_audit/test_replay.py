"""`tmi audit --replay`: a second training gives the same bits, and finds runs that every other check passes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from factories.audited_run import OPTIONS, SMALL, audit, train
from factories.pretrained_files import write_hara
from factories.tmi_command import tmi
from tmi.toolkit.run_folder import RunFolder
from tmi.training.data.fold_dataset import FoldDataset
from tmi.training.leakage_audit.run_checks import LIMITS
from tmi.training.loop.hardware import HardwareConfig
from tmi.training.loop.machine import machine_differences, machine_facts, recorded_machines


def replayed(outcome) -> list[dict]:
    return [answer for answer in outcome.document["answers"] if answer["check"] == "replay"]


def train_on_held_out_cases(patch: pytest.MonkeyPatch) -> None:
    """Fit the weights on the held-out cases too; every recorded file agrees with them."""
    original = FoldDataset.epoch_batches

    def batches(self, epoch, *, min_cases=2):
        split = self.split
        self.split = replace(split, train=(*split.train, *split.test))
        try:
            return original(self, epoch, min_cases=min_cases)
        finally:
            self.split = split

    patch.setattr(FoldDataset, "epoch_batches", batches)


def train_with_another_rate(patch: pytest.MonkeyPatch) -> None:
    """Train with other settings than the recorded ones."""
    import torch

    patch.setattr(
        "tmi.training.loop.lightning_module.FoldModule.configure_optimizers",
        lambda module: torch.optim.Adam(module.parameters(), lr=3e-3),
    )


def train_on_other_labels(patch: pytest.MonkeyPatch) -> None:
    """Train on labels other than the cohort's, as somebody who leaves out cases by hand might."""
    original = FoldDataset.batch

    def batch(self, case_ids, *, epoch=None):
        made = original(self, case_ids, epoch=epoch)
        return made if epoch is None else replace(made, labels=1 - made.labels)

    patch.setattr(FoldDataset, "batch", batch)


def test_second_training_gives_the_same_bits(clean, cohort):
    """Every fold of a clean run holds, and the limit that a second training removes is not listed."""
    outcome, checks = audit(clean, cohort, "--replay")
    assert (outcome.code, set(checks)) == (0, {"holds"})
    assert [answer["fold"] for answer in replayed(outcome)] == [0, 1]
    assert all("bit for bit" in answer["detail"] for answer in replayed(outcome))
    assert outcome.document["cannot_see"] == list(LIMITS[1:])


def test_one_fold_can_be_replayed(clean, cohort):
    """`--fold` trains the named fold alone; the limit stays, as the other folds are not trained again."""
    outcome, _ = audit(clean, cohort, "--replay", "--fold", "1")
    assert [(answer["fold"], answer["status"]) for answer in replayed(outcome)] == [(1, "holds")]
    assert outcome.document["cannot_see"] == list(LIMITS)


@pytest.mark.long
@pytest.mark.parametrize("doctor", [train_on_held_out_cases, train_with_another_rate, train_on_other_labels])
def test_doctored_run_is_found_by_replay_alone(doctor, cohort, tmp_path, monkeypatch):
    """Weights that were not trained as recorded pass every other check and fail the second training."""
    with monkeypatch.context() as patch:
        doctor(patch)
        run = train(cohort, tmp_path / "run")
    outcome, checks = audit(run, cohort)
    assert "leak" not in checks, outcome.out
    outcome, checks = audit(run, cohort, "--replay", "--fold", "0")
    assert (outcome.code, checks["leak"]) == (6, {"replay"})
    (answer,) = replayed(outcome)
    assert "the weights are not those of this training" in answer["detail"]
    assert "AUC of the held-out cases" in answer["detail"]


@pytest.mark.long
def test_doctored_sklearn_model_is_found(cohort, tmp_path, monkeypatch):
    """A model without a network that was fitted on the held-out cases is found too."""
    options = ("train", cohort, *OPTIONS, "--model", "rf", "--out")
    assert tmi(*options, tmp_path / "sound").code == 0
    assert {a["status"] for a in replayed(audit(tmp_path / "sound", cohort, "--replay")[0])} == {"holds"}
    with monkeypatch.context() as patch:
        patch.setattr("tmi.training.loop.sklearn_fold.fit", fit_on_twice_the_data)
        assert tmi(*options, tmp_path / "doctored").code == 0
    outcome, checks = audit(tmp_path / "doctored", cohort, "--replay")
    assert (outcome.code, checks["leak"]) == (6, {"replay"})


def fit_on_twice_the_data(model, features, labels):
    import numpy as np

    from tmi.training.systems.radiomics_pipeline import fit

    return fit(model, np.concatenate([features, features[::-1] * 1.01]), np.concatenate([labels, labels[::-1]]))


@pytest.mark.long
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda machine: machine | {"processor": "Another CPU"}, "processor Another CPU (now "),
        (lambda machine: machine | {"versions": machine["versions"] | {"torch": "1.0"}}, "torch 1.0 (now "),
        (None, "did not record its machine"),
    ],
)
def test_other_machine_or_version_makes_a_difference_a_warning(change, text, copy, cohort, monkeypatch):
    """If equality cannot be expected, a difference is a warning that states why, with both AUCs."""
    for fold in (0, 1):
        file = copy / f"fold{fold}" / "machine.json"
        if change is None:
            file.unlink()
        else:
            (machine,) = json.loads(file.read_text())["machines"]
            file.write_text(json.dumps({"machines": [change(machine)]}))
    RunFolder.open(copy).finish()
    assert replayed(audit(copy, cohort, "--replay", "--fold", "0")[0])[0]["status"] == "holds"  # equal bits are equal
    train_with_another_rate(monkeypatch)  # stands for the other machine
    outcome, checks = audit(copy, cohort, "--replay", "--fold", "0")
    assert (outcome.code, checks["warning"]) == (0, {"replay"})
    assert text in replayed(outcome)[0]["detail"]
    assert "in the second training" in replayed(outcome)[0]["detail"]


def test_machine_of_each_fold_is_recorded(clean):
    """A fold's record holds processor, threads and versions, and no host name."""
    for split in RunFolder.open(clean).folds:
        (machine,) = recorded_machines(RunFolder.open(clean).fold(split.fold).machine)
        assert machine_differences(machine, machine_facts(HardwareConfig(accelerator="cpu"))) == []
        assert {"threads", "processor", "instructions", "versions"} <= set(machine)
        assert Path("/etc/hostname").read_text().strip() not in json.dumps(machine)


def test_replay_needs_cohort_fold_and_given_weights(clean, cohort, copy):
    """Wrong usage of --replay ends before anything is trained."""
    for arguments, message in (
        (("--fold", "0"), "belong to --replay"),
        (("--replay", "--fold", "7"), "the run has no such fold"),
        (("--replay", "--ct-weights", "x.pth"), "--ct-weights x.pth does not exist"),
        (("--replay", "--ct-weights", clean / "config.json"), "was trained without"),
    ):
        outcome = tmi("audit", clean, cohort, *arguments)
        assert (outcome.code, message in outcome.err) == (2, True), outcome.err
    outcome = tmi("audit", clean, "--replay", cwd=clean)
    assert (outcome.code, "--replay needs the cohort" in outcome.err) == (2, True)
    record = {"encoder": "ct", "file": "w.pth", "sha256": "0" * 64}
    (copy / "pretrained.json").write_text(json.dumps({"ct": record}))
    RunFolder.open(copy).finish()
    outcome = tmi("audit", copy, cohort, "--replay")
    assert (outcome.code, "--replay needs the file or folder of --ct-weights" in outcome.err) == (2, True)


def test_run_from_given_weights_is_replayed_with_them(cohort, tmp_path):
    """A run from given CT weights is trained again from the same file; another file is wrong usage."""
    files = [tmp_path / "a.pth", tmp_path / "b.pth"]
    for file in files:
        write_hara(file)  # the classifiers, which are dropped, differ
    settings = (*SMALL, "network.ct_encoder.block=bottleneck", "network.ct_encoder.planes=[4,4,8,8]")
    assignments = [part for setting in settings for part in ("--set", setting)]
    run = tmp_path / "run"
    outcome = tmi("train", cohort, "--out", run, *OPTIONS, *assignments, "--ct-weights", files[0])
    assert outcome.code == 0, outcome.err
    outcome, _ = audit(run, cohort, "--replay", "--fold", "0", "--ct-weights", str(files[0]))
    assert [answer["status"] for answer in replayed(outcome)] == ["holds"], outcome.out
    outcome = tmi("audit", run, cohort, "--replay", "--ct-weights", files[1])
    assert (outcome.code, "is not the file that the run was started from" in outcome.err) == (2, True)
