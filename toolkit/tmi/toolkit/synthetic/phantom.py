"""Abdominal CT phantom: sampled parameters (`Body`, `DiseaseSigns`, `Grid`) and a deterministic renderer.

World frame: millimetres, x to the patient's right, y to the front, z to the head, origin in the mid-abdomen. Arrays are
[X,Y,Z] in this frame (NIfTI's RAS order, not the tensors' D,H,W); values are in Hounsfield units. The shapes are
ellipsoids and tubes with plausible sizes and attenuations in the portal-venous phase. The phantom does not model a
real patient.

Anatomical signs of the signals of `tmi.toolkit.synthetic.generative_model`, each standardised to unit variance:

- liver: surface nodules, coarse texture, lower attenuation and lower volume of the liver;
- portal: spleen, varices next to it, and ascites; all far enough from the liver not to affect its features;
- deposit: attenuation of dense deposits in the liver, always above 170 HU. A CT window that ends at 130 HU maps all of
  them to the same value, so the network's CT input does not depend on this signal, while the radiomics do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

AIR, LUNG, FAT, MUSCLE, WATER, BONE, MARROW, VESSEL = -1000.0, -850.0, -100.0, 55.0, 8.0, 480.0, 190.0, 165.0
"""Attenuations in HU."""
DEPOSIT_FLOOR_HU = 170.0
"""Lower bound of the deposits' attenuation, above the network's CT window."""
LABELS = {"air": 0, "fat": 1, "muscle": 2, "bone": 3, "lung": 4, "bowel": 5, "liver": 6, "spleen": 7, "vessel": 8,
          "kidney": 9, "ascites": 10, "deposit": 11}  # fmt: skip
"""Tissue -> code in the tissue map."""


@dataclass(frozen=True, kw_only=True)
class Body:
    """Build of a patient, independent of the severity."""

    half_width_mm: float
    """Half axis of the body's ellipse from left to right."""
    half_depth_mm: float
    """Half axis from back to front."""
    fat_mm: float
    """Thickness of the subcutaneous fat."""
    muscle_mm: float
    """Thickness of the abdominal wall's muscle."""
    liver_scale: float
    """Linear size of the liver, 1 for about 1.4 litres."""
    spleen_scale: float
    """Linear size of the spleen before disease, 1 for about 0.2 litres."""
    enhancement_hu: float
    """Offset of all enhanced organs, from the timing of the contrast agent."""


@dataclass(frozen=True, kw_only=True)
class DiseaseSigns:
    """Visible signs of a case's disease, determined by its signals."""

    liver_hu: float
    """Mean attenuation of the liver tissue."""
    nodule_mm: float
    """Amplitude of the surface nodules."""
    texture_hu: float
    """Amplitude of the coarse texture."""
    liver_shrink: float
    """Linear factor on the liver's size."""
    spleen_growth: float
    """Linear factor on the spleen's size."""
    varix_mm: float
    """Radius of the varices next to the spleen; 0 for none."""
    ascites_mm: float
    """Depth of the fluid in the left flank; 0 for none."""
    deposit_hu: float
    """Median excess of the deposits over `DEPOSIT_FLOOR_HU`."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Voxel grid, noise and deposit density of a scan."""

    shape_XYZ: tuple[int, int, int]
    """Number of voxels."""
    spacing_XYZ_mm: tuple[float, float, float]
    """Voxel spacing."""
    noise_hu: float
    """Standard deviation of the noise."""
    deposit_part: float
    """Fraction of the liver's voxels with a deposit."""


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """A rendered phantom."""

    hu_XYZ: NDArray[np.int16]
    """CT."""
    liver_XYZ: BoolArray
    """Liver mask: tissue, vessels and deposits."""
    tissue_XYZ: NDArray[np.uint8]
    """Tissue code of each voxel, see `LABELS`."""


