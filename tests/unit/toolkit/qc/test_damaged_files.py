"""Damaged files are rejected with a typed error, quickly and in bounded memory."""

from __future__ import annotations

import gzip
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import pytest

from factories.cases import write_cohort
from factories.mutants import write_mutant
from factories.tmi_command import tmi
from tmi.toolkit.cases.case import find_cases
from tmi.toolkit.clinical.schema import load_schema
from tmi.toolkit.config.presets import tiny
from tmi.toolkit.errors import InputRejectedError, TmiError
from tmi.toolkit.preprocessing.pipeline import prepare_case
from tmi.toolkit.qc.case_checks import check_cases

BATCH = 25
LONGEST_S = 10.0
GIGABYTES = 4


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = write_cohort(tmp_path_factory.mktemp("fuzz") / "good", cases=1)
    (folder / "C000").rename(folder / "C0")
    table = folder / "cohort.csv"
    table.write_text(table.read_text().replace("C000", "C0"))
    (folder / "C0" / "case.json").write_text('{"schema": "tmi-case/1", "source": {"kind": "nifti"}, "repairs": []}')
    return folder


def check_and_prepare(cohort: Path) -> tuple[bool, bool]:
    """Return whether check and preparation agree, and whether the case was prepared; other errors propagate."""
    try:
        cases = find_cases([cohort])
        findings = check_cases(cases)
    except TmiError:
        return True, False
    try:
        for case in cases:
            prepare_case(case, tiny(), load_schema())
    except InputRejectedError as error:
        return error.code in {f.code for f in findings if f.severity == "error"} and bool(error.fix), False
    return True, True


def run(good, tmp_path, seeds):
    rejected = 0
    for seed in seeds:
        folder = tmp_path / "mutant"
        mutation = write_mutant(good, folder, seed)
        start = perf_counter()
        try:
            agree, prepared = check_and_prepare(folder)
            assert agree, "the check must report the same rejection, with a fix"
            if seed % BATCH == 0:
                outcome = tmi("check", folder, "--json")
                assert outcome.code in (0, 2, 3)
                assert "unexpected" not in outcome.err
        except BaseException as error:
            raise AssertionError(mutation) from error
        assert perf_counter() - start < LONGEST_S, mutation
        rejected += not prepared
        shutil.rmtree(folder)
    return rejected


@pytest.mark.parametrize("first", range(0, 200, BATCH))
def test_mutants_raise_only_typed_errors(good, tmp_path, first):
    """Check and preparation reject mutants with the same typed error; most mutants do damage."""
    assert run(good, tmp_path, range(first, first + BATCH)) > BATCH // 3, "mutants must do damage"


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 2000, 100))
def test_a_thousand_mutants_raise_only_typed_errors(good, tmp_path, first):
    """The same for more seeds."""
    assert run(good, tmp_path, range(first, first + 100)) > 33


LIMITED = f"""
import resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, ({GIGABYTES} << 30, {GIGABYTES} << 30))
from pathlib import Path
from tmi.toolkit.cases.case import find_cases
from tmi.toolkit.qc.case_checks import check_cases
start = time.perf_counter()
print(*sorted({{f.code for f in check_cases(find_cases([Path(sys.argv[1])]))}}), time.perf_counter() - start)
"""


def forge(raw: bytes, *, shape=None, datatype=None, offset=None) -> bytes:
    data = bytearray(raw)
    if shape:
        struct.pack_into("<4h", data, 40, 3, *shape)
    if datatype:
        struct.pack_into("<2h", data, 70, *datatype)
    if offset:
        struct.pack_into("<f", data, 108, offset)
    return bytes(data)


def bomb(raw: bytes, path: Path, megabytes: int) -> None:
    """Write a small file that unpacks to `megabytes` of zeros."""
    with gzip.open(path, "wb", compresslevel=6) as stream:
        stream.write(raw[:352])
        for _ in range(megabytes):
            stream.write(b"\0" * 2**20)


@pytest.mark.parametrize(
    ("write", "codes"),
    [
        (lambda raw, path: path.write_bytes(gzip.compress(forge(raw, shape=(32767,) * 3))), {"ct-unreadable"}),
        (
            lambda raw, path: path.write_bytes(gzip.compress(forge(raw, shape=(1024, 1024, 1000)))),
            {"ct-unreadable"},
        ),
        (
            lambda raw, path: path.write_bytes(gzip.compress(forge(raw, shape=(700, 700, 700)))),
            {"ct-unreadable"},
        ),
        (lambda raw, path: path.write_bytes(gzip.compress(forge(raw, offset=2.0**31))), {"ct-unreadable"}),
        (lambda raw, path: bomb(forge(raw, offset=2.0**30), path, 64), {"ct-unreadable"}),
        (lambda raw, path: bomb(raw, path, 256), {"ct-unreadable"}),
    ],
    ids=["70 TB", "2 GB", "700 MB of missing data", "offset beyond the end", "offset in a bomb", "extra data"],
)
def test_oversized_header_is_rejected_in_bounded_memory(good, tmp_path, write, codes):
    """Impossible sizes are rejected quickly and within 4 GB of address space."""
    folder = shutil.copytree(good / "C0", tmp_path / "C0")
    raw = gzip.decompress((folder / "ct.nii.gz").read_bytes())
    write(raw, folder / "ct.nii.gz")
    process = subprocess.run([sys.executable, "-c", LIMITED, folder], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    *codes_found, seconds = process.stdout.split()
    assert set(codes_found) == codes
    assert float(seconds) < LONGEST_S


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "datatype", "size"),
    [((512, 512, 1536), (16, 32), 1536), ((512, 512, 768), (64, 64), 1536), ((512, 512, 1536), (4, 16), 768)],
    ids=["float32", "float64", "int16"],
)
def test_largest_volume_is_read_in_bounded_memory(good, tmp_path, shape, datatype, size):
    """The largest allowed volume is read within 4 GB of address space."""
    folder = shutil.copytree(good / "C0", tmp_path / "C0")
    (folder / "liver.nii.gz").unlink()
    raw = gzip.decompress((folder / "ct.nii.gz").read_bytes())
    bomb(forge(raw, shape=shape, datatype=datatype), folder / "ct.nii.gz", size)
    process = subprocess.run([sys.executable, "-c", LIMITED, folder], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    *codes_found, seconds = process.stdout.split()
    assert "ct-rescaled" in codes_found
    print(shape, datatype, seconds)


@pytest.mark.parametrize("slope", [1e30, 3.4e38, -1.0, 0.001])
def test_extreme_scaling_is_rejected(good, tmp_path, slope):
    """An extreme slope is rejected, and no numeric warning is raised."""
    cohort = shutil.copytree(good, tmp_path / "cohort")
    path = cohort / "C0" / "ct.nii.gz"
    raw = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into("<2f", raw, 112, slope, 0.0)
    path.write_bytes(gzip.compress(bytes(raw)))
    assert check_and_prepare(cohort)[1] is False
