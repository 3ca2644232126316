"""Augmentation of training CTs: a sampler of parameters, and a deterministic function that applies them. D H W voxels.

    geometry:   rotation in the axial plane about its centre, then a shift, resampled linearly by MONAI with border
                padding
    intensity:  v = middle + (1 + scale) * (v - middle) + offset * width, then Gaussian noise with standard deviation
                noise * width

The parameters depend on (seed, fold, epoch, case id) alone, not on the order or the number of processes. They are saved
in the fold's augmentation.csv. Radiomics and text are those of the original image.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from tmi.toolkit.config.schema import AugmentationConfig
from tmi.toolkit.storage.atomic_files import write_text
from tmi.toolkit.storage.csv_files import csv_text


@dataclass(frozen=True, kw_only=True)
class AugmentationParams:
    """Augmentation parameters of one CT in one epoch."""

    shift_d: float
    """Shift towards higher indices along D, in voxels."""
    shift_h: float
    """Shift along H, in voxels."""
    shift_w: float
    """Shift along W, in voxels."""
    rotation_degrees: float
    """Rotation in the axial plane, in degrees."""
    scale: float
    """Relative change of contrast."""
    offset: float
    """Change of brightness, as a fraction of the window's width."""
    noise: float
    """Standard deviation of the noise, as a fraction of the window's width."""
    noise_seed: int
    """Seed of the noise."""


def sample_augmentation(
    config: AugmentationConfig, *, seed: int, fold: int, epoch: int, case_id: str
) -> AugmentationParams:
    """Sample the augmentation parameters of a case in an epoch."""
    name = int.from_bytes(hashlib.sha256(case_id.encode()).digest()[:8], "big")
    random = np.random.default_rng((seed, fold, epoch, name))

    def symmetric(bound: float) -> float:
        return float(random.uniform(-bound, bound))

    # the order of the calls determines the sampled values
    d, h, w = (symmetric(bound) for bound in config.shift_voxels_DHW)
    return AugmentationParams(
        shift_d=d,
        shift_h=h,
        shift_w=w,
        rotation_degrees=symmetric(config.rotation_degrees),
        scale=symmetric(config.scale),
        offset=symmetric(config.offset),
        noise=float(random.uniform(0, config.noise)),
        noise_seed=int(random.integers(2**31)),
    )


def apply_augmentation(
    ct_1DHW: Float[np.ndarray, "1 D H W"], params: AugmentationParams, *, window: tuple[float, float]
) -> Float[np.ndarray, "1 D H W"]:
    """Apply the parameters to a CT; returns float32, bit-identical for the same parameters.

    Args:
        ct_1DHW: prepared CT.
        params: augmentation parameters.
        window: intensities of the ends of the CT window after scaling; the result is clipped to them.
    """
    augmented = _warp(ct_1DHW, params)
    low, high = window
    width, middle = high - low, (low + high) / 2
    augmented = middle + (1 + params.scale) * (augmented - middle) + params.offset * width
    if params.noise:
        noise = np.random.default_rng(params.noise_seed).standard_normal(augmented.shape, dtype=np.float32)
        augmented = augmented + params.noise * width * noise
    return np.clip(augmented, low, high).astype(np.float32)


def _warp(ct_1DHW: Float[np.ndarray, "1 D H W"], params: AugmentationParams) -> Float[np.ndarray, "1 D H W"]:
    shift = (params.shift_d, params.shift_h, params.shift_w)
    if not any((*shift, params.rotation_degrees)):
        return ct_1DHW
    from monai.transforms.spatial.array import Affine

    # MONAI transforms the sampling grid, so the image moves the opposite way
    warp = Affine(
        rotate_params=(math.radians(-params.rotation_degrees), 0.0, 0.0),
        translate_params=tuple(-s for s in shift),
        mode="bilinear",
        padding_mode="border",
        image_only=True,
    )
    warped: np.ndarray = warp(torch.from_numpy(np.ascontiguousarray(ct_1DHW))).numpy()
    return warped


def write_augmentation_log(path: Path, rows: Iterable[tuple[int, str, AugmentationParams]]) -> None:
    """Write the applied parameters as CSV: epoch, case id, parameters."""
    header = ("epoch", "case_id", *AugmentationParams.__dataclass_fields__)
    lines = ((epoch, case_id, *asdict(params).values()) for epoch, case_id, params in rows)
    write_text(path, csv_text(header, lines))
