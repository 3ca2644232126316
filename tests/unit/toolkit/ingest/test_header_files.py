"""NRRD and MetaImage files: equal to ITK where they are valid, rejected before any voxel is read where they are not."""

from __future__ import annotations

import bz2
import gzip
import itertools
import os
import random
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.ingest.case_importer import import_case
from tmi.toolkit.ingest.image_files import LoadedImage, canonical_volume, read_image

SHAPE = (4, 5, 6)
TURNS = [
    np.eye(3)[list(axes)] * signs
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
"""The 48 directions of a grid along the patient's axes."""
ENDINGS = ("nrrd", "nhdr", "mha", "mhd")


def image(kind: type = np.int16, turn: np.ndarray | None = None) -> SimpleITK.Image:
    values = np.random.default_rng(1).integers(0, 100, SHAPE).astype(kind)
    made = SimpleITK.GetImageFromArray(values)
    made.SetSpacing((0.5, 0.75, 2.5))
    made.SetOrigin((-11.5, 20.0, 7.25))
    made.SetDirection((np.eye(3) if turn is None else turn).ravel().tolist())
    return made


def written(folder: Path, ending: str, *, compress: bool = False, **kwargs) -> Path:
    path = folder / f"ct.{ending}"
    SimpleITK.WriteImage(image(**kwargs), str(path), compress)
    return path


def read(path: Path) -> LoadedImage:
    return read_image(path, kind="ct", case_id="P1")


def rejected(path: Path, code: str) -> InputRejectedError:
    with pytest.raises(InputRejectedError) as error:
        read(path)
    assert error.value.code == code
    return error.value


def require_equal_to_itk(path: Path) -> None:
    reference = SimpleITK.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.array(reference.GetDirection()).reshape(3, 3) * reference.GetSpacing()
    affine[:3, 3] = reference.GetOrigin()
    array = SimpleITK.GetArrayFromImage(reference).transpose(2, 1, 0)
    expected = canonical_volume(array, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)
    volume = read(path).volume
    np.testing.assert_array_equal(volume.array_DHW, expected.array_DHW)
    assert volume.array_DHW.dtype == array.dtype
    np.testing.assert_allclose(volume.affine_xyz, expected.affine_xyz, atol=1e-9)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(
    "kind", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.float32, np.float64]
)
def test_every_voxel_type_equals_itk(ending, compress, kind, tmp_path):
    """Voxels, type and affine equal ITK's for every type, attached or detached, raw or compressed."""
    require_equal_to_itk(written(tmp_path, ending, compress=compress, kind=kind))


@pytest.mark.parametrize("ending", ["nrrd", "mha"])
def test_every_orientation_equals_itk(ending, tmp_path):
    """All 48 axis orders and directions, and an oblique one, equal ITK's."""
    angle = np.radians(20)
    oblique = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    for turn in [*TURNS, oblique]:
        require_equal_to_itk(written(tmp_path, ending, turn=turn))


def edited(path: Path, old: str, new: str) -> Path:
    data = path.read_bytes()
    assert old.encode() in data
    path.write_bytes(data.replace(old.encode(), new.encode(), 1))
    return path


@pytest.mark.parametrize("encoding", ["gzip", "bzip2"])
@pytest.mark.parametrize("endian", ["little", "big"])
def test_byte_order_and_skips_equal_itk(encoding, endian, tmp_path):
    """Big-endian voxels and a byte skip, raw and compressed, are read where the header says they are."""
    values = np.random.default_rng(2).integers(-1000, 1000, (6, 5, 4)).astype(np.int16)
    data = values.astype(">i2" if endian == "big" else "<i2").tobytes(order="F")
    pack = gzip.compress if encoding == "gzip" else bz2.compress
    (tmp_path / "raw.raw").write_bytes(b"#" * 7 + data)
    (tmp_path / "packed.raw").write_bytes(pack(b"#" * 7 + data))
    for kind, skip in (("raw", 7), ("raw", -1), (encoding, 7)):
        path = tmp_path / "ct.nhdr"
        path.write_text(
            "NRRD0004\ntype: short\ndimension: 3\nspace: RAS\nsizes: 6 5 4\nspace directions: (1,0,0) (0,1,0) (0,0,3)\n"
            f"endian: {endian}\nencoding: {kind}\nspace origin: (1,2,3)\nbyte skip: {skip}\n"
            f"data file: {'raw' if kind == 'raw' else 'packed'}.raw\n"
        )
        volume = read(path).volume
        np.testing.assert_array_equal(volume.array_DHW, values.transpose(2, 1, 0))
        np.testing.assert_array_equal(volume.affine_xyz, [[1, 0, 0, 1], [0, 1, 0, 2], [0, 0, 3, 3], [0, 0, 0, 1]])
    rejected(edited(path, "byte skip: 7", "byte skip: 9"), "ct-unreadable")


