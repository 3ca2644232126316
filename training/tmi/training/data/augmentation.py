"""Random changes of training CTs: a sampler, and a function that does what was sampled. D H W voxels.

    geometry:   rotation in the axial plane about its centre, then a shift, resampled linearly by MONAI; what comes in
                from outside is the border's value
    intensity:  v = middle + (1 + scale) * (v - middle) + offset * width, then noise of deviation noise * width

What is drawn follows from (seed, fold, epoch, case id), never from the order or the number of processes, and is
saved in the fold's augmentation.csv. Radiomics and text are not changed: they are the original image's.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from tmi.toolkit.config.schema import AugmentationConfig
from tmi.toolkit.storage.atomic_files import write_text


@dataclass(frozen=True, kw_only=True)
class AugmentationParams:
    """What is done to one CT in one epoch."""

    shift_d: float
    """Shift towards higher indices along D, in voxels."""
    shift_h: float
    """Along H."""
    shift_w: float
    """Along W."""
    rotation_degrees: float
    """Rotation in the axial plane."""
    scale: float
    """Relative change of contrast."""
    offset: float
    """Change of brightness, as a part of the window's width."""
    noise: float
    """Deviation of the noise, as a part of the window's width."""
    noise_seed: int
    """Seed of the noise."""


def sample_augmentation(
    config: AugmentationConfig, *, seed: int, fold: int, epoch: int, case_id: str
) -> AugmentationParams:
    """Draw the change of a case in an epoch."""
    name = int.from_bytes(hashlib.sha256(case_id.encode()).digest()[:8], "big")
    random = np.random.default_rng((seed, fold, epoch, name))

    def even(bound: float) -> float:
        return float(random.uniform(-bound, bound))

    d, h, w = (even(bound) for bound in config.shift_voxels_DHW)
    return AugmentationParams(
        shift_d=d,
        shift_h=h,
        shift_w=w,
        rotation_degrees=even(config.rotation_degrees),
        scale=even(config.scale),
        offset=even(config.offset),
        noise=float(random.uniform(0, config.noise)),
        noise_seed=int(random.integers(2**31)),
    )


def apply_augmentation(
    ct_1DHW: Float[np.ndarray, "1 D H W"], change: AugmentationParams, *, window: tuple[float, float]
) -> Float[np.ndarray, "1 D H W"]:
    """The changed CT, float32; the same change gives the same bits.

    Args:
        ct_1DHW: prepared CT.
        change: what to do.
        window: what the ends of the intensity window became; the result stays between them.
    """
    changed = _warp(ct_1DHW, change)
    low, high = window
    width, middle = high - low, (low + high) / 2
    changed = middle + (1 + change.scale) * (changed - middle) + change.offset * width
    if change.noise:
        noise = np.random.default_rng(change.noise_seed).standard_normal(changed.shape, dtype=np.float32)
        changed = changed + change.noise * width * noise
    return np.clip(changed, low, high).astype(np.float32)


def _warp(ct_1DHW: Float[np.ndarray, "1 D H W"], change: AugmentationParams) -> Float[np.ndarray, "1 D H W"]:
    shift = (change.shift_d, change.shift_h, change.shift_w)
    if not any((*shift, change.rotation_degrees)):
        return ct_1DHW
    from monai.transforms.spatial.array import Affine

    # MONAI moves the grid that is sampled, so the image moves the other way
    move = Affine(
        rotate_params=(math.radians(-change.rotation_degrees), 0.0, 0.0),
        translate_params=tuple(-s for s in shift),
        mode="bilinear",
        padding_mode="border",
        image_only=True,
    )
    moved: np.ndarray = move(torch.from_numpy(np.ascontiguousarray(ct_1DHW))).numpy()
    return moved


def write_augmentation_log(path: Path, rows: Iterable[tuple[int, str, AugmentationParams]]) -> None:
    """The table of what was done: epoch, case id, change."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("epoch", "case_id", *AugmentationParams.__dataclass_fields__))
    writer.writerows((epoch, case_id, *asdict(change).values()) for epoch, case_id, change in rows)
    write_text(path, text.getvalue())
