"""How much faster is the fast path to the 1,781 features than the reference path (pyradiomics), and are they equal?

There are two livers: that of a phantom with about 190,000 voxels, and a real one with 41,692 (test data; skipped if it
is missing). Reference (`plain`) and fast (`quick`) runs alternate in one process, so that load on the machine slows
both. The result is the median of the ratios of the pairs. Imports and the fast path's check of the installed packages
are done before. The last line is JSON.

    python benchmarks/radiomics_extraction.py [--repeats 5] [--jobs 1 2]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tmi.toolkit.cases.case import open_case
from tmi.toolkit.compute.cpu import available_cores
from tmi.toolkit.imaging.volume import Volume, read_ct, read_mask
from tmi.toolkit.radiomics.cache import package_versions
from tmi.toolkit.radiomics.extractor import extract, extract_reference
from tmi.toolkit.radiomics.fast_extractor import reference_path_reason
from tmi.toolkit.radiomics.feature_names import FEATURE_NAMES
from tmi.toolkit.synthetic.phantom import Grid, disease_signs, render, sample_body

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("TMI_TEST_DATA", ROOT.parent / "shared" / "data"))
Liver = tuple[Volume, Volume]


def phantom_liver() -> Liver:
    """160 x 160 x 109 voxels of 1.9 x 1.9 x 2 mm."""
    body = sample_body(np.random.default_rng(0), female=False, bmi=24.0)
    pixel, between = 2.06 * body.half_width_mm / 160, 2.0
    grid = Grid(
        shape_XYZ=(160, 160, math.ceil(218 / between)),
        spacing_XYZ_mm=(pixel, pixel, between),
        noise_hu=12.0,
        deposit_part=0.02,
    )
    phantom = render(body, disease_signs(liver=0.5, portal=0.2, deposit=0.3), grid, seed=np.random.SeedSequence(0))
    affine = np.diag([pixel, pixel, between, 1.0])
    ct, mask = (
        Volume(array_DHW=np.ascontiguousarray(a.transpose(2, 1, 0)), affine_xyz=affine)
        for a in (phantom.hu_XYZ, phantom.liver_XYZ)
    )
    return ct, mask


def real_liver() -> Liver | None:
    if not DATA.is_dir():
        return None
    sys.path.insert(0, str(ROOT / "tests"))
    from factories.real_case import LIVER_LABEL, write_real_case

    with tempfile.TemporaryDirectory() as folder:
        case = open_case(write_real_case(Path(folder) / "case", DATA), mask_label=LIVER_LABEL)
        ct = read_ct(case)
        return ct, read_mask(case, ct)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def differences(fast_F: np.ndarray, reference_F: np.ndarray) -> dict[str, float]:
    """Largest relative difference of each feature class; infinite if only one of the two has a value."""
    error_F = np.abs(fast_F - reference_F) / np.where(reference_F == 0, 1e-300, np.abs(reference_F))
    error_F[(fast_F == reference_F) | (np.isnan(fast_F) & np.isnan(reference_F))] = 0
    error_F[np.isnan(error_F)] = math.inf
    worst: dict[str, float] = {}
    for name, error in zip(FEATURE_NAMES, error_F, strict=True):
        kind = name.split("_")[1]
        worst[kind] = max(worst.get(kind, 0.0), float(error))
    return worst


def measure(liver: Liver, jobs: list[int], repeats: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {"plain": [], **{f"quick, {n} job(s)": [] for n in jobs}}
    worst: dict[str, float] = {}
    for _ in range(repeats):
        took, reference_F = timed(lambda: extract_reference(*liver))
        seconds["plain"].append(took)
        for n in jobs:
            took, fast_F = timed(lambda n=n: extract(*liver, jobs=n))
            seconds[f"quick, {n} job(s)"].append(took)
            worst = {k: max(v, worst.get(k, 0.0)) for k, v in differences(fast_F, reference_F).items()}
    return {
        "voxels": int(liver[1].array_DHW.sum()),
        "ct_shape_DHW": list(liver[0].array_DHW.shape),
        "seconds": {name: round(statistics.median(times), 2) for name, times in seconds.items()},
        "speedup": {
            name: round(statistics.median(p / q for p, q in zip(seconds["plain"], times, strict=True)), 2)
            for name, times in seconds.items()
            if name != "plain"
        },
        "largest_relative_difference": worst,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--jobs", type=int, nargs="+", default=sorted({1, available_cores()}))
    options = parser.parse_args()
    reason = reference_path_reason()
    if reason is not None:
        sys.exit(f"the fast path is not available: {reason}")
    livers = {"phantom": phantom_liver(), "real": real_liver()}
    results = {
        name: measure(liver, options.jobs, options.repeats) for name, liver in livers.items() if liver is not None
    }
    for name, result in results.items():
        print(f"{name} liver, {result['voxels']} voxels, CT {result['ct_shape_DHW']}")
        for path, seconds in result["seconds"].items():
            gain = f"{result['speedup'][path]:6.2f} x" if path in result["speedup"] else ""
            print(f"  {path:16} {seconds:7.2f} s {gain}")
        for kind, error in result["largest_relative_difference"].items():
            print(f"  {kind:16} differs by {error:.1e} at most")
    print(
        json.dumps(
            {
                "benchmark": "radiomics_extraction",
                "cores": available_cores(),
                "machine": platform.machine(),
                "packages": package_versions(),
                "repeats": options.repeats,
                "livers": results,
            }
        )
    )


if __name__ == "__main__":
    main()
