"""Selection of one label of a mask by number, by a name in the mask's header, or by a TotalSegmentator class name.

A number is a label value. A name is compared with the names in the header of the mask. A mask without names is assumed
to follow the numbering of TotalSegmentator's task `total` (version 2; `total_v1:NAME` for version 1). By default the
label named liver is selected, else the only label; a mask with several other labels is rejected.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from tmi.toolkit.errors import InputRejectedError

DEFAULT_NAME = "liver"
MAX_LISTED = 20


@dataclass(frozen=True, kw_only=True)
class ChosenLabel:
    """A label and the rule that selected it."""

    number: int
    """Label value, segment number or ROI number."""
    explanation: str
    """Explanation for the user; quotes no text of the mask's header."""


@cache
def totalsegmentator_labels() -> Mapping[str, Mapping[str, int]]:
    """Return task (`total`, `total_v1`) -> class name -> label."""
    data = json.loads(
        (files("tmi.toolkit.ingest") / "data" / "totalsegmentator_labels.json").read_text(encoding="utf-8")
    )
    return {t: {name: i for i, name in enumerate(data[t], start=1)} for t in ("total", "total_v1")}


def choose_label(
    wanted: str | int | None, names: Mapping[int, tuple[str, ...]], present: Mapping[int, int], *, case_id: str
) -> ChosenLabel:
    """Select one label.

    Args:
        wanted: number (also as text), name, or None for the default rule.
        names: label -> its names in the header of the mask; empty if the header has none.
        present: label -> number of its voxels, frames or contours; excludes labels without any.
        case_id: case id for error messages.

    Raises:
        InputRejectedError: mask-label: the label is missing or ambiguous; mask-empty: the mask has no label.
    """
    if not present:
        raise InputRejectedError(
            "the mask is empty", fix="give the mask of the liver", code="mask-empty", case_id=case_id
        )
    if isinstance(wanted, int) or (wanted is not None and wanted.strip().isdecimal()):
        number = int(wanted)
        if number in present:
            return ChosenLabel(number=number, explanation=f"label {number}, as requested")
        # A number can also be a SNOMED code, which SEG segments list among their names.
        if not any(str(number) in labels for labels in names.values()):
            raise _input_error(f"the mask has no label {number}", names, present, case_id)
    if wanted is not None:
        return _by_name(str(wanted).strip(), names, present, case_id)
    livers = [n for n in present if DEFAULT_NAME in map(str.casefold, names.get(n, ()))]
    if len(livers) == 1:
        return ChosenLabel(number=livers[0], explanation=f"label {livers[0]}, named liver in the mask")
    if len(present) == 1:
        number = next(iter(present))
        return ChosenLabel(number=number, explanation=f"label {number}, the only label")
    raise _input_error("the mask has several labels", names, present, case_id)


def _by_name(
    wanted: str, names: Mapping[int, tuple[str, ...]], present: Mapping[int, int], case_id: str
) -> ChosenLabel:
    if names:
        matches = [n for n in present if wanted.casefold() in map(str.casefold, names.get(n, ()))]
        if len(matches) == 1:
            return ChosenLabel(number=matches[0], explanation=f"label {matches[0]}, by its name in the mask")
        message = f"{len(matches)} labels of the mask have" if matches else "no label of the mask has"
        raise _input_error(f"{message} the requested name", names, present, case_id)
    task, _, name = wanted.rpartition(":")
    number = totalsegmentator_labels().get(task or "total", {}).get(name)
    if number is None:
        raise _input_error(
            "the mask has no label names, and TotalSegmentator has no class of the requested name",
            names,
            present,
            case_id,
        )
    if number not in present:
        raise _input_error(f"the mask has no label {number} (TotalSegmentator's {name})", names, present, case_id)
    return ChosenLabel(
        number=number, explanation=f"label {number}, {name} in TotalSegmentator's task {task or 'total'}"
    )


def _input_error(
    message: str, names: Mapping[int, tuple[str, ...]], present: Mapping[int, int], case_id: str
) -> InputRejectedError:
    listed = [_format_label(n, names) for n in sorted(present)[:MAX_LISTED]]
    more = ", ..." if len(present) > MAX_LISTED else ""
    return InputRejectedError(
        f"{message}; its labels are {', '.join(listed)}{more}",
        fix="choose one with --mask-label NUMBER or NAME; in a mask without names, NAME is a TotalSegmentator class",
        code="mask-label",
        case_id=case_id,
    )


def _format_label(number: int, names: Mapping[int, tuple[str, ...]]) -> str:
    name = next(iter(names.get(number, ())), "")
    return f"{number} ({name[:40]})" if name.isprintable() and name else str(number)
