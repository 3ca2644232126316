"""Slices of a CT and its map as small pictures inside a page: WebP in `data:` URIs, nothing is fetched.

Each plane has evenly spaced slices and the one through the liver's centre. A slice is two pictures: the CT in a
soft-tissue window with the liver's outline and the physical aspect ratio, and the map with an opacity that grows with
its value. The map is smooth, and therefore stored at low resolution.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from tmi.runtime.explanation.overlay import BAR_MM, OUTLINE, Picture, grey, map_colours, save_montage
from tmi.toolkit.imaging.volume import PLANES, Plane

BUDGET_BYTES = 4_000_000
"""Size limit of all slices of a page, base64 included; with the rest the page stays below 5 MB."""
LEVELS = ((400, 48, 70), (360, 36, 60), (300, 28, 50), (240, 20, 40), (160, 12, 30))
"""Longest side in pixels, slices per plane, WebP quality; the first level within the budget is used."""
MAP_PIXELS = 112
"""Longest side of the map's picture in pixels."""


@dataclass(frozen=True, kw_only=True)
class PlaneSlices:
    """Slices of one plane."""

    name: str
    """`axial`, `coronal` or `sagittal`."""
    marks: tuple[str, str, str, str]
    """Orientation marks at the left, right, top and bottom."""
    width: int
    """Width of a picture in pixels."""
    height: int
    """Height of a picture in pixels."""
    bar_percent: float
    """Width of the scale bar in percent of the picture's."""
    bar_mm: int
    """Length of the scale bar in mm."""
    slices: tuple[dict[str, Any], ...]
    """Slices, each with `number` (from 1), `ct` and `map`."""
    of: int
    """Number of slices of the CT in this plane."""
    start: int
    """Position in `slices` of the slice through the centre."""


def page_slices(picture: Picture, centre_DHW: tuple[int, int, int]) -> tuple[PlaneSlices, ...]:
    """Slices of the three planes, at the finest level within the budget."""
    planes: tuple[PlaneSlices, ...] = ()
    for pixels, count, quality in LEVELS:
        planes = tuple(
            _plane(picture, plane, centre_DHW[plane.axis], pixels=pixels, count=count, quality=quality)
            for plane in PLANES
        )
        if sum(len(s["ct"]) + len(s["map"]) for plane in planes for s in plane.slices) <= BUDGET_BYTES:
            break
    return planes


def montage(picture: Picture, centre_DHW: tuple[int, int, int]) -> str:
    """The three planes through the centre with colour bar, as one picture for print and without scripts."""
    png = io.BytesIO()
    save_montage([picture], centre_DHW, png)
    return data_uri(Image.open(png).convert("RGB"), quality=80)


def data_uri(image: Image.Image, *, quality: int) -> str:
    """The image as a `data:` URI."""
    out = io.BytesIO()
    image.save(out, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()


def _plane(picture: Picture, plane: Plane, centre: int, *, pixels: int, count: int, quality: int) -> PlaneSlices:
    of = picture.ct.array_DHW.shape[plane.axis]
    chosen = sorted({round(float(i)) for i in np.linspace(0, of - 1, min(count, of))} | {centre})
    rows, columns = (n for axis, n in enumerate(picture.ct.array_DHW.shape) if axis != plane.axis)
    pixel_height, pixel_width = plane.pixel_mm(picture.ct)
    height_mm, width_mm = rows * pixel_height, columns * pixel_width
    scale = pixels / max(height_mm, width_mm)
    size = (max(1, round(width_mm * scale)), max(1, round(height_mm * scale)))
    bar = BAR_MM if width_mm > 2 * BAR_MM else 10.0
    return PlaneSlices(
        name=plane.name,
        marks=plane.marks,
        width=size[0],
        height=size[1],
        bar_percent=round(100.0 * bar / width_mm, 2),
        bar_mm=round(bar),
        slices=tuple(
            {
                "number": index + 1,
                "ct": data_uri(_ct(picture, plane, index, size), quality=quality),
                "map": data_uri(_map(picture, plane, index, size), quality=quality),
            }
            for index in chosen
        ),
        of=of,
        start=chosen.index(centre),
    )


def _ct(picture: Picture, plane: Plane, index: int, size: tuple[int, int]) -> Image.Image:
    shades = Image.fromarray(np.ascontiguousarray(grey(plane.picture(picture.ct.array_DHW, index))))
    image = shades.resize(size, Image.Resampling.BILINEAR).convert("RGB")
    if picture.liver_DHW is None:
        return image
    mask = np.ascontiguousarray(plane.picture(picture.liver_DHW, index)).astype(np.uint8) * 255
    inside: NDArray[np.bool_] = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.BILINEAR)) > 127
    edge = inside & ~ndimage.binary_erosion(inside, iterations=2, border_value=1)
    pixels = np.array(image)
    pixels[edge] = [int(OUTLINE[i : i + 2], 16) for i in (1, 3, 5)]
    return Image.fromarray(pixels)


def _map(picture: Picture, plane: Plane, index: int, size: tuple[int, int]) -> Image.Image:
    colours = (map_colours()(np.asarray(plane.picture(picture.map_DHW, index), dtype=np.float64)) * 255).astype(
        np.uint8
    )
    small = [max(1, round(n * MAP_PIXELS / max(size))) for n in size]
    return Image.fromarray(colours).resize((small[0], small[1]), Image.Resampling.BILINEAR)
