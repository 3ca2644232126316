"""The files of one case: map as NIfTI, pictures, figures. A kill leaves a whole folder or none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tmi.runtime.explain.case_explanation import TOP_FEATURES, CaseExplanation
from tmi.runtime.explain.explanation import strongest_fields
from tmi.runtime.explain.feature_groups import top
from tmi.runtime.explain.overlay import Picture, save_bars, save_montage, save_plane
from tmi.toolkit.files import staged_folder, write_json
from tmi.toolkit.volume import PLANES, write_on_ct_grid

MAP_FILE = "map.nii.gz"
DOCUMENT_FILE = "explanation.json"
MONTAGE_FILE = "montage.png"


def write_explanation(
    folder: Path,
    explained: CaseExplanation,
    document: dict[str, Any],
    *,
    title: str,
    others: Sequence[tuple[str, CaseExplanation]] = (),
) -> None:
    """Write a case's folder; one that is there is replaced.

    Args:
        folder: of the case.
        explained: the case.
        document: its `case_document`.
        title: of its row in the montage.
        others: further rows, such as a CT-only model's: title and the same case as that model saw it.
    """
    anatomy = explained.anatomy
    pictures = [_picture(title, explained), *(_picture(name, other) for name, other in others)]
    with staged_folder(folder) as stage:
        write_on_ct_grid(explained.map_DHW, explained.case, stage / MAP_FILE)
        for plane in PLANES:
            save_plane(pictures[0], plane, anatomy.centre_DHW[plane.axis], stage / f"{plane.name}.png")
        save_montage(pictures, anatomy.centre_DHW, stage / MONTAGE_FILE)
        explanation = explained.explanation
        bars = {
            "radiomics": top(explanation.radiomics_R, TOP_FEATURES),
            "clinical": strongest_fields(explanation.fields, TOP_FEATURES),
        }
        for name, values in bars.items():
            if values:
                save_bars(values, stage / f"{name}.png", title=f"{explanation.case_id}: {name}")
        write_json(stage / DOCUMENT_FILE, document)


def _picture(title: str, explained: CaseExplanation) -> Picture:
    anatomy = explained.anatomy
    return Picture(ct=anatomy.ct, map_DHW=explained.map_DHW, liver_DHW=anatomy.liver_DHW, title=title)
