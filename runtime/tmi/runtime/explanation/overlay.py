"""Pictures of a map on its CT in radiological convention, with orientation marks, scale bar and colour bar.

The patient's right is on the left. The CT is shown in a soft-tissue window (level 40, width 400 HU), the map in a
perceptually uniform colour map without its dark end. Its opacity is proportional to the value: the CT is unchanged
where the map is 0 and nearly so where the map is small.
Pixels have the physical aspect ratio of the voxels. Source of the axes: `tmi.toolkit.imaging.volume.PLANES`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Bool, Float
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tmi.toolkit.compute.third_party import library_call
from tmi.toolkit.imaging.volume import PLANES, Plane, Volume

WINDOW_HU = (-160.0, 240.0)
"""Lower and upper end of the CT window."""
COLOURS = "inferno"
"""Name of matplotlib's colour map."""
FIRST_COLOUR = 0.35
"""Part of the colour map that is left out at its dark end, which would darken the CT."""
OPACITY = 0.65
"""Opacity of the map's largest value."""
OUTLINE = "#35e0ff"
"""Colour of the liver's outline: light cyan, which is not in the colour map."""
BAR_MM = 50.0
"""Length of the scale bar."""
PICTURES_FIX = "check the case with `tmi check`; `tmi predict` needs no pictures"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Layers of a picture, all on the CT's canonical grid."""

    ct: Volume
    """CT in HU."""
    map_DHW: Float[np.ndarray, "D H W"]
    """Map, in [0, 1]."""
    liver_DHW: Bool[np.ndarray, "D H W"] | None
    """Liver mask; None if the case has none."""
    title: str
    """Title above the panels."""


def map_colours() -> ListedColormap:
    """Colour map whose opacity is proportional to the value."""
    table = colormaps[COLOURS](np.linspace(FIRST_COLOUR, 1.0, 256))
    table[:, 3] = OPACITY * np.linspace(0.0, 1.0, 256)
    return ListedColormap(table)


def legend_colours() -> ListedColormap:
    """The same colours as they look on a medium grey of the CT, for colour bars."""
    table = map_colours()(np.linspace(0.0, 1.0, 256))
    opacity = table[:, 3:]
    return ListedColormap(np.concatenate([opacity * table[:, :3] + (1 - opacity) * 0.5, np.ones_like(opacity)], axis=1))


