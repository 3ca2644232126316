"""Read and write `radiomics.csv`: a header of feature names and one row of values.

Columns may be in any order. An empty cell, `nan` or `NA` is a missing value; infinity and other text are rejected.
Values are written as the shortest decimals that parse to the same float64.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from tmi.toolkit.cases.case import RADIOMICS_FILE, Case, access_error
from tmi.toolkit.cases.loaded import LoadedCase
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.radiomics.feature_names import FEATURE_NAMES
from tmi.toolkit.storage.atomic_files import write_text
from tmi.toolkit.storage.bounded_files import FEATURES_BYTES, is_access_error, read_text
from tmi.toolkit.storage.csv_files import csv_rows, csv_text, find_delimiter
from tmi.toolkit.storage.table_formats import foreign_format

MISSING_CELLS = frozenset({"", "nan", "na", "n/a", "null", "none"})
"""Spellings of a missing value, in lower case."""


def _input_error(what: str, fix: str, case_id: str, code: str = "radiomics-columns") -> InputRejectedError:
    return InputRejectedError(what, fix=fix, code=code, case_id=case_id)


def read_rows(path: Path, *, case_id: str, read: Callable[[], bytes] | None = None) -> list[list[str]]:
    """Return the non-empty rows of a CSV file, with commas, semicolons, tabs or bars; `read` returns its bytes.

    Raises:
        InputRejectedError: `radiomics-missing`, `radiomics-unreadable` or `case-unreadable`.
    """
    try:
        data = None if read is None else read()
        if (foreign := foreign_format(path, data=data)) is not None:
            raise _input_error(
                f"{path.name} is {foreign[0]}, which is not read", foreign[1], case_id, "radiomics-unreadable"
            )
        text = read_text(path, max_bytes=FEATURES_BYTES) if data is None else data.decode("utf-8-sig")
        return [row for row in csv_rows(text, delimiter=find_delimiter(text, ())) if row]
    except FileNotFoundError as error:
        raise _input_error(
            f"{path.name} is missing", "run `tmi radiomics` on the case", case_id, "radiomics-missing"
        ) from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        if is_access_error(error):
            raise access_error(path.name, error, case_id) from error
        reason = f": {error.strerror}" if isinstance(error, OSError) else ""
        raise _input_error(
            f"{path.name} cannot be read as CSV in UTF-8{reason}",
            "save it as comma-separated UTF-8: a header and one row",
            case_id,
            "radiomics-unreadable",
        ) from error


def require_names(names: list[str], *, file: str, case_id: str) -> None:
    """Reject a header that does not name every feature exactly once, in any order.

    Raises:
        InputRejectedError: `radiomics-columns`: a feature is missing, unknown or duplicated.
    """
    known, present = set(FEATURE_NAMES), set(names)
    fix = "give every feature once, or extract them again with `tmi radiomics --force`"
    if missing := [n for n in FEATURE_NAMES if n not in present]:
        others = f" and {len(missing) - 1} more are missing" if len(missing) > 1 else " is missing"
        raise _input_error(
            f"{file} has {len(names)} columns, not {len(FEATURE_NAMES)}: {missing[0]}{others}", fix, case_id
        )
    if unknown := [n for n in names if n not in known]:
        raise _input_error(f"{file} has the unknown column {unknown[0][:80]!r}", fix, case_id)
    if len(names) != len(present):
        duplicate = next(n for n in FEATURE_NAMES if names.count(n) > 1)
        raise _input_error(f"{file} has the column {duplicate} twice", fix, case_id)


def parse_value(cell: str, *, name: str, file: str, case_id: str) -> float:
    """Parse a cell: a finite number, or NaN for a missing value.

    Raises:
        InputRejectedError: `radiomics-value`; the message omits the cell's text, which may hold patient data.
    """
    if cell.strip().lower() in MISSING_CELLS:
        return math.nan
    try:
        value = float(cell)
    except ValueError:
        value = math.inf
    if not math.isfinite(value):
        raise _input_error(
            f"{file}: {name} is not a finite number",
            "give a decimal number with a point, or leave the cell empty where the value is missing",
            case_id,
            "radiomics-value",
        )
    return value


def read_case_table(case: Case) -> Float[NDArray[np.float64], "1781"]:
    """Read the features of a case as `read_table` does; those of a loaded case once.

    Raises:
        InputRejectedError: as in `read_table`.
    """
    if not isinstance(case, LoadedCase):
        return read_table(case.radiomics, case_id=case.case_id)
    read = partial(case.content, RADIOMICS_FILE, max_bytes=FEATURES_BYTES)
    return case.once("features", lambda: read_table(case.radiomics, case_id=case.case_id, read=read))


def read_table(
    path: Path, *, case_id: str, read: Callable[[], bytes] | None = None
) -> Float[NDArray[np.float64], "1781"]:
    """Read the features in the order of `FEATURE_NAMES`; NaN for missing cells; `read` returns the bytes of the file.

    Raises:
        InputRejectedError: `radiomics-missing`, `radiomics-unreadable`, `radiomics-columns` (a feature is missing,
            unknown or duplicated), `radiomics-rows` (not one row), `radiomics-value` (not a finite number).
    """
    rows = read_rows(path, case_id=case_id, read=read)
    names = [n.strip() for n in rows[0]] if rows else []
    require_names(names, file=path.name, case_id=case_id)
    if len(rows) != 2 or len(rows[1]) != len(names):
        actual = f"a row of {len(rows[1])} cells" if len(rows) == 2 else f"{len(rows) - 1} rows of values"
        raise _input_error(
            f"{path.name} has {actual}, not one row of {len(names)}",
            "keep the header and the row of this case",
            case_id,
            "radiomics-rows",
        )
    by_name = dict(zip(names, rows[1], strict=True))
    return np.array(
        [parse_value(by_name[n], name=n, file=path.name, case_id=case_id) for n in FEATURE_NAMES], dtype=np.float64
    )


def require_features(values_F: NDArray[Any], *, case_id: str) -> Float[NDArray[np.float64], "1781"]:
    """Return features given as an array in the order of `FEATURE_NAMES` as float64; NaN is a missing value.

    Raises:
        InputRejectedError: `radiomics-columns` (another shape), `radiomics-value` (an infinite number).
    """
    if values_F.shape != (len(FEATURE_NAMES),):
        fix = f"give the {len(FEATURE_NAMES):,} features in the order of FEATURE_NAMES"
        raise _input_error(f"radiomics_F has shape {values_F.shape}, not ({len(FEATURE_NAMES)},)", fix, case_id)
    if np.isinf(values_F).any():
        name = FEATURE_NAMES[int(np.isinf(values_F).argmax())]
        fix = "give NaN where the value is missing"
        raise _input_error(f"radiomics_F: {name} is infinite", fix, case_id, "radiomics-value")
    return np.asarray(values_F, dtype=np.float64)


def write_table(path: Path, values_F: Float[NDArray[np.float64], "1781"]) -> None:
    """Write a header and one row atomically; non-finite values become empty cells.

    Raises:
        ValueError: the number of values is not 1,781.
    """
    write_text(path, table_text(values_F))


def table_text(values_F: Float[NDArray[np.float64], "1781"]) -> str:
    """Return the text that `write_table` writes.

    Raises:
        ValueError: the number of values is not 1,781.
    """
    if values_F.shape != (len(FEATURE_NAMES),):
        raise ValueError(f"{values_F.shape} values, not ({len(FEATURE_NAMES)},)")
    cells = [repr(float(v)) if math.isfinite(v) else "" for v in values_F]
    return csv_text(FEATURE_NAMES, [cells])


def missing_features(values_F: Float[NDArray[np.float64], "1781"]) -> tuple[str, ...]:
    """Return the names of the features without a finite value."""
    return tuple(name for name, value in zip(FEATURE_NAMES, values_F, strict=True) if not math.isfinite(value))