def sample_body(rng: np.random.Generator, *, female: bool, bmi: float) -> Body:
    """Sample a patient's build; fat increases with the body mass index (kg/m2)."""
    fat = float(np.clip(2.0 + 1.1 * (bmi - 18.0) + (4.0 if female else 0.0) + rng.normal(0, 2), 4.0, 32.0))
    inner_width = 132.0 + 0.8 * (bmi - 24.0) + (0.0 if female else 5.0) + rng.normal(0, 3)
    return Body(
        half_width_mm=float(np.clip(inner_width + fat, 132.0, 176.0)),
        half_depth_mm=float(np.clip(0.70 * inner_width + 0.8 * fat, 94.0, 132.0)),
        fat_mm=fat,
        muscle_mm=float(rng.uniform(9.0, 14.0)),
        liver_scale=float(np.clip(rng.normal(1.0, 0.035), 0.92, 1.08)),
        spleen_scale=float(np.clip(rng.normal(1.0, 0.05), 0.88, 1.12)),
        enhancement_hu=float(np.clip(rng.normal(0.0, 4.0), -9.0, 9.0)),
    )


def sample_grid(rng: np.random.Generator, body: Body) -> Grid:
    """Sample a square matrix that covers the body, with 5.5 to 7.5 mm between slices; coarse, to keep cases fast."""
    field_mm = 2.06 * body.half_width_mm
    n = int(rng.choice([n for n in (64, 72, 80, 88, 96) if 3.7 <= field_mm / n <= 4.6]))
    pixel = math.ceil(20.0 * field_mm / n) / 20.0
    between = float(rng.choice([5.5, 6.0, 6.5, 7.0, 7.5]))
    return Grid(
        shape_XYZ=(n, n, math.ceil(218.0 / between)),
        spacing_XYZ_mm=(pixel, pixel, between),
        noise_hu=float(rng.uniform(8.0, 15.0)),
        deposit_part=float(rng.uniform(0.015, 0.025)),
    )


def disease_signs(*, liver: float, portal: float, deposit: float) -> DiseaseSigns:
    """Return the signs of three standardised signals; bounded, and monotone in each signal."""
    liver, portal, deposit = (float(np.clip(v, -3.0, 3.0)) for v in (liver, portal, deposit))
    return DiseaseSigns(
        liver_hu=98.0 - 8.0 * liver,
        nodule_mm=3.0 * math.exp(0.35 * liver),
        texture_hu=7.0 * math.exp(0.30 * liver),
        liver_shrink=1.0 - 0.015 * liver,
        spleen_growth=1.12 * math.exp(0.20 * portal),
        varix_mm=max(0.0, 4.5 + 2.0 * portal),
        ascites_mm=max(0.0, 12.0 * (portal - 0.3)),
        deposit_hu=140.0 * math.exp(0.35 * deposit),
    )


def render(body: Body, signs: DiseaseSigns, grid: Grid, *, seed: np.random.SeedSequence) -> Phantom:
    """Render the phantom; the same arguments give the same voxels."""
    # independent streams: anatomy, tissue texture, scanner noise, deposits
    streams = [np.random.default_rng(s) for s in seed.spawn(4)]
    x, y, z = world_coordinates(grid)
    tissue, liver, distance = _paint(body, signs, grid, (x, y, z), streams[0])
    organ = body.enhancement_hu
    # attenuation by tissue code, in the order of LABELS
    table = np.array(
        [AIR, FAT, MUSCLE, BONE, LUNG, 30.0, signs.liver_hu + organ, 118.0 + organ, VESSEL + organ, 150.0 + organ,
         WATER, 0.0]
    )  # fmt: skip
    hu = table[tissue]
    for name, amplitude_hu, sigma_mm in (("liver", signs.texture_hu, 7.0), ("fat", 8.0, 9.0), ("bowel", 25.0, 10.0)):
        inside = tissue == LABELS[name]
        hu[inside] += amplitude_hu * smooth_noise(grid, sigma_mm, streams[1])[inside]
    marrow = (tissue == LABELS["bone"]) & (distance < -5.0)
    hu[marrow] = MARROW
    hu = blurred(hu, grid, 0.45 * grid.spacing_XYZ_mm[0])
    hu += grid.noise_hu * smooth_noise(grid, 0.4 * grid.spacing_XYZ_mm[0], streams[2])
    _add_deposits(hu, tissue, liver, signs, grid, streams[3])
    rounded = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
    return Phantom(hu_XYZ=rounded, liver_XYZ=liver, tissue_XYZ=tissue)


