"""`tmi explain`: output files, metrics, rejected input and exit codes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from factories.paths import ROOT
from factories.tmi_command import tmi
from tmi.runtime.explanation.insertion_deletion import curves
from tmi.runtime.explanation.localization import body_mask, localization_metrics
from tmi.runtime.explanation.overlay import grey, map_colours
from tmi.runtime.explanation.parameter_randomization import rank_correlation, structural_similarity
from tmi.runtime.explanation.results import SCHEMA
from tmi.runtime.serving.results import RESEARCH_USE
from tmi.toolkit.radiomics.scaler import RadiomicsScaler
from tmi.toolkit.radiomics.table import read_table

FILES = {
    "map.nii.gz", "explanation.json", "montage.png", "axial.png", "coronal.png", "sagittal.png", "radiomics.png",
    "clinical.png",
}  # fmt: skip


@pytest.fixture(scope="module")
def explained(cohort, random_run, tmp_path_factory):
    """Output folder and command result of explaining the cohort with the run."""
    out = tmp_path_factory.mktemp("explain") / "out"
    return out, tmi("explain", cohort, "--run", random_run, "--out", out, "--steps", 3, "--threads", 1)


def document(folder: Path) -> dict:
    return json.loads((folder / "explanation.json").read_text())


def test_each_case_gets_its_files(explained, cohort):
    """Every case gets its files; a rejected one stops no other and gives exit code 3."""
    out, outcome = explained
    assert outcome.code == 3, outcome.err
    assert "error: case P3: clinical.json has no object" in outcome.err
    assert "[clinical-malformed]" in outcome.err
    assert {p.name for p in out.iterdir()} == {p.name for p in cohort.iterdir()} - {"P3"}
    for folder in out.iterdir():
        assert {p.name for p in folder.iterdir()} == FILES
    assert "2 case(s) explained" in outcome.out
    assert RESEARCH_USE in outcome.out
    assert "[3/3]" in outcome.err


def test_map_has_the_grid_of_the_ct(explained, cohort):
    """The map has the grid of the stored CT and values in [0, 1]."""
    for folder in explained[0].iterdir():
        map_image, ct = nib.load(folder / "map.nii.gz"), nib.load(cohort / folder.name / "ct.nii.gz")
        assert map_image.shape == ct.shape
        assert np.allclose(map_image.affine, ct.affine)
        values = map_image.get_fdata()
        assert values.min() >= 0
        assert values.max() <= 1 + 1e-6


def test_alerts_are_those_of_the_prediction(explained, cohort, random_run):
    """A case unlike the training cases is printed above the table, and its alerts are in the document."""
    out, outcome = explained
    lines = outcome.out.splitlines()
    assert lines[1].startswith("  fix: compare CT, mask")
    for line in (lines[0], lines[2]):
        assert line.startswith("attention: P")
        assert "radiomic features lie outside the training range: unlike the training cases" in line
        assert line.endswith("[unlike-training]")
    data = document(out / "P1")
    assert [alert["code"] for alert in data["alerts"]] == ["unlike-training"]
    assert data["alerts"][0] in data["issues"]
    assert [issue["message"] for issue in data["issues"]] == data["warnings"]
    table_R = read_table(cohort / "P1" / "radiomics.csv", case_id="P1")
    scalers = [RadiomicsScaler.load(random_run / f"fold{fold}" / "scaler.json") for fold in (0, 1)]
    counts = [scaler.transform(table_R[None]).clipped_NF[0] for scaler in scalers]
    assert data["alerts"][0]["count"] == int(np.logical_or(*counts).sum())
    assert data["alerts"][0]["message"] in data["warnings"]


def test_document_holds_metrics_and_attributions(explained, random_run):
    """The document holds model, target, localization, curves, sanity check and attributions."""
    data = document(explained[0] / "P1")
    assert data["schema"] == SCHEMA
    assert data["model"]["folds"] == [0, 1]
    assert data["target"] == data["decision"]
    assert sum(data["probability"].values()) == pytest.approx(1)
    places, curve = data["map"]["places"], data["map"]["curves"]
    assert 0 <= places["in_liver"] <= places["in_body"] <= 1
    assert len(curve["parts"]) == 4
    assert curve["deletion"][0] == pytest.approx(curve["insertion"][-1])
    assert curve["deletion"][0] == pytest.approx(data["probability"][data["target"]], abs=1e-6)
    assert [r["down_to"] for r in data["map"]["randomised"]][-1] == "stem"
    assert len(data["radiomics"]["top"]) == 20
    assert data["radiomics"]["sum"] == pytest.approx(sum(g["sum"] for g in data["radiomics"]["by_class"].values()))
    assert {f["field"] for f in data["clinical"]["fields"]} >= {"albumin", "platelets"}


def test_completeness_holds_in_every_fold(explained):
    """Attributions of each fold sum to the change of the output from the baseline."""
    for folder in explained[0].iterdir():
        for fold in document(folder)["folds"]:
            for record in fold["completeness"].values():
                change = record["output"] - record["baseline"]
                assert abs(record["error"]) <= max(0.01 * abs(change), 1e-3)


def test_document_holds_no_patient_data(explained, cohort):
    """Neither the patient id nor the report text is in the document."""
    for folder in explained[0].iterdir():
        text = (folder / "explanation.json").read_text()
        record = json.loads((cohort / folder.name / "clinical.json").read_text())
        assert record["patient_id"] not in text
        assert "Secret" not in text


def test_liver_metrics_are_null_without_a_mask(explained, cohort):
    """Without a mask the metrics of the liver are null."""
    (without,) = [f for f in explained[0].iterdir() if not (cohort / f.name / "liver.nii.gz").exists()]
    places = document(without)["map"]["places"]
    assert places["in_liver"] is places["pointing"] is places["liver_of_body"] is None
    assert places["in_body"] is not None


def test_run_and_bundle_give_the_same_explanation(explained, cohort, tiny_bundle, tmp_path):
    """A run and the bundle exported from it give the same explanation."""
    outcome = tmi("explain", cohort / "P1", "--bundle", tiny_bundle, "--out", tmp_path, "--quick", "--threads", 1)
    assert outcome.code == 0, outcome.err
    data, expected = document(tmp_path / "P1"), document(explained[0] / "P1")
    assert data["probability"] == pytest.approx(expected["probability"])
    assert data["map"]["places"] == expected["map"]["places"]
    assert data["map"]["curves"] is None
    assert data["map"]["randomised"] == []


def test_target_and_fold_options_are_honoured(cohort, random_run, tmp_path):
    """`--target` changes the map, and `--fold` explains one fold."""
    maps = {}
    for target in ("good", "bad"):
        out = tmp_path / target
        options = ("--run", random_run, "--fold", 1, "--target", target, "--quick", "--out", out)
        outcome = tmi("explain", cohort / "P1", *options)
        assert outcome.code == 0, outcome.err
        assert document(out / "P1")["target"] == target
        assert [f["fold"] for f in document(out / "P1")["folds"]] == [1]
        maps[target] = nib.load(out / "P1" / "map.nii.gz").get_fdata()
    assert not np.allclose(maps["good"], maps["bad"])


def test_nothing_is_overwritten_without_force(explained, cohort, random_run):
    """An existing explanation is kept unless `--force` is given."""
    before = (explained[0] / "P1" / "explanation.json").read_bytes()
    outcome = tmi("explain", cohort / "P1", "--run", random_run, "--out", explained[0])
    assert outcome.code == 2
    assert f"explanation {explained[0] / 'P1'} exists" in outcome.err
    assert (explained[0] / "P1" / "explanation.json").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--run", "nowhere"), 2, "run nowhere does not exist"),
        (("--run", "a", "--bundle", "b"), 2, "--run and --bundle are given"),
        (("--run", "{run}", "--fold", "7"), 2, "has no fold '7'\n  fix: give ensemble, or one of 0, 1"),
        (("--run", "{run}", "--fold", "best"), 2, "has no fold 'best'"),
        (("--run", "{run}", "--target", "ugly"), 2, "--target"),
        (("--run", "{damaged}"), 6, "was changed after the training"),
        (("--bundle", "{bare}"), 5, "holds no weights, and its compiled graphs have no gradients"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_invalid_requests_fail_with_their_code(
    options, code, message, cohort, random_run, tiny_bundle, tmp_path, monkeypatch
):
    """An invalid run, bundle or option fails with its exit code and writes nothing."""
    damaged = Path(shutil.copytree(random_run, tmp_path / "damaged"))
    (damaged / "config.json").write_text((damaged / "config.json").read_text() + " ")
    monkeypatch.setattr(
        "tmi.runtime.bundle.reader.Bundle.has", lambda bundle, kind: kind != "weights"
    )  # as exported with --no-weights
    paths = {"run": random_run, "damaged": damaged, "bare": tiny_bundle}
    arguments = [o.format(**paths) for o in options]
    outcome = tmi("explain", cohort / "P1", *arguments, "--out", tmp_path / "out")
    assert outcome.code == code, outcome.err
    assert message in outcome.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["explain", "report"])
def test_missing_torch_is_reported_with_a_fix(command, cohort, tiny_bundle, tmp_path):
    """Without torch the command fails with exit code 5 and the package to install."""
    program = (
        "import sys\n"
        "class BlockingFinder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'torch': raise ModuleNotFoundError('No module', name=name)\n"
        "sys.meta_path.insert(0, BlockingFinder())\n"
        "from tmi.toolkit.cli.main import main\n"
        "sys.argv = ['tmi', *sys.argv[1:]]\n"
        "main()\n"
    )
    arguments = [command, cohort / "P1", "--bundle", tiny_bundle, "--out", tmp_path / "out"]
    process = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True)
    assert process.returncode == 5
    assert f"tmi {command} needs the package torch, which is not installed" in process.stderr
    assert "fix: pip install 'tmi-clnet[explain]'" in process.stderr
    assert "Traceback" not in process.stderr


def test_montage_shows_map_and_outline(explained):
    """The montage holds the colours of the map and of the liver's outline; a CT alone would be grey."""
    with Image.open(explained[0] / "P1" / "montage.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    cyan = (abs(pixels - [53, 224, 255]).sum(axis=-1) < 60).sum()
    warm = ((pixels[..., 0] - pixels[..., 2]) > 60).sum()
    assert cyan > 50
    assert warm > 500


# functions of single metrics


def test_localization_metrics_of_a_known_map():
    """Shares of a map in liver and body, pointing game and position of the maximum."""
    ct = np.full((4, 6, 6), -1000.0)
    body = np.zeros(ct.shape, bool)
    body[:, 1:5, 1:5] = True
    liver = np.zeros(ct.shape, bool)
    liver[1, 2, 2:4] = True
    heat = np.zeros(ct.shape, np.float32)
    heat[1, 2, 2] = 3.0
    heat[2, 3, 3] = 1.0
    heat[0, 0, 0] = 1.0
    metrics = localization_metrics(heat, body, liver)
    assert (metrics.in_liver, metrics.in_body, metrics.pointing) == (pytest.approx(0.6), pytest.approx(0.8), True)
    assert metrics.liver_of_body == pytest.approx(2 / 64)
    assert metrics.largest_at_DHW == (1, 2, 2)
    empty = localization_metrics(np.zeros_like(heat), body, liver)
    assert (empty.in_liver, empty.in_body, empty.pointing) == (None, None, None)


def test_body_mask_includes_lungs_and_excludes_the_table():
    """The body mask is one component, lungs included and the table excluded."""
    ct = np.full((6, 30, 30), -1000)
    ct[:, 5:20, 5:25] = 40
    ct[:, 8:12, 8:12] = -850  # a lung
    ct[:, 25:28, 3:27] = 100  # the table
    body = body_mask(ct)
    assert body[3, 10, 10]
    assert not body[3, 26, 10]
    assert not body[3, 2, 2]


def test_insertion_and_deletion_curves_of_one_voxel():
    """Curves and areas of a model that depends on one voxel; the input is not modified."""
    ct = np.ones((2, 3, 4), np.float32)
    heat = np.arange(24, dtype=np.float32).reshape(ct.shape)
    result = curves(ct, heat, lambda volume: float(volume[1, 2, 3]), steps=4, empty=0.0)
    assert result.deletion == (1.0, 0.0, 0.0, 0.0, 0.0)
    assert result.insertion == (0.0, 1.0, 1.0, 1.0, 1.0)
    assert result.deletion_auc == pytest.approx(1 / 8)
    assert result.insertion_auc == pytest.approx(7 / 8)
    assert (ct == 1).all()


def test_similarity_measures_of_known_maps():
    """Similarity is 1 for equal maps, low for noise, and undefined for a constant map."""
    values = np.random.default_rng(0).random((12, 12, 12))
    other = np.random.default_rng(1).random((12, 12, 12))
    assert structural_similarity(values, values) == pytest.approx(1)
    assert abs(structural_similarity(values, other)) < 0.3
    assert rank_correlation(values, values**3) == pytest.approx(1)
    assert rank_correlation(values, np.zeros_like(values)) is None


def test_grey_values_and_opacity_follow_their_scales():
    """Grey values follow the display window; opacity grows with relevance."""
    assert grey(np.array([-500, -160, 40, 240, 900])).tolist() == [0, 0, 128, 255, 255]
    opacity = map_colours()(np.linspace(0, 1, 5))[:, 3]
    assert opacity[0] == 0
    assert np.all(np.diff(opacity) > 0)


def test_report_templates_are_package_data():
    """Templates lie inside the package, so the wheel includes them."""
    folder = ROOT / "runtime" / "tmi" / "runtime" / "report" / "data"
    assert {p.name for p in folder.iterdir()} == {"case.html", "index.html", "style.css", "case.js", "index.js"}
