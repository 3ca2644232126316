"""Damaged files of every format yield a typed error or a case, within bounds on time and memory."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from factories.damaged_files import mutant
from factories.dicom_series import (
    SeriesSpec,
    compress,
    compress_with_gdcm,
    hounsfield_at,
    liver_contour,
    liver_masks,
    make_slices,
    write_rtstruct,
    write_seg,
    write_slices,
)
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.ingest.case_importer import import_case
from tmi.toolkit.qc.check_registry import CHECKS

SPEC = SeriesSpec(slices=2, rows=36, columns=40, spacing_mm=(10.0, 10.0), step_mm=11.0)
COMPRESSED = {"JPEG 2000": JPEG2000Lossless, "JPEG-LS": JPEGLSLossless, "RLE": RLELossless}
SOURCES = ("plain", *COMPRESSED, "deflated", "JPEG lossless", "seg.dcm", "rt.dcm", "ct.nrrd", "ct.mha", "ct.nii.gz")
MAX_GROWTH_MB = 1500
"""Limit on the growth of the process; a damaged 32-bit length field would allocate 4 GB."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """One small valid file or series of every kind."""
    folder = tmp_path_factory.mktemp("sources")
    write_slices(folder / "plain", make_slices(SPEC))
    for name, syntax in COMPRESSED.items():
        write_slices(folder / name, compress(make_slices(SPEC), syntax))
    slices = make_slices(SPEC)
    for data in slices:
        data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    write_slices(folder / "deflated", slices)
    (folder / "JPEG lossless").mkdir()
    for k, data in enumerate(make_slices(SPEC)):
        compress_with_gdcm(data, folder / "JPEG lossless" / f"{k}.dcm")
    write_seg(folder / "seg.dcm", make_slices(SPEC), [liver_masks(SPEC)], ["liver"])
    outlines = [c for k in range(SPEC.slices) if (c := liver_contour(SPEC, k, points=30)) is not None]
    write_rtstruct(folder / "rt.dcm", make_slices(SPEC)[0], {"liver": outlines})
    image = SimpleITK.GetImageFromArray(np.stack([hounsfield_at(SPEC.positions_of(k)) for k in range(SPEC.slices)]))
    image.SetSpacing((10.0, 10.0, 11.0))
    for ending in ("nrrd", "mha", "nii.gz"):
        SimpleITK.WriteImage(image, str(folder / f"ct.{ending}"), ending != "nii.gz")
    return folder


def import_damaged(sources: Path, name: str, seed: int, folder: Path) -> str:
    """Import with one damaged file; return the error code, or `written`."""
    source = sources / name
    folder.mkdir()
    if source.is_dir():
        for file in source.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        damaged, ct, mask = max(folder.iterdir()), folder, None
    else:
        damaged = folder / name
        damaged.write_bytes(source.read_bytes())
        ct, mask = (damaged, None) if name.startswith("ct") else (sources / "plain", damaged)
    damaged.write_bytes(mutant(damaged.read_bytes(), seed))
    try:
        import_case(folder.with_name("case"), ct=ct, mask=mask, force=True)
    except InputRejectedError as error:
        return error.code
    return "written"


def run(sources: Path, name: str, seeds: range, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    for seed in seeds:
        start = time.perf_counter()
        code = import_damaged(sources, name, seed, tmp_path / str(seed))
        assert code in CHECKS or code == "written"
        assert time.perf_counter() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024 - before < MAX_GROWTH_MB


@pytest.mark.parametrize("name", SOURCES)
def test_damaged_file_yields_typed_error(name, sources, tmp_path):
    """A truncated or mutated file yields an error with a check code, or a case."""
    run(sources, name, range(12), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_many_damaged_files_yield_typed_errors(name, sources, tmp_path):
    """The same law for many more mutations."""
    run(sources, name, range(1000, 1090), tmp_path)
