"""The streaming pipeline equals a nibabel and torch baseline, and its stages add up to the wall time."""

from __future__ import annotations

import gzip
import itertools
import json
import struct
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

import tmi.toolkit.imaging.nifti as nifti
from factories.cases import write_case
from tmi.toolkit.cases.case import Case, open_case
from tmi.toolkit.clinical.schema import load_schema
from tmi.toolkit.compute.cpu import worker_pool
from tmi.toolkit.config.schema import CtConfig
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.imaging.ct_resampling import StreamingResampler, prepare_ct
from tmi.toolkit.imaging.volume import Grid, read_ct
from tmi.toolkit.preprocessing.pipeline import STAGES, prepare_case

ORIENTATIONS = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))
TYPES = ["<i2", ">i2", "<u2", "|u1", "<i4", ">f4", "<f4", "<f8"]
SCALINGS = [(1.0, 0.0), (1.0, -1024.0), (2.0, -300.0), (0.5, -10.25), (-1.0, 40.0)]


class Callbacks:
    """Forwards planes to the resampler, as the pipeline does."""

    def __init__(self, resampling: StreamingResampler) -> None:
        self.calls = 0
        self._resampling = resampling

    def on_grid_ready(self, grid: Grid) -> None:
        """Do nothing: there is no mask to read."""

    def on_planes_ready(self, array_DHW, lower: int, upper: int) -> None:
        self.calls += 1
        self._resampling.on_planes_ready(array_DHW, lower, upper)