@pytest.mark.parametrize(
    "name", ["LIST", "LIST 2", "%n", "s%03d.raw 1 4 1", "%s%s%s%s", "../ct.raw", "sub/../../ct.raw", "missing.raw", ""]
)
@pytest.mark.parametrize("ending", ["mhd", "nhdr"])
def test_header_without_one_data_file_is_rejected(ending, name, tmp_path):
    """Lists, patterns, missing files and files outside the folder of the header are rejected."""
    (tmp_path / "inner").mkdir()
    path = written(tmp_path / "inner", ending)
    (tmp_path / "ct.raw").write_bytes((tmp_path / "inner" / "ct.raw").read_bytes())
    mark = "ile = " if ending == "mhd" else "ile: "
    edited(path, f"{mark}ct.raw", f"{mark}{name}")
    rejected(path, "ct-unreadable")


@pytest.mark.parametrize("ending", ["mhd", "nhdr"])
def test_data_file_outside_folder_is_never_read(ending, tmp_path):
    """An absolute name, a link to a file elsewhere and a FIFO are rejected; the message names no path."""
    (tmp_path / "inner").mkdir()
    path = written(tmp_path / "inner", ending)
    raw = tmp_path / "inner" / "ct.raw"
    outside = raw.rename(tmp_path / "SECRET.raw")
    raw.symlink_to(outside)
    assert "SECRET" not in rejected(path, "ct-unreadable").what
    raw.unlink()
    os.mkfifo(raw)
    rejected(path, "ct-unreadable")
    edited(path, "ct.raw", str(outside))
    assert "SECRET" not in rejected(path, "ct-unreadable").what


def test_linked_header_finds_its_data(tmp_path):
    """A header and its data that are linked together into another folder are read."""
    path = written(tmp_path, "mhd")
    (tmp_path / "case").mkdir()
    for name in ("ct.mhd", "ct.raw"):
        (tmp_path / "case" / name).symlink_to(tmp_path / name)
    np.testing.assert_array_equal(read(tmp_path / "case" / "ct.mhd").volume.array_DHW, read(path).volume.array_DHW)


@pytest.mark.parametrize("change", [-1, -200, 1])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("ending", ENDINGS)
def test_data_of_other_length_are_rejected(ending, compress, change, tmp_path):
    """Voxels are backed by exactly as many bytes as the header declares."""
    path = written(tmp_path, ending, compress=compress)
    if compress and change > 0:  # one byte behind a compressed stream holds no voxel: the header gets smaller instead
        edited(path, "6 5 4", "6 5 3")
    else:
        data = next((p for p in tmp_path.iterdir() if p != path), path)
        content = data.read_bytes()
        data.write_bytes(content[:change] if change < 0 else content + b"\0")
    rejected(path, "ct-unreadable")


@pytest.mark.parametrize("ending", ENDINGS)
def test_complete_stream_that_is_too_short_is_rejected(ending, tmp_path):
    """An undamaged compressed stream that holds fewer voxels than the header declares leaves none uninitialised."""
    path = edited(written(tmp_path, ending, compress=True), "6 5 4", "6 5 5")
    assert "fewer voxels" in rejected(path, "ct-unreadable").what


def test_rows_of_a_cohort_share_no_memory(tmp_path):
    """A header that lists no data file never yields the voxels of the file that was read before it."""
    first = written(tmp_path, "mha")
    read(first)
    path = written(tmp_path, "mhd")
    (tmp_path / "other").mkdir()
    edited(path, "ct.raw", "LIST")
    with pytest.raises(InputRejectedError):
        import_case(tmp_path / "other" / "case", ct=path)
    assert not (tmp_path / "other" / "case").exists()