def world_coordinates(grid: Grid) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return broadcastable x, y, z of the voxel centres in mm; the grid's centre is (0, 0, 0)."""
    axes: list[FloatArray] = [
        (np.arange(n, dtype=np.float64) - (n - 1) / 2) * spacing
        for n, spacing in zip(grid.shape_XYZ, grid.spacing_XYZ_mm, strict=True)
    ]
    return axes[0][:, None, None], axes[1][None, :, None], axes[2][None, None, :]


def _add_deposits(
    hu: FloatArray,
    tissue: NDArray[np.uint8],
    liver: BoolArray,
    signs: DiseaseSigns,
    grid: Grid,
    rng: np.random.Generator,
) -> None:
    """Set single voxels of the liver to dense deposits, in place.

    Deposits are added after blur and noise, which would otherwise lower some of them below `DEPOSIT_FLOOR_HU`.
    """
    inside = np.flatnonzero(liver)
    chosen = rng.choice(inside, size=max(1, round(grid.deposit_part * inside.size)), replace=False)
    hu.ravel()[chosen] = DEPOSIT_FLOOR_HU + signs.deposit_hu * rng.uniform(0.6, 1.4, chosen.size)
    tissue.ravel()[chosen] = LABELS["deposit"]


def _paint(
    body: Body,
    signs: DiseaseSigns,
    grid: Grid,
    world: tuple[FloatArray, FloatArray, FloatArray],
    rng: np.random.Generator,
) -> tuple[NDArray[np.uint8], BoolArray, FloatArray]:
    """Return the tissue map, the liver mask and the signed distance to the spine.

    Tissues are painted in order; later ones overwrite earlier ones.
    """
    x, y, z = world
    tissue = np.zeros(grid.shape_XYZ, dtype=np.uint8)

    def paint(name: str, where: BoolArray) -> None:
        tissue[np.broadcast_to(where, tissue.shape)] = LABELS[name]

    width, depth = body.half_width_mm, body.half_depth_mm
    wall_w, wall_d = width - body.fat_mm, depth - 0.8 * body.fat_mm
    inner_w, inner_d = wall_w - body.muscle_mm, wall_d - body.muscle_mm
    # a half axis of 1e6 mm makes the ellipsoid a cylinder along z
    inner = ellipsoid(x, y, z, (0, 0, 0), (inner_w, inner_d, 1e6))
    paint("fat", ellipsoid(x, y, z, (0, 0, 0), (width, depth, 1e6)) < 0)
    wall = ellipsoid(x, y, z, (0, 0, 0), (wall_w, wall_d, 1e6))
    paint("muscle", wall < 0)
    ribs = (np.abs(wall + 6.0) < 4.5) & (np.mod(z - 0.35 * y, 26.0) < 9.0) & (z > -70) & (y < 0.8 * wall_d)
    paint("bone", ribs & (np.abs(x) > 35))
    paint("fat", inner < 0)
    gut = smooth_noise(grid, 14.0, rng)
    paint("bowel", (inner < -6) & (gut > 0.35) & (z < 30) & (y > -25))
    dome = np.maximum(*(76.0 + 0.06 * top - 0.006 * ((x - top) ** 2 + (y - 5) ** 2) for top in (60, -60)))
    paint("lung", (inner < 0) & (z > dome))
    paint("kidney", np.minimum(*(ellipsoid(x, y, z, (side * 62, -38, -45), (24, 20, 48)) for side in (1, -1))) < 0)
    for name, where in _portal_signs(body, signs, inner, dome, world):
        paint(name, where)
    spine_y = -inner_d + 14.0
    spine = np.minimum(
        ellipsoid(x, y, z, (0, spine_y, 0), (21, 17, 1e6)), ellipsoid(x, y, z, (0, spine_y - 24, 0), (9, 16, 1e6))
    )
    paint("muscle", np.minimum(*(ellipsoid(x, y, z, (s * 38, spine_y - 8, 0), (20, 19, 1e6)) for s in (1, -1))) < 0)
    gap = np.mod(z, 34.0) < 5.0
    paint("bone", (spine < 0) & ~gap)
    paint("muscle", (spine < 0) & gap)
    paint("vessel", ellipsoid(x, y, z, (-12, spine_y + 28, 0), (10, 10, 1e6)) < 0)
    paint("vessel", ellipsoid(x, y, z, (20, spine_y + 27, 0), (12, 9, 1e6)) < 0)
    liver = _liver(body, signs, grid, inner, world, rng)
    paint("liver", liver)
    for start, end, radius in _vessel_tree(body, rng):
        paint("vessel", liver & (tube(x, y, z, start, end) < radius))
    return tissue, liver, np.broadcast_to(spine, tissue.shape)


