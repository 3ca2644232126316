"""Reading and writing radiomics.csv: 1,781 names in any order, one row, missing and invalid cells."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.radiomics.feature_names import CLASS_FEATURES, FEATURE_NAMES, IMAGE_TYPES, SHAPE_FEATURES
from tmi.toolkit.radiomics.table import missing_features, read_table, write_table

VALUES = np.random.default_rng(5).normal(0, 1e3, 1781)


def lines(names: list[str], *rows: list[object]) -> str:
    return "\n".join(",".join(map(str, line)) for line in (names, *rows)) + "\n"


def rejection(path: Path) -> InputRejectedError:
    with pytest.raises(InputRejectedError) as error:
        read_table(path, case_id="P1")
    assert error.value.case_id == "P1"
    assert "radiomics.csv" in error.value.what
    assert error.value.fix
    return error.value


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "radiomics.csv"


def test_feature_counts_by_class_and_image_type():
    """1,781 = 14 shape features + 93 features of each of 19 image types."""
    counts = {kind: len(names) for kind, names in CLASS_FEATURES.items()}
    assert counts == {"firstorder": 18, "glcm": 24, "glrlm": 16, "glszm": 16, "gldm": 14, "ngtdm": 5}
    assert (len(SHAPE_FEATURES), len(IMAGE_TYPES), len(set(IMAGE_TYPES))) == (14, 19, 19)
    assert len(FEATURE_NAMES) == len(set(FEATURE_NAMES)) == 14 + 93 * 19 == 1781


def test_table_round_trip_is_exact(table):
    """Finite values are read back bit for bit; non-finite values become missing."""
    values = VALUES.copy()
    values[:4] = [math.nan, math.inf, -math.inf, 5e-324]
    write_table(table, values)
    back = read_table(table, case_id="P1")
    np.testing.assert_array_equal(back[3:], values[3:])
    assert np.isnan(back[:3]).all()
    assert missing_features(back) == FEATURE_NAMES[:3]


def test_columns_may_be_in_any_order(table):
    """Values are assigned by column name, not by position."""
    order = np.random.default_rng(1).permutation(1781)
    table.write_text(lines([FEATURE_NAMES[i] for i in order], [repr(float(VALUES[i])) for i in order]))
    np.testing.assert_array_equal(read_table(table, case_id="P1"), VALUES)


@pytest.mark.parametrize("cell", ["", " ", "nan", "NaN", "NA", "n/a", "null", "None"])
def test_empty_cell_is_a_missing_value(table, cell):
    """An empty cell and the usual spellings of a missing value are read as NaN."""
    table.write_text(lines(list(FEATURE_NAMES), [cell, *VALUES[1:]]))
    values = read_table(table, case_id="P1")
    assert np.isnan(values[0])
    assert missing_features(values) == FEATURE_NAMES[:1]


@pytest.mark.parametrize(
    "spell",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text + "\n\n",
        lambda text: ",".join(f' "{n}"'.strip() for n in FEATURE_NAMES) + "\n" + text.splitlines()[1],
        lambda text: text.replace(",", ", "),
    ],
    ids=["byte order mark", "Windows lines", "blank lines", "quoted names", "spaces"],
)
def test_tables_saved_by_spreadsheets_are_read(table, spell):
    """A byte order mark, Windows line ends, blank lines, quotes and spaces do not change the values."""
    table.write_bytes(spell(lines(list(FEATURE_NAMES), [repr(float(v)) for v in VALUES])).encode())
    np.testing.assert_array_equal(read_table(table, case_id="P1"), VALUES)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (list(FEATURE_NAMES[:-1]), f"has 1780 columns, not 1781: {FEATURE_NAMES[-1]} is missing"),
        (list(FEATURE_NAMES[3:]), f"{FEATURE_NAMES[0]} and 2 more are missing"),
        ([*FEATURE_NAMES, "case_id"], "the unknown column 'case_id'"),
        ([*FEATURE_NAMES, FEATURE_NAMES[7]], f"the column {FEATURE_NAMES[7]} twice"),
        ([*FEATURE_NAMES[:-1], FEATURE_NAMES[-1].lower()], "is missing"),
        ([], "has 0 columns"),
    ],
)
def test_header_with_other_names_is_rejected(table, names, message):
    """Every feature must occur exactly once in the header; a missing, unknown or duplicate name is reported."""
    table.write_text(lines(names, [1.0] * len(names)) if names else "")
    error = rejection(table)
    assert error.code == "radiomics-columns"
    assert message in str(error)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has 0 rows of values"),
        ([list(VALUES), list(VALUES)], "has 2 rows of values"),
        ([list(VALUES[:-1])], "has a row of 1780 cells"),
        ([[*VALUES, 1.0]], "has a row of 1782 cells"),
    ],
)
def test_other_than_one_complete_row_is_rejected(table, rows, message):
    """A table without exactly one row of 1,781 cells is rejected with the actual number."""
    table.write_text(lines(list(FEATURE_NAMES), *rows))
    error = rejection(table)
    assert error.code == "radiomics-rows"
    assert message in str(error)


@pytest.mark.parametrize("cell", ["inf", "-inf", "1e999", "12;5", "high", "0x10", "1.2.3", "12 mm"])
def test_non_finite_cell_is_rejected_without_its_text(table, cell):
    """The message names the feature but does not repeat the cell, which may hold patient data."""
    table.write_text(lines(list(FEATURE_NAMES), [*VALUES[:9], cell, *VALUES[10:]]))
    error = rejection(table)
    assert error.code == "radiomics-value"
    assert FEATURE_NAMES[9] in str(error)
    assert cell not in str(error).split(": ", 2)[2].replace(FEATURE_NAMES[9], "")


def test_missing_or_unreadable_table_is_rejected(table):
    """A missing file, bytes that are not UTF-8 and broken CSV have their own codes."""
    assert rejection(table).code == "radiomics-missing"
    table.write_bytes(b"\xff\xfe\x00\x80")
    assert rejection(table).code == "radiomics-unreadable"
    table.write_text('a,"b\n')
    assert rejection(table).code == "radiomics-unreadable"


def test_incomplete_values_are_not_written(table):
    """Writing fewer than 1,781 values raises ValueError and leaves no file."""
    with pytest.raises(ValueError, match="1780"):
        write_table(table, VALUES[:-1])
    assert not table.exists()
