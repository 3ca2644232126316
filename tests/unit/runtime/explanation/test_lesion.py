"""The map lies on what determines the label: a synthetic lesion, for every position and every CT orientation.

Lengths are in half widths of the volume: 0.22 is a lesion of 35 mm radius in a volume of 320 mm.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from factories.lesion_model import SHAPE_DHW, accuracy, hounsfield, lesion_config, sample_batch, train_lesion_network
from tmi.runtime.explanation.explainer import ct_map
from tmi.runtime.explanation.inputs import FoldInputs
from tmi.runtime.explanation.parameter_randomization import randomization_test
from tmi.toolkit.cases.case import Case
from tmi.toolkit.imaging.ct_resampling import prepare_ct, resample_to_ct_grid
from tmi.toolkit.imaging.volume import read_ct, write_on_ct_grid

pytestmark = pytest.mark.long

RADIUS = 0.22
HALF_MM = np.array([160.0, 150.0, 120.0])
PLACES = ((0.43, 0.43, 0.1), (-0.4, 0.15, -0.35), (0.3, -0.35, 0.4))
"""x, y, z of lesions; none lies near a plane of symmetry, so that a flip moves it far."""
ORIENTATIONS = [
    "".join(signs[axis] for axis in order)
    for order in itertools.permutations(range(3))
    for signs in itertools.product("RL", "AP", "SI")
]
SHAPES = ((64, 60, 50), (40, 44, 90), (110, 80, 30))
"""x, y, z voxels: 5 x 5 x 4.8 mm to 2.9 x 3.8 x 8 mm."""


@pytest.fixture(scope="session")
def network():
    return train_lesion_network()


@pytest.fixture(scope="session")
def other_inputs():
    """Text and radiomics that are independent of the label."""
    _, ids, mask, radiomics, _ = sample_batch(np.random.default_rng(8), 1, lesion_config())
    return ids, mask, radiomics


def store(folder: Path, place: tuple[float, float, float] | None, orientation: str, shape: tuple[int, ...]) -> Case:
    """Write a CT of the body with a lesion at `place`, in an orientation and with a shape."""
    affine = np.diag([*(2 * HALF_MM / shape), 1.0])
    affine[:3, 3] = -HALF_MM + HALF_MM / shape
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    hu = hounsfield((index @ affine[:3, :3] + affine[:3, 3]) / HALF_MM, place, RADIUS)
    hu = hu + np.random.default_rng(3).normal(0, 6.0, shape)
    image = nib.Nifti1Image(np.rint(hu).astype(np.int16), affine)
    transform = nib.orientations.ornt_transform(
        nib.io_orientation(affine), nib.orientations.axcodes2ornt(tuple(orientation))
    )
    nib.save(image.as_reoriented(transform), folder / "ct.nii.gz")
    return Case(folder=folder, case_id="P1")


def map_in_world(case: Case, network, other_inputs) -> tuple[np.ndarray, np.ndarray]:
    """Values of the written map file, and the world coordinates x, y, z of its voxels."""
    config, ct = lesion_config(), read_ct(case)
    ids, mask, radiomics = other_inputs
    volume = torch.from_numpy(prepare_ct(ct, config.ct)[None])
    inputs = FoldInputs(ct=volume, input_ids=ids, attention_mask=mask, radiomics=radiomics, truncated=False)
    with torch.no_grad():
        text = network.encode_text(ids, mask)
    map_DHW = ct_map(network, inputs, text, 1, SHAPE_DHW)
    file = case.folder / "map.nii.gz"
    write_on_ct_grid(resample_to_ct_grid(map_DHW, ct.array_DHW.shape, config.ct), case, file)
    image = nib.load(file)
    values = image.get_fdata()
    index = np.stack(np.meshgrid(*map(np.arange, values.shape), indexing="ij"), axis=-1)
    return values, (index @ image.affine[:3, :3].T + image.affine[:3, 3]) / HALF_MM


def require_map_on(place: tuple[float, float, float], values: np.ndarray, world: np.ndarray) -> None:
    """Require the bounds that docs/explain.md states."""
    distance = np.linalg.norm(world - np.array(place), axis=-1)
    strong = np.clip(values - 0.5, 0, None)
    centre = (world * strong[..., None]).sum(axis=(0, 1, 2)) / strong.sum()
    assert np.linalg.norm(centre - np.array(place)) < 0.22
    assert strong[distance < 2 * RADIUS].sum() / strong.sum() > 0.75
    density = values[distance < RADIUS].mean() / values.mean()
    assert density > 2.5


def test_network_uses_the_lesion_only(network):
    """The network classifies the lesion and ignores text and radiomics."""
    assert accuracy(network) > 0.9
    ct, ids, mask, radiomics, _ = sample_batch(np.random.default_rng(4), 8, lesion_config())
    with torch.no_grad():
        logits = network(ct, ids, mask, radiomics).logits_BK
        shuffled = network(ct, ids.flip(0), mask, radiomics.flip(0)).logits_BK
    assert torch.equal(logits.argmax(1), shuffled.argmax(1))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_map_follows_the_lesion_at_every_spacing(place, shape, network, other_inputs, tmp_path):
    """The map lies on the lesion for every position and spacing."""
    require_map_on(place, *map_in_world(store(tmp_path, place, "LPS", shape), network, other_inputs))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_map_lies_on_the_lesion_in_every_orientation(orientation, network, other_inputs, tmp_path):
    """The map lies on the lesion in all 48 orientations of the file."""
    shape = SHAPES[ORIENTATIONS.index(orientation) % len(SHAPES)]
    require_map_on(PLACES[0], *map_in_world(store(tmp_path, PLACES[0], orientation, shape), network, other_inputs))


@pytest.mark.parametrize("axis", range(3))
def test_flipped_map_is_detected(axis, network, other_inputs, tmp_path):
    """A map that is flipped along any axis fails the bounds."""
    values, world = map_in_world(store(tmp_path, PLACES[2], "RAS", SHAPES[0]), network, other_inputs)
    with pytest.raises(AssertionError):
        require_map_on(PLACES[2], np.flip(values, axis), world)


def test_randomised_weights_lose_the_lesion(network, other_inputs, tmp_path):
    """The cascade ends with a dissimilar map and restores the weights."""
    case = store(tmp_path, PLACES[0], "RAS", SHAPES[0])
    ids, mask, radiomics = other_inputs
    volume = torch.from_numpy(prepare_ct(read_ct(case), lesion_config().ct)[None])
    inputs = FoldInputs(ct=volume, input_ids=ids, attention_mask=mask, radiomics=radiomics, truncated=False)
    with torch.no_grad():
        text = network.encode_text(ids, mask)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    def compute_map() -> np.ndarray:
        return ct_map(network, inputs, text, 1, SHAPE_DHW)

    trained = compute_map()
    steps = randomization_test(network, compute_map, trained)
    assert [s.down_to for s in steps] == ["head", "interaction", *(f"stage {n}" for n in (4, 3, 2, 1)), "stem"]
    assert steps[-1].rank_correlation is None or abs(steps[-1].rank_correlation) < 0.5
    assert steps[-1].ssim < 0.5
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert np.array_equal(compute_map(), trained)
