"""Selection of one label of a mask by number, by a name in the mask's header, or by a TotalSegmentator class name.

A number is a label value. A name is compared with the names in the header of the mask, which come first: a mask whose
header calls TotalSegmentator's number of a class something else is rejected. A mask without names is assumed to follow
the numbering of TotalSegmentator's task `total` (version 2; `total_v1:NAME` for version 1). By default the label named
liver is selected, else the only label unless it is named otherwise; a mask with several other labels is rejected.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

from tmi.toolkit.errors import InputRejectedError, UsageError

DEFAULT_NAME = "liver"
MAX_LISTED = 20


LIVER_WORDS = frozenset({"liver", "hepar", "leber", "foie", "hígado", "higado", "fegato", "fígado", "figado", "lever"})
"""Words for the liver, in lower case, of which the name of an only label must contain one."""
LESION_WORDS = frozenset(
    (
        "tumor tumors tumour tumours lesion lesions gtv ctv ptv mass masses cyst cysts metastasis metastases hcc "
        "ablation vessel vessels vein veins artery arteries duct ducts lobe segment segments couinaud"
    ).split()
)
"""Words for a lesion or a part, which exclude a name although it contains a word for the liver."""
UNNAMED = re.compile(r"(?:segmentation|segment|label|mask|roi|structure|region|object|untitled)?[\s_-]*\d*")
"""Names that programs give by default, in lower case."""
Wanted = str | int | Sequence[str | int]
"""Labels by number or name; a text may join several with commas, and a sequence joins its items."""


@dataclass(frozen=True, kw_only=True)
class ChosenLabel:
    """A label, or several joined ones, and the rule that selected them."""

    number: int
    """Label value, segment number or ROI number; of several, the first one."""
    explanation: str
    """Explanation for the user; quotes no text of the mask's header."""
    joined: tuple[int, ...] = ()
    """Further numbers that belong to the mask."""
    named_otherwise: bool = False
    """Whether the mask gives the label a name that is not a liver's: it was requested, but may be another organ's."""

    @property
    def numbers(self) -> tuple[int, ...]:
        """All numbers."""
        return (self.number, *self.joined)

    @property
    def recorded(self) -> int | str:
        """Value for `case.json`: the number, or the numbers joined by commas."""
        return self.number if not self.joined else ",".join(map(str, self.numbers))


def split_labels(wanted: Wanted | None) -> tuple[str | int, ...]:
    """Return the single labels of a selection, in order, without repeats; empty for None.

    Raises:
        UsageError: the selection contains an empty item.
    """
    items = () if wanted is None else (wanted,) if isinstance(wanted, (str, int)) else tuple(wanted)
    parts = [part for item in items for part in ([item] if isinstance(item, int) else item.split(","))]
    cleaned = [part if isinstance(part, int) else part.strip() for part in parts]
    if "" in cleaned or (wanted is not None and not cleaned):
        raise UsageError("a label of the mask is empty", fix="give labels by number or name: 1,2")
    return tuple(dict.fromkeys(int(c) if isinstance(c, str) and c.isdecimal() and c.isascii() else c for c in cleaned))


def join_labels(labels: Sequence[ChosenLabel], absent: Sequence[str | int] = ()) -> ChosenLabel:
    """Return several selected labels as one; `absent` were asked for too and have no voxel."""
    numbers = tuple(dict.fromkeys(n for label in labels for n in label.numbers))
    notes = [label.explanation for label in labels]
    notes += ["a further label of the selection has no voxel"] * bool(absent)
    explanation = notes[0] if len(notes) == 1 else f"joined: {'; '.join(notes)}"
    otherwise = all(label.named_otherwise for label in labels)
    return ChosenLabel(number=numbers[0], joined=numbers[1:], explanation=explanation, named_otherwise=otherwise)