def _portal_signs(
    body: Body,
    signs: DiseaseSigns,
    inner: FloatArray,
    dome: FloatArray,
    world: tuple[FloatArray, FloatArray, FloatArray],
) -> list[tuple[str, BoolArray]]:
    """Return the tissues that depend on the portal signal (spleen, varices, ascites), all at x < -62 mm."""
    x, y, z = world
    a = body.spleen_scale * signs.spleen_growth
    half_x = min(25.0 * a, 0.5 * (inner_edge(body) - 60.0))
    centre = (half_x - inner_edge(body), -25.0, 28.0 - 14.0 * (a - 1.0))
    fluid = (inner < 0) & (inner > -signs.ascites_mm) & (x < -62) & (z < 40) & (signs.ascites_mm > 0)
    spleen = (ellipsoid(x, y, z, centre, (half_x, 40 * a, 50 * a)) < 0) & (inner < -2) & (x < -62) & (z < dome)
    tissues = [("ascites", fluid), ("spleen", spleen)]
    for k in range(3):
        vessel = tube(x, y, z, (-68, -8 + 9 * k, 50 - 10 * k), (-78, -2 + 9 * k, -40)) < signs.varix_mm
        tissues.append(("vessel", vessel & (x < -62)))
    return tissues


def inner_edge(body: Body) -> float:
    """Return the half width of the abdominal cavity in mm."""
    return body.half_width_mm - body.fat_mm - body.muscle_mm


def _liver(
    body: Body,
    signs: DiseaseSigns,
    grid: Grid,
    inner: FloatArray,
    world: tuple[FloatArray, FloatArray, FloatArray],
    rng: np.random.Generator,
) -> BoolArray:
    """Return two lobes under the right dome with a nodular surface, inside the wall and apart from spine and left."""
    x, y, z = world
    s = body.liver_scale * signs.liver_shrink
    edge = inner_edge(body)
    right = ellipsoid(x, y, z, (edge - 70 * s, 2, 8), (74 * s, 76 * s, 78 * s))
    left = ellipsoid(x, y, z, (16, 38, 38), (38 * s, 36 * s, 36 * s))
    surface = np.minimum(right, left) + signs.nodule_mm * smooth_noise(grid, 7.5, rng)
    cut = z + 0.55 * x + 4.0  # the oblique lower edge, deepest on the right
    porta = ellipsoid(x, y, z, (8, -50, -10), (38, 42, 1e6))
    return np.broadcast_to((surface < 0) & (inner < -3) & (cut > 0) & (porta > 0) & (x > -20), grid.shape_XYZ)


