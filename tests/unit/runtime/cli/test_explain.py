"""`tmi explain`: its files, its figures, what it refuses, and its exit codes."""

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
from tmi.runtime.explain.insertion_deletion import curves
from tmi.runtime.explain.localization import body_mask, localization_metrics
from tmi.runtime.explain.overlay import grey, map_colours
from tmi.runtime.explain.parameter_randomization import rank_correlation, structural_similarity
from tmi.runtime.explain.results import SCHEMA
from tmi.runtime.serving.results import RESEARCH_USE

FILES = {
    "map.nii.gz", "explanation.json", "montage.png", "axial.png", "coronal.png", "sagittal.png", "radiomics.png",
    "clinical.png",
}  # fmt: skip


@pytest.fixture(scope="module")
def explained(cohort, random_run, tmp_path_factory):
    """Folder and outcome of explaining the cohort with the run."""
    out = tmp_path_factory.mktemp("explain") / "out"
    return out, tmi("explain", cohort, "--run", random_run, "--out", out, "--steps", 3, "--threads", 1)


def document(folder: Path) -> dict:
    return json.loads((folder / "explanation.json").read_text())


def test_each_case_gets_its_files_and_a_refused_one_stops_no_other(explained, cohort):
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


def test_the_map_lies_on_the_cts_own_grid_and_goes_from_0_to_1(explained, cohort):
    for folder in explained[0].iterdir():
        made, ct = nib.load(folder / "map.nii.gz"), nib.load(cohort / folder.name / "ct.nii.gz")
        assert made.shape == ct.shape
        assert np.allclose(made.affine, ct.affine)
        values = made.get_fdata()
        assert values.min() >= 0
        assert values.max() <= 1 + 1e-6


def test_the_document_tells_model_figures_and_attributions(explained, random_run):
    told = document(explained[0] / "P1")
    assert told["schema"] == SCHEMA
    assert told["model"]["folds"] == [0, 1]
    assert told["target"] == told["decision"]
    assert sum(told["probability"].values()) == pytest.approx(1)
    places, curve = told["map"]["places"], told["map"]["curves"]
    assert 0 <= places["in_liver"] <= places["in_body"] <= 1
    assert len(curve["parts"]) == 4
    assert curve["deletion"][0] == pytest.approx(curve["insertion"][-1])
    assert curve["deletion"][0] == pytest.approx(told["probability"][told["target"]], abs=1e-6)
    assert [r["down_to"] for r in told["map"]["randomised"]][-1] == "stem"
    assert len(told["radiomics"]["top"]) == 20
    assert told["radiomics"]["sum"] == pytest.approx(sum(g["sum"] for g in told["radiomics"]["by_class"].values()))
    assert {f["field"] for f in told["clinical"]["fields"]} >= {"albumin", "platelets"}


def test_completeness_holds_in_every_fold(explained):
    for folder in explained[0].iterdir():
        for fold in document(folder)["folds"]:
            for record in fold["completeness"].values():
                change = record["output"] - record["baseline"]
                assert abs(record["error"]) <= max(0.01 * abs(change), 1e-3)


def test_no_value_no_report_and_no_patient_is_in_the_document(explained, cohort):
    for folder in explained[0].iterdir():
        text = (folder / "explanation.json").read_text()
        record = json.loads((cohort / folder.name / "clinical.json").read_text())
        assert record["patient_id"] not in text
        assert "Secret" not in text


def test_without_a_mask_the_figures_of_the_liver_are_none(explained, cohort):
    (without,) = [f for f in explained[0].iterdir() if not (cohort / f.name / "liver.nii.gz").exists()]
    places = document(without)["map"]["places"]
    assert places["in_liver"] is places["pointing"] is places["liver_of_body"] is None
    assert places["in_body"] is not None


def test_run_and_bundle_give_the_same_explanation(explained, cohort, tiny_bundle, tmp_path):
    outcome = tmi("explain", cohort / "P1", "--bundle", tiny_bundle, "--out", tmp_path, "--quick", "--threads", 1)
    assert outcome.code == 0, outcome.err
    mine, theirs = document(tmp_path / "P1"), document(explained[0] / "P1")
    assert mine["probability"] == pytest.approx(theirs["probability"])
    assert mine["map"]["places"] == theirs["map"]["places"]
    assert mine["map"]["curves"] is None
    assert mine["map"]["randomised"] == []


