"""Geometry of a series against highdicom's, an independent implementation for regular volumes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from factories.dicom_series import SeriesSpec, make_slices, write_slices
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.ingest.dicom.geometry import build_stack, find_gaps, gantry_tilt_degrees, is_uniform
from tmi.toolkit.ingest.dicom.headers import read_headers

OBLIQUE = (math.cos(0.4), math.sin(0.4), 0.0, 0.0, 0.0, -1.0)
SERIES = {
    "axial": SeriesSpec(slices=9, step_mm=2.5),
    "coronal, turned": SeriesSpec(slices=7, step_mm=1.25, orientation=OBLIQUE),
    "tilted gantry": SeriesSpec(slices=8, step_mm=4.0, tilt_deg=12.0),
}


@pytest.mark.parametrize("missing", [None, 3], ids=["complete", "with a gap"])
@pytest.mark.parametrize("name", SERIES)
def test_stack_matches_highdicom(name, missing, tmp_path):
    """Order, step and gaps of the slices, and whether they are a straight stack, are those that highdicom computes."""
    from highdicom.spatial import get_series_volume_positions

    slices = make_slices(SERIES[name])
    if missing is not None:
        del slices[missing]
    folder = write_slices(tmp_path, slices, shuffle=4)
    files = sorted(folder.iterdir())
    headers = [read_headers(path, number)[0] for number, path in enumerate(files)]
    stack = build_stack([h for h in headers if h is not None], case_id="P1")
    order = [h.number for position in stack.positions for h in position]

    from pydicom import dcmread

    datasets = [dcmread(path, stop_before_pixels=True) for path in files]
    spacing, indices = get_series_volume_positions(datasets, allow_missing_positions=True, perpendicular_tol=1e-3)
    if SERIES[name].tilt_deg:  # highdicom has no sheared volumes: that is why the geometry is computed here
        assert (spacing, indices) == (None, None)
        assert gantry_tilt_degrees(stack, case_id="P1") == pytest.approx(SERIES[name].tilt_deg, abs=1e-3)
        return
    assert gantry_tilt_degrees(stack, case_id="P1") == 0.0
    assert stack.step_mm == pytest.approx(spacing, rel=1e-9)
    assert is_uniform(stack.along_mm) == (missing is None)
    steps = np.diff(np.array(indices)[order])  # highdicom may count from the other end
    assert (steps > 0).all() or (steps < 0).all()
    assert find_gaps(stack) == [(int(i), int(abs(steps[i])) - 1) for i in np.flatnonzero(abs(steps) > 1)]


def test_uneven_series_is_no_volume_for_either(tmp_path):
    """A slice that lies off the regular grid is one for highdicom too."""
    from highdicom.spatial import get_series_volume_positions

    slices = make_slices(SERIES["axial"])
    moved = [float(v) for v in slices[4].ImagePositionPatient]
    slices[4].ImagePositionPatient = [moved[0], moved[1], moved[2] + 0.9]
    headers = [read_headers(path, 0)[0] for path in sorted(write_slices(tmp_path, slices).iterdir())]
    stack = build_stack([h for h in headers if h is not None], case_id="P1")
    assert not is_uniform(stack.along_mm)
    assert find_gaps(stack) == []
    assert get_series_volume_positions(slices, allow_missing_positions=True) == (None, None)


def test_slices_of_two_orientations_are_rejected_by_both(tmp_path):
    """Slices of two orientations are no volume."""
    from highdicom.spatial import get_series_volume_positions

    slices = make_slices(SERIES["axial"])
    slices[2].ImageOrientationPatient = list(OBLIQUE)
    headers = [read_headers(path, 0)[0] for path in sorted(write_slices(tmp_path, slices).iterdir())]
    with pytest.raises(InputRejectedError, match="orientation"):
        build_stack([h for h in headers if h is not None], case_id="P1")
    assert get_series_volume_positions(slices) == (None, None)