def grey(plane: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Hounsfield units -> grey levels of the window, 0 to 255."""
    low, high = WINDOW_HU
    scaled = (np.asarray(plane, dtype=np.float32) - low) / (high - low)
    shades: NDArray[np.uint8] = (np.clip(scaled, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    return shades


def save_plane(picture: Picture, plane: Plane, index: int, path: Path, *, width_inch: float = 5.2) -> None:
    """Save one slice as a PNG with its colour bar."""
    height_mm, width_mm = _size_mm(picture.ct, plane)
    figure = _figure(width_inch, max(2.4, min(7.0, 0.78 * width_inch * height_mm / width_mm + 0.7)))
    axes = figure.add_subplot()
    draw_plane(axes, picture, plane, index)
    _colour_bar(figure, [axes])
    figure.suptitle(picture.title, fontsize=9, parse_math=False)
    _save(figure, path, dpi=110)


def save_montage(pictures: Sequence[Picture], at_DHW: tuple[int, int, int], path: Path | IO[bytes]) -> None:
    """Save the three planes through a voxel, one row for each picture (the fused model, the CT-only baseline)."""
    rows = len(pictures)
    figure = _figure(10.5, 3.9 * rows + 0.2)
    parts = figure.subfigures(rows, 1, squeeze=False)[:, 0]
    for part, picture in zip(parts, pictures, strict=True):
        axes = part.subplots(1, 3)
        for panel, plane in zip(axes, PLANES, strict=True):
            draw_plane(panel, picture, plane, at_DHW[plane.axis])
        _colour_bar(part, list(axes))
        part.suptitle(picture.title, fontsize=10, parse_math=False)
    _save(figure, path, dpi=90)


def draw_plane(axes: Any, picture: Picture, plane: Plane, index: int) -> None:
    """Draw one slice on matplotlib axes, in mm."""
    height_mm, width_mm = _size_mm(picture.ct, plane)
    extent = (0.0, width_mm, height_mm, 0.0)  # row 0 is at the top
    axes.imshow(
        grey(plane.picture(picture.ct.array_DHW, index)), cmap="gray", vmin=0, vmax=255, extent=extent, aspect="equal"
    )
    map_plane = np.asarray(plane.picture(picture.map_DHW, index), dtype=np.float32)
    axes.imshow(
        map_plane, cmap=map_colours(), vmin=0.0, vmax=1.0, extent=extent, aspect="equal", interpolation="bilinear"
    )
    if picture.liver_DHW is not None:
        liver = np.asarray(plane.picture(picture.liver_DHW, index), dtype=np.float32)
        if 0.0 < liver.mean() < 1.0:  # contour needs both values
            rows, columns = liver.shape
            y = (np.arange(rows) + 0.5) * height_mm / rows
            x = (np.arange(columns) + 0.5) * width_mm / columns
            axes.contour(x, y, liver, levels=[0.5], colors=[OUTLINE], linewidths=1.0)
    _marks(axes, plane, height_mm, width_mm)
    axes.set_title(f"{plane.name}, slice {index + 1} of {picture.ct.array_DHW.shape[plane.axis]}", fontsize=8)
    axes.set_axis_off()


def _marks(axes: Any, plane: Plane, height_mm: float, width_mm: float) -> None:
    style: dict[str, Any] = {
        "color": "white",
        "fontsize": 10,
        "fontweight": "bold",
        "bbox": {"facecolor": "black", "alpha": 0.6, "pad": 1.2, "edgecolor": "none"},
    }
    left, right, top, bottom = plane.marks
    axes.text(0.02 * width_mm, height_mm / 2, left, ha="left", va="center", **style)
    axes.text(0.98 * width_mm, height_mm / 2, right, ha="right", va="center", **style)
    axes.text(width_mm / 2, 0.02 * height_mm, top, ha="center", va="top", **style)
    axes.text(width_mm / 2, 0.98 * height_mm, bottom, ha="center", va="bottom", **style)
    bar = BAR_MM if width_mm > 2 * BAR_MM else 10.0
    x, y = 0.97 * width_mm, 0.93 * height_mm
    axes.plot([x - bar, x], [y, y], color="black", linewidth=4.5, solid_capstyle="butt")
    axes.plot([x - bar, x], [y, y], color="white", linewidth=2.5, solid_capstyle="butt")
    style["fontsize"] = 7
    axes.text(x - bar / 2, y - 0.015 * height_mm, f"{bar:.0f} mm", ha="center", va="bottom", **style)


def _size_mm(ct: Volume, plane: Plane) -> tuple[float, float]:
    rows, columns = (n for axis, n in enumerate(ct.array_DHW.shape) if axis != plane.axis)
    pixel_height, pixel_width = plane.pixel_mm(ct)
    return rows * pixel_height, columns * pixel_width


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, path: Path | IO[bytes], *, dpi: int) -> None:
    """Draw and save a figure; the case is rejected (`pictures-failed`) if matplotlib fails to draw it.

    Raises:
        OSError: the file cannot be written.
    """
    drawn = io.BytesIO()
    with library_call("matplotlib", code="pictures-failed", task="draw the pictures", fix=PICTURES_FIX):
        figure.savefig(drawn, dpi=dpi)
    if isinstance(path, Path):
        path.write_bytes(drawn.getvalue())
    else:
        path.write(drawn.getvalue())


def _colour_bar(figure: Any, axes: list[Any]) -> None:
    shades = ScalarMappable(norm=Normalize(0.0, 1.0), cmap=legend_colours())
    bar = figure.colorbar(shades, ax=axes, fraction=0.035, pad=0.02)
    bar.set_label("attention of the model, 0 to 1", fontsize=8)
    bar.ax.tick_params(labelsize=7)


def save_bars(values: Sequence[tuple[str, float]], path: Path, *, title: str) -> None:
    """Save signed attributions as horizontal bars, the largest at the top; the axis label names the directions."""
    figure = _figure(7.2, max(1.8, 0.26 * len(values) + 1.1))
    axes = figure.add_subplot()
    names = [name for name, _ in values][::-1]
    numbers = [value for _, value in values][::-1]
    axes.barh(range(len(values)), numbers, color=["#b3402a" if v > 0 else "#2c6fa8" for v in numbers])
    axes.set_yticks(range(len(values)), names, fontsize=7)
    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.set_xlabel("towards good  \u2190  change of the log-odds of bad  \u2192  towards bad", fontsize=8)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_title(title, fontsize=9, parse_math=False)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)  # a field of a clinical schema may contain a dollar sign
    _save(figure, path, dpi=100)
