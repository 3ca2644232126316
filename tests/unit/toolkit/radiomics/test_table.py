"""radiomics.csv: 1,781 names in any order, one row, missing cells told apart from wrong ones."""

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


def refusal(path: Path) -> InputRejectedError:
    with pytest.raises(InputRejectedError) as error:
        read_table(path, case_id="P1")
    assert error.value.case_id == "P1"
    assert "radiomics.csv" in error.value.what
    assert error.value.fix
    return error.value


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "radiomics.csv"


def test_there_are_14_shape_features_and_93_of_each_of_19_image_types():
    counts = {kind: len(names) for kind, names in CLASS_FEATURES.items()}
    assert counts == {"firstorder": 18, "glcm": 24, "glrlm": 16, "glszm": 16, "gldm": 14, "ngtdm": 5}
    assert (len(SHAPE_FEATURES), len(IMAGE_TYPES), len(set(IMAGE_TYPES))) == (14, 19, 19)
    assert len(FEATURE_NAMES) == len(set(FEATURE_NAMES)) == 14 + 93 * 19 == 1781


def test_what_is_written_is_read_back_to_the_last_bit(table):
    values = VALUES.copy()
    values[:4] = [math.nan, math.inf, -math.inf, 5e-324]
    write_table(table, values)
    back = read_table(table, case_id="P1")
    np.testing.assert_array_equal(back[3:], values[3:])
    assert np.isnan(back[:3]).all()
    assert missing_features(back) == FEATURE_NAMES[:3]


def test_columns_may_stand_in_any_order(table):
    order = np.random.default_rng(1).permutation(1781)
    table.write_text(lines([FEATURE_NAMES[i] for i in order], [repr(float(VALUES[i])) for i in order]))
    np.testing.assert_array_equal(read_table(table, case_id="P1"), VALUES)


@pytest.mark.parametrize("cell", ["", " ", "nan", "NaN", "NA", "n/a", "null", "None"])
def test_an_empty_cell_and_its_spellings_are_a_missing_value(table, cell):
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
def test_tables_as_spreadsheets_write_them_are_read(table, spell):
    table.write_bytes(spell(lines(list(FEATURE_NAMES), [repr(float(v)) for v in VALUES])).encode())
    np.testing.assert_array_equal(read_table(table, case_id="P1"), VALUES)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (list(FEATURE_NAMES[:-1]), f"has 1780 columns, not 1781: {FEATURE_NAMES[-1]} is missing"),
        (list(FEATURE_NAMES[3:]), f"{FEATURE_NAMES[0]} is missing, with 2 others"),
        ([*FEATURE_NAMES, "case_id"], "the unknown column 'case_id'"),
        ([*FEATURE_NAMES, FEATURE_NAMES[7]], f"the column {FEATURE_NAMES[7]} twice"),
        ([*FEATURE_NAMES[:-1], FEATURE_NAMES[-1].lower()], "is missing"),
        ([], "has 0 columns"),
    ],
)
def test_a_header_that_is_not_the_features_is_refused(table, names, told):
    table.write_text(lines(names, [1.0] * len(names)) if names else "")
    error = refusal(table)
    assert error.code == "radiomics-columns"
    assert told in str(error)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "has 0 rows of values"),
        ([list(VALUES), list(VALUES)], "has 2 rows of values"),
        ([list(VALUES[:-1])], "has a row of 1780 cells"),
        ([[*VALUES, 1.0]], "has a row of 1782 cells"),
    ],
)
def test_anything_but_one_whole_row_is_refused(table, rows, told):
    table.write_text(lines(list(FEATURE_NAMES), *rows))
    error = refusal(table)
    assert error.code == "radiomics-rows"
    assert told in str(error)


@pytest.mark.parametrize("cell", ["inf", "-inf", "1e999", "12;5", "high", "0x10", "1.2.3", "12 mm"])
def test_a_cell_that_is_no_finite_number_is_refused_without_its_text(table, cell):
    table.write_text(lines(list(FEATURE_NAMES), [*VALUES[:9], cell, *VALUES[10:]]))
    error = refusal(table)
    assert error.code == "radiomics-value"
    assert FEATURE_NAMES[9] in str(error)
    assert cell not in str(error).split(": ", 2)[2].replace(FEATURE_NAMES[9], "")


def test_a_table_that_is_no_text_or_not_there_is_refused(table):
    assert refusal(table).code == "radiomics-missing"
    table.write_bytes(b"\xff\xfe\x00\x80")
    assert refusal(table).code == "radiomics-unreadable"
    table.write_text('a,"b\n')
    assert refusal(table).code == "radiomics-unreadable"


def test_only_a_whole_set_of_values_is_written(table):
    with pytest.raises(ValueError, match="1780"):
        write_table(table, VALUES[:-1])
    assert not table.exists()