def test_the_target_decides_what_the_map_shows_and_one_fold_stands_alone(cohort, random_run, tmp_path):
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
    before = (explained[0] / "P1" / "explanation.json").read_bytes()
    outcome = tmi("explain", cohort / "P1", "--run", random_run, "--out", explained[0])
    assert outcome.code == 2
    assert f"explanation {explained[0] / 'P1'} exists" in outcome.err
    assert (explained[0] / "P1" / "explanation.json").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (("--run", "nowhere"), 2, "nowhere is no run"),
        (("--run", "a", "--bundle", "b"), 2, "--run and --bundle are given"),
        (("--run", "{run}", "--fold", "7"), 2, "has no fold '7'\n  fix: give ensemble, or one of 0, 1"),
        (("--run", "{run}", "--fold", "best"), 2, "has no fold 'best'"),
        (("--run", "{run}", "--target", "ugly"), 2, "--target"),
        (("--run", "{damaged}"), 6, "was changed after the training"),
        (("--bundle", "{bare}"), 5, "holds no weights, and its compiled graphs have no gradients"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_explained_is_refused_with_its_code(
    options, code, told, cohort, random_run, tiny_bundle, tmp_path, monkeypatch
):
    damaged = Path(shutil.copytree(random_run, tmp_path / "damaged"))
    (damaged / "config.json").write_text((damaged / "config.json").read_text() + " ")
    monkeypatch.setattr(
        "tmi.runtime.bundle.reader.Bundle.has", lambda bundle, kind: kind != "weights"
    )  # as exported with --no-weights
    places = {"run": random_run, "damaged": damaged, "bare": tiny_bundle}
    given = [o.format(**places) for o in options]
    outcome = tmi("explain", cohort / "P1", *given, "--out", tmp_path / "out")
    assert outcome.code == code, outcome.err
    assert told in outcome.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["explain", "report"])
def test_without_torch_it_says_plainly_what_to_install(command, cohort, tiny_bundle, tmp_path):
    program = (
        "import sys\n"
        "class Wall:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'torch': raise ModuleNotFoundError('No module', name=name)\n"
        "sys.meta_path.insert(0, Wall())\n"
        "from tmi.toolkit.cli.main import main\n"
        "sys.argv = ['tmi', *sys.argv[1:]]\n"
        "main()\n"
    )
    arguments = [command, cohort / "P1", "--bundle", tiny_bundle, "--out", tmp_path / "out"]
    done = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 5
    assert f"tmi {command} needs the package torch, which is not installed" in done.stderr
    assert "fix: pip install 'tmi-clnet[explain]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_pictures_show_a_map_with_its_outline(explained):
    """Colours of the map and of the liver's outline are in the picture; grey alone would be a CT without a map."""
    with Image.open(explained[0] / "P1" / "montage.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    cyan = (abs(pixels - [53, 224, 255]).sum(axis=-1) < 60).sum()
    warm = ((pixels[..., 0] - pixels[..., 2]) > 60).sum()
    assert cyan > 50
    assert warm > 500


# figures by themselves


def test_places_of_a_map_that_is_known():
    ct = np.full((4, 6, 6), -1000.0)
    body = np.zeros(ct.shape, bool)
    body[:, 1:5, 1:5] = True
    liver = np.zeros(ct.shape, bool)
    liver[1, 2, 2:4] = True
    heat = np.zeros(ct.shape, np.float32)
    heat[1, 2, 2] = 3.0
    heat[2, 3, 3] = 1.0
    heat[0, 0, 0] = 1.0
    found = localization_metrics(heat, body, liver)
    assert (found.in_liver, found.in_body, found.pointing) == (pytest.approx(0.6), pytest.approx(0.8), True)
    assert found.liver_of_body == pytest.approx(2 / 64)
    assert found.largest_at_DHW == (1, 2, 2)
    nothing = localization_metrics(np.zeros_like(heat), body, liver)
    assert (nothing.in_liver, nothing.in_body, nothing.pointing) == (None, None, None)


def test_the_body_is_one_piece_with_its_lungs_and_without_the_table():
    ct = np.full((6, 30, 30), -1000)
    ct[:, 5:20, 5:25] = 40
    ct[:, 8:12, 8:12] = -850  # a lung
    ct[:, 25:28, 3:27] = 100  # the table
    body = body_mask(ct)
    assert body[3, 10, 10]
    assert not body[3, 26, 10]
    assert not body[3, 2, 2]


def test_curves_of_a_model_that_counts_one_place():
    ct = np.ones((2, 3, 4), np.float32)
    heat = np.arange(24, dtype=np.float32).reshape(ct.shape)
    found = curves(ct, heat, lambda volume: float(volume[1, 2, 3]), steps=4, empty=0.0)
    assert found.deletion == (1.0, 0.0, 0.0, 0.0, 0.0)
    assert found.insertion == (0.0, 1.0, 1.0, 1.0, 1.0)
    assert found.deletion_auc == pytest.approx(1 / 8)
    assert found.insertion_auc == pytest.approx(7 / 8)
    assert (ct == 1).all()


def test_similarity_is_one_with_itself_and_falls_with_noise():
    values = np.random.default_rng(0).random((12, 12, 12))
    other = np.random.default_rng(1).random((12, 12, 12))
    assert structural_similarity(values, values) == pytest.approx(1)
    assert abs(structural_similarity(values, other)) < 0.3
    assert rank_correlation(values, values**3) == pytest.approx(1)
    assert rank_correlation(values, np.zeros_like(values)) is None


def test_shades_and_opacity_follow_their_scales():
    assert grey(np.array([-500, -160, 40, 240, 900])).tolist() == [0, 0, 128, 255, 255]
    opacity = map_colours()(np.linspace(0, 1, 5))[:, 3]
    assert opacity[0] == 0
    assert np.all(np.diff(opacity) > 0)


def test_the_pages_files_are_in_the_wheel():
    """Templates are data inside the package, which the wheel takes whole."""
    folder = ROOT / "runtime" / "tmi" / "runtime" / "report" / "data"
    assert {p.name for p in folder.iterdir()} == {"case.html", "index.html", "style.css", "case.js", "index.js"}
