"""Expected network inputs of the golden case, computed independently of the runtime's preprocessing code.

The CT is read by nibabel and resampled by torch's `interpolate`, or averaged by its integral (`ct.antialias`).
Radiomics are scaled by the formula, from the JSON of the run's scaler. Text is tokenized by the `tokenizers` package
with the run's tokenizer. Only the clinical record is rendered by the toolkit itself, because no other definition of
that text exists.
`tmi.runtime.verification.preprocessing_check` lists the names of the arrays.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer as Backend
from torch.nn import functional

from tmi.export.graphs.partition import GraphPartition
from tmi.runtime.verification.golden_case import golden_config, write_golden_case
from tmi.runtime.verification.preprocessing_check import SHORT_TEXT, text_digest
from tmi.toolkit.cases.case import Case
from tmi.toolkit.config.schema import Config, CtConfig, Modality
from tmi.toolkit.models.registry import active_modalities
from tmi.toolkit.preprocessing.pipeline import prepare_case
from tmi.toolkit.radiomics.feature_names import FEATURE_NAMES
from tmi.toolkit.run_folder import RunFolder


def golden_case_reference(
    run: RunFolder, partition: GraphPartition, folder: Path, *, seed: int
) -> dict[str, NDArray[np.generic]]:
    """Write the golden case into `folder` and compute the arrays of `golden-case.safetensors`."""
    config = golden_config(run.config)
    case = write_golden_case(folder, run.schema, seed=seed)
    modalities = active_modalities(run.config)
    clinical_only: tuple[Modality, ...] = ("clinical",)
    text = prepare_case(case, config, run.schema, modalities=clinical_only).text
    arrays: dict[str, NDArray[np.generic]] = {}
    if "image" in modalities:
        arrays["ct"] = _resample_ct(case, config.ct)
    if "clinical" in modalities:
        arrays["text.sha256"] = text_digest(text)
    raw_R = _read_features(case)
    for fold in partition.folds if "radiomics" in modalities else ():
        arrays[f"radiomics.fold{fold}"] = _scale_features(raw_R, run.fold(fold).scaler)
    for encoder in partition.encoders:
        if encoder.tokenizer is not None:
            ids, mask = _tokenize(text, encoder.tokenizer, config)
            arrays[f"{encoder.name}.input_ids"], arrays[f"{encoder.name}.attention_mask"] = ids, mask
    return arrays


def _resample_ct(case: Case, config: CtConfig) -> NDArray[np.float32]:
    """[1,D,H,W]: closest canonical orientation, header scaling by nibabel, HU window, torch's resampling."""
    image = nib.as_closest_canonical(nib.load(case.ct))
    # nibabel's axes are x, y, z; the network's are D (z), H (y), W (x).
    hu_DHW = torch.from_numpy(np.ascontiguousarray(image.get_fdata(dtype=np.float64).transpose(2, 1, 0)))
    (low, high), (to_low, to_high) = config.window_hu, config.scale_to
    scaled = (hu_DHW.clamp(low, high) - low) / (high - low) * (to_high - to_low) + to_low
    if config.antialias:
        scaled = _area_means(scaled, config.shape_DHW)
    volume_11DHW = scaled[None, None]
    if config.depth_resampling == "nearest":
        in_plane = scaled.shape[1:]
        volume_11DHW = functional.interpolate(volume_11DHW, size=(config.shape_DHW[0], *in_plane), mode="nearest")
    resampled = functional.interpolate(volume_11DHW, size=config.shape_DHW, mode="trilinear", align_corners=False)
    return resampled[0].to(torch.float32).numpy()


def _area_means(values_DHW: torch.Tensor, shape_DHW: tuple[int, int, int]) -> torch.Tensor:
    """Means over each output voxel's extent along the axes that shrink: differences of the interpolated integral."""
    means = values_DHW.numpy()
    for axis, size in enumerate(shape_DHW):
        if size >= (count := means.shape[axis]):
            continue
        edges = np.linspace(0.0, count, size + 1)

        def along(line: NDArray[np.float64], edges: NDArray[np.float64] = edges) -> NDArray[np.float64]:
            integral = np.concatenate(([0.0], np.cumsum(line)))
            return np.diff(np.interp(edges, np.arange(len(integral)), integral)) / np.diff(edges)

        means = np.apply_along_axis(along, axis, means)
    return torch.from_numpy(means)


def _read_features(case: Case) -> NDArray[np.float64]:
    with case.radiomics.open(newline="", encoding="utf-8") as stream:
        (row,) = csv.DictReader(stream)
    return np.array([float(row[name]) if row[name].strip() else np.nan for name in FEATURE_NAMES])


def _scale_features(raw_R: NDArray[np.float64], scaler: Path) -> NDArray[np.float32]:
    """(x - centre) / half_width, clipped; missing values and constant features become 0."""
    fitted = json.loads(scaler.read_text(encoding="utf-8"))
    values = np.zeros(len(raw_R))
    for i, (x, centre, half) in enumerate(zip(raw_R, fitted["centre"], fitted["half_width"], strict=True)):
        if half > 0 and np.isfinite(x):
            v = (x - centre) / half
            limit = 1.0 if fitted["scaling"] == "minmax" else float(np.finfo(np.float32).max)
            values[i] = min(max(v, -limit), limit)
    return values.astype(np.float32)


def _tokenize(text: str, tokenizer: Path, config: Config) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids and attention mask [2,T] of the text and of a short text, which forces padding."""
    backend = Backend.from_file(str(tokenizer))
    longest = config.clinical.max_length
    backend.enable_truncation(longest)
    backend.enable_padding(length=longest if config.clinical.pad_to_max else None)
    rows = backend.encode_batch([text, SHORT_TEXT])
    return np.array([row.ids for row in rows], dtype=np.int64), np.array(
        [row.attention_mask for row in rows], dtype=np.int64
    )
