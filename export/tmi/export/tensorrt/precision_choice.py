"""Values of `--precision`. Importing this module imports no package of a builder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from tmi.runtime.bundle.tensorrt_records import PlanPrecision
from tmi.runtime.engines.precision import FLOAT16, FLOAT32, INT8, TF32
from tmi.toolkit.errors import UsageError

BY_SEARCH: Final = "by search"
PRECISIONS: Mapping[str, PlanPrecision | Literal["by search"]] = {
    "fp16": FLOAT16,
    "tf32": TF32,
    "fp32": FLOAT32,
    "auto": BY_SEARCH,
    "int8": INT8,
}
"""Value of `--precision` -> precision of the graphs; with INT8 of the quantised ones, the others are FP16."""


def require_precision(requested: str) -> str:
    """Return the value of `--precision` if it is valid.

    Raises:
        UsageError: unknown value; the message lists the known ones.
    """
    if requested not in PRECISIONS:
        raise UsageError(f"unknown precision {requested!r}", fix=f"choose one of {', '.join(PRECISIONS)}")
    return requested
