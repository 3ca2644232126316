"""CT-only baseline of a fused network, and calibrated outputs of a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from factories.nano import nano
from factories.random_run import with_modalities, write_random_run
from factories.tmi_command import tmi
from tmi.runtime.explanation.model_source import open_run_models
from tmi.toolkit.run_folder import RunFolder
from tmi.toolkit.storage.atomic_files import read_json, write_json


@pytest.fixture(scope="module")
def fused(tmp_path_factory) -> Path:
    return write_random_run(tmp_path_factory.mktemp("fused") / "run", nano())


@pytest.fixture(scope="module")
def ct_only(fused, tmp_path_factory) -> Path:
    return with_modalities(fused, tmp_path_factory.mktemp("ct_only") / "run", ("image",))


@pytest.mark.long
def test_ct_only_map_is_added_to_the_explanation(fused, ct_only, cohort, tmp_path):
    """`--ct-only` adds a map, its metrics and a montage row, and leaves the fused explanation unchanged."""
    from PIL import Image

    fused_only, with_baseline = tmp_path / "fused", tmp_path / "both"
    options = ("--run", fused, "--quick", "--target", "bad")
    assert tmi("explain", cohort / "P1", *options, "--out", fused_only).code == 0
    result = tmi("explain", cohort / "P1", *options, "--ct-only", ct_only, "--out", with_baseline)
    assert result.code == 0, result.err
    document = json.loads((with_baseline / "P1" / "explanation.json").read_text())
    fused_document = json.loads((fused_only / "P1" / "explanation.json").read_text())
    assert fused_document["ct_only"] is None
    assert document["map"] == fused_document["map"]
    assert 0 <= document["ct_only"]["places"]["in_liver"] <= 1
    assert document["ct_only"]["folds"] == [0, 1]
    fused_map, ct_map = (nib.load(with_baseline / "P1" / name) for name in ("map.nii.gz", "map-ct-only.nii.gz"))
    assert np.allclose(fused_map.affine, ct_map.affine)
    assert not np.allclose(fused_map.get_fdata(), ct_map.get_fdata())
    heights = []
    for folder in (fused_only, with_baseline):
        with Image.open(folder / "P1" / "montage.png") as image:
            heights.append(image.size[1])
    assert heights[1] > 1.8 * heights[0]


def test_ct_only_probability_is_the_mean_over_folds(ct_only, cohort):
    """The baseline's probability is the mean over its folds' networks."""
    from tmi.runtime.explanation.anatomy import read_anatomy
    from tmi.runtime.explanation.ct_only_baseline import ct_only_map
    from tmi.runtime.explanation.explainer import softmax
    from tmi.toolkit.cases.case import Case
    from tmi.toolkit.preprocessing.pipeline import prepare_case

    source, case = open_run_models(ct_only), Case(folder=cohort / "P1", case_id="P1")
    baseline = ct_only_map(source, case, read_anatomy(case), target="good")
    volume = torch.from_numpy(prepare_case(case, source.config, source.schema).ct_1DHW[None])
    unused = torch.zeros(1, 1, dtype=torch.int64)
    with torch.no_grad():
        expected = [
            softmax(source.load(f).network(volume, unused, unused, volume).logits_BK[0].numpy()) for f in (0, 1)
        ]
    assert baseline.probability["bad"] == pytest.approx(np.mean(expected, axis=0)[1], abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--run", "{ct}"), "uses the CT alone\n  fix: give a run of all three modalities"),
        (("--run", "{fused}", "--ct-only", "{fused}"), "uses clinical, radiomics, image, not the CT alone"),
        (("--run", "{pair}"), "is of system tmi-clnet on clinical, image"),
    ],
    ids=["ct-only as run", "fused as ct-only", "a pair"],
)
def test_unsuitable_run_is_a_usage_error(options, message, fused, ct_only, cohort, tmp_path):
    """A run with other modalities than its option needs is a usage error."""
    pair = with_modalities(fused, tmp_path / "pair", ("clinical", "image"))
    runs = {"ct": ct_only, "fused": fused, "pair": pair}
    result = tmi("explain", cohort / "P1", *(o.format(**runs) for o in options), "--out", tmp_path / "out")
    assert result.code == 2
    assert message in result.err


@pytest.mark.parametrize("kind", ["fused", "ct_only"])
def test_temperature_divides_the_logits(kind, request, tmp_path):
    """The logits of a run are divided by the fold's temperature."""
    run = request.getfixturevalue(kind)
    calibrated_run = Path(shutil.copytree(run, tmp_path / "calibrated"))
    opened = RunFolder.open(calibrated_run)
    metrics = opened.fold(0).metrics
    write_json(metrics, read_json(metrics, kind="run") | {"calibration": {"temperature": 2.0}})
    opened.finish()
    uncalibrated_network, calibrated_network = (open_run_models(r).load(0).network for r in (run, calibrated_run))
    inputs = (
        torch.rand(1, 1, *nano().ct.shape_DHW),
        torch.ones(1, 4, dtype=torch.int64),
        torch.ones(1, 4),
        torch.rand(1, 1781),
    )
    with torch.no_grad():
        uncalibrated, calibrated = (
            network(inputs[0], inputs[1], inputs[2], inputs[3]).logits_BK
            for network in (uncalibrated_network, calibrated_network)
        )
    torch.testing.assert_close(calibrated, uncalibrated / 2)