@pytest.mark.parametrize(
    ("ending", "old", "new", "code"),
    [
        ("nrrd", "space: left-posterior-superior\n", "", "ct-affine"),
        ("nrrd", "left-posterior-superior", "scanner-xyz", "ct-affine"),
        ("nrrd", "space directions: (0.5,0,0) (0,0.75,0) (0,0,2.5)\n", "", "ct-affine"),
        ("nrrd", "kinds: domain", "spacings: 3 3 3\nkinds: domain", "ct-forms"),
        ("nrrd", "kinds: domain", "spacings: nan nan nan\nkinds: domain", None),
        ("nrrd", "kinds: domain", "axis maxs: 9 9 9\nkinds: domain", "ct-forms"),
        ("nrrd", "kinds: domain", "old min: 0\nkinds: domain", "ct-unreadable"),
        ("nrrd", "kinds: domain", "sizes: 6 5 4\nkinds: domain", "ct-unreadable"),
        ("nrrd", "endian: little\n", "", "ct-unreadable"),
        ("nrrd", "encoding: raw", "encoding: ascii", "ct-unreadable"),
        ("nrrd", "sizes: 6 5 4", "sizes: 6 5 " + "9" * 1024, "ct-unreadable"),
        ("nrrd", "kinds: domain", "content: " + "A" * 2000 + "\nspace units: " + '"' * 1024 + "\nkinds: domain", None),
        ("mha", "TransformMatrix = 1 0 0 0 1 0 0 0 1\n", "", "ct-affine"),
        ("mha", "ElementSpacing = 0.5 0.75 2.5\n", "", "ct-affine"),
        ("mha", "AnatomicalOrientation = RAI", "AnatomicalOrientation = LAI", "ct-forms"),
        ("mha", "DimSize", "ElementToIntensityFunctionOffset = -40\nDimSize", "ct-unreadable"),
        ("mha", "DimSize", "ElementNumberOfChannels = 2\nDimSize", "ct-not-3d"),
        ("mha", "DimSize", "Offset = 0 0 0\nDimSize", "ct-unreadable"),
        ("mha", "DimSize", "Position = 0 0 0\nDimSize", "ct-unreadable"),
        ("mha", "DimSize = 6 5 4", "DimSize = 6 5 4 1", "ct-unreadable"),
        ("mha", "DimSize = 6 5 4", "DimSize = 99999 99999 99999", "ct-unreadable"),
        ("mha", "MET_SHORT", "MET_LONG", "ct-unreadable"),
        ("mha", "TransformMatrix = 1 0 0", "TransformMatrix = nan 0 0", "ct-unreadable"),
        ("mha", "TransformMatrix = 1 0 0", "TransformMatrix = 3 0 0", "ct-affine"),
    ],
)
def test_header_field_is_rejected_with_its_code(ending, old, new, code, tmp_path):
    """Missing geometry, contradictions, scalings that programs ignore and malformed fields are rejected."""
    path = edited(written(tmp_path, ending), old, new)
    if code is None:
        read(path)
    else:
        assert rejected(path, code).fix


def test_unit_of_nrrd_is_kept(tmp_path):
    """A unit that the header declares reaches the checks, which assume millimetres."""
    path = edited(written(tmp_path, "nrrd"), "kinds: domain", 'space units: "cm" "cm" "cm"\nkinds: domain')
    assert read(path).volume.unit == "centimetre"


def test_unit_of_metaimage_is_kept(tmp_path):
    """The unit of a MetaImage header reaches the checks too."""
    path = edited(written(tmp_path, "mha"), "DimSize", "DistanceUnits = um\nDimSize")
    assert read(path).volume.unit == "micron"


@pytest.mark.parametrize("ending", ENDINGS)
def test_mutated_headers_end_in_an_error_or_a_volume(ending, tmp_path):
    """Structure-aware mutants of the header: fields dropped, doubled, exchanged, emptied, or given hostile values."""
    path = written(tmp_path, ending)
    data = path.read_bytes()
    end = data.find(b"ElementDataFile") if ending.startswith("mh") else data.find(b"\n\n")
    lines, rest = data[: end + 1].split(b"\n"), data[end + 1 :]
    hostile = [b"%n", b"%s" * 50, b"A" * 1024, b"-1", b"1e400", b"nan", b"9" * 400, b"LIST", b"\xff\xfe", b"", b"LOCAL"]
    draw = random.Random(5)
    codes = set()
    for _ in range(250):
        mutant = list(lines)
        for _ in range(draw.randint(1, 3)):
            at = draw.randrange(len(mutant))
            key, mark, _ = mutant[at].partition(b"= " if ending.startswith("mh") else b": ")
            value = draw.choice(hostile)
            mutant[at : at + 1] = draw.choice(
                [[], [mutant[at]] * 2, [draw.choice(mutant)], [key + mark + value], [value]]
            )
            mutant = mutant or [b""]
        path.write_bytes(b"\n".join(mutant) + rest)
        try:
            codes.add("" if read(path).volume.array_DHW.size else "empty")
        except InputRejectedError as error:
            codes.add(error.code)
    assert codes <= {"", "ct-unreadable", "ct-affine", "ct-not-3d", "ct-forms"}
    assert "ct-unreadable" in codes
