"""How much faster than MONAI's transforms, and than SimpleITK's read with torch's resampling, is a CT prepared?

`pytest benchmarks/test_preparing.py` (TMI_TEST_DATA adds the real CT). The roads take turns in one process, so that
what else the machine does hits all of them; medians are compared, and the results with them.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import pytest
from preparing_roads import ROADS, prepare_with_tmi, write_body_ct

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(0)]  # what MONAI warns of is not ours to mend
ROUNDS = 5
LEAST = {"monai": 2.0, "simpleitk": 1.0}
"""Ratios below which this fails; docs/performance.md has what was measured."""
SAME = 1e-5


@pytest.fixture(scope="module")
def body_ct(tmp_path_factory) -> Path:
    return write_body_ct(tmp_path_factory.mktemp("body") / "ct.nii.gz")


def paired(path: Path) -> dict[str, float]:
    """Seconds of each road, by the median of rounds in which each has its turn; all must give the same volume."""
    seconds: dict[str, list[float]] = {name: [] for name in ROADS}
    for turn in range(ROUNDS + 1):
        volumes = {}
        for name, road in ROADS.items():
            start = perf_counter()
            volumes[name] = road(path)
            if turn:  # the first is a warm-up
                seconds[name].append(perf_counter() - start)
    for name in LEAST:
        apart = float(np.abs(volumes["tmi"] - volumes[name]).max())
        assert apart <= SAME, f"{name} differs by {apart:.2g}"
    return {name: median(s) for name, s in seconds.items()}


def report(what: str, seconds: dict[str, float]) -> str:
    ratios = ", ".join(f"{name} / tmi {seconds[name] / seconds['tmi']:.2f}" for name in LEAST)
    return f"{what}: " + ", ".join(f"{n} {s:.3f} s" for n, s in seconds.items()) + f"; {ratios}"


def test_a_full_size_ct_is_prepared_faster_than_by_monai_or_simpleitk(body_ct, capsys):
    seconds = paired(body_ct)
    with capsys.disabled():
        print("\n" + report("512 x 512 x 120, int16", seconds))
    for name, least in LEAST.items():
        assert seconds[name] >= least * seconds["tmi"], report("too slow", seconds)


def test_the_real_ct_is_prepared_to_the_same_volume(tmp_path, capsys):
    source = Path(os.environ.get("TMI_TEST_DATA", "../shared/data")) / "totalsegmentator-ct-3mm" / "example_ct.nii.gz"
    if not source.is_file():
        pytest.skip("the real CT is not there: set TMI_TEST_DATA")
    seconds = paired(Path(shutil.copy(source, tmp_path / "ct.nii.gz")))
    with capsys.disabled():
        print("\n" + report("the real CT, 122 x 101 x 112, int32", seconds))


def test_preparing_a_full_size_ct(benchmark, body_ct):
    benchmark.pedantic(prepare_with_tmi, args=(body_ct,), rounds=ROUNDS, warmup_rounds=1)