def choose_labels(
    wanted: Wanted | None, names: Mapping[int, tuple[str, ...]], present: Mapping[int, int], *, case_id: str
) -> ChosenLabel:
    """Select one label, or several that are joined.

    The first label must be present. Further ones may have no voxel, like a tumour's label in a liver without a tumour,
    if the mask or TotalSegmentator names them, or if the mask has no names.

    Args:
        wanted: see `Wanted`; a text that equals a name with a comma is that name.
        names: as for `choose_label`.
        present: as for `choose_label`.
        case_id: case id for error messages.

    Raises:
        InputRejectedError: mask-label, mask-empty.
        UsageError: the selection contains an empty item.
    """
    parts = split_labels(wanted)
    if isinstance(wanted, str) and _numbers_of(wanted, names):
        return choose_label(wanted, names, present, case_id=case_id)
    if len(parts) < 2:
        return choose_label(parts[0] if parts else None, names, present, case_id=case_id)
    labels, absent = [choose_label(parts[0], names, present, case_id=case_id)], []
    for part in parts[1:]:
        try:
            labels.append(choose_label(part, names, present, case_id=case_id))
        except InputRejectedError:
            numbers = _numbers_of(part, names)
            known = bool(numbers) if names else isinstance(part, int) or _totalsegmentator_number(part) is not None
            if not known or any(n in present for n in numbers):  # an unknown or an ambiguous name
                raise
            absent.append(part)
    return join_labels(labels, absent)


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
        InputRejectedError: mask-label: the label is missing or ambiguous, or its names in the mask contradict each
            other; mask-empty: the mask has no label.
    """
    chosen = _choose(wanted, names, present, case_id)
    is_default = wanted is None or str(wanted).strip().casefold() == DEFAULT_NAME
    labels = names.get(chosen.number, ())
    if is_default and any(map(_is_liver, labels)) and any(map(_is_other, labels)):
        message = "a label has names in the mask that contradict each other, one of them a liver's"
        raise _input_error(message, {**names, chosen.number: (" = ".join(labels),)}, present, case_id)
    return replace(chosen, named_otherwise=bool(labels) and not _may_be_liver(labels))


def _choose(
    wanted: str | int | None, names: Mapping[int, tuple[str, ...]], present: Mapping[int, int], case_id: str
) -> ChosenLabel:
    if not present:
        raise InputRejectedError(
            "the mask is empty", fix="give the mask of the liver", code="mask-empty", case_id=case_id
        )
    if isinstance(wanted, int) or (wanted is not None and wanted.strip().isdecimal() and wanted.isascii()):
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
        if not _may_be_liver(names.get(number, ())):
            raise _input_error("the only label of the mask is not named liver", names, present, case_id)
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
        message += " the requested name"
        number = _totalsegmentator_number(wanted)
        if not matches and number is not None and number in present:
            message = f"label {number}, TotalSegmentator's number of the requested name, has another name in the mask"
        raise _input_error(message, names, present, case_id)
    task, _, name = wanted.rpartition(":")
    number = _totalsegmentator_number(wanted)
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


def _numbers_of(wanted: str | int, names: Mapping[int, tuple[str, ...]]) -> list[int]:
    """Return the labels that have a number or a name in the header of the mask."""
    text = str(wanted).strip().casefold()
    return [n for n, labels in names.items() if str(n) == text or text in map(str.casefold, labels)]


def _totalsegmentator_number(wanted: str | int) -> int | None:
    """Return the label of a class of TotalSegmentator, `NAME` or `TASK:NAME`."""
    task, _, name = str(wanted).rpartition(":")
    return totalsegmentator_labels().get(task or "total", {}).get(name)


def _may_be_liver(names: tuple[str, ...]) -> bool:
    """Return whether a label is unnamed, or one of its names is a liver's."""
    folded = [n.casefold().strip() for n in names]
    if all(UNNAMED.fullmatch(n) for n in folded):
        return True
    return any(map(_is_liver, names))


def _words(name: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]+", name.casefold()))


def _is_liver(name: str) -> bool:
    """Return whether a name is one of the whole liver."""
    return bool(_words(name) & LIVER_WORDS) and not _words(name) & LESION_WORDS


def _is_other(name: str) -> bool:
    """Return whether a name is one of a lesion, a part of an organ, or another class of TotalSegmentator."""
    if UNNAMED.fullmatch(name.casefold().strip()):
        return False
    classes = {
        frozenset(c.split("_")) for task in totalsegmentator_labels().values() for c in task if c != DEFAULT_NAME
    }
    return bool(_words(name) & LESION_WORDS) or frozenset(re.findall(r"[^\W_]+", name.casefold())) in classes


def _input_error(
    message: str, names: Mapping[int, tuple[str, ...]], present: Mapping[int, int], case_id: str
) -> InputRejectedError:
    listed = [_format_label(n, names) for n in sorted(present)[:MAX_LISTED]]
    more = ", ..." if len(present) > MAX_LISTED else ""
    return InputRejectedError(
        f"{message}; its labels are {', '.join(listed)}{more}",
        fix="choose with --mask-label NUMBER or NAME, or join several (1,2); in a mask without names, NAME is a "
        "TotalSegmentator class",
        code="mask-label",
        case_id=case_id,
    )


def _format_label(number: int, names: Mapping[int, tuple[str, ...]]) -> str:
    name = next(iter(names.get(number, ())), "")
    return f"{number} ({name[:40]})" if name.isprintable() and name else str(number)