def write_ct(path: Path, shape_xyz, turn, dtype: str, scaling, seed: int) -> None:
    random = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    bounds = (-900, 900) if kind.kind in "if" else (0, 1900 if kind.itemsize > 1 else 255)
    voxels = random.integers(*bounds, shape_xyz).astype(kind)
    axes, signs = turn
    affine = np.eye(4)
    affine[:3, :3] = 0
    for stored, (world, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[world, stored] = sign * (0.7 + 0.4 * stored)
    header = nib.Nifti1Header(endianness=">" if kind.byteorder == ">" else "<")
    header.set_data_dtype(kind)
    data = bytearray(nib.Nifti1Image(voxels, affine, header).to_bytes())
    struct.pack_into(f"{header.endianness}2f", data, 112, *scaling)
    path.write_bytes(gzip.compress(bytes(data), 1))


def prepare_baseline(path: Path, config: CtConfig) -> np.ndarray:
    hu_xyz = nib.as_closest_canonical(nib.load(path)).get_fdata(dtype=np.float64)
    low, high = config.window_hu
    scaled = (torch.from_numpy(hu_xyz.transpose(2, 1, 0).copy()).clamp(low, high) - low) / (high - low)
    return interpolate(scaled[None, None], size=config.shape_DHW, mode="trilinear", align_corners=False)[0].numpy()


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 23)] * 3),
    target=st.tuples(*[st.integers(8, 21)] * 3),
    keep=st.sampled_from([(), (1, 2), (0, 1, 2), (2,)]),
    turn=st.sampled_from(ORIENTATIONS),
    dtype=st.sampled_from(TYPES),
    scaling=st.sampled_from(SCALINGS),
    window=st.sampled_from([(-70.0, 130.0), (-160.5, 240.25)]),
    slab=st.sampled_from([64, 1000, 2**21]),
    seed=st.integers(0, 2**16),
)
def test_prepared_ct_equals_nibabel_and_torch(shape, target, keep, turn, dtype, scaling, window, slab, seed):
    """The streaming pipeline equals nibabel plus torch's `interpolate` for any storage."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(nifti, "SLAB_BYTES", slab)
        case = Case(folder=Path(folder), case_id="P1")
        write_ct(case.ct, shape, turn, dtype, scaling, seed)
        canonical_DHW = nib.as_closest_canonical(nib.load(case.ct)).shape[::-1]
        kept = tuple(max(8, canonical_DHW[a]) if a in keep else n for a, n in enumerate(target))
        config = CtConfig(shape_DHW=kept, window_hu=window)
        with worker_pool() as pool:
            callbacks = Callbacks(resampling := StreamingResampler(config, pool))
            ct = read_ct(case, pool=pool, callbacks=callbacks)
            prepared = prepare_ct(ct, config, resampling)
        assert callbacks.calls
        assert ct.array_DHW.flags["C_CONTIGUOUS"]
        np.testing.assert_allclose(prepared, prepare_baseline(case.ct, config), atol=1e-5, rtol=0)
        np.testing.assert_array_equal(prepared, prepare_ct(ct, config))


def test_int16_overflow_in_last_slab_is_handled(tmp_path, monkeypatch):
    """A value beyond int16 in the last slab gives a float32 volume and the same result."""
    monkeypatch.setattr(nifti, "SLAB_BYTES", 64)
    case = Case(folder=tmp_path, case_id="P1")
    write_ct(case.ct, (9, 8, 30), ORIENTATIONS[0], "<i4", (1.0, 0.0), 1)
    data = bytearray(gzip.decompress(case.ct.read_bytes()))
    data[-4:] = struct.pack("<i", 70_000)
    case.ct.write_bytes(gzip.compress(bytes(data)))
    config = CtConfig(shape_DHW=(12, 8, 9))
    with worker_pool() as pool:
        resampling = StreamingResampler(config, pool)
        ct = read_ct(case, pool=pool, callbacks=Callbacks(resampling))
        prepared = prepare_ct(ct, config, resampling)
    assert ct.array_DHW.dtype == np.float32
    assert ct.array_DHW.max() == 70_000
    np.testing.assert_allclose(prepared, prepare_baseline(case.ct, config), atol=1e-5, rtol=0)


def test_truncated_file_is_reported_before_nan(tmp_path):
    """A truncated file is reported as unreadable even if it also has NaN voxels."""
    case = Case(folder=tmp_path, case_id="P1")
    write_ct(case.ct, (9, 8, 30), ORIENTATIONS[0], "<f4", (1.0, 0.0), 1)
    data = bytearray(gzip.decompress(case.ct.read_bytes()))
    data[400:404] = struct.pack("<f", np.nan)
    for stream, code in ((data, "ct-nan"), (data[:-4], "ct-unreadable"), (data + b"x", "ct-unreadable")):
        case.ct.write_bytes(gzip.compress(bytes(stream)))
        with pytest.raises(InputRejectedError) as error:
            read_ct(case)
        assert error.value.code == code


def test_wrong_gzip_checksum_is_rejected(tmp_path):
    """A wrong checksum at the end of the gzip stream is rejected."""
    case = Case(folder=tmp_path, case_id="P1")
    write_ct(case.ct, (9, 8, 30), ORIENTATIONS[0], "<i2", (1.0, 0.0), 1)
    data = bytearray(case.ct.read_bytes())
    data[-6] ^= 1
    case.ct.write_bytes(data)
    with pytest.raises(InputRejectedError) as error:
        read_ct(case)
    assert error.value.code == "ct-unreadable"


def test_stages_add_up_to_wall_time(tmp_path, micro_config):
    """The stage times are non-negative and add up to the wall time."""
    case = open_case(write_case(tmp_path / "P001"))
    schema = load_schema()
    start = perf_counter()
    prepared = prepare_case(case, micro_config, schema)
    wall = perf_counter() - start
    assert tuple(prepared.seconds) == STAGES
    assert all(seconds >= 0 for seconds in prepared.seconds.values())
    assert prepared.seconds["inflate"] > 0
    assert wall * 0.9 - 0.005 <= sum(prepared.seconds.values()) <= wall


@pytest.mark.parametrize(("ct_is_bad", "code"), [(True, "ct-few-slices"), (False, "mask-grid")])
def test_ct_is_rejected_before_its_mask(tmp_path, micro_config, ct_is_bad, code):
    """If both CT and mask are invalid, the CT is reported."""
    folder = write_case(tmp_path / "P001", shape_xyz=(32, 28, 6 if ct_is_bad else 24))
    mask = nib.load(folder / "liver.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(mask.dataobj)[:, :, 1:], mask.affine), folder / "liver.nii.gz")
    with pytest.raises(InputRejectedError) as error:
        prepare_case(open_case(folder), micro_config, load_schema())
    assert error.value.code == code


@pytest.mark.parametrize("active", [("image",), ("clinical",), ("radiomics",), ("clinical", "image")], ids="-".join)
def test_files_of_inactive_modalities_are_not_read(micro_config, tmp_path, active):
    """Files of inactive modalities may be unreadable."""
    names = {"image": ["ct.nii.gz", "liver.nii.gz"], "radiomics": ["radiomics.csv"], "clinical": ["clinical.json"]}
    complete = prepare_case(open_case(write_case(tmp_path / "complete")), micro_config, load_schema())
    folder = write_case(tmp_path / "P1")
    for modality in set(names) - set(active):
        for name in names[modality]:
            (folder / name).write_bytes(b"\x1f\x8b unreadable")
    prepared = prepare_case(open_case(folder), micro_config, load_schema(), modalities=active)
    assert prepared.text == (complete.text if "clinical" in active else "")
    if "image" in active:
        np.testing.assert_array_equal(prepared.ct_1DHW, complete.ct_1DHW)
    else:
        assert prepared.ct_1DHW.size == 0
    np.testing.assert_array_equal(prepared.radiomics_F, complete.radiomics_F if "radiomics" in active else np.nan)


def test_mask_must_match_the_ct(micro_config, tmp_path):
    """A mask on another grid is rejected if only the image is active."""
    folder, other = write_case(tmp_path / "P1"), write_case(tmp_path / "other", shape_xyz=(30, 28, 24))
    (folder / "liver.nii.gz").write_bytes((other / "liver.nii.gz").read_bytes())
    with pytest.raises(InputRejectedError, match=r"liver\.nii\.gz"):
        prepare_case(open_case(folder), micro_config, load_schema(), modalities=("image",))


def test_radiomics_need_a_table_or_a_mask(micro_config, tmp_path):
    """Active radiomics need a table or a mask; inactive ones need neither."""
    folder = write_case(tmp_path / "P1", with_mask=False, with_radiomics=False)
    with pytest.raises(InputRejectedError, match=r"neither radiomics\.csv nor liver\.nii\.gz"):
        prepare_case(open_case(folder), micro_config, load_schema(), modalities=("radiomics",))
    assert prepare_case(open_case(folder), micro_config, load_schema(), modalities=("image",)).ct_1DHW.size


def test_mask_of_another_name_is_an_alert(tmp_path, micro_config):
    """A prediction learns from the case's record that its mask was named as something else at the import."""
    case = write_case(tmp_path / "P1", seed=1)
    record = {"schema": "tmi-case/1", "source": {"mask": {"label": 1, "named_otherwise": True}}}
    (case / "case.json").write_text(json.dumps(record))
    prepared = prepare_case(open_case(case), micro_config, load_schema())
    assert [issue.code for issue in prepared.alerts] == ["mask-name"]
    record["source"]["mask"]["named_otherwise"] = False
    (case / "case.json").write_text(json.dumps(record))
    assert prepare_case(open_case(case), micro_config, load_schema()).alerts == ()
