"""Write the files of an explained case: map as NIfTI, pictures, document. A kill leaves a complete folder or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tmi.runtime.explanation.case_explanation import TOP_FEATURES, CaseExplanation
from tmi.runtime.explanation.ct_only_baseline import CtOnlyMap
from tmi.runtime.explanation.overlay import Picture, save_bars, save_montage, save_plane
from tmi.runtime.explanation.results import strongest_fields, top_features
from tmi.toolkit.imaging.volume import PLANES, write_on_ct_grid
from tmi.toolkit.storage.atomic_files import staged_folder, write_json

MAP_FILE = "map.nii.gz"
CT_ONLY_MAP_FILE = "map-ct-only.nii.gz"
DOCUMENT_FILE = "explanation.json"
MONTAGE_FILE = "montage.png"


def write_explanation(
    folder: Path,
    explained: CaseExplanation,
    document: dict[str, Any],
    *,
    title: str,
    ct_only: tuple[str, CtOnlyMap] | None = None,
) -> None:
    """Write the folder of a case, replacing an existing one.

    Args:
        folder: folder of the case.
        explained: the explained case.
        document: its `case_document`.
        title: title of its row in the montage.
        ct_only: title and map of a second row, by the CT-only baseline.
    """
    anatomy = explained.anatomy
    rows = [(title, explained.map_DHW), *([] if ct_only is None else [(ct_only[0], ct_only[1].map_DHW)])]
    pictures = [
        Picture(ct=anatomy.ct, map_DHW=map_DHW, liver_DHW=anatomy.liver_DHW, title=name) for name, map_DHW in rows
    ]
    with staged_folder(folder) as stage:
        write_on_ct_grid(explained.map_DHW, explained.case, stage / MAP_FILE)
        if ct_only is not None:
            write_on_ct_grid(ct_only[1].map_DHW, explained.case, stage / CT_ONLY_MAP_FILE)
        for plane in PLANES:
            save_plane(pictures[0], plane, anatomy.centre_DHW[plane.axis], stage / f"{plane.name}.png")
        save_montage(pictures, anatomy.centre_DHW, stage / MONTAGE_FILE)
        explanation = explained.explanation
        bars = {
            "radiomics": top_features(explanation.radiomics_R, TOP_FEATURES),
            "clinical": strongest_fields(explanation.fields, TOP_FEATURES),
        }
        for name, values in bars.items():
            if values:
                save_bars(values, stage / f"{name}.png", title=f"{explanation.case_id}: {name}")
        write_json(stage / DOCUMENT_FILE, document)