def _vessel_tree(
    body: Body, rng: np.random.Generator
) -> list[tuple[tuple[float, float, float], tuple[float, float, float], float]]:
    """Return portal trunk and branches from the hilum, then three hepatic veins: start, end, radius in mm."""
    edge = inner_edge(body)
    hilum, dome = (34.0, 0.0, -8.0), (30.0, -12.0, 68.0)
    tree = [((10.0, -5.0, -30.0), hilum, 7.0)]
    for aim in ((edge - 45, 25, -15), (edge - 45, -30, 5), (edge - 65, 40, 30), (5, 42, 36)):
        end = tuple(float(c + rng.normal(0, 7)) for c in aim)
        tree.append((hilum, (end[0], end[1], end[2]), float(rng.uniform(3.5, 5.0))))
    for aim in ((edge - 30, -10, 10), (edge - 60, 30, 15), (10, 40, 40)):
        end = tuple(float(c + rng.normal(0, 7)) for c in aim)
        tree.append((dome, (end[0], end[1], end[2]), float(rng.uniform(3.0, 4.5))))
    return tree


def ellipsoid(
    x: FloatArray,
    y: FloatArray,
    z: FloatArray,
    centre: tuple[float, float, float],
    half_axes_mm: tuple[float, float, float],
) -> FloatArray:
    """Return the approximate signed distance in mm to an ellipsoid: (r - 1) * smallest half axis; negative inside."""
    r = np.sqrt(
        ((x - centre[0]) / half_axes_mm[0]) ** 2
        + ((y - centre[1]) / half_axes_mm[1]) ** 2
        + ((z - centre[2]) / half_axes_mm[2]) ** 2
    )
    return np.asarray((r - 1.0) * min(half_axes_mm))


def tube(
    x: FloatArray,
    y: FloatArray,
    z: FloatArray,
    start: tuple[float, float, float],
    end: tuple[float, float, float],
) -> FloatArray:
    """Return the distance in mm to the line segment from `start` to `end`."""
    d = [e - s for s, e in zip(start, end, strict=True)]
    along = ((x - start[0]) * d[0] + (y - start[1]) * d[1] + (z - start[2]) * d[2]) / sum(v * v for v in d)
    t = np.clip(along, 0.0, 1.0)  # projection onto the segment, 0 at start and 1 at end
    squares = [(c - s - t * v) ** 2 for c, s, v in zip((x, y, z), start, d, strict=True)]
    return np.asarray(np.sqrt(squares[0] + squares[1] + squares[2]))


def blurred(values_XYZ: FloatArray, grid: Grid, sigma_mm: float) -> FloatArray:
    """Apply a Gaussian blur of isotropic width in mm.

    The kernel is truncated at two voxels, so that tissues farther apart do not affect each other.
    """
    for axis, spacing in enumerate(grid.spacing_XYZ_mm):
        weights = np.exp(-0.5 * (np.arange(-2, 3) * spacing / sigma_mm) ** 2)
        weights /= weights.sum()
        n = values_XYZ.shape[axis]
        padded = np.pad(values_XYZ, [(2, 2) if a == axis else (0, 0) for a in range(3)], mode="edge")
        values_XYZ = sum(
            (w * padded.take(range(k, k + n), axis=axis) for k, w in enumerate(weights)),
            start=np.zeros_like(values_XYZ),
        )
    return values_XYZ


def smooth_noise(grid: Grid, sigma_mm: float, rng: np.random.Generator) -> FloatArray:
    """Return periodic Gaussian noise of zero mean and unit variance, smoothed with a Gaussian of `sigma_mm`."""
    white = np.fft.rfftn(rng.standard_normal(grid.shape_XYZ))
    field = np.fft.irfftn(white * _transfer(grid, sigma_mm), s=grid.shape_XYZ, axes=(0, 1, 2))
    return np.asarray((field - field.mean()) / field.std())


def _transfer(grid: Grid, sigma_mm: float) -> FloatArray:
    """Return the Gaussian's transfer function exp(-2 (pi sigma f)^2) at the frequencies of `rfftn`."""
    nx, ny, nz = grid.shape_XYZ
    sx, sy, sz = grid.spacing_XYZ_mm
    fx, fy, fz = np.fft.fftfreq(nx, sx), np.fft.fftfreq(ny, sy), np.fft.rfftfreq(nz, sz)
    square = fx[:, None, None] ** 2 + fy[None, :, None] ** 2 + fz[None, None, :] ** 2
    return np.asarray(np.exp(-2.0 * (math.pi * sigma_mm) ** 2 * square))
