"""The CT-only network beside the fused one, and calibrated answers of a run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from factories.nano import nano
from factories.random_run import write_random_run
from factories.tmi_command import tmi
from tmi.runtime.explain.model_source import open_run_models
from tmi.toolkit.models.factory import create_network
from tmi.toolkit.run_folder import CONFIG_FILE, RunFolder
from tmi.toolkit.storage.atomic_files import read_json, write_json
from tmi.toolkit.storage.serialization import to_json


@pytest.fixture(scope="module")
def fused(tmp_path_factory) -> Path:
    return write_random_run(tmp_path_factory.mktemp("fused") / "run", nano())


def with_modalities(run: Path, folder: Path, modalities: tuple[str, ...]) -> Path:
    """The run as one of fewer modalities, with random weights of that network."""
    shutil.copytree(run, folder)
    config = replace(nano(), network=replace(nano().network, modalities=modalities))
    write_json(folder / CONFIG_FILE, to_json(config))
    opened = RunFolder.open(folder)
    for split in opened.folds:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(split.fold)
            save_file(create_network(config).state_dict(), opened.fold(split.fold).model)
    opened.finish()
    return folder


@pytest.fixture(scope="module")
def ct_only(fused, tmp_path_factory) -> Path:
    return with_modalities(fused, tmp_path_factory.mktemp("ct_only") / "run", ("image",))


def test_the_ct_only_map_stands_beside_the_fused_one(fused, ct_only, cohort, tmp_path):
    from PIL import Image

    alone, beside = tmp_path / "alone", tmp_path / "beside"
    options = ("--run", fused, "--quick", "--target", "bad")
    assert tmi("explain", cohort / "P1", *options, "--out", alone).code == 0
    outcome = tmi("explain", cohort / "P1", *options, "--ct-only", ct_only, "--out", beside)
    assert outcome.code == 0, outcome.err
    told = json.loads((beside / "P1" / "explanation.json").read_text())
    first = json.loads((alone / "P1" / "explanation.json").read_text())
    assert first["ct_only"] is None
    assert told["map"] == first["map"]
    assert 0 <= told["ct_only"]["places"]["in_liver"] <= 1
    assert told["ct_only"]["folds"] == [0, 1]
    fused_map, ct_map = (nib.load(beside / "P1" / name) for name in ("map.nii.gz", "map-ct-only.nii.gz"))
    assert np.allclose(fused_map.affine, ct_map.affine)
    assert not np.allclose(fused_map.get_fdata(), ct_map.get_fdata())
    heights = []
    for folder in (alone, beside):
        with Image.open(folder / "P1" / "montage.png") as image:
            heights.append(image.size[1])
    assert heights[1] > 1.8 * heights[0]


def test_the_ct_only_answer_is_that_of_its_networks(ct_only, cohort):
    from tmi.runtime.explain.anatomy import read_anatomy
    from tmi.runtime.explain.ct_only_baseline import ct_only_map
    from tmi.runtime.explain.explainer import softmax
    from tmi.toolkit.cases.case import Case
    from tmi.toolkit.preprocessing.pipeline import prepare_case

    source, case = open_run_models(ct_only), Case(folder=cohort / "P1", case_id="P1")
    found = ct_only_map(source, case, read_anatomy(case), target="good")
    volume = torch.from_numpy(prepare_case(case, source.config, source.schema).ct_1DHW[None])
    nothing = torch.zeros(1, 1, dtype=torch.int64)
    with torch.no_grad():
        said = [softmax(source.load(f).network(volume, nothing, nothing, volume).logits_BK[0].numpy()) for f in (0, 1)]
    assert found.probability["bad"] == pytest.approx(np.mean(said, axis=0)[1], abs=1e-6)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--run", "{ct}"), "uses the CT alone\n  fix: give a run of all three modalities"),
        (("--run", "{fused}", "--ct-only", "{fused}"), "sees clinical, radiomics, image, not the CT alone"),
        (("--run", "{pair}"), "is of system tmi-clnet on clinical, image"),
    ],
    ids=["ct-only as run", "fused as ct-only", "a pair"],
)
def test_a_run_in_the_wrong_place_is_wrong_usage(options, told, fused, ct_only, cohort, tmp_path):
    pair = with_modalities(fused, tmp_path / "pair", ("clinical", "image"))
    places = {"ct": ct_only, "fused": fused, "pair": pair}
    outcome = tmi("explain", cohort / "P1", *(o.format(**places) for o in options), "--out", tmp_path / "out")
    assert outcome.code == 2
    assert told in outcome.err


@pytest.mark.parametrize("kind", ["fused", "ct_only"])
def test_a_runs_temperature_divides_the_logits_and_leaves_the_map_alone(kind, request, tmp_path):
    run = request.getfixturevalue(kind)
    hot = Path(shutil.copytree(run, tmp_path / "hot"))
    opened = RunFolder.open(hot)
    metrics = opened.fold(0).metrics
    write_json(metrics, read_json(metrics, kind="run") | {"calibration": {"temperature": 2.0}})
    opened.finish()
    cold_net, hot_net = (open_run_models(r).load(0).network for r in (run, hot))
    given = (
        torch.rand(1, 1, *nano().ct.shape_DHW),
        torch.ones(1, 4, dtype=torch.int64),
        torch.ones(1, 4),
        torch.rand(1, 1781),
    )
    with torch.no_grad():
        cold, warm = (net(given[0], given[1], given[2], given[3]).logits_BK for net in (cold_net, hot_net))
    torch.testing.assert_close(warm, cold / 2)
