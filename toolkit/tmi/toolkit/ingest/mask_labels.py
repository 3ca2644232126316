"""Which label of a mask is meant: by number, by a name that the mask gives, or by TotalSegmentator's names.

A number is a label value. A name is looked up among the names that the mask's own header gives; a mask without names is
taken to be numbered as TotalSegmentator numbers its task `total` (version 2; `total_v1:NAME` for version 1). Without
any wish, the label named liver is taken, or the only label there is; nothing else is guessed.
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
    """A label and how it was found."""

    number: int
    """Value of the label, number of the segment or of the ROI."""
    explanation: str
    """For the user, without the mask's own texts."""


@cache
def totalsegmentator_labels() -> Mapping[str, Mapping[str, int]]:
    """Task (`total`, `total_v1`) -> class name -> label."""
    data = json.loads(
        (files("tmi.toolkit.ingest") / "data" / "totalsegmentator_labels.json").read_text(encoding="utf-8")
    )
    return {t: {name: i for i, name in enumerate(data[t], start=1)} for t in ("total", "total_v1")}


def choose_label(
    wanted: str | int | None, names: Mapping[int, tuple[str, ...]], present: Mapping[int, int], *, case_id: str
) -> ChosenLabel:
    """The label that is meant.

    Args:
        wanted: a number (also as text), a name, or None.
        names: label -> the names it goes by in the mask's own header; empty where there is no such header.
        present: label -> number of voxels, frames or contours of it; zero labels are not among them.
        case_id: for the error texts.

    Raises:
        InputRejectedError: mask-label: not there, or several could be meant; mask-empty: nothing is there at all.
    """
    if not present:
        raise InputRejectedError(
            "the mask is empty", fix="give the mask of the liver", code="mask-empty", case_id=case_id
        )
    if isinstance(wanted, int) or (wanted is not None and wanted.strip().isdecimal()):
        number = int(wanted)
        if number in present:
            return ChosenLabel(number=number, explanation=f"label {number}, as asked for")
        if not any(str(number) in own for own in names.values()):  # a code of SNOMED is a number too
            raise _input_error(f"the mask has no label {number}", names, present, case_id)
    if wanted is not None:
        return _by_name(str(wanted).strip(), names, present, case_id)
    livers = [n for n in present if DEFAULT_NAME in map(str.casefold, names.get(n, ()))]
    if len(livers) == 1:
        return ChosenLabel(number=livers[0], explanation=f"label {livers[0]}, which the mask names liver")
    if len(present) == 1:
        number = next(iter(present))
        return ChosenLabel(number=number, explanation=f"label {number}, the only one")
    raise _input_error("the mask has several labels", names, present, case_id)


def _by_name(
    wanted: str, names: Mapping[int, tuple[str, ...]], present: Mapping[int, int], case_id: str
) -> ChosenLabel:
    if names:
        fitting = [n for n in present if wanted.casefold() in map(str.casefold, names.get(n, ()))]
        if len(fitting) == 1:
            return ChosenLabel(number=fitting[0], explanation=f"label {fitting[0]}, by the name in the mask")
        what = f"{len(fitting)} labels of the mask go" if fitting else "no label of the mask goes"
        raise _input_error(f"{what} by the name asked for", names, present, case_id)
    task, _, name = wanted.rpartition(":")
    number = totalsegmentator_labels().get(task or "total", {}).get(name)
    if number is None:
        raise _input_error(
            "the mask has no names, and TotalSegmentator has none like the one asked for", names, present, case_id
        )
    if number not in present:
        raise _input_error(
            f"the mask has no label {number}, which is TotalSegmentator's {name}", names, present, case_id
        )
    return ChosenLabel(
        number=number, explanation=f"label {number}, which is {name} in TotalSegmentator's {task or 'total'}"
    )


def _input_error(
    what: str, names: Mapping[int, tuple[str, ...]], present: Mapping[int, int], case_id: str
) -> InputRejectedError:
    listed = [_line(n, names) for n in sorted(present)[:MAX_LISTED]]
    more = ", ..." if len(present) > MAX_LISTED else ""
    return InputRejectedError(
        f"{what}; there are {', '.join(listed)}{more}",
        fix="choose one with --mask-label NUMBER or NAME; without names in the mask, NAME is TotalSegmentator's",
        code="mask-label",
        case_id=case_id,
    )


def _line(number: int, names: Mapping[int, tuple[str, ...]]) -> str:
    own = next(iter(names.get(number, ())), "")
    return f"{number} ({own[:40]})" if own.isprintable() and own else str(number)
